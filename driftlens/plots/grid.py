"""Heatmaps on one colour scale: rows of panels with their labels, ticks and colour bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from driftlens.plots.style import DIVERGING, INK, Frame, plain, signed, write

__all__ = ["Row", "grid"]

WIDEST = 1240
"""Pixels available to a figure on a page 1,280 wide."""
NARROWEST_CELL = 8
"""The least width of a cell in pixels; panels that would need narrower cells are placed below one another."""
FLOOR = 0.1
"""The smallest limit of a colour scale, so that a change of ±0.01 does not look like one of ±0.9."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Panels side by side: the heading and cells (`row, layer, effect, hover`) of each, and the colour bar's title."""

    panels: Sequence[tuple[str, pd.DataFrame]]
    unit: str
    head: str


def grid(
    rows: Sequence[Row],
    labels: Sequence[str],
    *,
    axis: str,
    edited_layers: Sequence[int],
    title: str,
    parts: Sequence[str],
) -> go.Figure:
    """Draw rows of panels on one colour scale, with `labels` at the left and layers below.

    `axis` is the title of the layers' axis, to which the edited layers are added; `parts` are the subtitle.
    """
    layers: list[int] = sorted({int(layer) for row in rows for _, cells in row.panels for layer in set(cells["layer"])})
    rows, frame = _placed(rows, labels, len(layers))
    figure = frame.figure()
    largest = _round_above(
        max(abs(float(effect)) for row in rows for _, cells in row.panels for effect in cells["effect"])
    )
    for number, row in enumerate(rows, 1):
        top = frame.vertical(figure, number)[1]
        for column, (heading, cells) in enumerate(row.panels, 1):
            figure.add_trace(_heatmap(cells, len(labels), layers, f"coloraxis{number}"), number, column)
            frame.head(figure, number, column, f"<b>{heading}</b>" if heading else "")
        _add_scale(figure, frame, number, largest, row.unit)
        if row.head:
            write(figure, row.head, x=0, y=top, anchor="left", up=17 + frame.size, size=frame.size)
    step = next(step for step in (1, 2, 3, 5, 10, 20) if step * frame.panel_width / len(layers) > 1.7 * frame.size)
    ticks = [layer for layer in layers if _ticked(layer, step, edited_layers)]
    names = [f"<b>{layer}</b><br>edit" if layer in edited_layers else str(layer) for layer in ticks]
    figure.update_xaxes(tickvals=ticks, ticktext=names, ticks="outside", ticklen=4, tickcolor="#c3c9d2", tickangle=0)
    figure.update_yaxes(tickvals=list(range(len(labels))), ticktext=list(labels), autorange="reversed")
    # Transparent ticks keep the labels off the panels.
    figure.update_yaxes(ticks="outside", ticklen=6, tickcolor="rgba(0,0,0,0)")
    below = (64 if edited_layers else 50) * frame.size / 13
    write(figure, axis, x=0.5, y=0, anchor="center", up=-below, ink=INK, size=frame.size)
    marked = "* the edited subject" if any("*" in label for label in labels) else ""
    frame.style(figure, title, [part for part in (*parts, marked) if part])
    return figure


def _placed(rows: Sequence[Row], labels: Sequence[str], n_layers: int) -> tuple[Sequence[Row], Frame]:
    """Fit the rows and their frame to the page: cells shrink, then panels are placed below one another."""
    columns = len(rows[0].panels)
    longest = max(len(plain(label)) for label in labels)
    wanted = max(210.0, 20.0 * n_layers)

    def frame(columns: int, size: float) -> Frame:
        larger = size / 13
        left, right, between = 20 + 7.3 * larger * longest, 118 * larger, 28.0
        room = (WIDEST - left - right - between * (columns - 1)) / columns
        return Frame(
            columns=columns,
            rows=sum(len(row.panels) for row in rows) // columns,
            panel_width=min(wanted, room),
            panel_height=max(140.0, 23.0 * larger * len(labels)),
            left=left,
            right=right,
            top=(138 if any(row.head for row in rows) else 114) * larger,
            bottom=84 * larger,
            between_columns=between,
            between_rows=104 * larger,
            size=size,
        )

    beside = frame(columns, 13)
    if beside.panel_width < wanted:
        beside = frame(columns, 16)
    if columns == 1 or beside.panel_width >= min(wanted, NARROWEST_CELL * n_layers):
        return rows, beside
    alone = [
        replace(row, panels=[panel], head=row.head if panel is row.panels[0] else "")
        for row in rows
        for panel in row.panels
    ]
    return alone, frame(1, 16)


def _round_above(largest: float) -> float:
    """Round up to a scale's end whose half is a round number too: 0.1, 0.2, 0.4, 0.6, 0.8, 1 and so on."""
    scale = 10.0 ** math.floor(math.log10(max(largest, FLOOR)))
    # Rounding must not push a largest effect of exactly 1 to the next step.
    return next(step * scale for step in (1, 2, 4, 6, 8, 10) if step * scale >= max(largest, FLOOR) - 1e-9)


def _heatmap(cells: Any, n_rows: int, layers: Sequence[int], scale: str) -> go.Heatmap:
    z = np.full((n_rows, len(layers)), np.nan)
    hover = np.full(z.shape, "", dtype=object)
    at = cells["row"].to_numpy(dtype=int), cells["layer"].map(list(layers).index).to_numpy(dtype=int)
    z[at], hover[at] = cells["effect"].to_numpy(dtype=float), cells["hover"].to_numpy()
    return go.Heatmap(
        z=z,
        x=list(layers),
        y=list(range(n_rows)),
        coloraxis=scale,
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        xgap=1,
        ygap=1,
    )


def _add_scale(figure: go.Figure, frame: Frame, row: int, largest: float, title: str) -> None:
    """Add a colour bar, symmetric around zero, beside the row's panels, with its title above."""
    bottom, top = frame.vertical(figure, row)
    length = min(top - bottom, 360 / frame.inner_height)  # beside a long prompt it stays with the top of the panels
    digits = 2 if round(5 * largest, 9) % 1 else 1
    ticks = [share * largest for share in (-1, -0.5, 0, 0.5, 1)]
    bar = {
        "tickvals": ticks,
        "ticktext": [signed(tick, digits) if tick else "0" for tick in ticks],
        "thickness": 14,
        "len": length,
        "y": top - length / 2,
        "x": 1.0,
        "xpad": 14,
        "ypad": 0,
        "outlinewidth": 0,
    }
    scale = {"colorscale": DIVERGING, "cmin": -largest, "cmax": largest, "colorbar": bar}
    figure.update_layout({f"coloraxis{row}": scale})
    write(figure, title, x=1, y=top, anchor="left", up=5, right=14, ink=INK, size=frame.size)


def _ticked(layer: int, step: int, edited: Sequence[int]) -> bool:
    # A label close to an edited layer's would run into it.
    return layer in edited or (layer % step == 0 and all(abs(layer - other) > step // 2 for other in edited))
