"""Table 5: easy and hard to edit facts, with no edit, ROME and ROME-AWD; drift against difficulty (paper, D.4).

A fact is easy when ROME-AWD, which optimises no attention weight, brings P(o_edit) above 0.95.  Difficulty is
1 − P(o_edit) of ROME-AWD.  The paper does not say on which prompts it measured ROME's drift; here it is measured on the
edit's own prompt and, as the mean of a record's prompts, on Distract Neighborhood.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd

from driftlens.errors import DriftlensError
from driftlens.evaluation import summarize
from driftlens.options.program import run_command
from driftlens.plots import plot_table
from driftlens.statistics.correlations import Correlation, correlation
from experiments import measurements
from experiments.artifacts import Answer, Artifact, Claim, Number
from experiments.command import command
from experiments.correlations import layers_text
from experiments.figure11 import TASKS, THRESHOLD, awd_records, edit_probabilities
from experiments.study import Study
from experiments.words import by_correlation, interval, number, p_value

EDITORS = ("None", "ROME", "ROME-AWD")
SCORES = {"Rewrite": "ES", "Generalization": "PS", "Specificity": "DNS"}
PAPER = {
    ("easy", "None"): ("18.0", "20.0", "56.0"),
    ("easy", "ROME"): ("100.0", "100.0", "16.0"),
    ("easy", "ROME-AWD"): ("100.0", "91.0", "40.3"),
    ("hard", "None"): ("14.3", "13.6", "54.5"),
    ("hard", "ROME"): ("98.4", "90.9", "9.0"),
    ("hard", "ROME-AWD"): ("71.4", "77.2", "37.7"),
}
PAPER_RHO = "ρ = 0.748, p < 0.05 (GPT-2 XL)"
FEWEST = 5
"""The least number of facts of a kind for which scores are meaningful."""


def table5(study: Study) -> Artifact:
    """Scores by kind of fact and editor."""
    probabilities: Any = edit_probabilities(study)
    easy = list(set(probabilities[probabilities["ROME-AWD"] > THRESHOLD]["record"]))
    nlls = measurements.evaluations(study, awd_records(study), TASKS)
    nlls = nlls.assign(kind=np.where(nlls["record"].isin(easy), "easy", "hard"))
    scores = _scores(nlls)
    facts = {"easy": len(easy), "hard": len(probabilities) - len(easy)}
    points = _difficulty(study, probabilities)
    found = {name: _correlate(points, name) for name in ("drift_rewrite", "drift_distract_neighborhood")}
    figure = plot_table(
        _texts(scores, facts),
        title="Easy and hard to edit facts",
        note=f"{study.about} · threshold {THRESHOLD} on P(o_edit) of ROME-AWD",
        left=2,
        rules=[3],
    )
    return Artifact(
        name="table5",
        title="Table 5. Easy and hard to edit facts",
        caption="Rewrite (ES), generalization (PS) and specificity (Distract Neighborhood, DNS), in percent. "
        f"{study.about}; {facts['easy']} easy and {facts['hard']} hard facts, told apart by whether ROME-AWD brings "
        f"P(o_edit) above {THRESHOLD}. {layers_text(study)} The paper's numbers are GPT-2 XL's.",
        figure=figure,
        drawn=scores,
        cases=points,
        numbers=[
            *(
                Number(
                    name=f"{kind}, {editor}: {name}",
                    paper=PAPER[kind, editor][at],
                    here=_cell(scores, kind, editor, score),
                )
                for kind, editor in PAPER
                for at, (name, score) in enumerate(SCORES.items())
            ),
            Number(name="drift and difficulty, edit's own prompt", paper=PAPER_RHO, here=_rho(found["drift_rewrite"])),
            Number(
                name="drift and difficulty, Distract Neighborhood",
                paper=PAPER_RHO,
                here=_rho(found["drift_distract_neighborhood"]),
            ),
        ],
        claims=[_easy_claim(scores, facts), _hard_claim(scores, facts), *(_drift_claim(found))],
    )


def _scores(nlls: pd.DataFrame) -> pd.DataFrame:
    rows: list[pd.DataFrame] = []
    for kind in ("easy", "hard"):
        for editor in EDITORS:
            some: Any = nlls[(nlls["kind"] == kind) & (nlls["editor"] == editor)]
            summary = summarize(some).loc[list(SCORES.values())].rename_axis("score").reset_index()
            rows.append(summary.assign(kind=kind, editor=editor))
    return pd.concat(rows, ignore_index=True)


def _value(scores: pd.DataFrame, kind: str, editor: str, score: str) -> Any:
    rows = scores[(scores["kind"] == kind) & (scores["editor"] == editor) & (scores["score"] == score)]
    return rows.iloc[0]


def _cell(scores: pd.DataFrame, kind: str, editor: str, score: str) -> str:
    found = _value(scores, kind, editor, score)
    return "–" if np.isnan(found["value"]) else f"{found['value']:.1f}"


def _texts(scores: pd.DataFrame, facts: dict[str, int]) -> pd.DataFrame:
    rows: list[dict[str, str]] = []
    for kind, editor in PAPER:
        row = {"Knowledge": f"{kind} ({facts[kind]} facts)" if editor == "None" else "", "Editor": editor}
        for at, (name, score) in enumerate(SCORES.items()):
            row[f"{name}\npaper"] = PAPER[kind, editor][at]
            row[f"{name}\nhere"] = _cell(scores, kind, editor, score)
        rows.append(row)
    return pd.DataFrame(rows)


def _difficulty(study: Study, probabilities: pd.DataFrame) -> pd.DataFrame:
    """Per fact: P(o_edit) of all editors, difficulty, and ROME's drift on both kinds of prompt."""
    table = probabilities.assign(difficulty=1 - probabilities["ROME-AWD"])
    for task in ("rewrite", "distract_neighborhood"):
        drift: Any = measurements.drift(study, task, records=awd_records(study))
        means = drift.groupby("record")["kl"].mean()
        table[f"drift_{task}"] = table["record"].map(means)
    return table


def _correlate(points: pd.DataFrame, name: str) -> Correlation | None:
    try:
        return correlation(points[name], points["difficulty"])
    except DriftlensError:
        return None


def _rho(found: Correlation | None) -> str:
    if found is None:
        return "too little to correlate"
    return f"ρ = {number(found.rho, 3)} {interval(found.low, found.high)}, {p_value(found.p)}, n = {found.n}"


def _few(kind: str, facts: dict[str, int]) -> str:
    return (
        f"Only {facts[kind]} of {sum(facts.values())} facts are {kind} to edit without attention weights on this model."
    )


def _easy_claim(scores: pd.DataFrame, facts: dict[str, int]) -> Claim:
    claim = "Easy facts: ROME-AWD edits as well as ROME and keeps more specificity."
    if facts["easy"] < FEWEST:
        return Claim(claim=claim, answer="cannot be told", because=_few("easy", facts))
    rome, awd = (_value(scores, "easy", editor, "DNS") for editor in ("ROME", "ROME-AWD"))
    success = _value(scores, "easy", "ROME-AWD", "ES")["value"]
    gain = awd["value"] - rome["value"]
    answer: Answer = "no"
    if success >= 95 and gain > 0:
        answer = "yes, strongly" if gain >= 20 else "yes" if awd["low"] > rome["high"] else "weakly"
    return Claim(
        claim=claim,
        answer=answer,
        because=f"ROME-AWD succeeds on {success:.1f} %; DNS is {awd['value']:.1f} against ROME's {rome['value']:.1f} "
        "(paper: 40.3 against 16.0).",
    )


def _hard_claim(scores: pd.DataFrame, facts: dict[str, int]) -> Claim:
    claim = "Hard facts are more prone to specificity failure under ROME, and ROME-AWD edits them less well."
    fewer = min(facts, key=lambda kind: facts[kind])
    if facts[fewer] < FEWEST:
        return Claim(claim=claim, answer="cannot be told", because=_few(fewer, facts))
    on_easy, on_hard = (_value(scores, kind, "ROME", "DNS") for kind in ("easy", "hard"))
    easy, hard = on_easy["value"], on_hard["value"]
    success = _value(scores, "hard", "ROME-AWD", "ES")["value"]
    answer: Answer = "weakly" if hard < easy or success < 95 else "no"
    if on_hard["high"] < on_easy["low"] and success < 95:
        answer = "yes"
    return Claim(
        claim=claim,
        answer=answer,
        because=f"ROME's DNS is {hard:.1f} on hard and {easy:.1f} on easy facts; ROME-AWD succeeds on {success:.1f} % "
        f"of the hard ones ({facts['hard']} facts).",
    )


def _drift_claim(found: dict[str, Correlation | None]) -> list[Claim]:
    names = {"drift_rewrite": "the edit's own prompt", "drift_distract_neighborhood": "Distract Neighborhood"}
    return [
        Claim(
            claim=f"ROME's attention drift on {names[name]} grows with the fact's difficulty.",
            answer=by_correlation(each),
            because=f"{_rho(each)}.",
        )
        for name, each in found.items()
    ]


ARTIFACTS = {"table5": table5}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
