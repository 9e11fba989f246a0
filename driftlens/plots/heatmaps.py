"""Grids of tokens (of one prompt, or roles averaged over many) × layers, and of heads × layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from driftlens.plots.style import DIVERGING, INK, Frame, escaped, plain, short, signed, write
from driftlens.statistics.roles import ROLES, SUBJECT_ROLES, average_by_role

__all__ = ["plot_heads", "plot_score_grid", "plot_trace", "plot_traces"]


class Trace(Protocol):
    """What a trace's heatmaps are drawn from; `driftlens.analyses.substitution.Trace` says what each is."""

    @property
    def table(self) -> pd.DataFrame:
        """A row per case, target, module, token and layer."""
        ...

    @property
    def baselines(self) -> pd.DataFrame:
        """A row per case and target."""
        ...

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def window(self) -> int:
        """Layers per cell."""
        ...

    @property
    def edited_layers(self) -> tuple[int, ...]:
        """Layers that any of the edits changes."""
        ...

    def by_role(self) -> pd.DataFrame:
        """The grid of token roles."""
        ...


WIDEST = 1240
"""Pixels that a page of 1,280 has for a figure."""
NARROWEST_CELL = 8
"""Pixels of a cell; panels side by side that would need narrower ones stand under one another."""
FLOOR = 0.1
"""The least that the ends of a colour scale stand for: a change of ±0.01 must not be painted like one of ±0.9."""

_MODULE_TITLES = {"resid": "Hidden state", "mlp": "MLP output", "attn": "Attention output"}


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Panels side by side: heading and cells (`row, layer, effect, hover`) of each, and what the colours measure."""

    panels: Sequence[tuple[str, pd.DataFrame]]
    unit: str
    head: str


def plot_trace(trace: Trace, *, title: str | None = None, note: str = "") -> go.Figure:
    """The trace's heatmaps: a column for each module, a row for each target, one colour scale for all.

    One case shows its tokens, the edited subject's marked with an asterisk; several show token roles, each with its
    text in the first case. The edited layers are named under the axis.
    """
    return plot_traces([trace], title=title, note=note)


def plot_traces(
    traces: Sequence[Trace], *, heads: Sequence[str] = (), title: str | None = None, note: str = ""
) -> go.Figure:
    """Several traces under one another, on the same colour scale: of different windows (Figure 9a), or of groups.

    `heads` says what each is, by default its window.
    """
    first = traces[0]
    n_cases = len(set(first.baselines["case"]))
    single = len(traces) == n_cases == 1
    same_prompts = len({tuple(trace.baselines["prompt"]) for trace in traces}) == 1
    windows = list(dict.fromkeys(trace.window for trace in traces))
    rows: list[_Row] = []
    grids = [_tokens(trace.table) if single else _roles(trace.by_role(), first.by_role()) for trace in traces]
    for trace, (cells, _), own in zip(
        traces, grids, heads or [_windows([trace.window]) for trace in traces], strict=True
    ):
        for name in cells["target_name"].unique():
            of_target: Any = cells[cells["target_name"] == name]
            panels = [
                (_MODULE_TITLES.get(module, module), of_target[of_target["module"] == module])
                for module in map(str, dict.fromkeys(cells["module"]))
            ]
            baseline = _baseline(trace, name)
            head = baseline if len(traces) == 1 else f"<b>{escaped(own)}</b>"
            if len(traces) > 1 and not same_prompts:
                head += f" · {_n_prompts(trace.baselines)} · {baseline}"
            rows.append(_Row(panels=panels, unit=f"change of<br>P({_shown(trace, name)})", head=head))
    if title is None:
        title = str(first.baselines["prompt"].iloc[0]) if single else "Contaminating substitution"
    parts = [
        first.model,
        note,
        f"edited activations substituted in {_windows(windows)} of the vanilla model",
    ]
    if same_prompts and not single:
        parts.append(f"mean of {_n_prompts(first.baselines)}")
    if same_prompts and len(traces) > 1:
        parts += [_baseline(first, name) for name in first.baselines["target_name"].unique()]
    axis = _axis(windows[0]) if len(windows) == 1 else "layer at the centre of the window"
    return _grid(rows, grids[0][1], axis=axis, edited_layers=first.edited_layers, title=title, parts=parts)


def plot_score_grid(
    table: pd.DataFrame | Mapping[str, pd.DataFrame],
    window: int,
    *,
    edited_layers: Sequence[int] = (),
    title: str | None = None,
    note: str = "",
) -> go.Figure:
    """What patching one score does: tokens of one prompt, or roles averaged over many, × layers (Figure 10).

    `table` is that of a :class:`driftlens.analyses.patch.ScorePatch`; every target is a panel. Several tables, each
    under its name, are rows on one colour scale.
    """
    tables = table if isinstance(table, Mapping) else {"": table}
    first = next(iter(tables.values()))
    single = len(tables) == 1 and len(set(first["case"])) == 1
    means = average_by_role(first, ["target_name"])
    rows: list[_Row] = []
    labels: list[str] = []
    for name, own in tables.items():
        grid, found = _score_tokens(own) if single else _roles(average_by_role(own, ["target_name"]), means)
        cells: Any = grid
        labels = labels or found
        panels = [
            (f"P({escaped(target)})", cells[cells["target_name"] == target]) for target in cells["target_name"].unique()
        ]
        head = f"<b>{escaped(name)}</b> · {_n_prompts(own)}" if name else ""
        rows.append(_Row(panels=panels, unit="change of<br>probability", head=head))
    parts = [
        note,
        f"vanilla score of last token → this token in {_windows([window])} of the edited model",
        "" if single or len(tables) > 1 else f"mean of {_n_prompts(first)}",
    ]
    title = title or "Patching one score"
    return _grid(rows, labels, axis=_axis(window), edited_layers=edited_layers, title=title, parts=parts)


def plot_heads(heads: pd.DataFrame, *, title: str | None = None, note: str = "") -> go.Figure:
    """Mean change of the last token's attention to the subject's last token, heads × layers.

    `heads` is that of an :class:`driftlens.analyses.drift.AttentionDrift`.
    """
    n_cases = len(set(heads["case"]))
    means: Any = heads.groupby(["layer", "head"], as_index=False)[
        ["drift_subject", "kl", "vanilla_subject", "edited_subject"]
    ].mean()
    hover = [
        f"layer {c.layer}, head {c.head}<br>attention {c.vanilla_subject:.3f} → {c.edited_subject:.3f}<br>"
        f"<b>{c.drift_subject:+.4f}</b>, KL {c.kl:.4g}"
        for c in means.itertuples()
    ]
    cells = means.assign(row=means["head"], effect=means["drift_subject"], hover=hover)
    labels = [f"head {head}" for head in range(int(means["head"].max()) + 1)]
    row = _Row(panels=[("", cells)], unit="change of<br>attention", head="")
    parts = [note, "edited minus vanilla attention", f"mean of {n_cases} prompts" if n_cases > 1 else ""]
    title = title or "Change of the last token's attention to the subject's last token"
    return _grid([row], labels, axis="layer", edited_layers=(), title=title, parts=parts)


def _grid(
    rows: Sequence[_Row],
    labels: Sequence[str],
    *,
    axis: str,
    edited_layers: Sequence[int],
    title: str,
    parts: Sequence[str],
) -> go.Figure:
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


def _placed(rows: Sequence[_Row], labels: Sequence[str], n_layers: int) -> tuple[Sequence[_Row], Frame]:
    """The rows and their frame, no wider than a page: cells shrink, then panels go under one another."""
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
    """The next number at which a scale's end and its middle are round: 0.1, 0.2, 0.4, 0.6, 0.8, 1 and so on."""
    scale = 10.0 ** math.floor(math.log10(max(largest, FLOOR)))
    # Rounding must not push a largest effect of exactly 1 to the next step.
    return next(step * scale for step in (1, 2, 4, 6, 8, 10) if step * scale >= max(largest, FLOOR) - 1e-9)


def _tokens(table: Any) -> tuple[pd.DataFrame, list[str]]:
    """Cells and row labels of a single case, by token."""
    hover = [
        f"token {c.token} “{escaped(c.token_text)}” ({c.role})<br>layer {c.layer}<br>"
        f"P {c.vanilla:.4f} → {c.probability:.4f} (edited model {c.edited:.4f})<br><b>{c.effect:+.4f}</b>"
        for c in table.itertuples()
    ]
    return _labelled(table.assign(hover=hover))


def _score_tokens(table: Any) -> tuple[pd.DataFrame, list[str]]:
    hover = [
        f"token {c.token} “{escaped(c.token_text)}” ({c.role})<br>layer {c.layer}<br>"
        f"P {c.probability - c.effect:.4f} → {c.probability:.4f}<br><b>{c.effect:+.4f}</b>"
        for c in table.itertuples()
    ]
    return _labelled(table.assign(hover=hover))


def _labelled(table: Any) -> tuple[pd.DataFrame, list[str]]:
    """A row and a label for each token that is there: tokens averaged by role leave numbers out."""
    tokens = table.drop_duplicates("token").sort_values("token")
    labels = [
        f"<b>{escaped(text)}*</b>" if role in SUBJECT_ROLES else escaped(text)
        for text, role in zip(tokens["token_text"], tokens["role"], strict=True)
    ]
    return table.assign(row=table["token"].map(list(tokens["token"]).index)), labels


def _roles(grid: Any, first: Any = None) -> tuple[pd.DataFrame, list[str]]:
    """Cells and row labels of an average over cases, by role; `first` is the grid whose labels all have."""
    first = grid if first is None else first
    present = [role for role in ROLES if role in set(first["role"])]
    grid = grid[grid["role"].isin(present)]
    examples = dict(zip(first["role"], first["example"], strict=True))
    labels = [
        f"{role}{'*' if role in SUBJECT_ROLES else ''}  <i>{escaped(short(examples[role]))}</i>" for role in present
    ]
    hover = [
        f"{c.role}<br>layer {c.layer}<br><b>{c.effect:+.4f}</b> [{c.low:+.4f}, {c.high:+.4f}]<br>{c.cases} prompts"
        for c in grid.itertuples()
    ]
    return grid.assign(row=grid["role"].map(present.index), hover=hover), labels


def _heatmap(grid: Any, n_rows: int, layers: Sequence[int], scale: str) -> go.Heatmap:
    z = np.full((n_rows, len(layers)), np.nan)
    hover = np.full(z.shape, "", dtype=object)
    at = grid["row"].to_numpy(dtype=int), grid["layer"].map(list(layers).index).to_numpy(dtype=int)
    z[at], hover[at] = grid["effect"].to_numpy(dtype=float), grid["hover"].to_numpy()
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
    """A colour bar beside the row's panels, the same distance to both sides of zero, and above it what it measures."""
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


def _n_prompts(table: pd.DataFrame) -> str:
    count = len(set(table["case"]))
    return f"{count} {'prompt' if count == 1 else 'prompts'}"


def _windows(windows: Sequence[int]) -> str:
    if list(windows) == [1]:
        return "1 layer"
    *most, last = [str(window) for window in windows]
    return f"windows of {', '.join(most)} and {last} layers" if most else f"windows of {last} layers"


def _axis(window: int) -> str:
    return "layer" if window == 1 else f"layer at the centre of a window of {window} layers"


def _ticked(layer: int, step: int, edited: Sequence[int]) -> bool:
    # A label close to an edited layer's would run into it.
    return layer in edited or (layer % step == 0 and all(abs(layer - other) > step // 2 for other in edited))


def _shown(trace: Trace, name: str) -> str:
    """A target's name, or for a single one without a name its text."""
    texts: Any = trace.baselines.loc[trace.baselines["target_name"] == name, "target"].unique()
    return escaped(texts[0]) if name == "target" and len(texts) == 1 else escaped(name)


def _baseline(trace: Trace, name: str) -> str:
    rows: Any = trace.baselines[trace.baselines["target_name"] == name]
    texts = rows["target"].unique()
    quoted = f" = “{escaped(texts[0])}”" if len(texts) == 1 and name != "target" else ""
    vanilla, edited = rows["vanilla"].mean(), rows["edited"].mean()
    return f"P({_shown(trace, name)}){quoted}: vanilla model {vanilla:.3f}, edited model {edited:.3f}"
