"""Table 1: specificity failure of ROME, MEMIT and PMET: scores and magnitudes with no regulariser (paper, 3.1).

All three editors are measured, whatever --editor says; their runs are shared with Tables 3 and 6.  On the bundled model
with 200 records about 10 minutes on two cores, and nothing once Table 3 is made.
"""

from __future__ import annotations

import sys

from driftlens.options.program import run_command
from experiments.artifacts import Answer, Artifact, Claim
from experiments.benchmarks import BenchmarkRun
from experiments.command import ArtifactRecipe, command
from experiments.comparisons import score_table, value_of, wrong_magnitude
from experiments.paper_numbers import TABLE_1
from experiments.score_tables import about, configured, note, numbers, picture, prompts_of, rows_of
from experiments.study import TASK_NAMES, Study
from experiments.words import by_share, number

SCORES = ("ES", "EM", "PS", "PM", "NS", "NM", "RS", "RM", "DNS", "DNM")
FAILURES = {"relation": ("RS", "RM", 48.4, 3.3), "distract_neighborhood": ("DNS", "DNM", 24.9, 10.5)}
"""Task → score, magnitude, and the paper's mean P(o_edit) and P(o_true) with ROME."""


def table1(study: Study) -> Artifact:
    """Editors × scores and magnitudes."""
    rows = rows_of(study, sadr=False)
    return Artifact(
        name="table1",
        title="Table 1. Specificity failure",
        caption="Scores (share of prompts) and magnitudes (mean probability) in percent; in brackets half of a 95 % "
        f"interval that resamples records. {about(study, rows)} The paper's numbers are GPT-J's; its MEMIT row is "
        "Llama-3's.",
        figure=picture(rows, SCORES, title="Specificity failure", note=note(study, rows)),
        drawn=score_table(rows),
        cases=prompts_of(rows),
        numbers=numbers(rows, TABLE_1, SCORES),
        claims=[
            claim
            for editor, run in rows.items()
            if editor != "None"
            for task in FAILURES
            for claim in (_fails(editor, run, rows["None"], task), _outweighs(editor, run, task))
        ],
    )


def _fails(editor: str, run: BenchmarkRun, none: BenchmarkRun, task: str) -> Claim:
    score = FAILURES[task][0]
    claim = f"{editor} gives the edited object on more than half of the {TASK_NAMES[task]} prompts."
    value, before = value_of(run, score), value_of(none, score)
    if not value >= 0:
        return Claim.without_prompts(claim)
    high = float(run.scores.loc[score, "cluster_high"])
    answer: Answer = "no"
    if value < before:
        answer = "weakly"
        if value < 50:
            answer = "yes, strongly" if high < 50 else "yes"
    return Claim(
        claim=claim,
        answer=answer,
        because=f"{score} is {number(value, 1)}, {number(before, 1)} without an edit.",
    )


def _outweighs(editor: str, run: BenchmarkRun, task: str) -> Claim:
    _, magnitude, wrong, right = FAILURES[task]
    claim = f"With {editor} P(o_edit) is far above P(o_true) on {TASK_NAMES[task]}."
    true, new = value_of(run, magnitude), wrong_magnitude(run, task)
    if not (true >= 0 and new >= 0):
        return Claim.without_prompts(claim)
    share = (new - true) / max(new + true, 1e-9)
    paper = f" (paper, ROME: {wrong} % against {right} %)" if editor == "ROME" else ""
    return Claim(
        claim=claim,
        answer=by_share(share),
        because=f"{number(new, 1)} % against {number(true, 1)} %{paper}.",
    )


ARTIFACTS = {"table1": ArtifactRecipe(make=table1, configuration=configured)}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
