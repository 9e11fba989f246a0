"""`python -m driftlens.profile`: where time and memory go on this machine, and what a full run would take."""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command `python -m driftlens.profile`."""
    from driftlens.commands.profile import main as command

    return command(argv)


if __name__ == "__main__":
    from driftlens.cli import run_command

    sys.exit(run_command(main))
