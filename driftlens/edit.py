"""`python -m driftlens.edit` is `driftlens edit`: see :mod:`driftlens.commands.edit`."""

import sys

from driftlens.commands.edit import main
from driftlens.options.program import run_command

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(run_command(main))
