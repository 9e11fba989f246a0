"""Edit and evaluate a few records of a benchmark, and report what failed.

Different edits run as rows of one batch, through hooks, so the model's weights never change.  A fact may fail to be
edited (its loss is not finite, its prompt is too long), and a prompt may be unreadable or have no finite NLL.  Such
failures do not stop the run: they are listed with their reason in the table of problems, and their NLLs are NaN.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from driftlens.data import TASKS, Record
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
from driftlens.models.prompts import TokenizedPrompt, try_tokenize_prompts
from driftlens.progress import OnProgress, of_stage

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

_Problem: TypeAlias = tuple[int, str, int, str]


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured on every record; :func:`driftlens.runs.benchmark` explains each field."""

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
        """The word weights of the reference score: the given ones, or those of all reference texts."""
        if self.tfidf is not None:
            return self.tfidf
        return TfIdf.fit(text for texts in (self.snippets or {}).values() for text in texts)


@dataclass(kw_only=True, eq=False)
class Work:
    """A model, an editor and measures; a call with records returns their tables.

    Attributes:
        model: the vanilla model.
        editor: the editor; None does not edit.
        measures: what to measure.
        edit_batch: facts optimised at a time; reduced permanently if memory runs out.
        batch_size: rows at a time of everything else.
        on_progress: called with the stage, the amount done and the total.
    """

    model: LensModel
    editor: Editor | None
    measures: Measures
    edit_batch: int = 16
    batch_size: int = 64
    on_progress: OnProgress | None = None

    def prepare(self) -> None:
        """Raise errors that concern all records now: the editor's settings, its texts, the texts to read."""
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
        """Compute the tables ``nlls``, ``records``, ``generations`` and ``problems`` of ``records``."""
        with self.model.unchanged():
            return self._tables(records)

    def _tables(self, records: Sequence[Record]) -> dict[str, pd.DataFrame]:
        outcomes, seconds = self._edits([record.fact for record in records])
        problems: list[_Problem] = []
        chosen: list[Record] = []
        edits: list[Edit | None] = []
        for record, outcome in zip(records, outcomes, strict=True):
            if isinstance(outcome, Failure):
                problems.append((record.index, "edit", -1, outcome.reason))
            else:
                chosen.append(record)
                edits.append(None if outcome is None else outcome.edit)
        nlls, texts, values = self._measured(chosen, edits, problems)
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
        self, records: Sequence[Record], edits: Sequence[Edit | None], problems: list[_Problem]
    ) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, dict[int, float]]]:
        """Measure NLLs, texts, and FL, REF and PPL by record; failures are added to ``problems``."""
        model, measures, size = self.model, self.measures, self.batch_size

        def told(*problem: Any) -> None:
            problems.append(problem)

        nlls = evaluate(
            model,
            records,
            edits,
            tasks=measures.tasks,
            batch_size=size,
            on_rows=of_stage(self.on_progress, "evaluate"),
            on_problem=told,
        )
        asked, kept = _readable(model, records if measures.generate else (), problems)
        under = edits if measures.generate else ()
        telling = of_stage(self.on_progress, "generate")
        texts = continuations(model, asked, under, seed=measures.seed, batch_size=size, on_rows=telling)
        snippets = measures.snippets
        values = {
            "fluency": _by_record(fluency_scores(texts), "fluency"),
            "reference": _by_record(reference_scores(texts, asked, snippets, measures.weights), "reference")
            if snippets
            else {},
            "perplexity": self._perplexities(records, edits),
        }
        nlls = _finite(nlls, values["perplexity"], problems)
        return nlls, _numbered_as_given(texts, kept), values

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
            on_rows=of_stage(self.on_progress, "perplexity"),
        )
        return _by_record(table, "perplexity")

    @cached_property
    def _vanilla_perplexity(self) -> float:
        """The same for all records, so it is measured once."""
        table = perplexities(self.model, None, texts=self.measures.perplexity_texts or ())
        return float(table["perplexity"].iloc[0])

    def _edits(self, facts: Sequence[Fact]) -> tuple[list[EditResult | Failure | None], list[float]]:
        """For each fact, its edit or the reason why there is none, and its share of the seconds."""
        if self.editor is None:
            return [None] * len(facts), [0.0] * len(facts)
        outcomes: list[EditResult | Failure | None] = []
        seconds: list[float] = []
        done: list[int] = []

        def on_facts(so_far: int, _: int) -> None:
            done.append(so_far)

        while len(outcomes) < len(facts):
            batch = facts[len(outcomes) : len(outcomes) + self.edit_batch]
            done.clear()
            start = time.perf_counter()
            outcomes += self.editor.try_many(self.model, batch, batch_size=len(batch), on_facts=on_facts)
            seconds += [(time.perf_counter() - start) / len(batch)] * len(batch)
            # If memory ran out, the editor went on with smaller batches; start with such a batch next time.
            self.edit_batch = min(self.edit_batch, done[0]) if done and done[0] < len(batch) else self.edit_batch
            self._tell("edit", len(outcomes), len(facts))
        return outcomes, seconds

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(stage, done, total)


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


def _finite(nlls: pd.DataFrame, perplexities_of: dict[int, float], problems: list[_Problem]) -> pd.DataFrame:
    """Replace NLLs that are not finite by NaN and drop such perplexities, and list each as a problem."""
    told = "is not finite under the edit; load the model in float32"
    measured = nlls[["nll_true", "nll_new"]].where(np.isfinite(nlls[["nll_true", "nll_new"]]))
    known = {problem[:3] for problem in problems}  # a prompt that cannot be read has its reason already
    lost: Any = nlls[measured.isna().any(axis=1)]
    for record, task, at in zip(lost["record"], lost["task"], lost["prompt_index"], strict=True):
        if (int(record), str(task), int(at)) not in known:
            problems.append((int(record), str(task), int(at), f"a target's NLL {told}"))
    for record in [record for record, value in perplexities_of.items() if not math.isfinite(value)]:
        problems.append((record, "perplexity", -1, f"the perplexity {told}"))
        del perplexities_of[record]
    return nlls.assign(nll_true=measured["nll_true"], nll_new=measured["nll_new"])


def _by_record(table: pd.DataFrame, column: str) -> dict[int, float]:
    return {int(record): float(value) for record, value in zip(table["record"], table[column], strict=True)}


def _readable(
    model: LensModel, records: Sequence[Record], problems: list[_Problem]
) -> tuple[list[Record], dict[int, list[int]]]:
    """Return the records with only the generation prompts that the model can read, and those prompts' indexes."""
    kept: dict[int, list[int]] = {}
    readable: list[Record] = []
    for record in records:
        read = try_tokenize_prompts(model, [(text, "") for text in record.generation])
        kept[record.index] = [at for at, prompt in enumerate(read) if isinstance(prompt, TokenizedPrompt)]
        for at, prompt in enumerate(read):
            if isinstance(prompt, DriftlensError):
                problems.append((record.index, "generation", at, str(prompt)))
        readable.append(replace(record, generation=tuple(record.generation[at] for at in kept[record.index])))
    return readable, kept


def _numbered_as_given(texts: pd.DataFrame, kept: dict[int, list[int]]) -> pd.DataFrame:
    """Restore the prompts' original indexes."""
    places = [kept[int(record)][int(at)] for record, at in zip(texts["record"], texts["prompt_index"], strict=True)]
    return texts.assign(prompt_index=pd.Series(places, index=texts.index, dtype="int64"))
