"""Curves over layers, and histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from driftlens.plots.style import EDITED, FAINT, INK, PALETTE, PAPER, TRUE, Frame, escaped, write
from driftlens.statistics.intervals import bounded_interval, interval_ends

__all__ = ["plot_histogram", "plot_patch_curve"]

_GRID = "#e4e8ed"
_NAMED = {"o_true": TRUE, "o_edit": EDITED}


def plot_patch_curve(
    table: pd.DataFrame,
    baselines: pd.DataFrame,
    window: int,
    *,
    title: str | None = None,
    note: str = "",
) -> go.Figure:
    """Plot probabilities over the patched layer (Figure 5).

    The unpatched edited model is drawn left of layer 0, at the tick "none"; the vanilla model is a dashed line.

    `table` and `baselines` are those of a `driftlens.analyses.patch.AttentionPatch`; with a column `task` in both,
    every task is a panel. Bands are 95 % intervals over prompts, which stay between 0 and 1.
    """
    tasks: list[Any] = list(dict.fromkeys(table["task"])) if "task" in table.columns else [None]
    names = list(dict.fromkeys(table["target_name"]))
    colours = {name: _NAMED.get(name, PALETTE[at % len(PALETTE)]) for at, name in enumerate(names)}
    frame = Frame(
        columns=len(tasks), rows=1, panel_width=330, panel_height=270, left=64, right=112, top=114, bottom=68,
        between_columns=34, background=PAPER,
    )  # fmt: skip
    figure = frame.figure()
    labels: list[tuple[float, str, str]] = []
    highest = 0.0
    for column, task in enumerate(tasks, 1):
        cells: Any = table if task is None else table[table["task"] == task]
        unpatched: Any = baselines if task is None else baselines[baselines["task"] == task]
        if task is not None:
            frame.head(figure, 1, column, f"<b>{escaped(str(task))}</b> <i>({_prompts(unpatched)})</i>")
        labels = []
        for name in names:
            before: Any = unpatched[unpatched["target_name"] == name]
            curve = _mean_curve(cells[cells["target_name"] == name])
            highest = max(highest, _draw_curve(figure, column, curve, before, name, colours[name]))
            labels.append((float(curve["mean"].iloc[-1]), f"P({escaped(name)})", colours[name]))
    last = max(map(int, table["layer"]))
    top, step = _top(highest)
    for height, text, colour in _apart(labels, least=0.07 * top):
        figure.add_annotation(
            text=f"<b>{text}</b>", x=last, y=height, xref=_axis("x", len(tasks)), yref=_axis("y", len(tasks)),
            xanchor="left", xshift=10, showarrow=False, font={"size": 14, "color": colour},
        )  # fmt: skip
    ticks = [layer for layer in range(last + 1) if layer % max(1, round(last / 10)) == 0]
    figure.update_xaxes(
        tickvals=[_apart_from(last), *ticks], ticktext=["none", *map(str, ticks)], ticks="outside", ticklen=4,
        tickcolor="#c3c9d2", range=[1.6 * _apart_from(last), last + 0.5],
    )  # fmt: skip
    figure.update_yaxes(showgrid=True, gridcolor=_GRID, range=[-0.02 * top, 1.02 * top], dtick=step)
    axis = f"layer at the centre of {window} patched layers" if window > 1 else "patched layer"
    write(figure, f"{axis} (none: not patched)", x=0.5, y=0, anchor="center", up=-52, ink=INK)
    write(figure, "probability", x=0, y=0.5, anchor="center", up=0, right=-50, ink=INK, angle=-90)
    prompts = "" if tasks != [None] else f"mean of {_prompts(baselines)}"
    parts = [note, "vanilla attention weights in the edited model", "dashed: vanilla model", prompts]
    frame.style(figure, title or "Patching attention weights", [part for part in parts if part])
    return figure


def plot_histogram(
    values: Mapping[str, Sequence[float]],
    *,
    axis: str,
    threshold: float | None = None,
    bins: int = 20,
    title: str = "",
    note: str = "",
) -> go.Figure:
    """Plot histograms of probabilities, a panel for each name (Figure 11); `threshold` is a dashed line."""
    frame = Frame(
        columns=len(values), rows=1, panel_width=330, panel_height=240, left=64, right=24, top=114, bottom=64,
        between_columns=34, background=PAPER,
    )  # fmt: skip
    figure = frame.figure()
    edges = np.linspace(0, 1, bins + 1)
    most = 0
    for column, (name, given) in enumerate(values.items(), 1):
        numbers = np.clip(np.asarray(given, dtype=float), 0, 1)
        counts = np.histogram(numbers, edges)[0]
        most = max(most, int(counts.max()))
        figure.add_trace(
            go.Bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=counts,
                width=1 / bins,
                marker={"color": PALETTE[(column - 1) % len(PALETTE)], "line": {"color": PAPER, "width": 1}},
                hovertemplate=[
                    f"{low:.2f}–{high:.2f}: <b>{n}</b> facts<extra>{escaped(name)}</extra>"
                    for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)
                ],
                showlegend=False,
            ),
            1,
            column,
        )
        frame.head(
            figure, 1, column, f"<b>{escaped(name)}</b> <i>({len(numbers)} facts, mean {numbers.mean():.2f})</i>"
        )
        if threshold is not None:
            above = float((numbers > threshold).mean())
            ends = {"x": [threshold, threshold], "y": [0, 1e9]}
            line = {"color": INK, "dash": "dash", "width": 1.2}
            figure.add_trace(_line(ends, line), 1, column)
            figure.add_annotation(
                text=f"{above:.0%} above {threshold:g} ", x=threshold, y=1, xref=_axis("x", column),
                yref=f"{_axis('y', column)} domain", xanchor="right", yanchor="top", showarrow=False,
                font={"size": 13, "color": FAINT},
            )  # fmt: skip
    figure.update_xaxes(range=[-0.01, 1.01], dtick=0.2, ticks="outside", ticklen=4, tickcolor="#c3c9d2")
    figure.update_yaxes(showgrid=True, gridcolor=_GRID, range=[0, most * 1.12])
    write(figure, axis, x=0.5, y=0, anchor="center", up=-48, ink=INK)
    write(figure, "facts", x=0, y=0.5, anchor="center", up=0, right=-48, ink=INK, angle=-90)
    frame.style(figure, title, [note] if note else [])
    return figure


def _mean_curve(cells: Any) -> Any:
    groups = cells.groupby("layer")
    curve = groups["probability"].agg(mean="mean").reset_index()
    ends = interval_ends(groups["probability"], bounds=(0.0, 1.0))
    # A single prompt has no interval, so its band is the line.
    curve["low"], curve["high"] = (pd.Series(end).fillna(curve["mean"]) for end in ends)
    places = groups[["first", "last"]].first().reset_index()
    return curve.merge(places, on="layer")


def _apart_from(last: int) -> float:
    """The x position of the unpatched model, far enough left of layer 0 for its name to fit."""
    return -max(1.0, 0.075 * (last + 1))


def _top(highest: float) -> tuple[float, float]:
    """The end of an axis of probabilities and its ticks: 1, or less if all values are much lower."""
    tops = ((0.05, 0.01), (0.1, 0.02), (0.3, 0.05), (0.5, 0.1), (1.0, 0.2))
    return next((top for top in tops if highest <= top[0]), tops[-1])


def _draw_curve(figure: go.Figure, column: int, curve: Any, before: Any, name: str, colour: str) -> float:
    """Draw one target's curve and return the highest point drawn."""
    vanilla, edited = float(before["vanilla"].mean()), float(before["edited"].mean())
    layers = [int(layer) for layer in curve["layer"]]
    band = {"x": [*layers, *layers[::-1]], "y": [*curve["high"], *curve["low"][::-1]]}
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    fill = f"rgba({red},{green},{blue},0.14)"
    figure.add_trace(
        go.Scatter(
            **band, mode="lines", fill="toself", fillcolor=fill, line={"width": 0}, hoverinfo="skip", showlegend=False
        ),
        1,
        column,
    )
    ends = {"x": [-layers[-1] - 1.0, layers[-1] + 1.0], "y": [vanilla, vanilla]}
    figure.add_trace(_line(ends, {"color": colour, "dash": "dash", "width": 1.4}), 1, column)
    shown = escaped(name)
    hover = [
        f"layers {c.first}–{c.last} patched<br>P({shown}) <b>{c.mean:.4f}</b>"
        + ("" if edited == 0 else f" ({100 * (c.mean / edited - 1):+.1f} %)")
        + f"<br>vanilla model {vanilla:.4f}"
        for c in curve.itertuples()
    ]
    symbol = "circle" if name == "o_true" else "diamond"
    figure.add_trace(
        go.Scatter(
            x=layers,
            y=curve["mean"],
            mode="lines+markers",
            line={"color": colour, "width": 2.4},
            marker={"size": 6, "color": colour, "symbol": symbol},
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
        ),
        1,
        column,
    )
    # A single prompt has no interval, so its ends are the point.
    found = bounded_interval(before["edited"].to_numpy(dtype=float), bounds=(0.0, 1.0))[1:3]
    low, high = (edited if np.isnan(end) else end for end in found)
    figure.add_trace(
        go.Scatter(
            x=[_apart_from(layers[-1])],
            y=[edited],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [high - edited],
                "arrayminus": [edited - low],
                "color": colour,
                "thickness": 1.4,
                "width": 4,
            },
            mode="markers",
            marker={"size": 10, "color": colour, "symbol": symbol},
            customdata=[f"not patched<br>P({name}) <b>{edited:.4f}</b><br>vanilla model {vanilla:.4f}"],
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
        ),
        1,
        column,
    )
    return max(vanilla, high, float(curve["high"].max()))


def _line(ends: dict[str, list[float]], line: dict[str, Any]) -> go.Scatter:
    return go.Scatter(**ends, mode="lines", line=line, hoverinfo="skip", showlegend=False)


def _apart(labels: Sequence[tuple[float, str, str]], *, least: float) -> list[tuple[float, str, str]]:
    """Move labels up until none overlaps another."""
    moved: list[tuple[float, str, str]] = []
    for height, text, colour in sorted(labels):
        lowest = moved[-1][0] + least if moved else 0.0
        moved.append((max(height, lowest), text, colour))
    return moved


def _prompts(baselines: Any) -> str:
    count = len(set(baselines["case"]))
    return f"{count} {'prompt' if count == 1 else 'prompts'}"


def _axis(letter: str, number: int) -> str:
    return letter if number == 1 else f"{letter}{number}"
