"""Heatmaps and small curves as inline SVG, in the page's own text colour on a transparent background.

Drawings consist of thousands of shapes with computed positions, so they are not made by templates.  Their few texts are
escaped here.  A drawing is `Markup`, which cards and pages insert unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from math import isfinite

from driftlens.display.html import short
from driftlens.display.templates import Markup

__all__ = ["FALL", "RISE", "curves", "heatmap", "sparkline"]

FALL, RISE = "#d1493f", "#3d86c6"
"""Colours of a falling and a rising probability: those of driftlens's figures, brighter for dark backgrounds."""

_HEIGHT, _CHARACTER = 17, 7.4  # pixels; a character of the widest usual system font, in bold


def heatmap(
    values: Sequence[Sequence[float]],
    labels: Sequence[str],
    *,
    limit: float,
    heading: str = "",
    axis: str = "layer",
    columns: Sequence[int] = (),
    bold_rows: Collection[int] = (),
    bold_columns: Collection[int] = (),
    first_column: int = 0,
) -> Markup:
    """Rows × columns of values around zero, in full colour at ± `limit`, with exact values on hover.

    `bold_rows` and `bold_columns` are the labels to emphasise (the edited subject, the edited layers).
    """
    n_columns = max(map(len, values), default=0)
    names = list(columns) or list(range(first_column, first_column + n_columns))
    width = max(9.0, min(22.0, 260 / max(n_columns, 1)))
    labels = [short(label, 26) for label in labels]
    left = 10 + _CHARACTER * max(map(len, labels), default=0)
    top = 22 if heading else 4
    right, bottom = left + width * n_columns, top + _HEIGHT * len(labels)
    parts: list[str] = []
    if heading:
        parts.append(_text(left, 13, heading, weight="bold"))
    for at, label in enumerate(labels):
        weight = "bold" if at in bold_rows else "normal"
        parts.append(_text(left - 6, top + _HEIGHT * (at + 0.72), label, anchor="end", weight=weight))
    for at, line in enumerate(values):
        for column, value in enumerate(line):
            if abs(value) >= limit / 500:  # an empty cell needs no element; of those a large model has thousands
                place = left + width * column, top + _HEIGHT * at
                parts.append(_cell(*place, width, value, limit, labels[at], names[column]))
    every = max(1, -(-n_columns // 10))
    for column, name in enumerate(names):
        if name % every == 0 or name in bold_columns:
            weight = "bold" if name in bold_columns else "normal"
            place = left + width * (column + 0.5)
            parts.append(_text(place, bottom + 13, str(name), anchor="middle", weight=weight))
    parts.append(_text((left + right) / 2, bottom + 28, axis, anchor="middle", opacity=0.65))
    parts.append(f'<rect x="{left:g}" y="{top}" width="{right - left:g}" height="{bottom - top}" {_FRAME}/>')
    return _svg(max(right + 4, left + _CHARACTER * len(heading) + 8), bottom + 34, parts, label=heading or axis)


def sparkline(values: Sequence[float], *, heading: str, colour: str = RISE, digits: int = 3) -> Markup:
    """A curve without axes, with its first and its last value."""
    numbers = [value for value in values if isfinite(value)]
    if len(numbers) < 2:
        return Markup()
    ends = f"{heading} {numbers[0]:.{digits}f} → {numbers[-1]:.{digits}f}"
    low, high = min(numbers), max(numbers)
    across, up = 180 / (len(numbers) - 1), 30 / ((high - low) or 1.0)
    points = " ".join(f"{at * across:.1f},{52 - (value - low) * up:.1f}" for at, value in enumerate(numbers))
    line = f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
    return _svg(max(184, _CHARACTER * len(ends)), 56, [_text(0, 12, ends), line], label=ends)


def curves(lines: Sequence[tuple[str, str, Sequence[float]]], *, axis: str, dashed: Sequence[float] = ()) -> Markup:
    """Curves of probabilities, each as (name, colour, values), with a dashed horizontal line for each of `dashed`."""
    n = max(len(values) for _, _, values in lines)
    left, top, width, height = 34, 8, max(160.0, min(420.0, 34.0 * n)), 120

    def place(at: float, value: float) -> tuple[float, float]:
        return left + width * (at + 0.5) / n, top + height * (1 - value)

    parts = [f'<rect x="{left}" y="{top}" width="{width:g}" height="{height}" {_FRAME}/>']
    parts += [_text(left - 5, place(0, tick)[1] + 4, f"{tick:g}", anchor="end") for tick in (0, 0.5, 1)]
    for number, (name, colour, values) in enumerate(lines):
        if number < len(dashed):
            y = place(0, dashed[number])[1]
            stroke = f'stroke="{colour}" stroke-dasharray="4 3"'
            parts.append(f'<line x1="{left}" x2="{left + width:g}" y1="{y:.1f}" y2="{y:.1f}" {stroke}/>')
        points = [place(at, value) for at, value in enumerate(values)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for at, ((x, y), value) in enumerate(zip(points, values, strict=True)):
            title = f"<title>{escape(name)}, {escape(axis)} {at}: {value:.4f}</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}">{title}</circle>')
        parts.append(_text(left + width + 8, points[-1][1] + 4, name, weight="bold", colour=colour))
    every = max(1, -(-n // 12))
    for at in range(0, n, every):
        parts.append(_text(place(at, 0)[0], top + height + 14, str(at), anchor="middle"))
    parts.append(_text(left + width / 2, top + height + 30, axis, anchor="middle", opacity=0.65))
    longest = max(len(name) for name, _, _ in lines)
    return _svg(left + width + 16 + 7 * longest, top + height + 36, parts, label=axis)


_FRAME = 'fill="none" stroke="currentColor" stroke-opacity=".3"'


def _cell(x: float, y: float, width: float, value: float, limit: float, row: str, column: int) -> str:
    share = min(1.0, abs(value) / limit) if limit > 0 and isfinite(value) else 0.0
    fill = f'fill="{FALL if value < 0 else RISE}" fill-opacity="{share:.2f}"'
    title = f"<title>{escape(row)}, {column}: {value:+.4f}</title>"
    return f'<rect x="{x:.4g}" y="{y:g}" width="{width:.4g}" height="{_HEIGHT}" {fill}>{title}</rect>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    weight: str = "normal",
    colour: str = "currentColor",
    opacity: float = 1.0,
) -> str:
    looks = f'text-anchor="{anchor}" font-weight="{weight}" fill="{colour}" opacity="{opacity:g}"'
    return f'<text x="{x:.4g}" y="{y:.4g}" {looks}>{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], *, label: str) -> Markup:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    font = 'font-size="12" font-family="system-ui,Helvetica,Arial,sans-serif"'
    return Markup(f'<svg {size} {font} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>')
