"""The results of a benchmark run, and a warning if something could not be measured."""

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
    """The results of a run.

    Attributes:
        nlls: the long table of :func:`driftlens.evaluate`, for all records.
        records: a row per record: ``record, subject, fluency, reference, steps, loss, probability, perplexity,
            seconds, problem``; NaN if not measured.  ``steps``, ``loss`` and ``probability`` are those at the end of
            the optimisation, ``seconds`` is the edit's share of its batch, and ``problem`` says why there is no edit,
            else "".
        generations: ``record, prompt_index, prompt, text``.
        problems: ``record, stage, prompt_index, reason`` of everything that failed; ``stage`` is "edit" or
            "perplexity" (index −1), the prompt's task, or "generation".
        manifest: the content of ``manifest.json``.
    """

    nlls: pd.DataFrame
    records: pd.DataFrame
    generations: pd.DataFrame
    problems: pd.DataFrame
    manifest: Mapping[str, Any]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """:func:`driftlens.summarize` of the NLLs, and FL, REF and PPL if they were measured."""
        return scores_of(self.nlls, self.records)


def scores_of(nlls: pd.DataFrame, records: pd.DataFrame, *, resamples: int = 1000) -> pd.DataFrame:
    """Return the scores of prompts and of records in one table, with the columns of :func:`driftlens.summarize`."""
    tables = [summarize(nlls, resamples=resamples)]
    for name in ("fluency", "reference", "perplexity"):
        measured = records.loc[records[name].notna(), ["record", name]]
        if len(measured):
            tables.append(summarize_records(measured, resamples=resamples))
    return pd.concat(tables)


def result_of(tables: Tables, manifest: Mapping[str, Any], total: int) -> BenchmarkResult:
    """Make the result from the tables of a run over `total` records; a warning counts what could not be measured."""
    _warn(tables, total)
    return BenchmarkResult(
        nlls=tables["nlls"],
        records=tables["records"],
        generations=tables["generations"],
        problems=tables["problems"],
        manifest=manifest,
    )


def counts(problems: pd.DataFrame) -> dict[str, int]:
    """The number of problems by stage."""
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
