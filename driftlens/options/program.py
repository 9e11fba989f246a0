"""Run a command as a program, and turn exceptions into exit codes.

| outcome | exit code |
| --- | --- |
| the command returns a code | that code |
| a user's mistake, or a file or stream that the system refuses: one line | 2 |
| an interrupt: one line | 130 |
| the reader of the output is gone: no message | 141 |
| anything else, which is a bug: a traceback | 1 |
"""

import io
import os
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO

from driftlens.errors import DriftlensError, visible
from driftlens.files import reason_of

__all__ = ["interrupts_in_one_line", "run_command"]

_BAD_INPUT = 2
_INTERRUPTED = 128 + 2  # as a shell reports SIGINT
_PIPE_CLOSED = 128 + 13  # as a shell reports SIGPIPE


def run_command(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run `main` as a program and return the exit code; a user's mistake is one line on stderr, not a traceback."""
    try:
        with _plain_warnings():
            _prepare_streams()
            _require_text(sys.argv[1:] if argv is None else argv)
            code = main(argv)
            sys.stdout.flush()  # a reader that went away is noticed here, not in the interpreter's shutdown
    except DriftlensError as error:
        _say(str(error))
        return _BAD_INPUT
    except KeyboardInterrupt:
        _say("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        _discard(sys.stdout)
        return _PIPE_CLOSED
    except MemoryError:
        _say("out of memory; give a smaller model, fewer records or a smaller --batch-size")
        return _BAD_INPUT
    except OSError as error:
        # Most are caught earlier, with better advice; the rest also concern a file or a stream.
        what = f"cannot use {error.filename}" if error.filename else "the system refused to read or write"
        _say(str(DriftlensError(f"{what}: {reason_of(error)}")))
        _discard(sys.stdout)
        return _BAD_INPUT
    return code


def interrupts_in_one_line() -> None:
    """Make an uncaught interrupt print one line and exit with code 130.

    This covers the seconds of imports before :func:`run_command` when a module is run with `python -m`.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            before(kind, error, trace)
            return
        _say("interrupted")
        os._exit(_INTERRUPTED)  # Python would make it 1

    sys.excepthook = hook


def _say(line: str) -> None:
    """Print one line on stderr, which may be closed or full."""
    with suppress(OSError):
        sys.stderr.write(f"driftlens: {line}\n")
        sys.stderr.flush()


def _prepare_streams() -> None:
    """Make the standard streams accept whatever is printed.

    1. For a stream that was closed before the start, Python has None, and the next opened file would get its number.
       The null device replaces both.
    2. An ASCII or cp1252 terminal or pipe shows `?` for characters that it lacks, such as γ.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _require_text(arguments: Sequence[str]) -> None:
    """Check that arguments are text; other bytes arrive from the shell as halves of surrogate pairs."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise DriftlensError(f"the argument {argument!r} is not UTF-8; type it in a terminal that is") from None


def _discard(stream: IO[str]) -> None:
    """Discard buffered output, which would otherwise raise an error at the interpreter's shutdown."""
    with suppress(OSError):  # where it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _plain_warnings() -> Generator[None]:
    """Show warnings as plain lines, without their place in the code."""
    with warnings.catch_warnings():

        def show(message: Warning | str, *_: object, **__: object) -> None:
            _say(visible(" ".join(str(message).split())))

        warnings.showwarning = show
        yield
