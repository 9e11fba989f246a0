"""Scatter plots of a drift factor against P(o_edit), with fitted lines (Figure 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from driftlens.plots.style import INK, PALETTE, PAPER, Frame, escaped, write
from driftlens.statistics.correlations import Correlation

__all__ = ["p_text", "plot_correlation"]

_GRID = "#e4e8ed"


def plot_correlation(
    points: pd.DataFrame,
    correlations: dict[tuple[str, str], Correlation],
    *,
    x: str,
    y: str,
    x_title: str,
    y_title: str,
    title: str = "",
    note: str = "",
) -> go.Figure:
    """Plot points with least-squares lines, a panel for each `panel` and a colour for each `group`.

    Args:
        points: has the columns `panel`, `group` and those named by `x` and `y`; an optional column `hover` is shown on
            hover.
        correlations: ρ and p by (panel, group), shown beside the line; group "" is the whole panel.
        x: the column on the horizontal axis.
        y: the column on the vertical axis.
        x_title: the title of the horizontal axis.
        y_title: the title of the vertical axis.
        title: the title of the figure.
        note: the line below the title.
    """
    panels = list(dict.fromkeys(points["panel"]))
    pairs: set[tuple[str, str]] = set(zip(points["panel"], points["group"].fillna(""), strict=True))
    most_groups = max(sum(of == panel for of, _ in pairs) for panel in panels)
    extra = 18 * most_groups if most_groups > 1 else 0
    frame = Frame(
        columns=len(panels), rows=1, panel_width=370, panel_height=300, left=64, right=24, top=132 + extra, bottom=66,
        between_columns=56, shared=False, background=PAPER,
    )  # fmt: skip
    figure = frame.figure()
    heads: list[str] = []
    for column, panel in enumerate(panels, 1):
        of_panel: Any = points[points["panel"] == panel]
        groups = list(dict.fromkeys(of_panel["group"].fillna("")))
        lines: list[str] = []
        for number, group in enumerate(groups):
            some = of_panel[of_panel["group"].fillna("") == group]
            colour = PALETTE[number % len(PALETTE)]
            _draw(figure, column, some[x].to_numpy(float), some[y].to_numpy(float), colour, some.get("hover"))
            found = correlations.get((panel, group))
            if found is not None:
                named = f"{group}: " if group else ""
                lines.append(f"<span style='color:{colour}'>{escaped(named + _rho(found))}</span>")
        if len(groups) > 1 and (panel, "") in correlations:
            _line(figure, column, of_panel[x].to_numpy(float), of_panel[y].to_numpy(float), INK, dash="dot")
            lines.append(escaped(f"pooled (dotted): {_rho(correlations[panel, ''])}"))
        heads.append("<br>".join([f"<b>{escaped(panel)}</b>", *lines]))
    most = max(head.count("<br>") for head in heads)
    for column, head in enumerate(heads, 1):
        frame.head(figure, 1, column, head, up=5 + 17 * (most + 1), anchor="top")
    figure.update_xaxes(showgrid=True, gridcolor=_GRID, rangemode="tozero", ticks="outside", ticklen=4)
    figure.update_xaxes(tickcolor="#c3c9d2")
    figure.update_yaxes(showgrid=True, gridcolor=_GRID, range=[-0.03, 1.03], dtick=0.2, tickformat=".1f")
    write(figure, x_title, x=0.5, y=0, anchor="center", up=-50, ink=INK)
    write(figure, y_title, x=0, y=0.5, anchor="center", up=0, right=-50, ink=INK, angle=-90)
    frame.style(figure, title, [note] if note else [])
    return figure


def p_text(p: float) -> str:
    """Format a p-value as the paper does."""
    if p < 1e-5:
        return "p < 1e-5"
    return f"p = {p:.1e}" if p < 1e-3 else f"p = {p:.3f}"


def _rho(found: Correlation) -> str:
    return f"ρ = {found.rho:.2f}".replace("-", "−") + f", {p_text(found.p)}"


def _draw(figure: go.Figure, column: int, x: np.ndarray, y: np.ndarray, colour: str, hover: Any) -> None:
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="markers",
            marker={"size": 6, "color": colour, "opacity": 0.45, "line": {"width": 0}},
            customdata=None if hover is None else list(hover),
            hovertemplate=None if hover is None else "%{customdata}<extra></extra>",
            showlegend=False,
        ),
        1,
        column,
    )
    _line(figure, column, x, y, colour)


def _line(figure: go.Figure, column: int, x: np.ndarray, y: np.ndarray, colour: str, dash: str = "solid") -> None:
    if len(x) < 2 or np.ptp(x) == 0:
        return
    slope, offset = np.polyfit(x, y, 1)
    ends = np.array([x.min(), x.max()])
    line = {"color": colour, "width": 2.6 if dash == "solid" else 1.8, "dash": dash}
    figure.add_trace(
        go.Scatter(x=ends, y=slope * ends + offset, mode="lines", line=line, hoverinfo="skip", showlegend=False),
        1,
        column,
    )
