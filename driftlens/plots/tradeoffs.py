"""Plot one measure against another or against a setting, with a line for each series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from driftlens.plots.style import FAINT, INK, PALETTE, PAPER, Frame, escaped

__all__ = ["plot_tradeoffs"]

_GRID = "#e4e8ed"
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up")
_REFERENCES = ("star", "cross", "x")


def plot_tradeoffs(
    table: pd.DataFrame,
    *,
    axes: Mapping[str, tuple[str, str]],
    title: str,
    note: str = "",
    log_x: bool = False,
    up: Sequence[str] = (),
) -> go.Figure:
    """Draw a panel for each entry of ``axes``, with a line for each series through its points in their order.

    Args:
        table: a row per point: ``panel, series, x, y, text``; ``text`` is shown on hover.  A series of one point is a
            black mark without a line.  With columns ``low, high``, each point has an error bar between the two.
        axes: for each panel, the titles of its x and y axes.
        title: the title of the figure.
        note: the line below the title.
        log_x: whether the x axis is logarithmic.
        up: the series whose points show their text in the figure too.
    """
    frame = Frame(
        columns=len(axes), rows=1, panel_width=380, panel_height=300, left=70, right=30, top=114, bottom=112,
        between_columns=84, background=PAPER, shared=False,
    )  # fmt: skip
    figure = frame.figure()
    names = list(dict.fromkeys(table["series"]))
    lines = [name for name in names if _longest(table, name) > 1]
    marks = [name for name in names if name not in lines]
    for column, (panel, (x_title, y_title)) in enumerate(axes.items(), 1):
        of_panel: Any = table[table["panel"] == panel]
        for name in names:
            points = of_panel[of_panel["series"] == name]
            if len(points):
                style = _line(lines.index(name)) if name in lines else _mark(marks.index(name))
                trace = _trace(points, name, style, labelled=name in up)
                figure.add_trace(trace.update(showlegend=column == 1), 1, column)
        frame.head(figure, 1, column, f"<b>{escaped(panel)}</b>")
        figure.update_xaxes(title_text=x_title, row=1, col=column)
        figure.update_yaxes(title_text=y_title, row=1, col=column)
    figure.update_xaxes(
        type="log" if log_x else "linear", showgrid=not log_x, gridcolor=_GRID, ticks="outside", ticklen=4,
        tickcolor="#c3c9d2", title_standoff=8, title_font={"size": 13, "color": INK},
    )  # fmt: skip
    if log_x:
        values = sorted({float(x) for x in table["x"]})
        figure.update_xaxes(tickvals=values, ticktext=[f"{value:g}" for value in values])
    figure.update_yaxes(showgrid=True, gridcolor=_GRID, title_standoff=8, title_font={"size": 13, "color": INK})
    frame.style(figure, title, note.split(" · ") if note else [])
    figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": -58 / frame.inner_height, "yanchor": "top", "font": {"color": INK}}
    )
    return figure


def _longest(table: pd.DataFrame, name: str) -> int:
    panels = [str(panel) for panel, series in zip(table["panel"], table["series"], strict=True) if series == name]
    return max(map(panels.count, panels))


def _line(at: int) -> dict[str, Any]:
    colour = PALETTE[at % len(PALETTE)]
    shape = at + at // len(PALETTE)  # where the colours begin again, they come with other dashes and marks
    return {
        "mode": "lines+markers",
        "line": {"color": colour, "width": 2.2, "dash": _DASHES[shape % len(_DASHES)]},
        "marker": {"size": 8, "color": colour, "symbol": _SYMBOLS[shape % len(_SYMBOLS)]},
    }


def _mark(at: int) -> dict[str, Any]:
    symbol = _REFERENCES[at % len(_REFERENCES)]
    return {"mode": "markers", "marker": {"size": 13 if symbol == "star" else 10, "color": INK, "symbol": symbol}}


def _trace(points: Any, name: str, style: dict[str, Any], *, labelled: bool) -> go.Scatter:
    bars = {}
    if {"low", "high"} <= set(points.columns):
        bars["error_y"] = {
            "type": "data", "symmetric": False, "array": points["high"] - points["y"],
            "arrayminus": points["y"] - points["low"], "color": style["marker"]["color"], "thickness": 1, "width": 3,
        }  # fmt: skip
    if labelled:
        style = {**style, "mode": f"{style['mode']}+text"}
        bars |= {
            "text": [escaped(str(text)) for text in points["text"]],
            "textposition": "top center",
            "textfont": {"size": 12, "color": FAINT},
        }
    return go.Scatter(
        x=points["x"],
        y=points["y"],
        name=escaped(name),
        customdata=[[escaped(str(text))] for text in points["text"]],
        hovertemplate="%{customdata[0]}<br>(%{x:.4g}, <b>%{y:.2f}</b>)<extra>" + escaped(name) + "</extra>",
        **style,
        **bars,
    )
