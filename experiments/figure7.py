"""Figure 7: trade-offs of edit success against specificity: SADR's γ against the editor's own settings (paper, 6.2).

Edit Success is the mean of EM and PM, specificity RM and DNM.  The settings are C.3's: γ; steps; ω, the weight of the
essence KL; and learning rates from a tenth to four fifths of the one that the editor uses (the paper's 0.05 … 0.4 of
0.5).  --editor chooses the editor (default rome).  40 records and 24 runs, about ten minutes of one core for the
bundled model.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd

from driftlens.options.program import run_command
from driftlens.plots import plot_tradeoffs
from experiments import ablations
from experiments.artifacts import Answer, Artifact, Claim, Number
from experiments.benchmarks import NONE, BenchmarkRun, Setting, editor_of, optimizing
from experiments.command import ArtifactRecipe, command
from experiments.comparisons import value_of
from experiments.score_tables import prompts_of
from experiments.study import Study
from experiments.words import number

GAMMAS = (1e-5, 1e-4, 2.5e-4, 5e-4, 1e-2, 8e-2)
STEPS = (7, 14, 20, 40, 80, 120)
KL = (0.1, 1.0, 2.0, 3.0, 4.0, 5.0)
LR_SHARES = (0.1, 0.12, 0.16, 0.2, 0.4, 0.8)
PANELS = {"Relation": "RM", "Distract Neighborhood": "DNM"}
SADR = "SADR, γ"
UNEDITED = "unedited"


def settings(study: Study) -> dict[tuple[str, str], Setting]:
    """(curve, value) → setting."""
    alone = ablations.alone(study)
    editor = optimizing(editor_of(study, alone))
    name = study.editor_name
    return {
        (SADR, f"{gamma:g}"): ablations.restrained(study, gamma) for gamma in ablations.gammas(study, GAMMAS)
    } | {
        (f"{name}, steps", f"{steps}"): ablations.alone(study, steps=steps, texts=False) for steps in STEPS
    } | {
        (f"{name}, learning rate", f"{share * editor.lr:g}"): ablations.alone(study, lr=share * editor.lr, texts=False)
        for share in LR_SHARES
    } | {
        (f"{name}, ω", f"{kl:g}"): ablations.alone(study, kl=kl, texts=False) for kl in KL
    } | {(name, ""): alone, (UNEDITED, ""): NONE}  # fmt: skip


def figure7(study: Study) -> Artifact:
    """Specificity against edit success, a curve for each setting."""
    chosen = settings(study)
    runs = ablations.runs_of(study, {" ".join(key).strip(): setting for key, setting in chosen.items()})
    points: Any = _points({key: runs[" ".join(key).strip()] for key in chosen})
    about = ablations.about(study, runs)
    plain, restrained = (
        optimizing(runs[name].editor) for name in (study.editor_name, f"{SADR} {ablations.gammas(study, GAMMAS)[0]:g}")
    )
    return Artifact(
        name="figure7",
        title="Figure 7. Trade-offs between edit success and specificity",
        caption="P(o_true) on Relation and Distract Neighborhood against the mean of EM and PM, in percent. Each curve "
        f"varies one setting of the preset, which takes {plain.steps} steps without SADR and {restrained.steps} with "
        f"it. {about}. The paper shows curves without numbers; C.3 lists γ out of order (5e-4 before 2.5e-4).",
        figure=plot_tradeoffs(
            points,
            axes={task: ("Edit Success: mean of EM and PM (%)", f"{score} (%)") for task, score in PANELS.items()},
            title="Trade-offs between edit success and specificity",
            note=about.replace("; ", " · "),
        ),
        drawn=points,
        cases=prompts_of(runs),
        numbers=[
            Number(name=f"{f'{row.series} {row.value}'.strip()}: success, {PANELS[row.panel]}", paper="–",
                   here=f"{number(row.x, 1)}, {number(row.y, 1)}")
            for row in points.itertuples()
        ],
        claims=[_claim(points, panel) for panel in PANELS],
    )  # fmt: skip


def _points(runs: dict[tuple[str, str], BenchmarkRun]) -> pd.DataFrame:
    rows = [
        {
            "panel": panel, "series": series, "value": value,
            "x": ablations.success(run, ("EM", "PM")), "y": value_of(run, score),
            "text": f"{series} = {value}" if value else series,
        }
        for panel, score in PANELS.items()
        for (series, value), run in runs.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _claim(points: pd.DataFrame, panel: str) -> Claim:
    """Test whether SADR's curve is higher at the edit success of every point of the other curves."""
    of: Any = points[points["panel"] == panel]
    ours = of[of["series"] == SADR].sort_values("x")
    others = of[~of["series"].isin([SADR, UNEDITED])]
    claim = f"On {panel} SADR's trade-off is better than that of any other setting."
    if ours["y"].isna().any() or others["y"].isna().any():
        return Claim.without_prompts(claim)
    reach = others[(others["x"] >= ours["x"].min()) & (others["x"] <= ours["x"].max())]
    if reach.empty:
        return Claim(claim=claim, answer="cannot be told", because="The curves reach no common edit success.")
    ahead = np.interp(reach["x"], ours["x"], ours["y"]) - reach["y"].to_numpy(dtype=float)
    share = float(np.mean(ahead > 0))
    answer: Answer = "yes" if share == 1 else "weakly" if share >= 0.75 else "no"
    if share == 1 and float(np.median(ahead)) >= 5:
        answer = "yes, strongly"
    return Claim(
        claim=claim,
        answer=answer,
        because=f"At equal edit success SADR's curve is above {int((ahead > 0).sum())} of {len(ahead)} points of the "
        f"others, by {number(float(np.median(ahead)), 1)} points in the median.",
    )


def configuration(study: Study) -> dict[str, Any]:
    """The configuration for the manifest."""
    return ablations.configured(study, {" ".join(key): setting for key, setting in settings(study).items()})


ARTIFACTS = {"figure7": ArtifactRecipe(make=figure7, configuration=configuration)}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
