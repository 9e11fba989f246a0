"""`python -m driftlens.edit`: the edit clinic at the command line; see `driftlens.commands.edit`."""

import sys

from driftlens.commands.edit import main

__all__ = ["main"]

if __name__ == "__main__":
    from driftlens.cli import run_command

    sys.exit(run_command(main))
