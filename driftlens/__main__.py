"""`python -m driftlens` is the `driftlens` command."""

import sys

from driftlens.commands.cli import script

if __name__ == "__main__":
    sys.exit(script())
