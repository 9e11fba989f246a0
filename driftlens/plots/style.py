"""The common look of all figures: colours, type and the layout of panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

__all__ = [
    "DIVERGING", "EDITED", "FAINT", "FONT", "INK", "PALETTE", "PAPER", "TRUE", "Frame", "escaped", "lines_of", "plain",
    "signed", "write",
]  # fmt: skip

TEMPLATE = "plotly_white"
FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
INK, FAINT = "#20242b", "#667080"
PAPER = "#fafbfc"
"""The background of curves and points; that of heatmaps is darker, to distinguish empty cells from those near zero."""
TRUE, EDITED = "#2f6fa8", "#b8352e"
"""o_true and o_edit: the colours of rise and fall below; in grey, their lightness and dashes differ."""
PALETTE = ("#2f6fa8", "#d98032", "#5d7f3c", "#7a5195")
"""Colours of categories, such as groups, editors and panels."""
DIVERGING = [
    (0.0, "#7f1d1d"),
    (0.12, "#b8352e"),
    (0.28, "#e07f5f"),
    (0.42, "#f6d3c1"),
    (0.5, "#fbfaf8"),
    (0.58, "#c9dcec"),
    (0.72, "#76a9d0"),
    (0.88, "#2f6fa8"),
    (1.0, "#12365f"),
]
"""Red for a falling probability, blue for a rising one. The middle is almost white; both ends are equally dark."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The layout of panels in pixels, so that cells and type keep their size for any number of panels."""

    columns: int
    rows: int
    panel_width: float
    panel_height: float
    left: float
    right: float = 118
    top: float = 138
    bottom: float = 84
    between_columns: float = 28
    between_rows: float = 104
    size: float = 13
    """The size of the type in pixels; larger in a wide figure, which a page scales down."""
    shared: bool = True
    """Zooming in one panel zooms in all."""
    background: str = "#eceef1"

    @property
    def inner_width(self) -> float:
        """Of all panels with what is between them."""
        return self.columns * self.panel_width + (self.columns - 1) * self.between_columns

    @property
    def inner_height(self) -> float:
        """Of all panels with what is between them."""
        return self.rows * self.panel_height + (self.rows - 1) * self.between_rows

    def figure(self) -> go.Figure:
        """Empty panels; every row names its layers, since the first may be far from the last."""
        shared: Any = "all" if self.shared else False
        figure = make_subplots(
            rows=self.rows,
            cols=self.columns,
            shared_xaxes=shared,
            shared_yaxes=shared,
            horizontal_spacing=self.between_columns / self.inner_width,
            vertical_spacing=self.between_rows / self.inner_height if self.rows > 1 else 0.0,
        )
        figure.update_xaxes(showgrid=False, zeroline=False, showticklabels=True)
        return figure.update_yaxes(showgrid=False, zeroline=False)

    def vertical(self, figure: go.Figure, row: int) -> tuple[float, float]:
        """Bottom and top of a row of panels, as shares of the inner height."""
        return _domain(figure, "yaxis", (row - 1) * self.columns + 1)

    def horizontal(self, figure: go.Figure, column: int) -> tuple[float, float]:
        """Left and right of a column of panels, as shares of the inner width."""
        return _domain(figure, "xaxis", column)

    def head(
        self, figure: go.Figure, row: int, column: int, text: str, *, up: float = 5, anchor: str = "bottom"
    ) -> None:
        """A panel's heading, above its middle; its bottom (or top) is `up` pixels above the panel."""
        middle = sum(self.horizontal(figure, column)) / 2
        top = self.vertical(figure, row)[1]
        write(figure, text, x=middle, y=top, anchor="center", up=up, ink=INK, vertical=anchor, size=self.size)

    def style(self, figure: go.Figure, title: str, parts: Sequence[str]) -> None:
        """Title, subtitle of `parts`, broken where the figure ends, and the look that all figures share."""
        width = max(self.left + self.inner_width + self.right, 640)
        larger = self.size / 13
        lines = lines_of(parts, int((width - 30) / (6.6 * larger)))
        head = wrap(title, int((width - 30) / (9.6 * larger))) or [""]
        top = self.top + 18 * larger * (len(lines) - 1) + 24 * larger * (len(head) - 1)
        figure.update_layout(
            template=TEMPLATE,
            title={
                "text": "<br>".join(f"<b>{escaped(line)}</b>" for line in head),
                "subtitle": {"text": "<br>".join(map(escaped, lines)), "font": {"size": self.size, "color": FAINT}},
                "font": {"size": 18 * larger, "color": INK},
                "x": 14 / width,
                "xanchor": "left",
                "yref": "container",
                "y": 1,
                "yanchor": "top",
                "pad": {"t": 18},
            },
            font={"family": FONT, "size": self.size, "color": INK},
            width=width,
            height=top + self.inner_height + self.bottom,
            # What the smallest figure has too much goes to the right of the panels.
            margin={"l": self.left, "r": width - self.left - self.inner_width, "t": top, "b": self.bottom},
            hoverlabel={"align": "left", "font": {"size": 13, "family": FONT}},
            plot_bgcolor=self.background,
        )


def placed(
    text: str,
    *,
    x: float,
    y: float,
    anchor: str,
    up: float,
    right: float = 0,
    ink: str = FAINT,
    angle: float = 0,
    vertical: str = "bottom",
    size: float = 13,
) -> dict[str, Any]:
    """Return an annotation `up` and `right` pixels from a position given in shares of the inner width and height."""
    return {
        "text": text, "x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": anchor,
        "yanchor": "middle" if angle else vertical, "align": anchor, "showarrow": False, "xshift": right, "yshift": up,
        "font": {"size": size, "color": ink}, "textangle": angle,
    }  # fmt: skip


def write(figure: go.Figure, text: str, **place: Any) -> None:
    """Add the annotation that :func:`placed` returns."""
    figure.add_annotation(**placed(text, **place))


def signed(value: float, digits: int) -> str:
    """Format a number with its sign and a typographic minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def escaped(text: str) -> str:
    """Escape a label, which plotly reads as HTML, and strip the outer blanks of tokens."""
    visible = text.strip() or text.replace("\n", "⏎").replace(" ", "␣")
    return visible.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "⏎")


def plain(label: str) -> str:
    """A label without its HTML tags, for measuring its length."""
    for tag in ("<b>", "</b>", "<i>", "</i>", "<sub>", "</sub>"):
        label = label.replace(tag, "")
    return label


def lines_of(parts: Sequence[str], width: int) -> list[str]:
    """Join the parts with dots into lines, which break only between parts."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return lines


def _domain(figure: go.Figure, axis: str, number: int) -> tuple[float, float]:
    low, high = figure.layout[f"{axis}{'' if number == 1 else number}"].domain
    return float(low), float(high)
