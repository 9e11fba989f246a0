"""Draw a table as in print: horizontal rules at the top, below the head and at the bottom, numbers aligned right."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from driftlens.plots.style import FAINT, FONT, INK, escaped, lines_of, placed, plain

__all__ = ["plot_table"]

_ROW, _HEAD = 28.0, 44.0
_RULE = "#8a93a0"


def plot_table(
    table: pd.DataFrame,
    *,
    title: str,
    note: str = "",
    left: int = 1,
    rules: Sequence[int] = (),
    bold: Sequence[tuple[int, int]] = (),
    html: Collection[str] = (),
) -> go.Figure:
    """Draw a table of texts; a column's name may contain line breaks.

    Args:
        table: the cells, as texts.
        title: the title of the figure.
        note: the line below the table.
        left: the number of columns aligned left; the others, usually numbers, are aligned right.
        rules: the rows above which a thin rule is drawn.
        bold: the cells (row, column) in bold.
        html: the columns whose cells are plotly's HTML, such as "W<sub>l</sub>"; all others are escaped.
    """
    columns = [str(column) for column in table.columns]
    texts = [[str(cell) for cell in table.iloc[:, at]] for at in range(len(columns))]
    widths = [
        28 + 7.4 * max(len(plain(part) if column in html else part) for part in [*cells, *column.split("\n")])
        for column, cells in zip(columns, texts, strict=True)
    ]
    margin, width = 14.0, max(sum(widths) + 28, 640)
    head_lines = lines_of(note.split(" · ") if note else [], int((width - 30) / 6.6))
    top = 62.0 + 18 * len(head_lines)
    inner = _HEAD + _ROW * len(table)
    figure = go.Figure()
    figure.update_layout(
        width=width,
        height=top + inner + 24,
        margin={"l": margin, "r": width - margin - sum(widths), "t": top, "b": 24},
        font={"family": FONT, "size": 14, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        title={
            "text": f"<b>{escaped(title)}</b>",
            "subtitle": {"text": "<br>".join(map(escaped, head_lines)), "font": {"size": 13, "color": FAINT}},
            "font": {"size": 18, "color": INK}, "x": 14 / width, "xanchor": "left", "yref": "container", "y": 1,
            "yanchor": "top", "pad": {"t": 18},
        },
        xaxis={"visible": False, "range": [0, sum(widths)], "fixedrange": True},
        yaxis={"visible": False, "range": [0, inner], "fixedrange": True},
    )  # fmt: skip
    # Without a trace plotly draws no axes to hang the rules on.
    figure.add_trace(
        go.Scatter(x=[0], y=[0], mode="markers", marker={"opacity": 0}, hoverinfo="skip", showlegend=False)
    )
    for height, weight in ((inner, 1.6), (inner - _HEAD, 1.0), (0.0, 1.6)):
        figure.add_hline(height, line={"color": INK, "width": weight})
    for row in rules:
        figure.add_hline(inner - _HEAD - _ROW * row, line={"color": _RULE, "width": 0.8})
    at, written = 0.0, list[dict[str, Any]]()
    for number, (column, cells, own) in enumerate(zip(columns, texts, widths, strict=True)):
        x = (at + 10 if number < left else at + own - 10) / sum(widths)
        anchor = "left" if number < left else "right"
        parts = column.split("\n")
        head = "<br>".join(f"<b>{escaped(part)}</b>" for part in parts)
        written.append(
            placed(head, x=x, y=(inner - _HEAD) / inner, anchor=anchor, up=12 if len(parts) == 1 else 4, ink=INK)
        )
        for row, cell in enumerate(cells):
            shown = cell if column in html else escaped(cell)
            text = f"<b>{shown}</b>" if (row, number) in bold else shown
            y = (inner - _HEAD - _ROW * (row + 1)) / inner
            written.append(placed(text, x=x, y=y, anchor=anchor, up=4, ink=INK))
        at += own
    figure.update_layout(annotations=written)  # one by one plotly would check all before it again
    return figure
