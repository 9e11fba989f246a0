"""What a benchmark does with a few records: edit each, measure each under its own edit, and say what did not work.

Different edits run as rows of one batch, through hooks, so nothing is ever written into the model.  A fact that
cannot be edited (its loss is not finite, its prompt is too long for the model) and a prompt that cannot be read, or
has no finite NLL under its edit, stop nothing: they stand in the table of problems with the reason, and what is left is
measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from driftlens.data import TASKS, Record, TaskPrompt
from driftlens.editors.failures import Failure
from driftlens.errors import DriftlensError, unknown_name
from driftlens.evaluation import (
    TfIdf,
    continuations,
    evaluate,
    fluency_scores,
    perplexities,
    reference_scores,
)
from driftlens.models.prompts import tokenize_prompt

if TYPE_CHECKING:
    from driftlens.data import Fact
    from driftlens.editors.base import Editor
    from driftlens.edits import Edit, EditResult
    from driftlens.models import LensModel

__all__ = ["Measures", "Work"]

_PROBLEMS = {"record": "int64", "stage": "object", "prompt_index": "int64", "reason": "object"}

_RECORDS = (
    "record",
    "subject",
    "fluency",
    "reference",
    "steps",
    "loss",
    "probability",
    "perplexity",
    "seconds",
    "problem",
)

Kept: TypeAlias = dict[tuple[int, str], list[int]]


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured on every record; :func:`driftlens.runs.benchmark` says what each means."""

    tasks: tuple[str, ...] | None = None
    generate: bool = True
    perplexity_texts: tuple[str, ...] | None = None
    snippets: Mapping[tuple[str, str], Sequence[str]] | None = None
    tfidf: TfIdf | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for task in self.tasks or ():
            if task not in TASKS:
                raise unknown_name("task", task, TASKS)
        if self.snippets is not None and not self.generate:
            raise DriftlensError("reference texts are given but nothing is generated; the reference score needs both")

    @cached_property
    def weights(self) -> TfIdf:
        """The words' weights of the reference score: as given, else those of all reference texts."""
        if self.tfidf is not None:
            return self.tfidf
        return TfIdf.fit(text for texts in (self.snippets or {}).values() for text in texts)


@dataclass(kw_only=True, eq=False)
class Work:
    """A model, an editor, and what to measure: called with records it gives their tables.

    Attributes:
        model: the vanilla model.
        editor: how to edit; None leaves the model as it is.
        measures: what to measure.
        edit_batch: facts optimised at a time; smaller from then on when memory runs out.
        batch_size: rows at a time of everything else.
        on_stage: called with (what is being done, how much of it is done, how much of it there is).
    """

    model: LensModel
    editor: Editor | None
    measures: Measures
    edit_batch: int = 16
    batch_size: int = 64
    on_stage: Callable[[str, int, int], None] | None = None

    def prepare(self) -> None:
        """Whatever is wrong for all records is an error now: the editor's settings, its texts, the texts to read."""
        for name, value in (("edit_batch", self.edit_batch), ("batch_size", self.batch_size)):
            if value < 1:
                raise DriftlensError(f"{name} is {value}; expected at least 1")
        texts = self.measures.perplexity_texts
        if texts is not None and len(self.model.encode(" ".join(texts)).ids) < 2:
            raise DriftlensError("the texts for perplexity have fewer than 2 tokens; give longer ones")
        if self.measures.snippets is not None:
            self.measures.weights  # noqa: B018 (computed here, once)
        if self.editor is not None:
            self._tell("second moment", 0, 1)
            self.editor.edit_many(self.model, [])

    def __call__(self, records: Sequence[Record]) -> dict[str, pd.DataFrame]:
        """The tables ``nlls``, ``records``, ``generations`` and ``problems`` of ``records``."""
        readable, kept, problems = _readable(self.model, records, self.measures)
        outcomes, seconds = self._edits([record.fact for record in records])
        chosen: list[Record] = []
        edits: list[Edit | None] = []
        for record, outcome in zip(readable, outcomes, strict=True):
            if isinstance(outcome, Failure):
                problems.append((record.index, "edit", -1, outcome.reason))
            else:
                chosen.append(record)
                edits.append(None if outcome is None else outcome.edit)
        nlls, texts, values = self._measured(chosen, edits)
        nlls, texts = _numbered_as_given(nlls, kept, None), _numbered_as_given(texts, kept, "generation")
        nlls = _finite(nlls, values["perplexity"], problems)
        told = pd.DataFrame(
            [_told(record, outcome, took) for record, outcome, took in zip(records, outcomes, seconds, strict=True)]
        )
        for name, by_record in values.items():
            told[name] = pd.Series([by_record.get(record.index, math.nan) for record in records], dtype="float64")
        return {
            "nlls": nlls,
            "records": told.reindex(columns=list(_RECORDS)),
            "generations": texts,
            "problems": pd.DataFrame(problems, columns=list(_PROBLEMS)).astype(_PROBLEMS),
        }

    def _measured(
        self, records: Sequence[Record], edits: Sequence[Edit | None]
    ) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, dict[int, float]]]:
        """NLLs, texts, and FL, REF and PPL by record."""
        model, measures, size = self.model, self.measures, self.batch_size
        nlls = evaluate(model, records, edits, tasks=measures.tasks, batch_size=size, on_rows=self._telling("evaluate"))
        asked, under = (records, edits) if measures.generate else ((), ())
        telling = self._telling("generate")
        texts = continuations(model, asked, under, seed=measures.seed, batch_size=size, on_rows=telling)
        snippets = measures.snippets
        values = {
            "fluency": _by_record(fluency_scores(texts), "fluency"),
            "reference": _by_record(reference_scores(texts, asked, snippets, measures.weights), "reference")
            if snippets
            else {},
            "perplexity": self._perplexities(records, edits),
        }
        return nlls, texts, values

    def _perplexities(self, records: Sequence[Record], edits: Sequence[Edit | None]) -> dict[int, float]:
        if self.measures.perplexity_texts is None:
            return {}
        if self.editor is None:
            return dict.fromkeys((record.index for record in records), self._vanilla_perplexity)
        table = perplexities(
            self.model,
            edits,
            texts=self.measures.perplexity_texts,
            records=records,
            batch_size=self.batch_size,
            on_rows=self._telling("perplexity"),
        )
        return _by_record(table, "perplexity")

    @cached_property
    def _vanilla_perplexity(self) -> float:
        """The same for all records, so it is measured once."""
        table = perplexities(self.model, None, texts=self.measures.perplexity_texts or ())
        return float(table["perplexity"].iloc[0])

    def _edits(self, facts: Sequence[Fact]) -> tuple[list[EditResult | Failure | None], list[float]]:
        """Per fact its edit, or why there is none, and its share of the seconds."""
        if self.editor is None:
            return [None] * len(facts), [0.0] * len(facts)
        outcomes: list[EditResult | Failure | None] = []
        seconds: list[float] = []
        while len(outcomes) < len(facts):
            batch = facts[len(outcomes) : len(outcomes) + self.edit_batch]
            steps: list[int] = []
            start = time.perf_counter()
            outcomes += self.editor.try_many(self.model, batch, batch_size=len(batch), on_facts=steps.append)
            seconds += [(time.perf_counter() - start) / len(batch)] * len(batch)
            # Where memory ran out the editor went on with smaller batches; starting with one saves the next attempt.
            self.edit_batch = min(self.edit_batch, steps[0]) if steps and steps[0] < len(batch) else self.edit_batch
            self._tell("edit", len(outcomes), len(facts))
        return outcomes, seconds

    def _telling(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self._tell(stage, done, total)

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.on_stage is not None:
            self.on_stage(stage, done, total)


def _told(record: Record, outcome: EditResult | Failure | None, seconds: float) -> dict[str, object]:
    line: dict[str, object] = {"record": record.index, "subject": record.fact.subject}
    line |= {"steps": math.nan, "loss": math.nan, "probability": math.nan, "seconds": seconds, "problem": ""}
    if isinstance(outcome, Failure):
        line["problem"] = outcome.reason
    elif outcome is not None:
        last = outcome.history.iloc[-1]
        line["steps"] = float(len(outcome.history))
        line |= {name: float(last[name]) for name in ("loss", "probability")}
    return line


def _finite(
    nlls: pd.DataFrame, perplexities_of: dict[int, float], problems: list[tuple[int, str, int, str]]
) -> pd.DataFrame:
    """Without what is not finite, which would be every mean's end: it goes to the problems."""
    told = "is not finite under the edit; load the model in float32"
    whole = np.isfinite(nlls[["nll_true", "nll_new"]].to_numpy(dtype=float)).all(axis=1)
    lost: Any = nlls[~whole]
    left: Any = nlls[whole]
    for record, task, at in zip(lost["record"], lost["task"], lost["prompt_index"], strict=True):
        problems.append((int(record), str(task), int(at), f"a target's NLL {told}"))
    for record in [record for record, value in perplexities_of.items() if not math.isfinite(value)]:
        problems.append((record, "perplexity", -1, f"the perplexity {told}"))
        del perplexities_of[record]
    return left.reset_index(drop=True)


def _by_record(table: pd.DataFrame, column: str) -> dict[int, float]:
    return {int(record): float(value) for record, value in zip(table["record"], table[column], strict=True)}


def _readable(
    model: LensModel, records: Sequence[Record], measures: Measures
) -> tuple[list[Record], Kept, list[tuple[int, str, int, str]]]:
    """The records with only those prompts that the model can read, the places these had, and why the others go."""
    kept: Kept = {}
    problems: list[tuple[int, str, int, str]] = []
    readable: list[Record] = []

    def keep(record: Record, stage: str, prompts: Sequence[tuple[str, tuple[str, ...]]]) -> list[int]:
        places: list[int] = []
        for at, (text, targets) in enumerate(prompts):
            try:
                for target in targets:
                    tokenize_prompt(model, text, target)
                places.append(at)
            except DriftlensError as error:
                problems.append((record.index, stage, at, str(error)))
        kept[record.index, stage] = places
        return places

    for record in records:
        tasks: dict[str, tuple[TaskPrompt, ...]] = {}
        for task, prompts in record.tasks.items():
            if measures.tasks is not None and task not in measures.tasks:
                tasks[task] = ()
                continue
            told = [(prompt.text, (prompt.target_true, prompt.target_new)) for prompt in prompts]
            tasks[task] = tuple(prompts[at] for at in keep(record, task, told))
        free = [(text, ("",)) for text in record.generation] if measures.generate else []
        generation = tuple(record.generation[at] for at in keep(record, "generation", free))
        readable.append(replace(record, tasks=tasks, generation=generation))
    return readable, kept, problems


def _numbered_as_given(table: pd.DataFrame, kept: Kept, stage: str | None) -> pd.DataFrame:
    """With the numbers that the prompts had before some were left out."""
    stages = table["task"] if stage is None else [stage] * len(table)
    places = [
        kept[int(record), str(of)][int(at)]
        for record, of, at in zip(table["record"], stages, table["prompt_index"], strict=True)
    ]
    return table.assign(prompt_index=pd.Series(places, index=table.index, dtype="int64"))
