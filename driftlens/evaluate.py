"""`python -m driftlens.evaluate` is `driftlens evaluate`: see :mod:`driftlens.commands.evaluate`."""

import sys

from driftlens.commands.evaluate import main
from driftlens.options.program import run_command

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(run_command(main))
