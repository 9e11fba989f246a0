"""Table 10: the influence of SADR's weight γ (paper, E.5).

The paper's four values, or those of --gammas, with --editor (default rome), on 40 records (the paper: 500).  Runs are
shared with Table 3 and Figures 6 and 7.
"""

from __future__ import annotations

import sys
from typing import Any

import pandas as pd

from driftlens.options.program import run_command
from driftlens.plots import plot_table
from experiments import ablations
from experiments.artifacts import Answer, Artifact, Claim, Number
from experiments.benchmarks import NONE, BenchmarkRun, Setting
from experiments.command import ArtifactRecipe, command
from experiments.comparisons import cell, difference, value_of
from experiments.paper_numbers import TABLE_10, Row
from experiments.score_tables import prompts_of
from experiments.study import Study
from experiments.words import number

SCORES = ("ES", "PS", "NS", "RS", "DNS", "FL")
UNCHANGED = 5.0
"""Points within which a score counts as hardly changed."""


def settings(study: Study) -> dict[str, Setting]:
    """Rows by name."""
    return {
        "None": NONE,
        study.editor_name: ablations.alone(study),
        **{f"γ = {gamma:g}": ablations.restrained(study, gamma) for gamma in ablations.gammas(study)},
    }


def table10(study: Study) -> Artifact:
    """γ × scores."""
    rows = ablations.runs_of(study, settings(study))
    about = ablations.about(study, rows)
    texts = [
        {"Editor": "+ SADR" if name.startswith("γ") else name, "γ": name[4:] if name.startswith("γ") else "–"}
        | {score: cell(run, score) for score in SCORES}
        for name, run in rows.items()
    ]
    return Artifact(
        name="table10",
        title="Table 10. The influence of γ",
        caption=f"Scores in percent and fluency; in brackets half of a 95 % interval that resamples records. {about}. "
        "The paper's numbers are GPT-J's with ROME.",
        figure=plot_table(
            pd.DataFrame(texts), title="The influence of SADR's weight γ", note=about.replace("; ", " · "), left=2,
            rules=[1, 2],
        ),
        drawn=ablations.drawn(rows),
        cases=prompts_of(rows),
        numbers=[
            Number(name=f"{name}: {score}", paper=_printed(_paper(name), score), here=cell(run, score, 2))
            for name, run in rows.items()
            for score in SCORES
        ],
        claims=_claims(rows, study),
    )  # fmt: skip


def _printed(row: Row, score: str) -> str:
    return f"{row[score]:.2f}" if score in row else "–"


def _paper(name: str) -> Row:
    by_gamma = {f"γ = {float(gamma):g}": row for (_, gamma), row in TABLE_10.items() if gamma != "-"}
    if name.startswith("γ"):
        return by_gamma.get(name, {})
    return TABLE_10["None" if name == "None" else "ROME", "-"]


def _claims(rows: dict[str, BenchmarkRun], study: Study) -> list[Claim]:
    compared = ablations.gammas(study)
    names = [f"γ = {gamma:g}" for gamma in compared]
    first, last = rows[names[0]], rows[names[-1]]
    claims: list[Claim] = []
    for score in ("RS", "DNS"):
        gain = difference(first, last, score, seed=study.options.seed)
        answer: Answer = "cannot be told"
        if gain is not None:
            answer = "no" if gain.value <= 0 else "yes" if gain.low > 0 else "weakly"
        values = ", ".join(number(value_of(rows[name], score), 1) for name in names)
        claims.append(
            Claim(
                claim=f"A larger γ improves {score} slightly.",
                answer=answer,
                because=f"{values} for γ = {', '.join(f'{gamma:g}' for gamma in compared)}; last less first {gain}.",
            )
        )
    spread = {
        score: max(values) - min(values)
        for score in ("ES", "PS", "NS")
        if not pd.isna(values := [value_of(rows[name], score) for name in names]).any()
    }
    most = max(spread.values(), default=float("nan"))
    answer = "cannot be told"
    if spread:
        answer = "yes" if most <= UNCHANGED else "weakly" if most <= 2 * UNCHANGED else "no"
    texts = [f"{score} by {number(value, 1)}" for score, value in spread.items()]
    claims.append(
        Claim(
            claim="Other scores hardly change with γ, so the method is not sensitive to it.",
            answer=answer,
            because=f"Over γ from {compared[0]:g} to {compared[-1]:g} they range: {', '.join(texts) or '–'} points.",
        )
    )
    return claims


def configuration(study: Study) -> dict[str, Any]:
    """The configuration for the manifest."""
    return ablations.configured(study, settings(study))


ARTIFACTS = {"table10": ArtifactRecipe(make=table10, configuration=configuration)}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
