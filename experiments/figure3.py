"""Figure 3: which activations of the edited model contaminate the vanilla one, on Distract Neighborhood (paper, 3.2).

For every module (hidden state, MLP, attention), token role and layer: the change of P(o_true) when the edited model's
output is put into the vanilla model there, in a window of the paper's 6 of 28 layers, scaled to the model's depth.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from driftlens.analyses.substitution import Trace
from driftlens.options.program import run_command
from driftlens.statistics.roles import SUBJECT_ROLES
from experiments import measurements
from experiments.artifacts import Artifact, Claim, Number
from experiments.command import command
from experiments.study import TASK_NAMES, Study
from experiments.words import by_share, interval, percent, points

PAPER = {"mlp": 4.59, "attn": 3.74, "edited": 5.26}
"""The largest falls of P(o_true) in points, for GPT-J on Distract Neighborhood."""


def figure3(study: Study) -> Artifact:
    """Contaminating substitution on Distract Neighborhood."""
    task = measurements.MAIN_TASK
    trace = of_target(measurements.trace(study, task), "o_true")
    grid = trace.by_role()
    total = total_effect(trace)
    mlp, attention = strongest(grid, "mlp"), strongest(grid, "attn")
    window, layers = trace.window, study.model.n_layers
    numbers = [
        Number(name="largest decrease, MLP output", paper="−4.59 points", here=cell_text(mlp)),
        Number(name="largest decrease, attention output", paper="−3.74 points", here=cell_text(attention)),
        Number(name="total change made by the edit", paper="−5.26 points", here=points(total)),
        Number(name="window", paper="6 of 28 layers", here=f"{window} of {layers} layers"),
    ]
    return Artifact(
        name="figure3",
        title=f"Figure 3. Contaminating substitution, {TASK_NAMES[task]}",
        caption=caption(study, trace, task, "o_true"),
        figure=trace.plot(
            title=f"Effect of contaminating substitution on P(o_true), {TASK_NAMES[task]}", note=study.editing
        ),
        drawn=grid,
        cases=trace.table,
        numbers=numbers,
        claims=claims(grid, total, trace.edited_layers),
    )


def of_target(trace: Trace, name: str) -> Trace:
    """The part of a trace for one target."""
    table, baselines = (part[part["target_name"] == name] for part in (trace.table, trace.baselines))
    return replace(trace, table=table.reset_index(drop=True), baselines=baselines.reset_index(drop=True))


def of_group(trace: Trace, group: str) -> Trace:
    """The part of a trace for one group of prompts."""
    table, baselines = (part[part["group"] == group] for part in (trace.table, trace.baselines))
    return replace(trace, table=table.reset_index(drop=True), baselines=baselines.reset_index(drop=True))


def total_effect(trace: Trace) -> float:
    """The average change of the probability by the edit itself."""
    rows: Any = trace.baselines
    return float((rows["edited"] - rows["vanilla"]).mean())


def strongest(grid: pd.DataFrame, module: str, *, sign: int = -1, roles: Sequence[str] | None = None) -> Any:
    """The cell of a module with the largest fall (`sign` −1) or rise."""
    rows: Any = grid[grid["module"] == module]
    if roles is not None:
        rows = rows[rows["role"].isin(roles)]
    return rows.loc[(sign * rows["effect"]).idxmax()]


def cell_text(cell: Any) -> str:
    """Describe a cell: its effect, interval and place."""
    return f"{points(cell.effect)} {interval(100 * cell.low, 100 * cell.high, 1)} ({cell.role}, layer {cell.layer})"


def caption(study: Study, trace: Trace, task: str, target: str) -> str:
    """Describe what is shown and what it was measured on."""
    baselines: Any = trace.baselines
    n_records = baselines["record"].nunique()
    return (
        f"Change of P({target}) when the output of a module at one token and in a window of {trace.window} layers is "
        f"taken from the edited model and put into the vanilla one. {study.about}; mean of {len(baselines)} "
        f"{TASK_NAMES[task]} prompts of {n_records} records, averaged by what a token is to the edit. P({target}) is "
        f"{percent(baselines['vanilla'].mean())} in the vanilla and {percent(baselines['edited'].mean())} "
        "in the edited model; brackets are 95 % intervals over prompts."
    )


def claims(grid: pd.DataFrame, total: float, edited: Sequence[int], *, sign: int = -1) -> list[Claim]:
    """The claims of 3.2 (MLPs around the edit, attention of the last token above), as shares of the edit's effect."""
    possible = total * sign > 0.005
    mlp, attention = strongest(grid, "mlp", sign=sign), strongest(grid, "attn", sign=sign)

    def share(cell: Any) -> float:
        return cell.effect / total if possible else float("nan")

    def sure(cell: Any) -> bool:
        return (cell.high < 0) if sign < 0 else (cell.low > 0)

    def because(cell: Any) -> str:
        if not possible:
            return "The edit hardly changes the probability, so there is nothing to localise."
        return f"The strongest cell makes {percent(share(cell), 0)} of the edit's change: {cell_text(cell)}."

    at_subject = mlp.role in SUBJECT_ROLES and abs(int(mlp.layer) - max(edited)) <= 2
    at_last = attention.role == "last token" and int(attention.layer) > max(edited)
    return [
        Claim(
            claim="MLP activations near the edited layer, at the subject, contaminate the prediction.",
            answer=by_share(share(mlp), sure=sure(mlp) and at_subject),
            because=because(mlp),
        ),
        Claim(
            claim="Attention activations of middle-upper layers at the last token have a similar impact.",
            answer=by_share(share(attention), sure=sure(attention) and at_last),
            because=because(attention),
        ),
    ]


ARTIFACTS = {"figure3": figure3}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
