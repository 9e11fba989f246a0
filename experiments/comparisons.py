"""Compare one run with another on the same prompts, and format scores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from driftlens.evaluation.scores import AVERAGED, MAGNITUDES, SCORES, harmonic_mean
from driftlens.statistics.intervals import Clusters, numbered, percentile_interval, resampled_means
from experiments.artifacts import Answer
from experiments.benchmarks import BenchmarkRun
from experiments.words import interval, number

__all__ = [
    "Difference",
    "apart",
    "average_difference",
    "by_gain",
    "cell",
    "difference",
    "mean_difference",
    "score_table",
    "unedited",
    "value_of",
    "wrong_magnitude",
]

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of a score in points, with a bootstrap interval over records."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.value, 1) if self.value < 0 else f'+{self.value:.1f}'} {interval(self.low, self.high, 1)}"


def difference(
    before: BenchmarkRun, after: BenchmarkRun, score: str, *, group: str | None = None, seed: int = 0
) -> Difference | None:
    """Measure how much higher `score` is in `after`, prompt by prompt; None if the runs share no such prompts.

    Comparing the same prompts removes the variation in difficulty between prompts. Whole records are resampled.
    """
    return mean_difference(before, after, (score,), group=group, seed=seed)


def mean_difference(
    before: BenchmarkRun, after: BenchmarkRun, scores: Sequence[str], *, group: str | None = None, seed: int = 0
) -> Difference | None:
    """The same for the mean of several scores, with the same resampled records for all; None if one is missing."""
    changes = {score: _changes(before, after, score, group) for score in scores}
    if any(change.empty for change in changes.values()):
        return None
    values = {score: change["points"].to_numpy(dtype=float) for score, change in changes.items()}
    draws = resampled_means(values, _records_of(changes), resamples=RESAMPLES, seed=seed)
    low, high = percentile_interval(np.mean([draws[score] for score in scores], axis=0))
    return Difference(value=float(np.mean([value.mean() for value in values.values()])), low=low, high=high)


def average_difference(before: BenchmarkRun, after: BenchmarkRun, *, seed: int = 0) -> Difference | None:
    """Measure how much higher Avg. S is in `after`, on the prompts that both have; None if a part is missing.

    Avg. S is the harmonic mean of five means, so it is recomputed in both runs for every resample of the records.
    """
    both = {score: _observed(before, after, score, None) for score in AVERAGED}
    if any(table.empty for table in both.values()):
        return None
    clusters = _records_of(both)
    values: list[float] = []
    drawn: list[Any] = []
    for side in ("before", "after"):
        of_side = {score: table[side].to_numpy(dtype=float) for score, table in both.items()}
        values.append(float(harmonic_mean(np.array([[of_side[score].mean()] for score in AVERAGED]))[0]))
        draws = resampled_means(of_side, clusters, resamples=RESAMPLES, seed=seed)  # the same resamples on both sides
        drawn.append(harmonic_mean(np.stack([draws[score] for score in AVERAGED])))
    low, high = percentile_interval(drawn[1] - drawn[0])
    return Difference(value=values[1] - values[0], low=low, high=high)


def _records_of(tables: Mapping[str, pd.DataFrame]) -> dict[str, Clusters]:
    """The record of each row of each table, numbered consistently."""
    records = numbered(pd.concat([table["record"] for table in tables.values()]))
    ends = np.cumsum([len(table) for table in tables.values()])[:-1]
    return dict(zip(tables, np.split(records, ends), strict=True))


def _changes(before: BenchmarkRun, after: BenchmarkRun, score: str, group: str | None) -> Any:
    """A row for each prompt that both have: its record, and the rise in points."""
    both = _observed(before, after, score, group)
    return both[["record"]].assign(points=both["after"] - both["before"])


def _observed(before: BenchmarkRun, after: BenchmarkRun, score: str, group: str | None) -> Any:
    """A row for each prompt that both have: its record, and the values that the score averages in either run."""
    magnitudes = {magnitude: name for name, magnitude in MAGNITUDES.items()}
    task, wanted = SCORES[magnitudes.get(score, score)]
    keys = ["record", "prompt_index"]
    both = _of(before, task, group)[[*keys, "nll_true", "nll_new"]].merge(
        _of(after, task, group)[[*keys, "nll_true", "nll_new"]], on=keys, suffixes=("_before", "_after")
    )

    def observed(run: str) -> Any:
        true, new = (both[f"{name}_{run}"].to_numpy(dtype=float) for name in ("nll_true", "nll_new"))
        right, wrong = (new, true) if wanted == "new" else (true, new)
        return 100 * np.exp(-right) if score in magnitudes else 100.0 * (right < wrong)

    return both[["record"]].assign(before=observed("before"), after=observed("after"))


def _of(run: BenchmarkRun, task: str, group: str | None) -> Any:
    rows = run.nlls[run.nlls["task"] == task]
    return rows if group is None else rows[rows["group"] == group]


def apart(before: BenchmarkRun, after: BenchmarkRun, score: str) -> bool:
    """Whether the two bootstrap intervals over records are disjoint and `after` is higher."""
    return bool(after.scores["cluster_low"][score] > before.scores["cluster_high"][score])


def wrong_magnitude(run: BenchmarkRun, task: str) -> float:
    """The mean P(o_edit) on a task whose right answer is o_true, in percent."""
    of_task: Any = run.nlls[run.nlls["task"] == task]
    nlls = of_task["nll_new"].to_numpy(dtype=float)
    return float(100 * np.exp(-nlls).mean()) if len(nlls) else float("nan")


def value_of(run: BenchmarkRun, score: str) -> float:
    """The value in percent; NaN if the data has no such prompts."""
    values: Any = run.scores["value"]
    return float(values.get(score, float("nan")))


def cell(run: BenchmarkRun, score: str, digits: int = 1) -> str:
    """Format a score with half of its interval, as in the paper, but with the bootstrap interval over records."""
    if np.isnan(value_of(run, score)):
        return "–"
    row = run.scores.loc[score]
    half = (row["cluster_high"] - row["cluster_low"]) / 2
    text = number(float(row["value"]), digits)
    return text if np.isnan(half) else f"{text} ({half:.{digits}f})"


def score_table(rows: Mapping[str, BenchmarkRun]) -> pd.DataFrame:
    """All scores of all rows with both intervals, a line each.

    The row "None" is called "unedited", because readers of a table often take "None" for a missing value.
    """
    tables = [
        run.scores.rename_axis("score").reset_index().assign(row=unedited(name)).dropna(subset=["value"])
        for name, run in rows.items()
    ]
    table: Any = pd.concat(tables, ignore_index=True)
    return table[["row", *(name for name in table.columns if name != "row")]]


def unedited(name: str) -> str:
    """The name of a row in a file."""
    return re.sub(r"\bNone$", "unedited", name)


def by_gain(gain: Difference | None, *, separate: bool) -> Answer:
    """Whether a score rises: by 10 points or more with disjoint intervals, for sure, perhaps, or not."""
    if gain is None:
        return "cannot be told"
    if gain.low <= 0:
        return "no"
    return "yes, strongly" if separate and gain.value >= 10 else "yes" if separate else "weakly"
