"""What commands write, to files and to the terminal, in the way that all of them do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from driftlens.files import atomic_path, writable_folder

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["output_folder", "progress_bars", "shown_warnings", "write_together"]


def write_together(
    folder: Path, files: Mapping[str, bytes | Callable[[Path], None]], *, stale: Sequence[str] = ()
) -> list[Path]:
    """Write all files under temporary names; only when every one is whole do they take their own.

    `stale` are names that an earlier run may have left: where this run has no such file, that one goes.
    """
    with ExitStack() as stack:
        for name, content in files.items():
            temporary = stack.enter_context(atomic_path(folder / name))
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                content(temporary)
    for name in stale:
        if name not in files:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in files]


@contextmanager
def output_folder(path: str) -> Generator[Path]:
    """The folder, proved writable; one that was made for nothing goes away again."""
    there = Path(path).exists()
    folder = writable_folder(path)
    try:
        yield folder
    except BaseException:
        if not there and not any(folder.iterdir()):
            folder.rmdir()
        raise


@contextmanager
def shown_warnings(errors: Console) -> Generator[None]:
    """Warnings as plain lines: where in the code they come from is no news to the person at the keyboard."""
    with warnings.catch_warnings():

        def show(message: Warning | str, *_: object, **__: object) -> None:
            errors.print(f"driftlens: {message}", markup=False)

        warnings.showwarning = show
        yield


def progress_bars(errors: Console) -> Progress:
    """Progress for somebody who watches: in a log, what counts are the lines on standard output and errors."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
