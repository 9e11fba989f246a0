"""Edits that add up: 1, 10 and 100 facts in one model, in sequence and together (future work in the paper).

For ROME, MEMIT and AlphaEdit, without restraint and with SADR, ROME and MEMIT in sequence also with guards
(`experiments.guards`): all scores of all edited facts after the last edit, perplexity, and how far attention has
drifted.  At 1 each fact is edited alone, as in every other table.

--records chooses how many facts there are at most (default 100).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from driftlens.analyses.drift import attention_drift
from driftlens.data import TASKS, Record
from driftlens.editors import edit_in_sequence, edit_together
from driftlens.editors.base import Editor
from driftlens.edits import Edit
from driftlens.errors import DriftlensError
from driftlens.evaluation import evaluate, perplexities, summarize
from driftlens.files import atomic_path, cache_folder
from driftlens.options.program import run_command
from driftlens.plots import plot_tradeoffs
from driftlens.runs.edit_cache import editor_identity
from driftlens.runs.shards import settings_hash
from experiments.artifacts import Answer, Artifact, Claim, Number
from experiments.benchmarks import Setting, editor_of, perplexity_texts, records_for, settings_configuration
from experiments.command import ArtifactRecipe, command
from experiments.guards import weight
from experiments.study import Study
from experiments.tuning import tuned
from experiments.words import number

COUNTS = (1, 10, 100)
EDITORS = ("rome", "memit", "alphaedit")
GUARDED = ("rome", "memit")
"""Editors that are measured in sequence with guards as well."""
TASKS_MEASURED = ("rewrite", "paraphrase", "neighborhood", "relation", "distract_neighborhood")
SCORES = ("ES", "PS", "NS", "RS", "DNS")
PANELS = {
    "Edit success": ("edits", "ES (%)"),
    "Relation": ("edits", "RS (%)"),
    "Distract Neighborhood": ("edits", "DNS (%)"),
    "Attention drift": ("edits", "Σ KL (nats), Distract Neighborhood"),
}
_COLUMNS = {"Edit success": "ES", "Relation": "RS", "Distract Neighborhood": "DNS", "Attention drift": "drift"}
TAKEN = 50.0
"""ES of single edits below which a loss cannot be measured."""
HOLDS = 10.0
"""The largest loss of ES, in points, between one edit and the most edits, that counts as holding."""


@dataclass(frozen=True, kw_only=True)
class Ways:
    """A way of writing several facts: its name, the restraints that are compared, and the function."""

    name: str
    guards: bool
    edits: Callable[[Study, Editor, Sequence[Record], Sequence[int]], dict[int, Edit]]


def _in_sequence(study: Study, editor: Editor, records: Sequence[Record], counts: Sequence[int]) -> dict[int, Edit]:
    facts = [record.fact for record in records[: counts[-1]]]
    with study.shown("in sequence, facts") as done:
        sequence = edit_in_sequence(study.model, editor, facts, on_facts=done)
    if sequence.failures:
        place, reason = next(iter(sequence.failures.items()))
        raise DriftlensError(f"fact {place} cannot be edited: {reason}; choose other records")
    return {count: sequence.after(count) for count in counts}


def _together(study: Study, editor: Editor, records: Sequence[Record], counts: Sequence[int]) -> dict[int, Edit]:
    with study.shown("together, batches") as done:
        found: dict[int, Edit] = {}
        for count in counts:
            found[count] = edit_together(study.model, editor, [record.fact for record in records[:count]]).edit
            done(len(found), len(counts))
    return found


SEQUENCE = Ways(name="in sequence", guards=True, edits=_in_sequence)
TOGETHER = Ways(name="together", guards=False, edits=_together)


def settings(study: Study, ways: Ways) -> dict[str, Setting]:
    """Rows by name."""
    found: dict[str, Setting] = {}
    for editor in EDITORS:
        chosen = tuned(study, editor)
        plain = Setting(editor=editor, lr=chosen.lr, texts=False)
        sadr = Setting(editor=editor, sadr=True, gamma=chosen.gamma, lr=chosen.lr, texts=False)
        found |= {plain.name: plain, sadr.name: sadr}
        if ways.guards and editor in GUARDED:
            guards = Setting(editor=editor, guards=weight(study), lr=chosen.lr, texts=False)
            found[guards.name] = guards
    return found


def counts_of(records: Sequence[Record]) -> tuple[int, ...]:
    """The numbers of edits for which there are enough records."""
    return tuple(count for count in COUNTS if count <= len(records))


def measured(study: Study, ways: Ways, name: str, setting: Setting, records: Sequence[Record]) -> pd.DataFrame:
    """A row per number of edits, from the cache if possible."""
    editor = editor_of(study, setting)
    assert editor is not None
    provenance = editor.provenance(study.model)
    about = [ways.name, editor_identity(study.model, editor), str(study.model.device.type)]
    about += [provenance[part] for part in ("editor", "settings", "regularizers", "model_hash")]
    about += [str(record.described()) for record in records]
    path = cache_folder() / "sequences" / f"{settings_hash(about)}.parquet"
    if path.exists() and not study.options.redo:
        return pd.read_parquet(path)
    rows: list[dict[str, Any]] = []
    counts = counts_of(records)
    alone = study.edits_by(editor, records, f"{name}, alone")
    rows.append({"edits": 1, **_scores(study, records, alone)})
    several = [count for count in counts if count > 1]
    edits = ways.edits(study, editor, records, several) if several else {}
    for count, edit in edits.items():
        rows.append({"edits": count, **_scores(study, records[:count], [edit] * count)})
    table = pd.DataFrame(rows).assign(row=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        table.to_parquet(temporary)
    return table


def _scores(study: Study, records: Sequence[Record], edits: Sequence[Edit]) -> dict[str, float]:
    model, batch = study.model, 2 * study.options.batch_size
    nlls = evaluate(model, records, edits, tasks=[task for task in TASKS if task in TASKS_MEASURED], batch_size=batch)
    table: Any = summarize(nlls, resamples=1000, seed=study.options.seed)
    found: dict[str, float] = {}
    for score in (*SCORES, "Avg.S"):
        found[score] = float(table["value"][score])
        found[f"{score} low"], found[f"{score} high"] = (
            float(table[f"cluster_{end}"][score]) for end in ("low", "high")
        )
    texts = perplexity_texts(study)
    if texts:
        different = list({id(edit): edit for edit in edits}.values())
        told: Any = perplexities(model, different, texts=texts, batch_size=study.options.batch_size)
        found["PPL"] = float(told["perplexity"].mean())
    cases = [
        (edit, record.tasks["distract_neighborhood"][0].text, record.fact.subject)
        for record, edit in zip(records, edits, strict=True)
        if record.tasks["distract_neighborhood"]
    ]
    if cases:
        each, prompts, subjects = (list(part) for part in zip(*cases, strict=True))
        drift: Any = attention_drift(model, each, prompts, subjects, batch_size=batch)
        found["drift"] = float(drift.table["kl"].mean())
    return found


def _artifact(study: Study, ways: Ways, name: str) -> Artifact:
    records = records_for(study, COUNTS[-1])[: COUNTS[-1]]
    chosen = settings(study, ways)
    table: Any = pd.concat(
        [measured(study, ways, row, setting, records) for row, setting in chosen.items()], ignore_index=True
    )
    about = f"Model {study.model_name}, {len(records)} test records of {study.data_name}"
    guards = f"; guards: μ = ν = {weight(study):g}" if ways.guards else ""
    most = int(table["edits"].max())
    return Artifact(
        name=name,
        title=f"Edits {ways.name}",
        caption="Scores of all edited facts after the last edit; at 1, the mean over facts that are edited alone. "
        "Bars: 95 % intervals that resample records. Drift: the last token's, at the facts' first prompt of Distract "
        "Neighborhood. "
        f"{about}; presets, SADR at the preset's γ{guards}.",
        figure=plot_tradeoffs(
            _points(table), axes=PANELS, title=f"Edits {ways.name}", note=about.replace("; ", " · "), log_x=True
        ),
        drawn=table,
        cases=table,
        numbers=[
            Number(
                name=f"{line['row']}, {line['edits']} edits: {score}",
                paper="–",
                here=number(float(line[score]), 2 if score == "drift" else 1),
            )
            for line in table.to_dict("records")
            for score in (*SCORES, "Avg.S", "PPL", "drift")
            if score in line
        ],
        claims=[_claim(table, row, ways, most) for row in chosen],
    )


def _points(table: pd.DataFrame) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for panel, column in _COLUMNS.items():
        for line in table.to_dict("records"):
            told = ", ".join(f"{score} {number(float(line[score]), 1)}" for score in SCORES)
            nan = float("nan")
            rows.append(
                {"panel": panel, "series": line["row"], "x": line["edits"], "y": line.get(column, nan),
                 "low": line.get(f"{column} low", line.get(column, nan)),
                 "high": line.get(f"{column} high", line.get(column, nan)),
                 "text": f"{line['edits']} edits: {told}"}
            )  # fmt: skip
    return pd.DataFrame(rows)


def _claim(table: pd.DataFrame, row: str, ways: Ways, most: int) -> Claim:
    own: Any = table[table["row"] == row].set_index("edits")
    claim = f"{row}: {most} edits {ways.name} are recalled as well as single ones."
    if most == 1 or np.isnan(own["ES"]).any():
        return Claim(claim=claim, answer="cannot be told", because="There are too few facts.")
    if own["ES"][1] < TAKEN:
        return Claim(claim=claim, answer="cannot be told", because=f"Alone, ES is {number(own['ES'][1], 1)}.")
    lost = float(own["ES"][1] - own["ES"][most])
    answer: Answer = "yes" if lost <= 0 else "weakly" if lost <= HOLDS else "no"
    scores = ", ".join(
        f"{score} {number(own[score][1], 1)} → {number(own[score][most], 1)}" for score in ("ES", "RS", "DNS")
    )
    return Claim(claim=claim, answer=answer, because=f"From 1 to {most}: {scores}.")


def edits_in_sequence(study: Study) -> Artifact:
    """Edit one after another, each on the model as the earlier ones left it."""
    return _artifact(study, SEQUENCE, "edits_in_sequence")


def edits_together(study: Study) -> Artifact:
    """Make all edits at once, each on the unedited model."""
    return _artifact(study, TOGETHER, "edits_together")


def _configuration(ways: Ways) -> Callable[[Study], dict[str, Any]]:
    def configuration(study: Study) -> dict[str, Any]:
        records = records_for(study, COUNTS[-1])[: COUNTS[-1]]
        return settings_configuration(study, list(settings(study, ways).values()), records)

    return configuration


ARTIFACTS = {
    "edits_in_sequence": ArtifactRecipe(make=edits_in_sequence, configuration=_configuration(SEQUENCE)),
    "edits_together": ArtifactRecipe(make=edits_together, configuration=_configuration(TOGETHER)),
}
main = command(ARTIFACTS, __doc__, program="sequences")

if __name__ == "__main__":
    sys.exit(run_command(main))
