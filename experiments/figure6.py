"""Figure 6: restraining the selected heads (Eq. 2) against restraining all heads, over γ (paper, 6.1).

Edit Success is the mean of ES and PS, Specificity that of NS, RS and DNS.  --editor chooses the editor (default rome);
40 records, as in Table 10, whose runs are the selected heads' here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd

from driftlens.options.program import run_command
from driftlens.plots import plot_tradeoffs
from experiments import ablations
from experiments.artifacts import Answer, Artifact, Claim, Number
from experiments.benchmarks import BenchmarkRun, Setting
from experiments.command import ArtifactRecipe, command
from experiments.comparisons import mean_difference
from experiments.score_tables import prompts_of
from experiments.study import Study
from experiments.words import number

HEADS = ("selected", "all")
MEASURES = {"Edit Success": ablations.success, "Specificity": ablations.specificity}
PARTS = {"Edit Success": ablations.SUCCESS, "Specificity": ablations.SPECIFICITY}
STRONG = 3.0
"""The lead in points of the selected heads, at every γ, that counts as strong."""


def settings(study: Study) -> dict[str, Setting]:
    """The editor alone, and both choices of heads at every γ."""
    return {
        study.editor_name: ablations.alone(study),
        **{
            f"{heads} heads, γ = {gamma:g}": ablations.restrained(study, gamma, heads=heads)
            for heads in HEADS
            for gamma in ablations.gammas(study)
        },
    }


def figure6(study: Study) -> Artifact:
    """Edit Success and Specificity over γ."""
    runs = ablations.runs_of(study, settings(study))
    compared = ablations.gammas(study)
    points = _points(runs, compared)
    about = ablations.about(study, runs)
    plain = runs[study.editor_name]
    return Artifact(
        name="figure6",
        title="Figure 6. Selected heads against all heads",
        caption=f"Edit Success (mean of ES and PS) and Specificity (mean of NS, RS and DNS) over γ. {about}. Without "
        f"SADR Edit Success is {number(ablations.success(plain), 1)} and Specificity "
        f"{number(ablations.specificity(plain), 1)}. The paper shows curves without numbers.",
        figure=plot_tradeoffs(
            points,
            axes={measure: ("γ", f"{measure} (%)") for measure in MEASURES},
            title="Restraining selected heads and all heads",
            note=about.replace("; ", " · "),
            log_x=True,
        ),
        drawn=points,
        cases=prompts_of(runs),
        numbers=[
            Number(name=f"{measure}, {heads} heads, γ = {gamma:g}", paper="–",
                   here=number(_value(points, measure, heads, gamma), 1))
            for measure in MEASURES
            for heads in HEADS
            for gamma in compared
        ],
        claims=[_claim(runs, measure, compared, study.options.seed) for measure in MEASURES],
    )  # fmt: skip


def _points(runs: dict[str, BenchmarkRun], gammas: Sequence[float]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for measure, of in MEASURES.items():
        for heads in HEADS:
            for gamma in gammas:
                run = runs[f"{heads} heads, γ = {gamma:g}"]
                scores: Any = run.scores["value"][["ES", "PS", "NS", "RS", "DNS"]]
                text = f"γ = {gamma:g}: " + ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
                rows.append({"panel": measure, "series": f"{heads} heads", "x": gamma, "y": of(run), "text": text})
    return pd.DataFrame(rows)


def _value(points: pd.DataFrame, measure: str, heads: str, gamma: float) -> float:
    row: Any = points[(points["panel"] == measure) & (points["series"] == f"{heads} heads") & (points["x"] == gamma)]
    return float(row["y"].iloc[0])


def _claim(runs: dict[str, BenchmarkRun], measure: str, gammas: Sequence[float], seed: int) -> Claim:
    """Count the γ at which the selected heads are significantly ahead, record by record."""
    claim = f"Restraining the selected heads outperforms restraining all heads on {measure}, whatever γ."
    pairs = [(runs[f"all heads, γ = {gamma:g}"], runs[f"selected heads, γ = {gamma:g}"]) for gamma in gammas]
    found = [mean_difference(all_heads, selected, PARTS[measure], seed=seed) for all_heads, selected in pairs]
    leads = [lead for lead in found if lead is not None]
    if len(leads) < len(gammas):
        return Claim(claim=claim, answer="cannot be told", because=f"The data lacks a part of {measure}.")
    sure = sum(lead.low > 0 for lead in leads)
    answer: Answer = "weakly" if sure > len(leads) / 2 else "no"
    if sure == len(leads):
        answer = "yes, strongly" if min(lead.value for lead in leads) >= STRONG else "yes"
    return Claim(
        claim=claim,
        answer=answer,
        because=f"Selected less all on the same prompts: {', '.join(map(str, leads))} points for γ = "
        f"{', '.join(f'{gamma:g}' for gamma in gammas)}.",
    )


def configuration(study: Study) -> dict[str, Any]:
    """The configuration for the manifest."""
    return ablations.configured(study, settings(study))


ARTIFACTS = {"figure6": ArtifactRecipe(make=figure6, configuration=configuration)}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
