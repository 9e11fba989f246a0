"""Table 6: all metrics of every editor with and without SADR (paper, E.1), with reasoning, other tasks and perplexity.

The runs are Table 3's; where those are there, nothing is computed.  Reasoning (RES) and other tasks (OS, DOS) need data
that has them, such as the paper's benchmark.  All three editors are measured, whatever --editor says.
"""

from __future__ import annotations

import sys

import numpy as np

from driftlens.options.program import run_command
from experiments.artifacts import Answer, Artifact, Claim
from experiments.benchmarks import BenchmarkRun
from experiments.command import ArtifactRecipe, command
from experiments.comparisons import difference, score_table, value_of
from experiments.paper_numbers import MODEL, TABLE_6
from experiments.score_tables import about, configured, note, numbers, pairs, picture, prompts_of, rows_of
from experiments.study import Study
from experiments.words import number

SCORES = ("ES", "EM", "PS", "PM", "RES", "NS", "NM", "RS", "RM", "DNS", "DNM", "OS", "DOS", "FL", "PPL")
PAPER = {editor: row for (model, editor), row in TABLE_6.items() if model == MODEL}


def table6(study: Study) -> Artifact:
    """Editors with and without SADR × all metrics."""
    rows = rows_of(study)
    return Artifact(
        name="table6",
        title="Table 6. All metrics",
        caption="Scores and magnitudes in percent, fluency (FL) and perplexity (PPL); in brackets half of a 95 % "
        f"interval that resamples records. {about(study, rows)} The paper's numbers are GPT-J's; its MEMIT rows repeat "
        "Llama-3's.",
        figure=picture(rows, SCORES, title="All metrics", note=note(study, rows)),
        drawn=score_table(rows),
        cases=prompts_of(rows),
        numbers=numbers(rows, PAPER, SCORES),
        claims=[
            claim
            for editor, alone, restrained in pairs(rows)
            for claim in (
                _magnitudes(editor, alone, restrained, study.options.seed),
                _restored(editor, restrained, rows["None"]),
                _reasoning(editor, alone, restrained, study.options.seed),
                _other_tasks(editor, alone, restrained, study.options.seed),
            )
        ],
    )


def _magnitudes(editor: str, alone: BenchmarkRun, restrained: BenchmarkRun, seed: int) -> Claim:
    claim = f"SADR raises {editor}'s P(o_true) on Relation and Distract Neighborhood (RM, DNM)."
    gains = {score: difference(alone, restrained, score, seed=seed) for score in ("RM", "DNM")}
    found = {score: gain for score, gain in gains.items() if gain is not None}
    if not found:
        return Claim.without_prompts(claim)
    sure = [gain.low > 0 for gain in found.values()]
    answer: Answer = "yes" if all(sure) else "weakly" if any(sure) else "no"
    if all(gain.low >= 5 for gain in found.values()):
        answer = "yes, strongly"
    texts = [f"{score} {gain}" for score, gain in found.items()]
    return Claim(claim=claim, answer=answer, because=f"On the same prompts {' and '.join(texts)} points.")


def _restored(editor: str, restrained: BenchmarkRun, none: BenchmarkRun) -> Claim:
    claim = f"With SADR {editor}'s P(o_true) on Distract Neighborhood is that of the unedited model again."
    after, before = value_of(restrained, "DNM"), value_of(none, "DNM")
    if np.isnan(after) or np.isnan(before):
        return Claim.without_prompts(claim)
    share = after / before if before else float("nan")
    answer: Answer = "yes, strongly" if share >= 1 else "yes" if share >= 0.95 else "weakly" if share >= 0.8 else "no"
    return Claim(claim=claim, answer=answer, because=f"DNM is {number(after, 1)} against {number(before, 1)}.")


def _reasoning(editor: str, alone: BenchmarkRun, restrained: BenchmarkRun, seed: int) -> Claim:
    claim = f"SADR lowers {editor}'s reasoning score (RES) by less than 3 points."
    change = difference(alone, restrained, "RES", seed=seed)
    if change is None:
        return Claim.without_prompts(claim)
    answer: Answer = "no" if change.value <= -3 else "yes" if change.low > -3 else "weakly"
    return Claim(claim=claim, answer=answer, because=f"RES changes by {change} points.")


def _other_tasks(editor: str, alone: BenchmarkRun, restrained: BenchmarkRun, seed: int) -> Claim:
    claim = f"SADR raises {editor}'s distracted other-task score (DOS)."
    change = difference(alone, restrained, "DOS", seed=seed)
    if change is None:
        return Claim.without_prompts(claim)
    answer: Answer = "no" if change.value <= 0 else "yes" if change.low > 0 else "weakly"
    return Claim(claim=claim, answer=answer, because=f"DOS changes by {change} points.")


ARTIFACTS = {"table6": ArtifactRecipe(make=table6, configuration=configured)}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
