"""Running a command as a program: the one place that turns exceptions into exit codes.

| what came out | exit code |
| --- | --- |
| the command's own code | that |
| a mistake in what was given, or a file or stream that the system refuses: one line | 2 |
| an interrupt: one line | 130 |
| whoever read the output went away: nothing is said | 141 |
| anything else is our own fault: a traceback | 1 |
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
    """Run `main` as a program: the exit code, and a user's mistake as one line on stderr, not a traceback."""
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
        # Most are told with better advice where they arise; what is left is a file or a stream all the same.
        what = f"cannot use {error.filename}" if error.filename else "the system refused to read or write"
        _say(str(DriftlensError(f"{what}: {reason_of(error)}")))
        _discard(sys.stdout)
        return _BAD_INPUT
    return code


def interrupts_in_one_line() -> None:
    """From now on an interrupt that nobody catches is one line and exit code 130.

    For `python -m` of a module that imports for seconds before :func:`run_command` is reached.
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
    """One line on stderr, which may itself be closed or full."""
    with suppress(OSError):
        sys.stderr.write(f"driftlens: {line}\n")
        sys.stderr.flush()


def _prepare_streams() -> None:
    """Streams that take whatever is printed.

    1. Where a stream was closed before the start, Python has None in its place, and its number would go to the next
       file that is opened. The null device takes both.
    2. A terminal or a pipe that is ASCII or cp1252 shows `?` in place of what it cannot, such as γ.
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
    """Arguments that are text; bytes that are not come from the shell as halves of surrogate pairs."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise DriftlensError(f"the argument {argument!r} is not UTF-8; type it in a terminal that is") from None


def _discard(stream: IO[str]) -> None:
    """What is still buffered must go somewhere, or the interpreter's shutdown complains about the closed stream."""
    with suppress(OSError):  # where it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _plain_warnings() -> Generator[None]:
    """A warning is a line; where in the code it comes from is no news to the person at the keyboard."""
    with warnings.catch_warnings():

        def show(message: Warning | str, *_: object, **__: object) -> None:
            _say(visible(" ".join(str(message).split())))

        warnings.showwarning = show
        yield
