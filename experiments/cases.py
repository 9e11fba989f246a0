"""Tables 11 and 12: what the model writes before and after an edit, without and with SADR (paper, H).

Table 11 continues prompts about the edited subject, Table 12 prompts of Distract Neighborhood.  The paper shows
chosen cases; here they are chosen by rule (Table 11: the first three records; Table 12: the first three where the
editor's text names the edited object at once), and beside them stands how often texts do so over 40 records.  --editor
chooses the editor (default rome).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from driftlens.data import Record
from driftlens.edits import Edit
from driftlens.errors import DriftlensError
from driftlens.evaluation.generation import generate
from driftlens.files import cache_folder
from driftlens.options.program import run_command
from driftlens.plots import plot_table
from driftlens.runs.edit_cache import cached_edits
from driftlens.runs.shards import settings_hash, sharded
from experiments import ablations
from experiments.artifacts import Answer, Artifact, Claim, Number
from experiments.benchmarks import FEWER, NONE, Setting, editor_of, settings_configuration, spread_over_tasks
from experiments.command import ArtifactRecipe, command
from experiments.study import Study
from experiments.tuning import tuned
from experiments.words import percent

SHOWN = 3
MAX_TOKENS = 60
LINE = 96
TASK_OF = {"table11": "generation", "table12": "distract_neighborhood"}


def settings(study: Study) -> dict[str, Setting]:
    """The writers, by name."""
    name = study.editor_name
    gamma = tuned(study, study.options.editor).gamma
    return {
        study.model_name: NONE,
        name: ablations.alone(study),
        f"{name} + SADR": ablations.alone(study, sadr=True, gamma=gamma),
    }


def table11(study: Study) -> Artifact:
    """Prompts about the edited subject."""
    texts = texts_of(study, "table11")
    after = _shares(texts, "names_new", whole=True)
    name = study.editor_name
    kept: Answer = "cannot be told"
    if after[name] > 0:
        share = after[f"{name} + SADR"] / after[name]
        kept = "yes, strongly" if share >= 0.95 else "yes" if share >= 0.8 else "weakly" if share >= 0.5 else "no"
    return _artifact(
        study,
        "table11",
        "Table 11. Texts about the edited subject",
        texts,
        [
            Claim(
                claim="With SADR texts about the subject still follow the edit.",
                answer=kept,
                because=f"The edited object is named in {_listed(after)} of the texts. Where prompts do not ask for "
                "the edited relation, as the bundled model's do not, a text need not name it.",
            )
        ],
    )


def table12(study: Study) -> Artifact:
    """Prompts about another subject after the edited sentence."""
    texts = texts_of(study, "table12")
    wrong = _shares(texts, "names_new", whole=False)
    right = _shares(texts, "names_true", whole=False)
    names = list(wrong)
    return _artifact(
        study,
        "table12",
        "Table 12. Texts behind a distracting sentence",
        texts,
        [
            Claim(
                claim="The edited model goes on with the edited object where somebody else is the subject.",
                answer=_rise(wrong[names[0]], wrong[names[1]]),
                because=f"The first sentence names it in {_listed(wrong)} of the texts.",
            ),
            Claim(
                claim="With SADR it does so less often.",
                answer=_rise(wrong[names[2]], wrong[names[1]]),
                because=f"The first sentence names the true object in {_listed(right)} of the texts.",
            ),
        ],
    )


def texts_of(study: Study, name: str) -> pd.DataFrame:
    """A row per record and writer: the request, the prompt, the text, and which objects it names."""
    records = _records(study, name)
    chosen = settings(study)
    editors = {who: editor_of(study, setting) for who, setting in chosen.items()}
    prompts = {record.index: _prompt(record, name) for record in records}

    def write(some: Sequence[Record]) -> dict[str, pd.DataFrame]:
        rows: list[dict[str, Any]] = []
        for who, editor in editors.items():
            edits: list[Edit | None] = [None] * len(some)
            if editor is not None:
                facts = [record.fact for record in some]
                folder = cache_folder() / "edits"
                edits = [*cached_edits(study.model, editor, facts, folder, batch_size=study.options.batch_size)]
            found = generate(
                study.model, [prompts[record.index][0] for record in some], edits, max_tokens=MAX_TOKENS,
                seed=study.options.seed, keys=[record.index for record in some], stop_at_eos=True,
            )  # fmt: skip
            rows += [_row(record, who, *prompts[record.index], text.continuation) for record, text in
                     zip(some, found, strict=True)]  # fmt: skip
        return {"texts": pd.DataFrame(rows)}

    asked = [prompts[record.index] for record in records]
    key = settings_hash([name, configuration(study, name), asked, MAX_TOKENS, "stop at EOS"])
    with study.shown(f"{name}, texts") as done:
        tables = sharded(records, write, cache_folder() / "texts" / key, on_items=done)
    return tables["texts"]


def _records(study: Study, name: str) -> list[Record]:
    task = TASK_OF[name]
    able = [record for record in study.records if (record.generation if name == "table11" else record.tasks[task])]
    if not able:
        raise DriftlensError(
            f"no record of {study.data_name} has {task.replace('_', ' ')} prompts; choose other --data"
        )
    return spread_over_tasks(able, study.options.records or FEWER)


def _prompt(record: Record, name: str) -> tuple[str, str, str]:
    """The text to continue, and the objects that could be named."""
    if name == "table11":
        return record.generation[0], record.fact.target_true, record.fact.target_new
    prompt = record.tasks[TASK_OF[name]][0]
    return prompt.text, prompt.target_true, prompt.target_new


def _row(record: Record, who: str, prompt: str, true: str, new: str, text: str) -> dict[str, Any]:
    fact = record.fact
    first = re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]
    return {
        "record": record.index,
        "request": f"{fact.text} {fact.target_true} → {fact.target_new}",
        "prompt": prompt,
        "writer": who,
        "text": prompt + text,
        "target_true": true,
        "target_new": new,
        "names_true": names(true, text),
        "names_new": names(new, text),
        "first_names_true": names(true, first),
        "first_names_new": names(new, first),
    }


def names(target: str, text: str) -> bool:
    """Whether the text contains the object as whole words."""
    return re.search(rf"(?<!\w){re.escape(target)}(?!\w)", text) is not None


def _shares(texts: pd.DataFrame, column: str, *, whole: bool) -> dict[str, float]:
    column = column if whole else f"first_{column}"
    return {str(who): float(np.mean(of[column])) for who, of in texts.groupby("writer", sort=False)}


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{percent(share, 0)} ({who})" for who, share in shares.items())


def _rise(low: float, high: float) -> Answer:
    gain = high - low
    return "yes, strongly" if gain >= 0.3 else "yes" if gain >= 0.1 else "weakly" if gain > 0 else "no"


def _artifact(study: Study, name: str, title: str, texts: pd.DataFrame, claims: list[Claim]) -> Artifact:
    shown = _shown(study, name, texts)
    number_of = texts["record"].nunique()
    rule = "the first records" if name == "table11" else "the first records where the editor's text names it at once"
    lines = _lines(shown)
    about = f"{study.model_name} · {number_of} test records of {study.data_name} · shown: {rule}"
    numbers = [
        Number(name=f"{who}: {what}", paper="–", here=percent(share))
        for what, column, whole in (
            ("text names the edited object", "names_new", True),
            ("first sentence names the edited object", "names_new", False),
            ("first sentence names the true object", "names_true", False),
        )
        for who, share in _shares(texts, column, whole=whole).items()
    ]
    cases = "\n".join(line for _, case in shown.groupby("record", sort=False) for line in _told(case))
    return Artifact(
        name=name,
        title=title,
        caption=f"Top-5 sampling, {MAX_TOKENS} tokens with the prompt, the same random numbers for all writers. "
        f"{about}. The paper shows three chosen cases of ROME on GPT-J.\n{cases}",
        figure=plot_table(
            lines, title=title.split(". ", 1)[1], note=about, left=2,
            rules=[at for at, who in enumerate(lines["Writer"]) if who == "Request" and at],
        ),
        drawn=shown,
        cases=texts,
        numbers=numbers,
        claims=claims,
    )  # fmt: skip


def _shown(study: Study, name: str, texts: pd.DataFrame) -> pd.DataFrame:
    records = list(dict.fromkeys(texts["record"]))
    if name == "table12":
        edited: Any = texts[texts["writer"] == study.editor_name]
        failed = edited[edited["first_names_new"]]["record"].tolist()
        records = [*failed, *(record for record in records if record not in failed)]
    some: Any = pd.concat([texts[texts["record"] == record] for record in records[:SHOWN]])
    return some.reset_index(drop=True)


def _told(case: Any) -> list[str]:
    """Format a case for the caption: the request, then every writer's text, the unedited model's first."""
    request = case.iloc[0]["request"]
    return [f"\n**{request}**\n", *(f"- *{each.writer}*: {each.text}" for each in case.itertuples())]


def _lines(shown: pd.DataFrame) -> pd.DataFrame:
    """Break long texts into several lines of the picture."""
    rows: list[dict[str, str]] = []
    case: Any
    for _, case in shown.groupby("record", sort=False):
        first: Any = case.iloc[0]
        entries = [("Request", first["request"]), ("Prompt", first["prompt"])]
        entries += [(row.writer, row.text) for row in case.itertuples()]
        for who, text in entries:
            for at, line in enumerate(wrap(_escaped(text), LINE)):
                rows.append({"Writer": who if at == 0 else "", "Text": line})
    return pd.DataFrame(rows)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def configuration(study: Study, name: str) -> dict[str, Any]:
    """The configuration for the manifest."""
    given = [setting for setting in settings(study).values() if setting != NONE]
    return settings_configuration(study, given, _records(study, name), max_tokens=MAX_TOKENS)


ARTIFACTS = {
    "table11": ArtifactRecipe(make=table11, configuration=lambda study: configuration(study, "table11")),
    "table12": ArtifactRecipe(make=table12, configuration=lambda study: configuration(study, "table12")),
}
main = command(ARTIFACTS, __doc__, program="cases")

if __name__ == "__main__":
    sys.exit(run_command(main))
