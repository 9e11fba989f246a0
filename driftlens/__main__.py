"""`python -m driftlens` is the `driftlens` command."""

import sys

from driftlens.cli import script

if __name__ == "__main__":
    sys.exit(script())
