"""The elements of a card: texts, pairs and tables, made by the macros of `elements.html`.

Plain text is escaped when it is inserted. Elements are `Markup`, which is inserted unchanged; a whole card is an
ordinary `str`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from driftlens.display.templates import Markup, macro

__all__ = ["card", "faint", "pairs", "probabilities", "row", "short", "table", "token"]

_ELEMENTS = "display/elements.html"


def card(kind: str, title: str, *parts: str) -> str:
    """A titled box around elements: the whole output of a cell."""
    return str(macro("card", _ELEMENTS)(kind, title, parts))


def pairs(items: Mapping[str, str]) -> Markup:
    """Names and values, one pair a line; empty values are left out."""
    return macro("pairs", _ELEMENTS)(items)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0) -> Markup:
    """A table whose last `numbers` columns are numbers."""
    return macro("table", _ELEMENTS)(head, rows, numbers)


def row(*parts: str) -> Markup:
    """Elements side by side, wrapped if they do not fit."""
    return macro("row", _ELEMENTS)(parts)


def faint(text: str) -> Markup:
    """A line in a fainter colour."""
    return macro("faint", _ELEMENTS)(text)


def short(text: str, most: int = 60) -> str:
    """The text, cut to at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def token(text: str) -> str:
    """A token as a label: outer blanks are stripped, and a token of blanks alone is shown as ␣."""
    return (text.strip() or text.replace(" ", "␣")).replace("\n", "⏎")


def probabilities(before: float, after: float) -> str:
    """The text "0.123 → 0.456" for a change of a probability."""
    return f"{before:.3f} → {after:.3f}"
