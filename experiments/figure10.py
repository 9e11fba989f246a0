"""Figure 10: one pre-softmax score of last token → token t from the vanilla model, tokens × layers (paper, D.2).

(a) Distract Neighborhood, (b) Relation.  The window is the paper's 10 of 28 layers, scaled to the model's depth.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pandas as pd

from driftlens.options.program import run_command
from driftlens.plots import plot_score_grid
from driftlens.statistics.roles import average_by_role
from experiments import measurements
from experiments.artifacts import Answer, Artifact, Claim, Number
from experiments.command import command
from experiments.study import TASK_NAMES, Study
from experiments.words import by_share, interval, listed, percent, points

SUBJECT_LAST = "last subject token"


def figure10a(study: Study) -> Artifact:
    """Distract Neighborhood."""
    return _figure(study, "figure10a", "Figure 10a", "distract_neighborhood")


def figure10b(study: Study) -> Artifact:
    """Relation."""
    return _figure(study, "figure10b", "Figure 10b", "relation")


def _figure(study: Study, name: str, number: str, task: str) -> Artifact:
    found = measurements.score_patch(study, task)
    groups = [group for group in dict.fromkeys(found.table["group"]) if isinstance(group, str)]
    parts: dict[str, Any] = {"pooled": found.table}
    if len(groups) > 1:
        parts |= {group: found.table[found.table["group"] == group] for group in groups}
    shown = {part: table for part, table in parts.items() if part != "pooled"} or found.table
    grids = {part: average_by_role(table, ["target_name"]) for part, table in parts.items()}
    main = groups[0] if len(groups) > 1 else "pooled"
    title = f"Patching one attention score, {TASK_NAMES[task]}"
    whole = _whole_matrix(study, task, parts[main])
    n_records = found.baselines["record"].nunique()
    baselines: Any = found.baselines
    edited = {target: baselines[baselines["target_name"] == target]["edited"].mean() for target in ("o_true", "o_edit")}
    caption = (
        "Change of P(o_true) and P(o_edit) of the edited model when the pre-softmax score that the last token gives to "
        f"one token is the vanilla model's, in all heads of a window of {found.window} layers (the paper: 10 of 28). "
        f"{study.about}; mean of {len(baselines) // 2} {TASK_NAMES[task]} prompts of {n_records} records, averaged by "
        f"what a token is to the edit. The edited model has P(o_true) {percent(edited['o_true'])} and P(o_edit) "
        f"{percent(edited['o_edit'])}; brackets are 95 % intervals over prompts."
    )
    if len(groups) > 1:
        caption += " The prompts that ask for an object of the edited one's type and the others are apart; claims are "
        caption += f"about {main}."
    return Artifact(
        name=name,
        title=f"{number}. Patching one attention score, {TASK_NAMES[task]}",
        caption=caption,
        figure=plot_score_grid(shown, found.window, edited_layers=found.edited_layers, title=title, note=study.about),
        drawn=pd.concat([grid.assign(part=part) for part, grid in grids.items()], ignore_index=True),
        cases=found.table,
        numbers=[row for part, grid in grids.items() for row in _numbers(grid, part, grouped=len(groups) > 1)],
        claims=[_strongest_row(grids[main]), _as_the_matrix(grids[main], whole)],
    )


def _numbers(grid: pd.DataFrame, part: str, *, grouped: bool) -> list[Number]:
    suffix = f", {part}" if grouped else ""
    cells = [_peak(grid, "o_true", 1), _peak(grid, "o_edit", -1)]
    return [
        Number(name=f"largest {word} of P({cell.target_name}){suffix}", paper="–", here=_text(cell))
        for word, cell in zip(("rise", "fall"), cells, strict=True)
    ]


def _peak(grid: pd.DataFrame, target: str, sign: int, role: str | None = None) -> Any:
    rows: Any = grid[grid["target_name"] == target]
    if role is not None:
        rows = rows[rows["role"] == role]
    return rows.loc[(sign * rows["effect"]).idxmax()]


def _text(cell: Any) -> str:
    return f"{points(cell.effect)} {interval(100 * cell.low, 100 * cell.high, 1)} ({cell.role}, layer {cell.layer})"


def _strongest_row(grid: pd.DataFrame) -> Claim:
    """Whether the edited subject's last token has the strongest row, for both targets."""
    falls: Any = grid[grid["target_name"] == "o_edit"].groupby("role")["effect"].min()
    rises: Any = grid[grid["target_name"] == "o_true"].groupby("role")["effect"].max()
    others = -float(falls.drop(SUBJECT_LAST).min())
    own = -float(falls[SUBJECT_LAST])
    first = falls.idxmin() == SUBJECT_LAST and rises.idxmax() == SUBJECT_LAST
    sure = float(_peak(grid, "o_edit", -1, SUBJECT_LAST).high) < 0
    answer: Answer = "no"
    if first and sure:
        answer = "yes, strongly" if own >= 2 * max(others, 0.0) else "yes"
    elif falls.idxmin() == SUBJECT_LAST and sure:
        answer = "weakly"
    return Claim(
        claim="Patching the score of the edited subject's last token mitigates the failure most.",
        answer=answer,
        because=f"There P(o_edit) falls by up to {points(own).lstrip('+')}, at any other token by up to "
        f"{points(max(others, 0.0)).lstrip('+')}; P(o_true) rises most at the {rises.idxmax()}.",
    )


def _as_the_matrix(grid: pd.DataFrame, whole: dict[str, float]) -> Claim:
    """D.2: whether a score does as much as replacing the entire matrix (Figure 5), on the same prompts."""
    own = {
        "o_true": float(_peak(grid, "o_true", 1, SUBJECT_LAST).effect),
        "o_edit": float(_peak(grid, "o_edit", -1, SUBJECT_LAST).effect),
    }
    shares = [own[name] / whole[name] if abs(whole[name]) > 0.005 else float("nan") for name in own]
    texts = [f"P({name}) {points(own[name])} of {points(whole[name])}" for name in own]
    return Claim(
        claim="This single score changes probabilities about as much as the whole attention matrix (Figure 5).",
        answer=by_share(max(0.0, min(shares)) if min(shares) == min(shares) else float("nan")),
        because=f"On the same prompts, best windows: {listed(texts)}.",
    )


def _whole_matrix(study: Study, task: str, table: pd.DataFrame) -> dict[str, float]:
    """The best window's effect in Figure 5 on the prompts that Figure 10 shows."""
    found = measurements.attention_patch(study, task)
    prompts = study.cases(task, prompts=study.options.prompts)
    chosen = {(prompts[case].record.index, prompts[case].prompt.text) for case in set(table["case"])}
    every = study.cases(task)
    cases = [at for at, case in enumerate(every) if (case.record.index, case.prompt.text) in chosen]
    rows: Any = found.table[found.table["case"].isin(cases)]
    means = rows.groupby(["target_name", "layer"])["effect"].mean()
    # A patch that only makes things worse does not count.
    return {"o_true": max(0.0, float(means["o_true"].max())), "o_edit": min(0.0, float(means["o_edit"].min()))}


ARTIFACTS: dict[str, Callable[[Study], Artifact]] = {"figure10a": figure10a, "figure10b": figure10b}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
