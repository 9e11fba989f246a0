"""Figure 5: vanilla attention weights patched into the edited model, over layers (paper, 3.4).

The window is the paper's 10 of 28 layers, scaled to the model's depth; the unpatched edited model stands apart.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from driftlens.options.program import run_command
from driftlens.plots import plot_patch_curve
from driftlens.statistics.intervals import interval_ends
from experiments import measurements
from experiments.artifacts import Artifact, Claim, Number
from experiments.command import command
from experiments.correlations import TASKS
from experiments.study import TASK_NAMES, Study
from experiments.words import by_share, percent, relative

PAPER = {"distract_neighborhood": ("+28.6 %", "−54.0 %"), "relation": ("+739.2 %", "−89.6 %")}


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Mean probabilities by layer for a task or a group of its prompts, and those of the best window."""

    task: str
    group: str | None
    table: pd.DataFrame
    baselines: pd.DataFrame

    @property
    def name(self) -> str:
        """The name in a caption."""
        return TASK_NAMES[self.task] + (f" ({self.group})" if self.group else "")

    def means(self) -> Any:
        """Layer × target."""
        return self.table.pivot_table(index="layer", columns="target_name", values="probability", aggfunc="mean")

    def unpatched(self) -> Mapping[str, float]:
        """The edited model's mean probability of each target."""
        means: Any = self.baselines.groupby("target_name")["edited"].mean()
        return {str(name): float(mean) for name, mean in means.items()}

    def best(self) -> tuple[int, float, float]:
        """The layer where P(o_edit) is lowest, and the relative changes of P(o_true) and P(o_edit) there."""
        means, before = self.means(), self.unpatched()
        layer = int(means["o_edit"].idxmin())
        true, edit = (
            means.loc[layer, name] / before[name] - 1 if before[name] > 0 else float("nan")
            for name in ("o_true", "o_edit")
        )
        return layer, true, edit


def figure5(study: Study) -> Artifact:
    """Curves over layers for both tasks."""
    curves = [curve for task in TASKS for curve in _curves(study, task)]
    grouped = any(curve.group for curve in curves)
    # The paper's two panels; if the data has groups, the one with the edited object's type as well.
    shown = [curve for curve in curves if curve.group in (None, "same type")]
    window = measurements.patch_window(study)
    figure = plot_patch_curve(
        pd.concat([curve.table.assign(task=curve.name) for curve in shown]),
        pd.concat([curve.baselines.assign(task=curve.name) for curve in shown]),
        window,
        title="Patching vanilla attention weights into the edited model",
        note=study.about,
    )
    drawn = pd.concat([_intervals(curve) for curve in curves], ignore_index=True)
    return Artifact(
        name="figure5",
        title="Figure 5. Patching attention weights",
        caption=_caption(study, curves, window, grouped=grouped),
        figure=figure,
        drawn=drawn,
        cases=pd.concat([c.table.assign(task=c.task) for c in curves if c.group is None], ignore_index=True),
        numbers=[number for curve in curves for number in _numbers(curve)],
        claims=[claim for curve in curves for claim in _claims(study, curve, window)],
    )


def _curves(study: Study, task: str) -> list[Curve]:
    found: Any = measurements.attention_patch(study, task)
    curves = [Curve(task=task, group=None, table=found.table, baselines=found.baselines)]
    groups = [group for group in dict.fromkeys(found.table["group"]) if isinstance(group, str)]
    for group in groups if len(groups) > 1 else []:
        table, baselines = (part[part["group"] == group] for part in (found.table, found.baselines))
        curves.append(Curve(task=task, group=group, table=table, baselines=baselines))
    return curves


def _caption(study: Study, curves: list[Curve], window: int, *, grouped: bool) -> str:
    prompts = "; ".join(f"{len(set(curve.baselines['case']))} {curve.name} prompts" for curve in curves)
    text = (
        f"P(o_true) and P(o_edit) of the edited model when its attention weights in a window of {window} layers (the "
        f"paper: 10 of 28) are the vanilla model's for the same prompt. {study.about}; {prompts}. “None” is the "
        "edited model without a patch; dashed lines are the vanilla model; bands are 95 % intervals over prompts. "
        "Changes are relative, of the mean probability, for the window that lowers P(o_edit) most."
    )
    if grouped:
        text += " Relation prompts are pooled, and apart by whether they ask for the edited object's type."
    return text


def _numbers(curve: Curve) -> list[Number]:
    layer, true, edit = curve.best()
    means, before = curve.means(), curve.unpatched()
    paper = PAPER[curve.task] if curve.group is None else ("–", "–")
    return [
        Number(
            name=f"{curve.name}: change of P({name})",
            paper=quoted,
            here=f"{relative(change)} ({percent(before[name])} → {percent(means.loc[layer, name])}, layer {layer})",
        )
        for name, quoted, change in (("o_true", paper[0], true), ("o_edit", paper[1], edit))
    ]


def _claims(study: Study, curve: Curve, window: int) -> list[Claim]:
    layer, true, edit = curve.best()
    means, before = curve.means(), curve.unpatched()
    of_true: Any = curve.baselines[curve.baselines["target_name"] == "o_true"]
    vanilla = float(of_true["vanilla"].mean())
    lost, regained = vanilla - before["o_true"], means.loc[layer, "o_true"] - before["o_true"]
    harmed = lost > 0.005
    above = f"The best window is centred on layer {layer} of {study.model.n_layers}"
    return [
        Claim(
            claim=f"On {curve.name} patching {window} layers' attention lowers P(o_edit).",
            answer=by_share(float("nan") if before["o_edit"] < 0.005 else max(0.0, -edit)),
            because=f"{above}: {relative(edit)}.",
        ),
        Claim(
            claim=f"On {curve.name} it raises P(o_true).",
            answer=by_share(max(0.0, regained / lost) if harmed else float("nan")),
            because=f"{relative(true)}; the patch gives back {percent(regained / lost, 0)} of what the edit took."
            if harmed
            else "The edit takes nothing that could be given back.",
        ),
    ]


def _intervals(curve: Curve) -> pd.DataFrame:
    cells: Any = curve.table.groupby(["target_name", "layer", "first", "last"])["probability"]
    table: Any = cells.agg(probability="mean", prompts="count").reset_index()
    records: Any = curve.table["record"]
    table["low"], table["high"] = interval_ends(cells, bounds=(0.0, 1.0), clusters=records)
    unpatched = table["target_name"].map(curve.unpatched())
    return table.assign(unpatched=unpatched, part=curve.name)


ARTIFACTS = {"figure5": figure5}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
