"""What a benchmark run found, and the warning where something could not be measured."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from driftlens.evaluation import summarize, summarize_records
from driftlens.runs.shards import Tables

__all__ = ["BenchmarkResult", "counts", "result_of", "scores_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchmarkResult:
    """What a run found.

    Attributes:
        nlls: the long table of :func:`driftlens.evaluate`, all records.
        records: a line per record: ``record, subject, fluency, reference, steps, loss, probability, perplexity,
            seconds, problem``; NaN where there is none.  ``steps``, ``loss`` and ``probability`` are the last of
            the optimisation, ``seconds`` the edit's share of its batch, ``problem`` why there is no edit, else "".
        generations: ``record, prompt_index, prompt, text``.
        problems: ``record, stage, prompt_index, reason``: what could not be done; ``stage`` is "edit" or
            "perplexity" (index −1), the prompt's task, or "generation".
        manifest: what ``manifest.json`` says.
    """

    nlls: pd.DataFrame
    records: pd.DataFrame
    generations: pd.DataFrame
    problems: pd.DataFrame
    manifest: Mapping[str, Any]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """:func:`driftlens.summarize` of the NLLs, and FL, REF, PPL where they were measured."""
        return scores_of(self.nlls, self.records)


def scores_of(nlls: pd.DataFrame, records: pd.DataFrame, *, resamples: int = 1000) -> pd.DataFrame:
    """The scores of prompts and of records in one table, with the columns of :func:`driftlens.summarize`."""
    tables = [summarize(nlls, resamples=resamples)]
    for name in ("fluency", "reference", "perplexity"):
        measured = records.loc[records[name].notna(), ["record", name]]
        if len(measured):
            tables.append(summarize_records(measured, resamples=resamples))
    return pd.concat(tables)


def result_of(tables: Tables, manifest: Mapping[str, Any], total: int) -> BenchmarkResult:
    """The result of the tables of a run over `total` records; warns of what could not be measured."""
    _warn(tables, total)
    return BenchmarkResult(
        nlls=tables["nlls"],
        records=tables["records"],
        generations=tables["generations"],
        problems=tables["problems"],
        manifest=manifest,
    )


def counts(problems: pd.DataFrame) -> dict[str, int]:
    """How many problems there were, by stage."""
    return {str(stage): int(count) for stage, count in problems["stage"].value_counts().items()}


def _warn(tables: Tables, total: int) -> None:
    problems = tables["problems"]
    if not len(problems):
        return
    stages = counts(problems)
    facts = stages.pop("edit", 0)
    parts = [f"{facts} of {total} records could not be edited"] if facts else []
    if stages:
        parts.append(f"{sum(stages.values())} prompts could not be measured ({', '.join(stages)})")
    first = problems.iloc[0]
    warnings.warn(
        f"{' and '.join(parts)} and do not count; the table of problems says why: record {first['record']}: "
        f"{first['reason']}",
        RuntimeWarning,
        stacklevel=5,
    )
