"""`python -m driftlens.evaluate` is `driftlens evaluate`: :mod:`driftlens.commands.evaluate`.

To be run, not imported: `driftlens.evaluate` is the function.
"""

import sys

from driftlens.cli import run_command
from driftlens.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(run_command(main))
