"""Figure 9: contaminating substitution with other windows (a), for P(o_edit) (b), on Relation (c, d) (paper, D.1)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from driftlens.analyses.substitution import Trace
from driftlens.analyses.windows import scaled_window
from driftlens.options.program import run_command
from driftlens.plots import plot_traces
from experiments import measurements
from experiments.artifacts import Artifact, Claim, Number
from experiments.command import command
from experiments.figure3 import caption, cell_text, claims, of_group, of_target, strongest, total_effect
from experiments.study import TASK_NAMES, Study
from experiments.words import by_share, listed, points

PAPER_WINDOWS = (1, 3, 6, 10)
"""Windows of the paper's 1 … 10; for shallow models, those that still differ when scaled."""


def figure9a(study: Study) -> Artifact:
    """P(o_true) on Distract Neighborhood with different windows."""
    task = measurements.MAIN_TASK
    windows = list(dict.fromkeys(scaled_window(window, study.model.n_layers) for window in PAPER_WINDOWS))
    traces = [of_target(measurements.trace(study, task, window), "o_true") for window in windows]
    grids = [trace.by_role().assign(window=trace.window) for trace in traces]
    peaks = [strongest(grid, "attn") for grid in grids]
    falls = [-float(peak.effect) for peak in peaks]
    where = {(peak.role, int(peak.layer)) for peak in peaks}
    grows = len(falls) > 1 and all(after >= before for before, after in pairwise(falls))
    last = [_last_layers(grid) for grid in grids]
    shown = listed([str(window) for window in windows])
    least = _least(grids)
    alike = "" if np.isnan(least) else f"Attention grids correlate with {least:.2f} or more. "
    return Artifact(
        name="figure9a",
        title=f"Figure 9a. Windows of {shown} layers, {TASK_NAMES[task]}",
        caption=caption(study, traces[0], task, "o_true").replace(
            f"a window of {windows[0]} layers", f"windows of {shown} layers"
        ),
        figure=plot_traces(
            traces, title=f"Effect on P(o_true) with different windows, {TASK_NAMES[task]}", note=study.editing
        ),
        drawn=pd.concat(grids, ignore_index=True),
        cases=pd.concat([trace.table for trace in traces], ignore_index=True),
        numbers=[
            Number(name=f"largest decrease, attention output, window {window}", paper="–", here=cell_text(peak))
            for window, peak in zip(windows, peaks, strict=True)
        ],
        claims=[
            Claim(
                claim="Different windows point to similar areas.",
                answer=by_share(least if np.isnan(least) else max(0.0, least)),
                because=f"{alike}The strongest cell is at "
                f"{listed([f'{role}, layer {layer}' for role, layer in sorted(where)])}.",
            ),
            Claim(
                claim="The decrease of P(o_true) grows with the window.",
                answer="cannot be told" if len(falls) < 2 else "yes" if grows else "no",
                because=f"Attention: {listed([points(-fall) for fall in falls])} for windows of {shown}.",
            ),
            Claim(
                claim="Substituting MLP or attention outputs of the last layers at the last token raises P(o_true).",
                answer="yes" if min(last) > 0.005 else "weakly" if max(last) > 0.005 else "no",
                because=f"The larger of the two effects in the last layer is {listed([points(x) for x in last])}.",
            ),
        ],
    )


def figure9b(study: Study) -> Artifact:
    """P(o_edit) on Distract Neighborhood."""
    return _one_target(study, "figure9b", "Figure 9b", measurements.MAIN_TASK, "o_edit")


def figure9c(study: Study) -> Artifact:
    """P(o_true) on Relation."""
    return _one_target(study, "figure9c", "Figure 9c", "relation", "o_true")


def figure9d(study: Study) -> Artifact:
    """P(o_edit) on Relation."""
    return _one_target(study, "figure9d", "Figure 9d", "relation", "o_edit")


def _one_target(study: Study, name: str, number: str, task: str, target: str) -> Artifact:
    both = measurements.trace(study, task)
    trace = of_target(both, target)
    sign = -1 if target == "o_true" else 1
    groups = [group for group in dict.fromkeys(trace.table["group"]) if isinstance(group, str)]
    parts = {"pooled": trace, **{group: of_group(trace, group) for group in groups}}
    grids = {part: own.by_role() for part, own in parts.items()}
    title = f"Effect of contaminating substitution on P({target}), {TASK_NAMES[task]}"
    shown = [parts[group] for group in groups] or [trace]
    heads = groups if len(groups) > 1 else []
    main = grids[groups[0]] if groups else grids["pooled"]
    answers = claims(main, total_effect(parts[groups[0]] if groups else trace), trace.edited_layers, sign=sign)
    if target == "o_edit":
        answers.append(_mirrored(both))
    return Artifact(
        name=name,
        title=f"{number}. Effect on P({target}), {TASK_NAMES[task]}",
        caption=caption(study, trace, task, target) + _about_groups(groups),
        figure=plot_traces(shown, heads=heads, title=title, note=study.editing),
        drawn=pd.concat([grid.assign(part=part) for part, grid in grids.items()], ignore_index=True),
        cases=trace.table,
        numbers=[row for part, grid in grids.items() for row in _numbers(grid, parts[part], part, sign, bool(groups))],
        claims=answers,
    )


def _numbers(grid: pd.DataFrame, trace: Trace, part: str, sign: int, grouped: bool) -> list[Number]:
    suffix = f", {part} ({len(trace.baselines)} prompts)" if grouped else ""
    direction = "decrease" if sign < 0 else "increase"
    return [
        Number(
            name=f"largest {direction}, MLP output{suffix}",
            paper="–",
            here=cell_text(strongest(grid, "mlp", sign=sign)),
        ),
        Number(
            name=f"largest {direction}, attention output{suffix}",
            paper="–",
            here=cell_text(strongest(grid, "attn", sign=sign)),
        ),
        Number(name=f"total change made by the edit{suffix}", paper="–", here=points(total_effect(trace))),
    ]


def _about_groups(groups: list[str]) -> str:
    if len(groups) < 2:
        return ""
    return (
        f" The data tells prompts apart by whether they ask for an object of the edited one's type ({listed(groups)}), "
        f"and so does the figure; claims are about {groups[0]}."
    )


def _mirrored(trace: Trace) -> Claim:
    """D.1: where P(o_true) falls, P(o_edit) rises."""
    true, edit = (_values(of_target(trace, name).by_role()) for name in ("o_true", "o_edit"))
    found = -float(np.corrcoef(true, edit)[0, 1]) if np.ptp(true) and np.ptp(edit) else float("nan")
    return Claim(
        claim="The areas where P(o_edit) rises are those where P(o_true) falls.",
        answer=by_share(found if found > 0 else 0.0 if found <= 0 else found),
        because=f"Over all cells the two effects correlate with {-found:.2f}.".replace("-", "−"),
    )


def _values(grid: Any) -> np.ndarray[Any, Any]:
    return grid.sort_values(["module", "role", "layer"])["effect"].to_numpy(dtype=float)


def _least(grids: list[pd.DataFrame]) -> float:
    """The smallest correlation between the attention grids of any two windows."""
    values = [_values(grid[grid["module"] == "attn"]) for grid in grids]
    pairs = [(a, b) for at, a in enumerate(values) for b in values[at + 1 :]]
    return min((float(np.corrcoef(a, b)[0, 1]) for a, b in pairs if np.ptp(a) and np.ptp(b)), default=float("nan"))


def _last_layers(grid: pd.DataFrame) -> float:
    rows: Any = grid[(grid["role"] == "last token") & (grid["layer"] == grid["layer"].max())]
    return float(rows[rows["module"].isin(["mlp", "attn"])]["effect"].max())


ARTIFACTS: dict[str, Callable[[Study], Artifact]] = {
    "figure9a": figure9a,
    "figure9b": figure9b,
    "figure9c": figure9c,
    "figure9d": figure9d,
}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
