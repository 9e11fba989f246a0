"""Table 4: attention drift against norm, distance and direction of the edited hidden state (paper, D.3)."""

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
)
from experiments.study import Study
from experiments.words import interval, rho_cell

FACTORS = ("kl", "hidden_norm", "hidden_l2", "hidden_cosine")
PAPER = {
    "distract_neighborhood": {"kl": "0.49", "hidden_norm": "0.01", "hidden_l2": "0.01", "hidden_cosine": "0.02"},
    "relation": {"kl": "0.62", "hidden_norm": "0.31", "hidden_l2": "0.31", "hidden_cosine": "−0.15"},
}


def table4(study: Study) -> Artifact:
    """Four factors × tasks."""
    points = drift_points(study)
    seed = study.options.seed
    found = {(part.name, factor): correlate(part, factor, seed) for part in points for factor in FACTORS}
    columns: dict[str, list[str]] = {"Factor": [FACTOR_NAMES[factor] for factor in FACTORS]}
    for part in points:
        if part.group is None:
            columns[f"{part.name}\npaper"] = [PAPER[part.task][factor] for factor in FACTORS]
        columns[f"{part.name}\nhere"] = [rho_cell(found[part.name, factor]) for factor in FACTORS]
    figure = plot_table(
        pd.DataFrame(columns), title="Correlation of different factors with P(o_edit)", note=study.about
    )
    return Artifact(
        name="table4",
        title="Table 4. Attention drift and the edited hidden state",
        caption=f"Pearson's ρ with P(o_edit). {study.about}. {layers_text(study)} The hidden state is the residual "
        "stream behind the (last) edited layer at the edited subject's last token: its norm after the edit, the L2 "
        "distance and the cosine similarity to the one before. Brackets resample records.",
        figure=figure,
        drawn=as_table(found),
        cases=combined(points),
        numbers=as_numbers(points, found, FACTORS, PAPER),
        claims=[_compared(study, part, found) for part in points],
    )


def _compared(study: Study, part: Points, found: dict[tuple[str, str], Any]) -> Claim:
    claim = f"On {part.name} attention drift correlates with P(o_edit) more than norm, distance or direction do."
    others = [factor for factor in FACTORS[1:] if found[part.name, factor] is not None]
    if found[part.name, "kl"] is None or not others:
        return Claim(claim=claim, answer="cannot be told", because="There is too little to correlate.")
    table: Any = part.table
    texts: list[str] = []
    answers: list[Answer] = []
    for factor in others:
        difference, low, high = correlation_difference(
            table["kl"], table[factor], table["edit_edited"], list(table["record"]), seed=study.options.seed
        )
        answers.append("no" if difference <= 0 else "yes" if low > 0 else "weakly")
        texts.append(f"{FACTOR_NAMES[factor].lower()} {difference:+.2f} {interval(low, high)}".replace("-", "−"))
    worst: Answer = "no" if "no" in answers else "weakly" if "weakly" in answers else "yes"
    return Claim(claim=claim, answer=worst, because=f"|ρ| of drift less that of: {'; '.join(texts)}.")


ARTIFACTS = {"table4": table4}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
