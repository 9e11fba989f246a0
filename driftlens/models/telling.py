"""What a download says on stderr: a progress bar for somebody who watches, and a line that stays."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["Told", "telling"]


class Told:
    """The bar and the lines of one download."""

    def __init__(self, console: Console, progress: Progress, task: TaskID) -> None:
        self._console = console
        self._progress = progress
        self._task = task

    def line(self, text: str) -> None:
        """A line that stays."""
        self._console.print(f"driftlens: {text}", markup=False, soft_wrap=True)

    def step(self, text: str) -> None:
        """A step whose length is unknown."""
        self._progress.reset(self._task, description=text, total=None)

    def bytes(self, text: str, done: int, total: int) -> None:
        """How many of the step's bytes are here."""
        self._progress.update(self._task, description=text, completed=done, total=total)


@contextmanager
def telling() -> Generator[Told]:
    """A bar on stderr while the body runs; in a log, only the lines."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Told(console, progress, progress.add_task("ask the hub", total=None))
