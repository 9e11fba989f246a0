"""Scores from per-prompt NLLs (paper, 2.1 and 5.1), from driftlens or elsewhere.

With P(o | prompt) = exp(−NLL), where NLL is the mean over the target's tokens (the published code's convention):

==============  =======================  ===========================  =====================
scores          task                     a prompt counts when         magnitude is the mean
==============  =======================  ===========================  =====================
ES, EM          rewrite                  P(new) > P(true)             P(new)
PS, PM          paraphrase               P(new) > P(true)             P(new)
NS, NM          neighborhood             P(true) > P(new)             P(true)
RS, RM          relation                 P(true) > P(new)             P(true)
DNS, DNM        distract_neighborhood    P(true) > P(new)             P(true)
RES             reasoning                P(new) > P(true)             –
OS              other_task               P(true) > P(new)             –
DOS             distract_other_task      P(true) > P(new)             –
AS              alias                    P(new) > P(true)             –
DRS             distract_relation        P(true) > P(new)             –
==============  =======================  ===========================  =====================

Comparisons are strict, so a tie fails.  Means are over prompts, not over records.  Avg.S is the
harmonic mean of ES, PS, NS, RS and DNS.  Everything is in percent.  The paper does not name the last two, which
follow its scores if the table has such prompts.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from driftlens.errors import DriftlensError
from driftlens.statistics.intervals import (
    COLUMNS,
    Clusters,
    Floats,
    bounded_interval,
    numbered,
    percentile_interval,
    resampled_means,
    summary_row,
)

SCORES = {
    # score: (task, the target that must be more probable)
    "ES": ("rewrite", "new"),
    "PS": ("paraphrase", "new"),
    "NS": ("neighborhood", "true"),
    "RS": ("relation", "true"),
    "DNS": ("distract_neighborhood", "true"),
    "RES": ("reasoning", "new"),
    "OS": ("other_task", "true"),
    "DOS": ("distract_other_task", "true"),
    "AS": ("alias", "new"),
    "DRS": ("distract_relation", "true"),
}
MAGNITUDES = {"ES": "EM", "PS": "PM", "NS": "NM", "RS": "RM", "DNS": "DNM"}
ORDER = ("ES", "EM", "PS", "PM", "NS", "NM", "RS", "RM", "DNS", "DNM", "RES", "OS", "DOS", "Avg.S")
WITHOUT_NAME = ("AS", "DRS")
OF_RECORDS = {"FL": "fluency", "REF": "reference", "PPL": "perplexity"}
NAMES = {
    # The paper's names (2.1, 5.1, E.1); AS and DRS are ours.
    "ES": "Efficacy Score",
    "EM": "Efficacy Magnitude",
    "PS": "Paraphrase Score",
    "PM": "Paraphrase Magnitude",
    "NS": "Neighborhood Score",
    "NM": "Neighborhood Magnitude",
    "RS": "Relation Score",
    "RM": "Relation Magnitude",
    "DNS": "Distract Neighborhood Score",
    "DNM": "Distract Neighborhood Magnitude",
    "RES": "Reasoning Score",
    "OS": "Other Task Score",
    "DOS": "Distracted Other Task Score",
    "Avg.S": "harmonic mean of ES, PS, NS, RS, DNS",
    "AS": "Alias Score",
    "DRS": "Distract Relation Score",
    "FL": "Fluency",
    "REF": "Reference Score",
    "PPL": "Perplexity",
}
AVERAGED = ("ES", "PS", "NS", "RS", "DNS")


def summarize(nlls: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The scores of a long table with at least the columns ``task, nll_true, nll_new``.

    Args:
        nlls: a row per prompt, from :func:`driftlens.evaluate` or elsewhere; rows with a NaN are left out.  With a
            column ``record``, the prompts of a record form a cluster.
        resamples: number of bootstrap draws; 0 leaves the bootstrap out.
        seed: the seed of the draws.

    Returns:
        Index ``ES EM PS PM NS NM RS RM DNS DNM RES OS DOS Avg.S``, then ``AS`` and ``DRS`` if the table has such
        prompts.  Columns ``value, low, high, n``: the score in percent, its 95 % interval (Wilson's, over clusters;
        without ``record``, each prompt is its own cluster), and the number of prompts.  ``cluster_low, cluster_high``:
        the 95 % bootstrap interval over records.  Intervals stay between 0 and 100 and do not depend on the order of
        the rows.  A score without prompts is NaN with n = 0.  Avg.S is NaN if one of its parts is missing, and 0 if one
        of them is 0.  It has only the bootstrap interval, and its n is that of its smallest part.

    Raises:
        DriftlensError: a column is missing.
    """
    series = _observations(nlls)
    draws: dict[str, Floats] = {}
    clusters: dict[str, Clusters] = {}
    if "record" in nlls.columns:
        records = numbered(nlls["record"])
        clusters = {name: records[_counted(nlls, _task_of(name))] for name in series}
        if resamples and len(np.unique(records)) > 1:
            draws = resampled_means(series, clusters, resamples=resamples, seed=seed)
    rows: dict[str, tuple[float, float, float, int, float, float]] = {}
    for name, values in series.items():
        interval = percentile_interval(draws[name]) if draws else (float("nan"), float("nan"))
        rows[name] = (*bounded_interval(values, clusters.get(name)), *interval)

    average = harmonic_mean(np.array([[rows[name][0]] for name in AVERAGED]))
    drawn = harmonic_mean(np.stack([draws[name] for name in AVERAGED])) if draws else np.full(1, np.nan)
    nan = float("nan")
    smallest = min(rows[name][3] for name in AVERAGED)
    rows["Avg.S"] = (float(average[0]), nan, nan, smallest, *percentile_interval(drawn))
    index = [*ORDER, *(name for name in WITHOUT_NAME if rows[name][3])]
    return pd.DataFrame.from_dict({name: rows[name] for name in index}, orient="index", columns=list(COLUMNS))


def harmonic_mean(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The harmonic mean over the first dimension; 0 if a part is 0, NaN if one is missing."""
    with np.errstate(divide="ignore"):
        return len(parts) / (1 / parts).sum(axis=0)


def _observations(nlls: pd.DataFrame) -> dict[str, Floats]:
    """The observations in percent whose mean is each score or magnitude."""
    for column in ("task", "nll_true", "nll_new"):
        if column not in nlls.columns:
            raise DriftlensError(f"the table has no column {column!r}; expected at least task, nll_true, nll_new")
    series: dict[str, Floats] = {}
    for score, (task, wanted) in SCORES.items():
        of_task = nlls[_counted(nlls, task)]
        nll_true, nll_new = (np.asarray(of_task[column], dtype=np.float64) for column in ("nll_true", "nll_new"))
        right, wrong = (nll_new, nll_true) if wanted == "new" else (nll_true, nll_new)
        # NLLs are compared, not probabilities, which underflow to a tie for very unlikely targets.
        series[score] = 100.0 * (right < wrong).astype(np.float64)
        if score in MAGNITUDES:
            series[MAGNITUDES[score]] = np.asarray(100.0 * np.exp(-right), dtype=np.float64)
    return series


def _counted(nlls: pd.DataFrame, task: str) -> NDArray[np.bool_]:
    """The prompts of a task with NLLs of both targets."""
    measured = nlls[["nll_true", "nll_new"]].notna().all(axis=1)
    return np.asarray((nlls["task"] == task) & measured, dtype=bool)


def _task_of(name: str) -> str:
    score = next((score for score, magnitude in MAGNITUDES.items() if magnitude == name), name)
    return SCORES[score][0]


def summarize_records(*tables: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Summarise FL, REF and PPL from tables with a row per record, in the form of :func:`summarize`.

    Args:
        tables: tables with a column ``record`` and one or more of ``fluency``, ``reference``, ``perplexity``.
        resamples: number of bootstrap draws of records; 0 leaves the bootstrap out.
        seed: the seed of the draws.

    Returns:
        The rows ``FL``, ``REF`` and ``PPL``, as far as a table has them: the mean over records, its 95 % interval
        (Wilson's for REF, which is a percentage; otherwise a positive one), the number of records, and the 95 %
        bootstrap interval over records.

    Raises:
        DriftlensError: a table has none of these columns, or no ``record``.
    """
    rows: dict[str, tuple[float, float, float, int, float, float]] = {}
    for table in tables:
        found = [name for name, column in OF_RECORDS.items() if column in table.columns]
        if not found or "record" not in table.columns:
            raise DriftlensError(
                f"a table has the columns {', '.join(map(str, table.columns))}; expected record and one of "
                f"{', '.join(OF_RECORDS.values())}"
            )
        for name in found:
            values = np.asarray(table[OF_RECORDS[name]], dtype=np.float64)
            bounds = (0.0, 100.0) if name == "REF" else None
            rows[name] = summary_row(values, numbered(table["record"]), bounds=bounds, resamples=resamples, seed=seed)
    index = [name for name in OF_RECORDS if name in rows]
    return pd.DataFrame.from_dict({name: rows[name] for name in index}, orient="index", columns=list(COLUMNS))
