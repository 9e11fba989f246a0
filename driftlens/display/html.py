"""The elements of a card: escaped text, pairs, tables. Colours are the page's own, so dark themes stay dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

__all__ = ["card", "escape", "faint", "pairs", "plain", "probabilities", "row", "short", "table", "token"]

_STYLE = (
    "<style>"
    ".driftlens{color:inherit;font:13px/1.5 system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;"
    "max-width:70em;border-left:3px solid #3d86c6;padding:2px 0 2px 12px;margin:4px 0}"
    ".driftlens b.title{font-size:15px}"
    ".driftlens table{border-collapse:collapse;margin:6px 0;background:none;color:inherit;font-size:13px}"
    ".driftlens th,.driftlens td{padding:1px 14px 1px 0;text-align:left;vertical-align:top;background:none;"
    "border:0;font-weight:normal;color:inherit;white-space:normal}"
    ".driftlens th{opacity:.65}"
    ".driftlens .n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    ".driftlens .faint{opacity:.65}"
    ".driftlens .row{display:flex;flex-wrap:wrap;gap:4px 20px;align-items:flex-end}"
    ".driftlens svg{max-width:100%}"
    "</style>"
)


def card(kind: str, title: str, *parts: str) -> str:
    """A titled box; `title` is plain text, the parts are HTML."""
    heading = f'<b class="title">{escape(title)}</b> <span class="faint">{escape(kind)}</span>'
    return f'{_STYLE}<div class="driftlens"><div>{heading}</div>{"".join(parts)}</div>'


def plain(*parts: str) -> str:
    """Parts in a card's type, without its title and its line."""
    return f'{_STYLE}<div class="driftlens" style="border:0">{"".join(parts)}</div>'


def pairs(items: Mapping[str, str]) -> str:
    """Names and values, both plain text, a line each; empty values are left out."""
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in items.items() if value)
    return f"<table>{''.join(lines)}</table>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0) -> str:
    """A table of plain text whose last `numbers` columns are numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        first = len(cells) - numbers
        kinds = ("" if at < first else ' class="n"' for at in range(len(cells)))
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))

    body = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in rows)
    return f"<table><thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def row(*parts: str) -> str:
    """Parts side by side, as far as there is room."""
    return f'<div class="row">{"".join(parts)}</div>'


def faint(text: str) -> str:
    """A line of plain text that steps back."""
    return f'<div class="faint">{escape(text)}</div>'


def short(text: str, most: int = 60) -> str:
    """The text, or its beginning."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def token(text: str) -> str:
    """A token as a label: blanks at its ends are no news, one of blanks alone is drawn."""
    return (text.strip() or text.replace(" ", "␣")).replace("\n", "⏎")


def probabilities(before: float, after: float) -> str:
    """From one probability to another."""
    return f"{before:.3f} → {after:.3f}"
