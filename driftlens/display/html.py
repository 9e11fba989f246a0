"""The elements of a card: text, pairs, tables, put together by the macros of `elements.html`.

Plain text is escaped where it is put in. Parts are `Markup`, which goes into one another as it is; a whole card is an
ordinary `str`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from driftlens.display.templates import Markup, macro

__all__ = ["card", "faint", "pairs", "probabilities", "row", "short", "table", "token"]

_ELEMENTS = "display/elements.html"


def card(kind: str, title: str, *parts: str) -> str:
    """A titled box around parts, such as the other functions of this module make: all of what a cell shows."""
    return str(macro("card", _ELEMENTS)(kind, title, parts))


def pairs(items: Mapping[str, str]) -> Markup:
    """Names and values, a line each; empty values are left out."""
    return macro("pairs", _ELEMENTS)(items)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0) -> Markup:
    """A table whose last `numbers` columns are numbers."""
    return macro("table", _ELEMENTS)(head, rows, numbers)


def row(*parts: str) -> Markup:
    """Parts side by side, as far as there is room."""
    return macro("row", _ELEMENTS)(parts)


def faint(text: str) -> Markup:
    """A line that steps back."""
    return macro("faint", _ELEMENTS)(text)


def short(text: str, most: int = 60) -> str:
    """The text, or its beginning."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def token(text: str) -> str:
    """A token as a label: blanks at its ends are no news, one of blanks alone is drawn."""
    return (text.strip() or text.replace(" ", "␣")).replace("\n", "⏎")


def probabilities(before: float, after: float) -> str:
    """From one probability to another."""
    return f"{before:.3f} → {after:.3f}"
