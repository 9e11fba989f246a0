"""Table 2: which token and which heads: three factors of attention drift and their correlation with P(o_edit).

The paper's equations: (1) Σ_l max_h of the drift at the edited subject's last token s, (2) Σ_l max_h of the drift at
all other tokens, (3) Σ_l Σ_h of the drift at s.
"""

from __future__ import annotations

import sys
from typing import Any

import pandas as pd

from driftlens.options.program import run_command
from driftlens.plots import plot_table
from driftlens.statistics.correlations import correlation_difference
from experiments.artifacts import Answer, Artifact, Claim
from experiments.command import command
from experiments.correlations import (
    FACTOR_NAMES,
    Points,
    as_numbers,
    as_table,
    combined,
    correlate,
    drift_points,
    layers_text,
    typeset,
)
from experiments.study import Study
from experiments.words import interval, rho_cell

FACTORS = ("max_subject", "max_others", "sum_subject")
PAPER = {
    "distract_neighborhood": {"max_subject": "0.55", "max_others": "0.49", "sum_subject": "0.43"},
    "relation": {"max_subject": "0.53", "max_others": "0.42", "sum_subject": "0.50"},
}


def table2(study: Study) -> Artifact:
    """Three factors × tasks."""
    points = drift_points(study)
    seed = study.options.seed
    found = {(part.name, factor): correlate(part, factor, seed) for part in points for factor in FACTORS}
    rows = [
        {
            "Task": part.name if factor == FACTORS[0] else "",
            "Factor": f"{number}.  {typeset(FACTOR_NAMES[factor])}",
            "ρ\npaper": PAPER[part.task][factor] if part.group is None else "–",
            "ρ [95 %]\nhere": rho_cell(found[part.name, factor]),
        }
        for part in points
        for number, factor in enumerate(FACTORS, 1)
    ]
    figure = plot_table(
        pd.DataFrame(rows),
        title="Factors of attention drift and their correlation with P(o_edit)",
        note=study.about,
        left=2,
        rules=[3 * at for at in range(1, len(points))],
        bold=_best(points, found),
        html=["Factor"],
    )
    return Artifact(
        name="table2",
        title="Table 2. Factors of attention drift and P(o_edit)",
        caption=f"Pearson's ρ with P(o_edit) of three factors of drift. {study.about}. {layers_text(study)} Drift is "
        "W* − W, so over-attention is positive; s is the edited subject's last token. Brackets resample records.",
        figure=figure,
        drawn=as_table(found),
        cases=combined(points),
        numbers=as_numbers(points, found, FACTORS, PAPER),
        claims=[
            claim
            for part in points
            for claim in (
                _compared(
                    study, part, "max_others", "drift at the subject's last token correlates better than at others"
                ),
                _compared(study, part, "sum_subject", "the largest drift among heads correlates better than their sum"),
            )
        ],
    )


def _compared(study: Study, part: Points, other: str, what: str) -> Claim:
    table: Any = part.table
    claim = f"On {part.name} {what}."
    if correlate(part, "max_subject", 0) is None or correlate(part, other, 0) is None:
        return Claim(claim=claim, answer="cannot be told", because="There is too little to correlate.")
    difference, low, high = correlation_difference(
        table["max_subject"], table[other], table["edit_edited"], list(table["record"]), seed=study.options.seed
    )
    answer: Answer = "no" if difference <= 0 else "yes" if low > 0 else "weakly"
    text = f"|ρ| differs by {difference:+.2f} {interval(low, high)}".replace("-", "−")
    if answer == "weakly":
        text += ", which may be chance"
    elif high < 0:
        text += ": it is the other way round"
    return Claim(claim=claim, answer=answer, because=f"{text}.")


def _best(points: list[Points], found: dict[tuple[str, str], Any]) -> list[tuple[int, int]]:
    """The strongest factor of each task, which is set in bold."""
    cells: list[tuple[int, int]] = []
    for at, part in enumerate(points):
        values = [-1.0 if (each := found[part.name, factor]) is None else abs(each.rho) for factor in FACTORS]
        if max(values) >= 0:
            cells.append((3 * at + values.index(max(values)), 3))
    return cells


ARTIFACTS = {"table2": table2}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
