"""Figure 4: attention drift against P(o_edit), on Distract Neighborhood and Relation (paper, 3.3)."""

from __future__ import annotations

import sys
from typing import Any

import pandas as pd

from driftlens.options.program import run_command
from driftlens.plots import plot_correlation
from driftlens.plots.style import escaped
from experiments.artifacts import Artifact, Claim, Number
from experiments.command import command
from experiments.correlations import Points, as_table, combined, correlate, drift_points, layers_text, typeset
from experiments.study import TASK_NAMES, Study
from experiments.words import by_correlation, rho

PAPER = {"distract_neighborhood": "ρ = 0.49, p < 1e-5", "relation": "ρ = 0.62, p < 1e-5"}


def figure4(study: Study) -> Artifact:
    """Drift against P(o_edit)."""
    points = drift_points(study)
    found = {part.name: correlate(part, "kl", study.options.seed) for part in points}
    table = combined(points)
    drawn = _drawn(table)
    named = {
        (TASK_NAMES[part.task], part.group or ""): correlation
        for part in points
        if (correlation := found[part.name]) is not None
    }
    figure = plot_correlation(
        drawn,
        named,
        x="kl",
        y="edit_edited",
        x_title=typeset("attention drift  Σ_l Σ_h KL(W ‖ W*)"),
        y_title="P(o_edit)",
        title="Attention drift and the probability of the edited object",
        note=f"{study.about} · every point is a prompt",
    )
    return Artifact(
        name="figure4",
        title="Figure 4. Attention drift and P(o_edit)",
        caption=_caption(study, points),
        figure=figure,
        drawn=as_table({(name, "kl"): each for name, each in found.items()}),
        cases=table,
        numbers=[
            Number(
                name=part.name,
                paper=PAPER[part.task] if part.group is None else "–",
                here="too little to correlate" if (each := found[part.name]) is None else rho(each),
            )
            for part in points
        ],
        claims=[
            Claim(
                claim=f"On {part.name} drift of the last token's attention and P(o_edit) correlate positively.",
                answer=by_correlation(found[part.name]),
                because="" if (each := found[part.name]) is None else f"{rho(each)}.",
            )
            for part in points
        ],
    )


def _caption(study: Study, points: list[Points]) -> str:
    prompts = "; ".join(
        f"{len(part.table)} {part.name} prompts of {part.table['record'].nunique()} records" for part in points
    )
    text = (
        f"Σ_l Σ_h KL(W ‖ W*) of what the last token attends to, before and after the edit, against P(o_edit) in the "
        f"edited model, with least-squares lines. {study.about}; {prompts}. {layers_text(study)} Brackets are 95 % "
        "intervals: Fisher's, which takes prompts as independent, and a bootstrap that resamples records, whose "
        "prompts share an edit."
    )
    if any(part.group for part in points):
        text += " Relation prompts are pooled, and apart by whether they ask for the edited object's type."
    return text


def _drawn(table: pd.DataFrame) -> pd.DataFrame:
    rows: Any = table
    hover = [
        f"record {c.record}: {escaped(c.prompt)}<br>drift {c.kl:.4g}, P(o_edit) <b>{c.edit_edited:.4f}</b> "
        f"(vanilla {c.edit_vanilla:.4f})<br>P(o_true) {c.true_vanilla:.4f} → {c.true_edited:.4f}"
        for c in rows.itertuples()
    ]
    return table.assign(panel=rows["task"].map(TASK_NAMES), hover=hover)


ARTIFACTS = {"figure4": figure4}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
