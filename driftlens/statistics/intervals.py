"""Means with two kinds of 95 % interval, both for clustered observations.

The prompts of one edit tend to fail together, so a record's prompts form one cluster.

1. An interval that stays in the range of the values. For percentages it is Wilson's score interval with the effective
   sample size (the number of independent observations with the same standard error) and Student's t for the number of
   clusters (Dean & Pagano, "Evaluating confidence interval methods for binomial proportions in clustered surveys",
   2015). For positive numbers it is symmetric in the logarithm.
2. The clustered bootstrap: records are drawn with replacement, each with all its observations, and the interval covers
   the middle 95 % of the means of the draws.

Neither depends on the order of the observations.  For other statistics of a table of counts,
:func:`corrected_interval` computes a bootstrap interval that is valid for few rows too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

Floats: TypeAlias = NDArray[np.float64]
Clusters: TypeAlias = NDArray[np.int64]

COLUMNS = ("value", "low", "high", "n", "cluster_low", "cluster_high")
_LEVEL = 0.975


def bounded_interval(
    values: Floats, clusters: Clusters | None = None, *, bounds: tuple[float, float] = (0.0, 100.0)
) -> tuple[float, float, float, int]:
    """Mean of values that lie between ``bounds``, its 95 % interval within them, and the number of values.

    With p the mean as a share of the range and v the variance of p over the clusters (G of them), the effective sample
    size is n = p (1 − p) / v, and the interval is that of Wilson, (p + t²/2n ± t √(p (1 − p)/n + t²/4n²)) / (1 + t²/n),
    with t of G − 1 degrees of freedom. Where the clusters do not differ, n is G.

    Args:
        values: the observations.
        clusters: the cluster of each observation; default: each is its own cluster.
        bounds: the least and the greatest possible value.

    Returns:
        Mean, low, high, n; the interval is NaN for fewer than two clusters.
    """
    least, most = bounds
    mean, error, count = _clustered(values, clusters)
    if count < 2:
        return mean, float("nan"), float("nan"), len(values)
    share, spread = (mean - least) / (most - least), error / (most - least)
    share = min(max(share, 0.0), 1.0)
    inside = share * (1 - share)
    size = inside / spread**2 if spread**2 > 1e-12 * inside / len(values) else float(count)
    t = _student(count)
    centre = (share + t**2 / (2 * size)) / (1 + t**2 / size)
    half = t * np.sqrt(inside / size + t**2 / (4 * size**2)) / (1 + t**2 / size)
    low, high = (least + (most - least) * float(np.clip(end, 0.0, 1.0)) for end in (centre - half, centre + half))
    return mean, low, high, len(values)


def positive_interval(values: Floats, clusters: Clusters | None = None) -> tuple[float, float, float, int]:
    """Mean of positive values, its positive 95 % interval, and the number of values.

    The interval is m · exp(± t · s / m), with s the standard error over the clusters and t as in
    :func:`bounded_interval`: the usual interval of the mean, made symmetric in the logarithm.
    """
    mean, error, count = _clustered(values, clusters)
    if count < 2 or mean <= 0 or not np.isfinite(mean):
        return mean, float("nan"), float("nan"), len(values)
    factor = float(np.exp(_student(count) * error / mean))
    return mean, mean / factor, mean * factor, len(values)


def interval_ends(
    groups: Any, *, bounds: tuple[float, float] = (0.0, 100.0), clusters: pd.Series | None = None
) -> tuple[list[float], list[float]]:
    """The lower and upper ends of :func:`bounded_interval` for each group of a grouped column, in their order.

    Args:
        groups: a column of a ``groupby``.
        bounds: as in :func:`bounded_interval`.
        clusters: the cluster of each row; default: each is its own cluster.
    """
    found = [
        bounded_interval(
            of.to_numpy(dtype=float), None if clusters is None else numbered(clusters.loc[of.index]), bounds=bounds
        )
        for _, of in groups
    ]
    return [low for _, low, _, _ in found], [high for _, _, high, _ in found]


def _student(clusters: int) -> float:
    """The 97.5 % quantile of Student's t."""
    return float(stdtrit(clusters - 1, _LEVEL))


def _clustered(values: Floats, clusters: Clusters | None) -> tuple[float, float, int]:
    """The mean, its standard error over the clusters (of a ratio of sums), and the number of clusters."""
    n = len(values)
    if n == 0:
        return float("nan"), float("nan"), 0
    of = np.arange(n) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    values, of = _ordered(values, of)
    mean = float(values.mean())
    with np.errstate(invalid="ignore"):  # no interval with an infinite value
        residuals = np.bincount(of, values - mean)
    count = len(residuals)
    if count < 2:
        return mean, float("nan"), count
    return mean, float(np.sqrt(count / (count - 1) * np.square(residuals).sum()) / n), count


def _ordered(values: Floats, clusters: Clusters) -> tuple[Floats, Clusters]:
    """Sort by cluster and value, so that rounding does not depend on the order of the rows."""
    order = np.lexsort((values, clusters))
    return values[order], clusters[order]


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
        seed: the seed of the draws.
    """
    ordered = {name: _ordered(series, clusters[name]) for name, series in values.items()}
    count = 1 + max((int(of.max()) for of in clusters.values() if len(of)), default=-1)
    sums = {
        name: np.stack([np.bincount(of, weights, minlength=count) for weights in (series, np.ones(len(series)))])
        for name, (series, of) in ordered.items()
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
    """The middle 95 % of the draws, without NaN; NaN if all draws are."""
    if np.isnan(means).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)


def corrected_interval(
    statistic: Callable[[NDArray[np.int64]], float],
    counts: NDArray[np.int64],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """A bias-corrected, widened 95 % percentile interval of a statistic of a table of counts, by a bootstrap over rows.

    Plain percentile intervals are too narrow for twenty rows, and drawing rows twice biases a statistic such as Fleiss'
    κ downward.  So the percentiles are bias-corrected (Efron, 1987) and widened to Student's t (Hesterberg, 2015): the
    quantiles at Φ(2 z₀ ∓ t √(n / (n − 1))), with n rows, t the 97.5 % point for n − 1 degrees of freedom, and Φ(z₀) the
    share of draws below the estimate.

    Returns:
        Low, high; NaN with fewer than two rows, or where the statistic has no value.
    """
    n, value = len(counts), statistic(counts)
    if n < 2 or np.isnan(value):
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    drawn = np.array([statistic(counts[generator.integers(n, size=n)]) for _ in range(resamples)])
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return float("nan"), float("nan")
    # Draws that equal the estimate lie half below it; the bounds keep z₀ finite.
    below = np.mean(drawn < value) / 2 + np.mean(drawn <= value) / 2
    bias = ndtri(np.clip(below, 0.01, 0.99))
    wide = np.sqrt(n / (n - 1)) * _student(n)
    low, high = np.quantile(drawn, ndtr([2 * bias - wide, 2 * bias + wide]))
    return float(low), float(high)


def numbered(clusters: object) -> Clusters:
    """Number the clusters of a column from 0, in sorted order, independent of the order of the rows."""
    codes, names = pd.factorize(np.asarray(clusters, dtype=object), use_na_sentinel=False)
    try:
        ranked = sorted(range(len(names)), key=lambda at: names[at])
    except TypeError:  # numbers beside texts
        ranked = sorted(range(len(names)), key=lambda at: repr(names[at]))
    ranks = np.empty(len(names), dtype=np.int64)
    ranks[ranked] = np.arange(len(names))
    return ranks[codes]


def summary_row(
    values: Floats,
    clusters: Clusters | None,
    *,
    bounds: tuple[float, float] | None = (0.0, 100.0),
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float, int, float, float]:
    """One line of a summary table, in the order of ``COLUMNS``, for one series.

    ``bounds`` are those of :func:`bounded_interval`; None is for positive values.  Without clusters, or with fewer than
    two, the bootstrap interval is NaN.
    """
    told = positive_interval(values, clusters) if bounds is None else bounded_interval(values, clusters, bounds=bounds)
    cluster_low = cluster_high = float("nan")
    if clusters is not None and resamples and len(np.unique(clusters)) > 1:
        means = resampled_means({"": values}, {"": clusters}, resamples=resamples, seed=seed)
        cluster_low, cluster_high = percentile_interval(means[""])
    return *told, cluster_low, cluster_high
