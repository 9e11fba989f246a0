"""Table 8: other data sets: the full CounterFact, and zsRE with Wiki-recent, without and with SADR (paper, E.3).

It needs those data: by name (fetched once), `--data counterfact,zsre+wiki_recent`, or as local files in their schemas,
`--data counterfact.json,zsre.json+recent.json`.  Data sets are separated by commas, and those joined by "+" are one, as
in the paper.  The bundled model knows nothing of them, so give --model, too.  --editor chooses the editor (default
rome); 200 records of each.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftlens.data import load_records
from driftlens.errors import DriftlensError
from driftlens.options.program import run_command
from driftlens.plots import plot_table
from experiments import ablations
from experiments.artifacts import Answer, Artifact, Claim, Number
from experiments.benchmarks import MAIN, NONE, BenchmarkRun, Setting, records_for, settings_configuration
from experiments.command import ArtifactRecipe, OtherDataNeededError, command
from experiments.comparisons import cell, difference, score_table, value_of
from experiments.main_table import run
from experiments.paper_numbers import AVERAGED, TABLE_8, Row, harmonic_mean
from experiments.score_tables import prompts_of
from experiments.study import Study
from experiments.tuning import tuned
from experiments.words import number

SCORES = ("ES", "PS", "NS", "RS", "DNS", "FL")
ADVICE = "--data counterfact,zsre+wiki_recent, or local files in their schemas"


def table8(study: Study) -> Artifact:
    """Data sets × editors × scores."""
    groups = groups_of(study)
    rows = {
        (name, label): run(part, setting, records_for(part, MAIN))
        for name, part in groups.items()
        for label, setting in settings(part).items()
    }
    about = "; ".join(ablations.about(part, {label: rows[name, label] for label in settings(part)})
                      for name, part in groups.items())  # fmt: skip
    named = {f"{name}, {label}": each for (name, label), each in rows.items()}
    return Artifact(
        name="table8",
        title="Table 8. Other data sets",
        caption="Scores in percent and fluency; Score is the harmonic mean of those that a data set has; in brackets "
        f"half of a 95 % interval that resamples records. {about}. The paper's numbers are GPT-J's.",
        figure=plot_table(
            pd.DataFrame([_texts(name, label, each) for (name, label), each in rows.items()]),
            title="Other data sets", note=about.replace("; ", " · "), left=2,
            rules=[3 * at for at in range(1, len(groups))],
        ),
        drawn=score_table(named),
        cases=prompts_of(named),
        numbers=[
            Number(
                name=f"{name}, {label}: {score}", paper=_printed(_paper(name, label), score), here=_here(each, score)
            )
            for (name, label), each in rows.items()
            for score in ("Score", *SCORES)
            if _here(each, score) != "–"
        ],
        claims=[
            _claim(name, rows[name, study.editor_name], rows[name, f"{study.editor_name}+SADR"], score, study)
            for name in groups
            for score in ("RS", "DNS")
        ],
    )  # fmt: skip


def settings(study: Study) -> dict[str, Setting]:
    """The rows of a data set."""
    name = study.editor_name
    gamma = tuned(study, study.options.editor).gamma
    return {
        "None": NONE,
        name: ablations.alone(study),
        f"{name}+SADR": ablations.alone(study, sadr=True, gamma=gamma),
    }


def groups_of(study: Study) -> dict[str, Study]:
    """A study for each data set, all with one model."""
    if study.options.data == "demo":
        raise OtherDataNeededError(
            f"Table 8 measures CounterFact, zsRE and Wiki-recent, but --data is demo; give them with {ADVICE}"
        )
    if "table8" not in study.measured:
        study.measured["table8"] = {group: _part(study, group) for group in study.options.data.split(",")}
    return {"+".join(Path(one).stem for one in group.split("+")): part
            for group, part in study.measured["table8"].items()}  # fmt: skip


def _part(study: Study, group: str) -> Study:
    part = Study(replace(study.options, data=group), study.bars)
    part.model = study.model
    records = [record for source in group.split("+") for record in load_records(source)]
    if not records:
        raise DriftlensError(f"--data {group!r} has no records; give {ADVICE}")
    # A run identifies records by their numbers, which can occur in two files.
    part.all_records = [replace(record, index=at) for at, record in enumerate(records)]
    return part


def _paper(name: str, label: str) -> Row:
    """The paper's row for data of that name; empty for data that the paper does not have."""
    low = name.lower()
    known = "zsRE+Wiki-recent" if "zsre" in low and "recent" in low else "CounterFact" if "counterfact" in low else ""
    return TABLE_8.get((known, label), {})


def _printed(row: Row, score: str) -> str:
    value = row.get("Avg.S" if score == "Score" else score)
    return "–" if value is None else f"{value:.2f}"


def _here(run: BenchmarkRun, score: str) -> str:
    if score != "Score":
        return cell(run, score)
    parts = [value for part in AVERAGED if not np.isnan(value := value_of(run, part))]
    return number(harmonic_mean(parts) if parts and min(parts) > 0 else 0.0, 1)


def _texts(name: str, label: str, run: BenchmarkRun) -> dict[str, str]:
    first = {"Data": name if label == "None" else "", "Editor": label.replace("+", " + ")}
    return first | {score: _here(run, score) for score in ("Score", *SCORES)}


def _claim(name: str, alone: BenchmarkRun, restrained: BenchmarkRun, score: str, study: Study) -> Claim:
    gain = difference(alone, restrained, score, seed=study.options.seed)
    claim = f"On {name} SADR raises {score}."
    if gain is None:
        return Claim.without_prompts(claim)
    answer: Answer = "no" if gain.value <= 0 else "yes" if gain.low > 0 else "weakly"
    return Claim(
        claim=claim,
        answer=answer,
        because=f"{number(value_of(alone, score), 1)} → {number(value_of(restrained, score), 1)}: {gain} on the same "
        "prompts.",
    )


def configuration(study: Study) -> dict[str, Any]:
    """The configuration for the manifest."""
    return {
        name: settings_configuration(part, list(settings(part).values())[1:], records_for(part))
        for name, part in groups_of(study).items()
    }


ARTIFACTS = {"table8": ArtifactRecipe(make=table8, configuration=configuration)}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
