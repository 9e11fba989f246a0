"""Table 7: SADR beyond locate-then-edit: WISE and MEND without and with it (paper, 6.3), and AlphaEdit.

Runs over the same test records as Table 3.  WISE changes a side memory behind a gate, MEND's hypernetwork was trained
beforehand (`driftlens train-mend`), AlphaEdit is MEMIT's update in the null space of what the model knew; the paper has
no AlphaEdit.  SADR restrains WISE while it trains the side memory, and MEND while the hypernetwork is trained.  γ comes
from the presets, which were chosen on other records.  All three editors are measured, whatever --editor says.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from driftlens.errors import DriftlensError
from driftlens.options.program import run_command
from experiments.artifacts import Answer, Artifact, Claim
from experiments.benchmarks import BenchmarkRun, Setting, editor_of, records_for, settings_configuration
from experiments.command import ArtifactRecipe, OtherDataNeededError, command
from experiments.comparisons import by_gain, difference, score_table, value_of
from experiments.main_table import settings_of
from experiments.paper_numbers import TABLE_7
from experiments.score_tables import about, note, numbers, pairs, picture, prompts_of, runs_of
from experiments.study import Study
from experiments.words import number

EDITORS = ("wise", "mend", "alphaedit")
SCORES = ("Avg.S", "ES", "PS", "NS", "RS", "DNS", "FL")
ALL = ("Avg.S", "ES", "EM", "PS", "PM", "NS", "NM", "RS", "RM", "DNS", "DNM", "RES", "OS", "DOS", "FL", "PPL")
FAILS = 10.0
"""Points below the unedited model's score that count as specificity failure."""


def table7(study: Study) -> Artifact:
    """Editors with and without SADR × scores."""
    rows = runs_of(study, settings(study))
    return Artifact(
        name="table7",
        title="Table 7. WISE, MEND and AlphaEdit with and without SADR",
        caption="Scores in percent; FL is fluency (n-gram entropy). In brackets half of a 95 % interval that resamples "
        f"records. {about(study, rows)} The paper's numbers are GPT-J's; its Avg. S of WISE is 24.57, but the harmonic "
        "mean of its parts 19.17.",
        figure=picture(rows, SCORES, title="Editors of other kinds with and without SADR", note=note(study, rows)),
        drawn=score_table(rows),
        cases=prompts_of(rows),
        numbers=numbers(rows, TABLE_7, ALL),
        claims=claims(rows, study.options.seed),
    )


def settings(study: Study) -> list[Setting]:
    """The rows: no edit, and every editor without and with SADR.

    Raises:
        OtherDataNeededError: MEND's hypernetworks have not been trained for this model.
    """
    rows = settings_of(study, EDITORS)
    for row in rows:
        if row.editor == "mend":
            try:
                editor_of(study, row)
            except DriftlensError as error:
                raise OtherDataNeededError(f"Table 7 needs trained hypernetworks: {error}") from error
    return rows


def claims(rows: Mapping[str, BenchmarkRun], seed: int) -> list[Claim]:
    """The claims for each editor: whether specificity fails without SADR, and what SADR gains."""
    return [
        claim
        for editor, alone, restrained in pairs(rows)
        for claim in (
            *(_failure(editor, rows["None"], alone, score, seed) for score in ("RS", "DNS")),
            *(_gain(editor, alone, restrained, score, seed) for score in ("RS", "DNS")),
            _cost(editor, alone, restrained, seed),
        )
    ]


def _failure(editor: str, none: BenchmarkRun, alone: BenchmarkRun, score: str, seed: int) -> Claim:
    change = difference(none, alone, score, seed=seed)
    claim = f"{editor} fails on {score} as soon as the edited subject is in the context."
    if change is None:
        return Claim.without_prompts(claim)
    answer: Answer = "no" if change.value >= 0 else "weakly"
    if change.high < 0:
        answer = "yes, strongly" if change.value <= -2 * FAILS else "yes" if change.value <= -FAILS else "weakly"
    return Claim(
        claim=claim,
        answer=answer,
        because=f"{number(value_of(none, score), 1)} without an edit, {number(value_of(alone, score), 1)} after it: "
        f"{change} on the same prompts.",
    )


def _gain(editor: str, alone: BenchmarkRun, restrained: BenchmarkRun, score: str, seed: int) -> Claim:
    gain = difference(alone, restrained, score, seed=seed)
    claim = f"SADR raises {editor}'s {score}."
    if gain is None:
        return Claim.without_prompts(claim)
    return Claim(
        claim=claim,
        answer=by_gain(gain, separate=gain.low > 0),
        because=f"{number(value_of(alone, score), 1)} → {number(value_of(restrained, score), 1)}: {gain} on the same "
        "prompts.",
    )


def _cost(editor: str, alone: BenchmarkRun, restrained: BenchmarkRun, seed: int) -> Claim:
    es, ps = (difference(alone, restrained, score, seed=seed) for score in ("ES", "PS"))
    claim = f"SADR costs {editor} at most 5 points of ES."
    if es is None:
        return Claim.without_prompts(claim)
    more = "" if ps is None else f"; PS changes by {ps} points"
    return Claim(claim=claim, answer="yes" if es.value >= -5 else "no", because=f"ES changes by {es} points{more}.")


def configuration(study: Study) -> dict[str, Any]:
    """The configuration for the manifest."""
    return settings_configuration(study, settings(study), records_for(study))


ARTIFACTS = {"table7": ArtifactRecipe(make=table7, configuration=configuration)}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
