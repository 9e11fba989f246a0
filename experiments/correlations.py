"""Correlations of drift factors with P(o_edit) for Figure 4 and Tables 2 and 4, from one pass over the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from driftlens.errors import DriftlensError
from driftlens.statistics.correlations import Correlation, correlation
from experiments import measurements
from experiments.artifacts import Number
from experiments.study import TASK_NAMES, Study
from experiments.words import rho_cell

__all__ = [
    "FACTOR_NAMES",
    "TASKS",
    "Points",
    "as_numbers",
    "as_table",
    "combined",
    "correlate",
    "drift_points",
    "layers_text",
    "typeset",
]

TASKS = ("distract_neighborhood", "relation")
FACTOR_NAMES = {
    "kl": "Attention drift, Σ KL",
    "max_subject": "Σ_l max_h  W*[s] − W[s]",
    "max_others": "Σ_l max_h ‖W*[∖s] − W[∖s]‖",
    "sum_subject": "Σ_l Σ_h  W*[s] − W[s]",
    "hidden_norm": "Hidden state norm",
    "hidden_l2": "L2 distance",
    "hidden_cosine": "Cosine similarity",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Every prompt's factors and probabilities, for a task or, if the data has groups, a group of its prompts."""

    task: str
    group: str | None
    table: pd.DataFrame

    @property
    def name(self) -> str:
        """The name in a caption."""
        return TASK_NAMES[self.task] + (f" ({self.group})" if self.group else "")


def drift_points(study: Study) -> list[Points]:
    """Both tasks, each followed by its groups."""
    found: list[Points] = []
    for task in TASKS:
        table: Any = measurements.drift(study, task)
        found.append(Points(task=task, group=None, table=table))
        groups = [group for group in dict.fromkeys(table["group"]) if isinstance(group, str)]
        if len(groups) > 1:
            found += [Points(task=task, group=group, table=table[table["group"] == group]) for group in groups]
    return found


def correlate(points: Points, factor: str, seed: int) -> Correlation | None:
    """Correlate a factor with P(o_edit); None if there are too few prompts."""
    try:
        return correlation(points.table[factor], points.table["edit_edited"], list(points.table["record"]), seed=seed)
    except DriftlensError:
        return None


def typeset(text: str) -> str:
    """Format subscripts for plotly."""
    return text.replace("_l", "<sub>l</sub>").replace("_h", "<sub>h</sub>")


def layers_text(study: Study) -> str:
    """Say which layers drift is summed over, and why."""
    layers = measurements.drift_layers(study)
    named = str(layers[0]) if len(layers) == 1 else f"{', '.join(map(str, layers[:-1]))} and {layers[-1]}"
    return (
        f"Drift is summed over {'layer' if len(layers) == 1 else 'layers'} {named}: those where substituting attention "
        "outputs at the last token has at least half of the largest such effect on P(o_true) (Figure 3)."
    )


def combined(points: list[Points]) -> pd.DataFrame:
    """All prompts once, with their task."""
    return pd.concat([part.table.assign(task=part.task) for part in points if part.group is None], ignore_index=True)


def as_numbers(
    points: Sequence[Points],
    found: Mapping[tuple[str, str], Correlation | None],
    factors: Sequence[str],
    paper: Mapping[str, Mapping[str, str]],
) -> list[Number]:
    """List each correlation beside the paper's, which has no groups."""
    return [
        Number(
            name=f"{part.name}: {FACTOR_NAMES[factor]}",
            paper=paper[part.task][factor] if part.group is None else "–",
            here=rho_cell(found[part.name, factor]),
        )
        for part in points
        for factor in factors
    ]


def as_table(found: Mapping[tuple[str, str], Correlation | None]) -> pd.DataFrame:
    """Correlations by (points, factor) as a tidy table."""
    rows = [
        {
            "points": name,
            "factor": factor,
            "rho": each.rho,
            "p": each.p,
            "n": each.n,
            "low": each.low,
            "high": each.high,
            "low_by_record": each.cluster_low,
            "high_by_record": each.cluster_high,
        }
        for (name, factor), each in found.items()
        if each is not None
    ]
    return pd.DataFrame(rows)
