"""Running a command as a program: the one place that turns exceptions into exit codes."""

import os
import sys
from collections.abc import Callable, Sequence

from driftlens.errors import DriftlensError

__all__ = ["run_command"]

_BAD_INPUT = 2
_INTERRUPTED = 128 + 2  # as a shell reports SIGINT
_PIPE_CLOSED = 128 + 13  # as a shell reports SIGPIPE


def run_command(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run `main` as a program: the exit code, and a user's mistake as one line on stderr, not a traceback."""
    try:
        code = main(argv)
        sys.stdout.flush()  # a reader that went away is noticed here, not in the interpreter's shutdown
    except DriftlensError as error:
        sys.stderr.write(f"driftlens: {error}\n")
        return _BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("driftlens: interrupted\n")
        return _INTERRUPTED
    except BrokenPipeError:
        # What is still buffered must go somewhere, or the shutdown complains about the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    return code
