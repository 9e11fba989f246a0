"""Means with their uncertainty, told in two ways.

1. The paper's: mean ± 1.96 · standard error over the observations (prompts), as if they were independent.
2. The clustered bootstrap: records are drawn with replacement, each with all its observations, the mean is
   taken over what was drawn, and the interval is the middle 95 % of many such means.  Ten prompts of one edit
   fail together, so this one is the honest one, and the wider one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Floats: TypeAlias = NDArray[np.float64]

COLUMNS = ("value", "low", "high", "n", "cluster_low", "cluster_high")


def mean_interval(values: Floats) -> tuple[float, float, float, int]:
    """Mean, the paper's interval around it, and the number of values; NaN where there are too few."""
    n = len(values)
    if n == 0:
        return float("nan"), float("nan"), float("nan"), 0
    mean = float(values.mean())
    half = 1.96 * float(stats.sem(values)) if n > 1 else float("nan")
    return mean, mean - half, mean + half, n


def resampled_means(
    values: Mapping[str, Floats], clusters: Mapping[str, NDArray[np.int64]], *, resamples: int, seed: int
) -> dict[str, Floats]:
    """The mean of every series in each of ``resamples`` draws of the clusters.

    All series share the draws, so that a function of several means (Avg.S) can be taken draw by draw.  A
    series without an observation in a draw is NaN there.

    Args:
        values: the observations of each series.
        clusters: the cluster of each observation, as a number from 0.
        resamples: how many draws.
        seed: same seed, same draws.
    """
    count = 1 + max((int(of.max()) for of in clusters.values() if len(of)), default=-1)
    sums = {
        name: np.stack(
            [np.bincount(clusters[name], weights, minlength=count) for weights in (series, np.ones(len(series)))]
        )
        for name, series in values.items()
    }
    means = {name: np.full(resamples, np.nan) for name in values}
    if count == 0:
        return means
    generator = np.random.default_rng(seed)
    for draw in range(resamples):
        # How often each cluster was drawn.
        times = np.bincount(generator.integers(count, size=count), minlength=count)
        for name, (total, number) in sums.items():
            if (drawn := times @ number) > 0:
                means[name][draw] = (times @ total) / drawn
    return means


def percentile_interval(means: Floats) -> tuple[float, float]:
    """The middle 95 % of the draws that have a mean; NaN where none has."""
    if np.isnan(means).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)


def numbered(clusters: object) -> NDArray[np.int64]:
    """The clusters of a column as numbers from 0, in order of appearance."""
    return np.asarray(pd.factorize(np.asarray(clusters))[0], dtype=np.int64)


def summary_row(
    values: Floats, clusters: NDArray[np.int64] | None, *, scale: float = 1.0, resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float, int, float, float]:
    """One line of a summary table, in the order of ``COLUMNS``, for a series of its own.

    Without clusters, or with fewer than two, the bootstrap interval is NaN.
    """
    mean, low, high, n = mean_interval(scale * values)
    cluster_low = cluster_high = float("nan")
    if clusters is not None and resamples and len(np.unique(clusters)) > 1:
        means = resampled_means({"": scale * values}, {"": clusters}, resamples=resamples, seed=seed)
        cluster_low, cluster_high = percentile_interval(means[""])
    return mean, low, high, n, cluster_low, cluster_high
