"""`python -m driftlens.profile` is `driftlens profile`: see :mod:`driftlens.commands.profile`."""

import sys

from driftlens.commands.profile import main
from driftlens.options.program import run_command

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(run_command(main))
