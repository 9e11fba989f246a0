"""What is printed in a terminal, so that no text of a data file is taken for an instruction.

Prompts, targets, subjects and file names are other people's. Printed as they are, `[/]` ends the program (rich reads it
as markup), `:rome:` becomes a picture, and an escape sequence is obeyed by the terminal. So a :class:`Terminal` reads
no markup at all, and shows control characters written out; what is to be bold is a :func:`styled` text.
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

__all__ = ["Terminal", "progress_bars", "shown_warnings", "standard_error", "standard_output", "styled"]


class Terminal(Console):
    """A console that shows every text as it is, and control characters written out."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False, **settings: Any) -> None:
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False, **settings)

    @override
    def render_str(self, text: str, **settings: Any) -> Text:
        """Every text comes through here: printed alone, as a cell, or as a title."""
        return super().render_str(visible(text), **settings)


def standard_output() -> Terminal:
    """For what a command found: tables as wide as the terminal."""
    return Terminal()


def standard_error() -> Terminal:
    """For notes, warnings and progress: each a line, however long."""
    return Terminal(stderr=True, soft_wrap=True)


def styled(text: str, style: str) -> Text:
    """The text in a style, such as "bold red"; the only way to have one."""
    return Text(visible(text), style=style)


@contextmanager
def shown_warnings(errors: Terminal) -> Generator[None]:
    """Warnings as plain lines: where in the code they come from is no news to the person at the keyboard."""
    with warnings.catch_warnings():

        def show(message: Warning | str, *_: object, **__: object) -> None:
            errors.print(f"driftlens: {message}")

        warnings.showwarning = show
        yield


def progress_bars(errors: Terminal) -> Progress:
    """Progress for somebody who watches: in a log, what counts are the lines on standard output and errors."""
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
