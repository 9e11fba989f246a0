"""Heatmaps of tokens × layers, for one prompt or averaged by token role, and of heads × layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pandas as pd
import plotly.graph_objects as go

from driftlens.display.html import short
from driftlens.plots.grid import Row, grid
from driftlens.plots.style import escaped
from driftlens.statistics.roles import ROLES, SUBJECT_ROLES, average_by_role

__all__ = ["plot_heads", "plot_score_grid", "plot_trace", "plot_traces"]


class TraceLike(Protocol):
    """The attributes of a trace that heatmaps need; `driftlens.analyses.substitution.Trace` has them."""

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


_MODULE_TITLES = {"resid": "Hidden state", "mlp": "MLP output", "attn": "Attention output"}


def plot_trace(trace: TraceLike, *, title: str | None = None, note: str = "") -> go.Figure:
    """Plot a trace's heatmaps: a column for each module, a row for each target, all on one colour scale.

    A single case shows its tokens, with an asterisk at those of the edited subject. Several cases show token roles,
    each with its text in the first case. The axis title names the edited layers.
    """
    return plot_traces([trace], title=title, note=note)


def plot_traces(
    traces: Sequence[TraceLike], *, heads: Sequence[str] = (), title: str | None = None, note: str = ""
) -> go.Figure:
    """Plot several traces below one another on one colour scale, e.g. for different windows (Figure 9a) or groups.

    `heads` are their headings; the default is each trace's window.
    """
    first = traces[0]
    n_cases = len(set(first.baselines["case"]))
    single = len(traces) == n_cases == 1
    same_prompts = len({tuple(trace.baselines["prompt"]) for trace in traces}) == 1
    windows = list(dict.fromkeys(trace.window for trace in traces))
    rows: list[Row] = []
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
            rows.append(Row(panels=panels, unit=f"change of<br>P({_shown(trace, name)})", head=head))
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
    return grid(rows, grids[0][1], axis=axis, edited_layers=first.edited_layers, title=title, parts=parts)


def plot_score_grid(
    table: pd.DataFrame | Mapping[str, pd.DataFrame],
    window: int,
    *,
    edited_layers: Sequence[int] = (),
    title: str | None = None,
    note: str = "",
) -> go.Figure:
    """Plot the effect of patching one score, for tokens of one prompt or token roles, × layers (Figure 10).

    `table` is that of a :class:`driftlens.analyses.patch.ScorePatch`; every target is a panel. Several named tables
    become rows on one colour scale.
    """
    tables = table if isinstance(table, Mapping) else {"": table}
    first = next(iter(tables.values()))
    single = len(tables) == 1 and len(set(first["case"])) == 1
    means = average_by_role(first, ["target_name"])
    rows: list[Row] = []
    labels: list[str] = []
    for name, own in tables.items():
        made, found = _tokens(own) if single else _roles(average_by_role(own, ["target_name"]), means)
        cells: Any = made
        labels = labels or found
        panels = [
            (f"P({escaped(target)})", cells[cells["target_name"] == target]) for target in cells["target_name"].unique()
        ]
        head = f"<b>{escaped(name)}</b> · {_n_prompts(own)}" if name else ""
        rows.append(Row(panels=panels, unit="change of<br>probability", head=head))
    parts = [
        note,
        f"vanilla score of last token → this token in {_windows([window])} of the edited model",
        "" if single or len(tables) > 1 else f"mean of {_n_prompts(first)}",
    ]
    title = title or "Patching one score"
    return grid(rows, labels, axis=_axis(window), edited_layers=edited_layers, title=title, parts=parts)


def plot_heads(heads: pd.DataFrame, *, title: str | None = None, note: str = "") -> go.Figure:
    """Plot the mean change of the last token's attention to the subject's last token, heads × layers.

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
    row = Row(panels=[("", cells)], unit="change of<br>attention", head="")
    parts = [note, "edited minus vanilla attention", f"mean of {n_cases} prompts" if n_cases > 1 else ""]
    title = title or "Change of the last token's attention to the subject's last token"
    return grid([row], labels, axis="layer", edited_layers=(), title=title, parts=parts)


def _tokens(table: Any) -> tuple[pd.DataFrame, list[str]]:
    """Cells and row labels of a single case, by token."""
    edited = [f" (edited model {p:.4f})" for p in table["edited"]] if "edited" in table else [""] * len(table)
    hover = [
        f"token {c.token} “{escaped(c.token_text)}” ({c.role})<br>layer {c.layer}<br>"
        f"P {c.probability - c.effect:.4f} → {c.probability:.4f}{beside}<br><b>{c.effect:+.4f}</b>"
        for c, beside in zip(table.itertuples(), edited, strict=True)
    ]
    return _labelled(table.assign(hover=hover))


def _labelled(table: Any) -> tuple[pd.DataFrame, list[str]]:
    """A row and a label for each token in the table, which may skip numbers."""
    tokens = table.drop_duplicates("token").sort_values("token")
    labels = [
        f"<b>{escaped(text)}*</b>" if role in SUBJECT_ROLES else escaped(text)
        for text, role in zip(tokens["token_text"], tokens["role"], strict=True)
    ]
    return table.assign(row=table["token"].map(list(tokens["token"]).index)), labels


def _roles(means: Any, first: Any = None) -> tuple[pd.DataFrame, list[str]]:
    """Cells and row labels of an average over cases, by role; all panels take the labels of `first`."""
    first = means if first is None else first
    present = [role for role in ROLES if role in set(first["role"])]
    means = means[means["role"].isin(present)]
    examples = dict(zip(first["role"], first["example"], strict=True))
    labels = [
        f"{role}{'*' if role in SUBJECT_ROLES else ''}  <i>{escaped(short(examples[role], 22))}</i>" for role in present
    ]
    hover = [
        f"{c.role}<br>layer {c.layer}<br><b>{c.effect:+.4f}</b> [{c.low:+.4f}, {c.high:+.4f}]<br>{c.cases} prompts"
        for c in means.itertuples()
    ]
    return means.assign(row=means["role"].map(present.index), hover=hover), labels


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


def _shown(trace: TraceLike, name: str) -> str:
    """A target's name, or the text of a single target without a name."""
    texts: Any = trace.baselines.loc[trace.baselines["target_name"] == name, "target"].unique()
    return escaped(texts[0]) if name == "target" and len(texts) == 1 else escaped(name)


def _baseline(trace: TraceLike, name: str) -> str:
    rows: Any = trace.baselines[trace.baselines["target_name"] == name]
    texts = rows["target"].unique()
    quoted = f" = “{escaped(texts[0])}”" if len(texts) == 1 and name != "target" else ""
    vanilla, edited = rows["vanilla"].mean(), rows["edited"].mean()
    return f"P({_shown(trace, name)}){quoted}: vanilla model {vanilla:.3f}, edited model {edited:.3f}"
