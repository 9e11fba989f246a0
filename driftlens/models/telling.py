"""Report a download on stderr: a progress bar in a terminal, and permanent lines."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from driftlens.display.terminal import Terminal

__all__ = ["Told", "telling"]


class Told:
    """The bar and the lines of one download."""

    def __init__(self, console: Terminal, progress: Progress, task: TaskID) -> None:
        self._console = console
        self._progress = progress
        self._task = task

    def line(self, text: str) -> None:
        """Print a permanent line."""
        self._console.print(f"driftlens: {text}")

    def step(self, text: str) -> None:
        """Show a step of unknown length."""
        self._progress.reset(self._task, description=text, total=None)

    def bytes(self, text: str, done: int, total: int) -> None:
        """Show the number of bytes received in this step."""
        self._progress.update(self._task, description=text, completed=done, total=total)


@contextmanager
def telling() -> Generator[Told]:
    """Show a progress bar on stderr while the body runs; in a log, only the lines."""
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    from driftlens.display.terminal import standard_error

    console = standard_error()
    name = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), name, BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Told(console, progress, progress.add_task("ask the hub", total=None))
