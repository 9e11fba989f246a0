"""Print texts of data files in a terminal safely.

Prompts, targets, subjects and file names come from outside. If rich read them as markup, `[/]` would end the program
and `:rome:` would become a picture; the terminal would obey escape sequences. A :class:`Terminal` therefore reads no
markup and shows control characters as escapes. Bold or coloured text is made by :func:`styled`.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from typing_extensions import override

from driftlens.errors import visible
from driftlens.progress import OnDone

__all__ = [
    "Terminal",
    "progress_bars",
    "progress_line",
    "shown_warnings",
    "standard_error",
    "standard_output",
    "styled",
    "while_shown",
]


class Terminal(Console):
    """A console that prints every text literally, with control characters as escapes."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False, **settings: Any) -> None:
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False, **settings)

    @override
    def render_str(self, text: str, **settings: Any) -> Text:
        """Called for every text, whether it is printed alone, in a cell or as a title."""
        return super().render_str(visible(text), **settings)


def standard_output() -> Terminal:
    """The console for results; tables are as wide as the terminal."""
    return Terminal()


def standard_error() -> Terminal:
    """The console for notes, warnings and progress; lines are not wrapped."""
    return Terminal(stderr=True, soft_wrap=True)


def styled(text: str, style: str) -> Text:
    """The text in a style such as "bold red"; there is no other way to style a text."""
    return Text(visible(text), style=style)


@contextmanager
def shown_warnings(errors: Terminal) -> Generator[None]:
    """Show warnings as plain lines, without their place in the code."""
    with warnings.catch_warnings():

        def show(message: Warning | str, *_: object, **__: object) -> None:
            errors.print(f"driftlens: {message}")

        warnings.showwarning = show
        yield


def progress_bars(errors: Terminal) -> Progress:
    """Progress bars, shown in a terminal only, not in a log."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left", style="dim"),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )


def progress_line(bars: Progress, text: str) -> OnDone:
    """One more line; what it is called with moves it on."""
    line = bars.add_task(text, total=None)
    return lambda done, total: bars.update(line, completed=done, total=total or None)


@contextmanager
def while_shown(bars: Progress, text: str) -> Generator[OnDone]:
    """As :func:`progress_line`, and the line goes with the body."""
    line = bars.add_task(text, total=None)
    try:
        yield lambda done, total: bars.update(line, completed=done, total=total or None)
    finally:
        bars.remove_task(line)
