"""Guards against SADR, beyond the paper: the table at one weight, and the trade-off over all weights.

Guards are prompts that an edit has nothing to do with: questions about the subject, and the edit's question about other
subjects behind the edited statement.  What is answered to them, and how likely the new object becomes behind them, is
restrained (`driftlens.GuardedSADR`, μ = ν), where SADR restrains the attention in the edit's own contexts.

1. The table: the editor (--editor, default rome) alone, with SADR and with guards, 200 records.
2. The curve: SADR over γ (the paper's four values, or --gammas), with its own number of steps and with as few as the
   editor takes alone, and guards over μ = ν, 40 records.

--records chooses how many records.  No guard's subject occurs in a prompt that is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from driftlens.editors import GuardedSADR
from driftlens.editors.guarded import usual_guards
from driftlens.options.program import run_command
from driftlens.plots import plot_table, plot_tradeoffs
from experiments import ablations
from experiments.artifacts import Answer, Artifact, Claim, Number
from experiments.benchmarks import (
    NONE,
    BenchmarkRun,
    Setting,
    editor_of,
    other_subjects,
    overlap,
    records_for,
    settings_configuration,
)
from experiments.command import ArtifactRecipe, command
from experiments.comparisons import Difference, average_difference, cell, difference, score_table, unedited, value_of
from experiments.main_table import run
from experiments.score_tables import prompts_of
from experiments.study import Study
from experiments.tuning import tuned
from experiments.words import number

SCORES = ("Avg.S", "ES", "PS", "NS", "RS", "DNS")
FACTORS = (0.5, 1.0, 2.0, 4.0)
"""The weights of the curve, as multiples of the model's weight."""
GOAL = 10.0
"""The target gain over SADR in points of Avg. S."""
PANELS = {
    "Relation": ("ES (%)", "RS (%)"),
    "Distract Neighborhood": ("ES (%)", "DNS (%)"),
    "Relation and paraphrases": ("PS (%)", "RS (%)"),
    "Distract Neighborhood and paraphrases": ("PS (%)", "DNS (%)"),
}


def table_settings(study: Study) -> dict[str, Setting]:
    """Rows by name."""
    editor, found = study.options.editor, tuned(study, study.options.editor)
    return {
        "None": NONE,
        study.editor_name: Setting(editor=editor, lr=found.lr, texts=False),
        f"{study.editor_name} + SADR": Setting(editor=editor, sadr=True, gamma=found.gamma, lr=found.lr, texts=False),
        f"{study.editor_name} + guards": Setting(editor=editor, guards=weight(study), lr=found.lr, texts=False),
    }


def weight(study: Study) -> float:
    """μ = ν for this model."""
    return usual_guards(study.model).mu


def guards_table(study: Study) -> Artifact:
    """Compare the editor alone, SADR and guards, and test what guards add to either on the same prompts."""
    records = records_for(study)
    rows = {name: run(study, setting, records) for name, setting in table_settings(study).items()}
    _, plain, sadr, guards = rows
    about = ablations.about(study, rows)
    gains = {
        f"guards − {of}": {score: _gain(rows[of], rows[guards], score, study.options.seed) for score in SCORES}
        for of in (plain, sadr)
    }
    texts = [{"Editor": unedited(name), **{score: cell(of, score) for score in SCORES}} for name, of in rows.items()]
    texts += [{"Editor": name, **{score: _told(own[score]) for score in SCORES}} for name, own in gains.items()]
    alike, n_guards = overlap(study, records, _guards(study))
    return Artifact(
        name="guards_table",
        title="Guards against SADR",
        caption="Scores in percent; in brackets half of a 95 % interval, in the last two rows the whole interval of a "
        f"difference on the same prompts; both resample records. {about}. SADR: {_weight(rows[sadr])}; guards: "
        f"μ = ν = {weight(study):g}, {_kinds(study)}. Of the {n_guards:,} guards {alike} are, or end like, a prompt "
        "that is measured, and none of their other subjects occurs in one.",
        figure=plot_table(
            pd.DataFrame(texts), title="Guards against SADR", note=about.replace("; ", " · "), left=1, rules=[1, 4]
        ),
        drawn=score_table(rows),
        cases=prompts_of(rows),
        numbers=[
            Number(name=f"{name}: {score}", paper="–", here=_told(value))
            for name, own in gains.items()
            for score, value in own.items()
        ],
        claims=[_claim(rows[sadr], gains[f"guards − {sadr}"]["Avg.S"])],
    )


def curve_settings(study: Study) -> dict[str, Setting]:
    """The editor alone, SADR at every γ with its own and with the editor's number of steps, guards at every weight."""
    gammas = ablations.gammas(study)
    few = _few(study, gammas[0])
    return {
        study.editor_name: ablations.alone(study, texts=False),
        **{f"γ = {gamma:g}": ablations.restrained(study, gamma, texts=False) for gamma in gammas},
        **{
            f"γ = {gamma:g}, {few} steps": ablations.restrained(study, gamma, texts=False, steps=few)
            for gamma in gammas
            if few
        },
        **{f"μ = ν = {mu:g}": ablations.alone(study, guards=mu, texts=False) for mu in _weights(study)},
    }


def _few(study: Study, gamma: float) -> int | None:
    """The editor's number of steps without a restraint, if that is smaller."""
    alone, restrained = (
        editor_of(study, of)
        for of in (ablations.alone(study, texts=False), ablations.restrained(study, gamma, texts=False))
    )
    assert alone is not None
    assert restrained is not None
    return alone.most_steps if alone.most_steps < restrained.most_steps else None


def _weights(study: Study) -> list[float]:
    return [float(f"{weight(study) * factor:.6g}") for factor in FACTORS]


def guards_curve(study: Study) -> Artifact:
    """The cost of specificity, over all weights."""
    runs = ablations.runs_of(study, curve_settings(study))
    about = ablations.about(study, runs)
    points = _points(study, runs)
    best = {kind: _best(runs, kind) for kind in ("γ", "μ")}
    return Artifact(
        name="guards_curve",
        title="Guards against SADR over all weights",
        caption=f"Each point is a weight: γ for SADR, μ = ν for guards. Higher and further right is better. {about}. "
        "Guards as in the table.",
        figure=plot_tradeoffs(
            points, axes=PANELS, title="What specificity costs", note=about.replace("; ", " · "),
            up=(study.editor_name,),
        ),
        drawn=points,
        cases=prompts_of(runs),
        numbers=[
            Number(name=f"{name}: {score}", paper="–", here=number(value_of(of, score), 1))
            for name, of in runs.items()
            for score in SCORES
        ],
        claims=[
            _claim(
                runs[best["γ"]],
                average_difference(runs[best["γ"]], runs[best["μ"]], seed=study.options.seed),
                f" ({best['μ']} against {best['γ']}, the best weight of each on these records)",
            )
        ],
    )  # fmt: skip


def _points(study: Study, runs: Mapping[str, BenchmarkRun]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for panel, axes in PANELS.items():
        x, y = (axis.split()[0] for axis in axes)
        for name, of in runs.items():
            series = _series(study, name)
            told = ", ".join(f"{score} {number(value_of(of, score), 1)}" for score in SCORES)
            rows.append(
                {"panel": panel, "series": series, "x": value_of(of, x), "y": value_of(of, y),
                 "text": name if series == study.editor_name else f"{name}: {told}"}
            )  # fmt: skip
    return pd.DataFrame(rows)


def _series(study: Study, name: str) -> str:
    if name.startswith("μ"):
        return "guards"
    if name.startswith("γ"):
        return f"SADR, {name.partition(', ')[2]}" if ", " in name else "SADR"
    return study.editor_name


def _best(runs: Mapping[str, BenchmarkRun], kind: str) -> str:
    own = [name for name in runs if name.startswith(kind)]
    scores = [value_of(runs[name], "Avg.S") for name in own]
    return own[int(np.nanargmax(scores))] if not np.isnan(scores).all() else own[0]


def _gain(before: BenchmarkRun, after: BenchmarkRun, score: str, seed: int) -> Difference | None:
    return (
        average_difference(before, after, seed=seed)
        if score == "Avg.S"
        else difference(before, after, score, seed=seed)
    )


def _told(gain: Difference | None) -> str:
    return "–" if gain is None else str(gain)


def _weight(of: BenchmarkRun) -> str:
    from driftlens.options.editing import editor_text

    return "" if of.editor is None else editor_text(of.editor).split(" + ")[-1]


def _guards(study: Study) -> GuardedSADR:
    return usual_guards(study.model, subjects=other_subjects(study))


def _kinds(study: Study) -> str:
    guards = _guards(study)
    return f"{guards.asked} questions about the subject and {guards.distracted} about other subjects"


def _claim(sadr: BenchmarkRun, gain: Difference | None, told: str = "") -> Claim:
    claim = f"Guards reach an Avg. S {GOAL:g} points above SADR's{told}."
    if gain is None:
        return Claim(claim=claim, answer="cannot be told", because="The data lacks a part of Avg. S.")
    answer: Answer = "no"
    if gain.low > 0:
        answer = "yes" if gain.value >= GOAL else "weakly"
    room = 100 - value_of(sadr, "Avg.S")
    return Claim(
        claim=claim,
        answer=answer,
        because=f"On the same prompts Avg. S changes by {gain} points; SADR leaves {number(room, 1)} to 100.",
    )


def table_configuration(study: Study) -> dict[str, Any]:
    """The configuration for the manifest."""
    settings = [setting for setting in table_settings(study).values() if setting != NONE]
    return settings_configuration(study, settings, records_for(study))


def curve_configuration(study: Study) -> dict[str, Any]:
    """The configuration for the manifest."""
    return ablations.configured(study, curve_settings(study))


ARTIFACTS = {
    "guards_table": ArtifactRecipe(make=guards_table, configuration=table_configuration),
    "guards_curve": ArtifactRecipe(make=guards_curve, configuration=curve_configuration),
}
main = command(ARTIFACTS, __doc__, program="guards")

if __name__ == "__main__":
    sys.exit(run_command(main))
