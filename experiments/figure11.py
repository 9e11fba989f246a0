"""Figure 11: P(o_edit) of edits optimised without a gradient through attention weights, ROME-AWD (paper, D.4)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd

from driftlens.data import Record
from driftlens.errors import DriftlensError
from driftlens.options.program import run_command
from driftlens.plots import plot_histogram
from experiments import measurements
from experiments.artifacts import Answer, Artifact, Claim, Number
from experiments.command import command
from experiments.study import Study
from experiments.words import percent

THRESHOLD = 0.95
"""The paper's line between knowledge that is easy and hard to edit."""

MOST_RECORDS = 100
"""As many edits as the paper's."""

TASKS = ("rewrite", "paraphrase", "distract_neighborhood")


def figure11(study: Study) -> Artifact:
    """The distribution of P(o_edit) with ROME-AWD and ROME."""
    table = edit_probabilities(study)
    awd, rome = (table[name].to_numpy(dtype=float) for name in ("ROME-AWD", "ROME"))
    extreme = float(np.mean((awd < 0.1) | (awd > 0.9)))
    low, high = float(np.mean(awd < 0.1)), float(np.mean(awd > 0.9))
    hard = float(np.mean(awd <= THRESHOLD))
    polarised: Answer = "no"
    if extreme >= 0.75 and min(low, high) >= 0.1:
        polarised = "yes, strongly" if min(low, high) >= 0.25 else "yes"
    return Artifact(
        name="figure11",
        title="Figure 11. P(o_edit) without optimising attention weights",
        caption="How probable the edited object is after its own prompt, when the edit's gradient goes through values "
        f"only (ROME-AWD) and with the gradient whole (ROME). {study.about}; {len(table)} facts. The dashed line is "
        f"the paper's threshold of {THRESHOLD} between easy and hard to edit.",
        figure=plot_histogram(
            {"ROME-AWD": list(awd), "ROME": list(rome)},
            axis="P(o_edit) after the edit's own prompt",
            threshold=THRESHOLD,
            title="Editing without a gradient through attention weights",
            note=study.about,
        ),
        drawn=_counts(table),
        cases=table,
        numbers=[
            Number(name="mean P(o_edit), ROME", paper="> 95 % (GPT-2 XL)", here=percent(float(rome.mean()))),
            Number(name="mean P(o_edit), ROME-AWD", paper="–", here=percent(float(awd.mean()))),
            Number(name="facts below 0.95, ROME-AWD", paper="about half (GPT-2 XL)", here=percent(hard)),
        ],
        claims=[
            Claim(
                claim="Without optimising attention weights P(o_edit) is polarised: very high or very low.",
                answer=polarised,
                because=f"{percent(low, 0)} of the facts are below 0.1 and {percent(high, 0)} above 0.9.",
            ),
            Claim(
                claim="Many facts are hard to edit without optimising attention weights.",
                answer="yes, strongly" if hard >= 0.4 else "yes" if hard >= 0.2 else "weakly" if hard >= 0.1 else "no",
                because=f"{percent(hard, 0)} stay at or below {THRESHOLD}; with ROME "
                f"{percent(float(np.mean(rome <= THRESHOLD)), 0)} do.",
            ),
        ],
    )


def awd_records(study: Study) -> list[Record]:
    """The facts of Figure 11 and Table 5: records with specificity prompts, at most as many as the paper's."""
    return study.records_of("distract_neighborhood", MOST_RECORDS)


def edit_probabilities(study: Study) -> pd.DataFrame:
    """P(o_edit) of each fact's own prompt, unedited, with ROME and with ROME-AWD."""
    if study.options.editor != "rome":
        raise DriftlensError(
            f"Figure 11 and Table 5 compare ROME with ROME-AWD, but --editor is {study.options.editor}; leave it out"
        )
    nlls: Any = measurements.evaluations(study, awd_records(study), TASKS)
    own = nlls[(nlls["task"] == "rewrite") & (nlls["prompt_index"] == 0)]
    wide = np.exp(-own.pivot(index="record", columns="editor", values="nll_new"))
    return wide.rename_axis(columns=None).reset_index()[["record", "None", "ROME", "ROME-AWD"]]


def _counts(table: pd.DataFrame) -> pd.DataFrame:
    edges = np.linspace(0, 1, 21)
    counts = {name: np.histogram(table[name], edges)[0] for name in ("ROME-AWD", "ROME")}
    return pd.DataFrame({"from": edges[:-1].round(2), "to": edges[1:].round(2), **counts})


ARTIFACTS = {"figure11": figure11}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
