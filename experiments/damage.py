"""Where the damage comes from, beyond the paper: what attention carries of it, and what the value says to heads that
looked all along.

An edit makes the new object likelier behind prompts that it has nothing to do with.  Given the unedited model's
attention in every layer above the edit, the edited model keeps what its value alone does; the rest of the rise is
attention drift's.  For the editor (--editor, default rome) without a restraint, with SADR and with guards, on the first
40 records with Distract Neighborhood and with Relation prompts (--records).
"""

from __future__ import annotations

import sys
from typing import Any

import pandas as pd

from driftlens.analyses.drift import attention_drift
from driftlens.analyses.patch import patch_attention
from driftlens.options.program import run_command
from driftlens.plots import plot_table
from driftlens.statistics.intervals import numbered, percentile_interval, resampled_means
from experiments.artifacts import Artifact, Claim, Number
from experiments.benchmarks import FEWER, NONE, editor_of, settings_configuration
from experiments.command import ArtifactRecipe, command
from experiments.guards import table_settings
from experiments.study import TASK_NAMES, EditedPrompt, Study
from experiments.words import number

TASKS = ("distract_neighborhood", "relation")
COLUMNS = {
    "vanilla": "unedited",
    "edited": "edited",
    "restored": "unedited attention",
    "carried": "carried by attention",
    "head": "largest rise of a head",
}


def measured(study: Study) -> pd.DataFrame:
    """Measure every prompt, with a row of ``row, task, record``, P(o_edit) in the three models, and two effects.

    All are in percent. The effects are the part of the rise that attention carries, and the rise of attention to the
    subject in the head that changes most.
    """
    editors = {name: editor_of(study, of) for name, of in table_settings(study).items() if of != NONE}
    tables: list[pd.DataFrame] = []
    for task in TASKS:
        records = study.records_of(task, study.options.records or FEWER)
        for name, editor in editors.items():
            assert editor is not None
            cases = [
                EditedPrompt(record=record, prompt=prompt, edit=edit)
                for record, edit in zip(records, study.edits_by(editor, records, name), strict=True)
                for prompt in record.tasks[task]
                if record.fact.subject in prompt.text
            ]
            tables.append(_prompts(study, cases).assign(row=name, task=task))
    return pd.concat(tables, ignore_index=True)


def _prompts(study: Study, cases: list[EditedPrompt]) -> pd.DataFrame:
    edits, prompts = [case.edit for case in cases], [case.prompt for case in cases]
    batch = 4 * study.options.batch_size
    every = 2 * study.model.n_layers  # wherever it begins, the window contains all layers
    patch = patch_attention(
        study.model, edits, prompts, [(case.prompt.target_new,) for case in cases], every, batch_size=batch
    )
    grid: Any = patch.table[patch.table["layer"] == 0].set_index("case")["probability"]
    base: Any = patch.baselines.set_index("case")
    heads: Any = attention_drift(
        study.model, edits, prompts, [case.record.fact.subject for case in cases], batch_size=batch
    ).heads
    order = range(len(cases))
    found = pd.DataFrame({
        "record": [case.record.index for case in cases],
        "prompt": [case.prompt.text for case in cases],
        "vanilla": 100 * base["vanilla"].reindex(order).to_numpy(),
        "edited": 100 * base["edited"].reindex(order).to_numpy(),
        "restored": 100 * grid.reindex(order).to_numpy(),
        "head": 100 * heads.groupby("case")["drift_subject"].max().reindex(order).to_numpy(),
    })  # fmt: skip
    return found.assign(carried=found["edited"] - found["restored"])


def damage(study: Study) -> Artifact:
    """The table."""
    table = measured(study)
    rows: list[dict[str, str]] = []
    numbers: list[Number] = []
    means: dict[tuple[str, str], dict[str, float]] = {}
    groups: Any = table.groupby(["task", "row"], sort=False)
    for (task, name), own in groups:
        line = {"Prompts": TASK_NAMES[str(task)], "Editor": str(name)}
        for column, title in COLUMNS.items():
            value, (low, high) = float(own[column].mean()), _interval(own, column, study.options.seed)
            means.setdefault((str(task), str(name)), {})[column] = value
            line[title] = f"{number(value, 1)} [{number(low, 1)}, {number(high, 1)}]"
            numbers.append(Number(name=f"{TASK_NAMES[str(task)]}, {name}: {title}", paper="–", here=line[title]))
        rows.append(line)
    records: Any = table.groupby("task")["record"].nunique()
    counts = "; ".join(f"{TASK_NAMES[task]}: {records[task]} records" for task in TASKS if task in records)
    about = f"Model {study.model_name}, {study.data_name}; {counts}"
    return Artifact(
        name="damage",
        title="What attention carries of the damage",
        caption="P(o_edit) in percent behind prompts that the edit has nothing to do with: in the unedited model, "
        "after the edit, and after the edit with the unedited model's attention in all layers above it. What is left "
        "there is said by the value to heads that looked at the subject all along. The last column is the rise of "
        "attention on the subject's last token, in percentage points, of the head that turns most. In brackets, 95 % "
        f"intervals that resample records. {about}.",
        figure=plot_table(
            pd.DataFrame(rows), title="What attention carries of the damage", note=about.replace("; ", " · "), left=2,
            rules=[len(rows) // len(TASKS)],
        ),
        drawn=table.drop(columns="prompt"),
        cases=table,
        numbers=numbers,
        claims=[_claim(task, means) for task in TASKS if any(task == of for of, _ in means)],
    )  # fmt: skip


def _interval(table: pd.DataFrame, column: str, seed: int) -> tuple[float, float]:
    drawn = resampled_means(
        {column: table[column].to_numpy(dtype=float)}, {column: numbered(table["record"])}, resamples=1000, seed=seed
    )
    return percentile_interval(drawn[column])


def _claim(task: str, means: dict[tuple[str, str], dict[str, float]]) -> Claim:
    claim = f"{TASK_NAMES[task]}: without a restraint, attention drift carries most of the damage."
    _, of = next(key for key in means if key[0] == task)
    own = means[task, of]
    rise = own["edited"] - own["vanilla"]
    if rise <= 1:
        return Claim(claim=claim, answer="cannot be told", because=f"P(o_edit) rises by {number(rise, 1)} points only.")
    share = own["carried"] / rise
    return Claim(
        claim=claim,
        answer="yes" if share > 0.5 else "no",
        because=f"Of a rise by {number(rise, 1)} points, unedited attention takes back {number(own['carried'], 1)}.",
    )


def configuration(study: Study) -> dict[str, Any]:
    """The configuration for the manifest."""
    records = study.records_of(TASKS[0], study.options.records or FEWER)
    settings = [setting for setting in table_settings(study).values() if setting != NONE]
    return settings_configuration(study, settings, records)


ARTIFACTS = {"damage": ArtifactRecipe(make=damage, configuration=configuration)}
main = command(ARTIFACTS, __doc__, program="damage")

if __name__ == "__main__":
    sys.exit(run_command(main))
