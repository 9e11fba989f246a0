"""`python -m driftlens.trace` is `driftlens trace`: see :mod:`driftlens.commands.trace`."""

import sys

from driftlens.commands.trace import main
from driftlens.options.program import run_command

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(run_command(main))
