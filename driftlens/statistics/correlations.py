"""Correlate drift factors with the edited model's answers: Pearson's ρ with P(o_edit) over many prompts (paper, 3.3).

Prompts of one record share an edit, so they are not independent. Fisher's interval assumes that they are; a bootstrap
over records does not.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from driftlens.errors import DriftlensError
from driftlens.statistics.intervals import numbered, percentile_interval

__all__ = ["Correlation", "correlation", "correlation_difference"]

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Pearson's ρ with its p-value and two 95 % intervals.

    Attributes:
        rho, p, n: from :func:`scipy.stats.pearsonr` over all points.
        low, high: Fisher's interval, which assumes independent points.
        cluster_low, cluster_high: percentile bootstrap over groups (records), whose points are not independent; NaN
            without groups.
    """

    rho: float
    p: float
    n: int
    low: float
    high: float
    cluster_low: float
    cluster_high: float


def correlation(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    groups: Sequence[Hashable] | npt.NDArray[Any] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """Pearson correlation of a drift factor with P(o_edit) (paper, 3.3).

    Args:
        x: a factor's values.
        y: the probabilities, in the same order.
        groups: the record of each point, for the bootstrap interval.
        resamples: the number of bootstrap resamples.
        seed: the seed of the bootstrap.

    Raises:
        DriftlensError: fewer than three points, lists of different lengths, a value that is not finite, or a constant
            variable.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(a) != len(b) or len(a) < 3:
        raise DriftlensError(f"a correlation needs at least three pairs; got {len(a)} and {len(b)} values")
    if groups is not None and len(groups) != len(a):
        raise DriftlensError(f"{len(groups)} groups for {len(a)} pairs; give the group of every pair")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DriftlensError("a value is NaN or infinite; leave such pairs out of the correlation")
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        raise DriftlensError("one of the two variables is constant, so it correlates with nothing; look at its values")
    result: Any = stats.pearsonr(a, b)
    interval = result.confidence_interval(0.95)
    nan = float("nan")
    codes = np.zeros(0, dtype=int) if groups is None else numbered(_labels(groups))
    # A single group has only one resample.
    cluster = (
        percentile_interval(_resampled(a, b, codes, resamples, seed)) if codes.size and codes.max() > 0 else (nan, nan)
    )
    return Correlation(
        rho=float(result.statistic),
        p=float(result.pvalue),
        n=len(a),
        low=float(interval.low),
        high=float(interval.high),
        cluster_low=cluster[0],
        cluster_high=cluster[1],
    )


def correlation_difference(
    x: npt.ArrayLike,
    other: npt.ArrayLike,
    y: npt.ArrayLike,
    groups: Sequence[Hashable] | npt.NDArray[Any],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """|ρ(x, y)| − |ρ(other, y)|, with a 95 % bootstrap interval over groups (records).

    Both factors are measured on the same prompts, so their correlations are not independent. Every resample therefore
    compares the two on the same groups.
    """
    codes = numbered(_labels(groups))
    a, b, c = (np.asarray(values, dtype=float) for values in (x, other, y))
    observed = abs(correlation(x, y).rho) - abs(correlation(other, y).rho)
    if codes.max() < 1:
        return observed, float("nan"), float("nan")
    found = [np.abs(_resampled(values, c, codes, resamples, seed)) for values in (a, b)]
    return observed, *percentile_interval(found[0] - found[1])


def _labels(groups: Sequence[Hashable] | npt.NDArray[Any]) -> npt.NDArray[np.object_]:
    labels = np.empty(len(groups), dtype=object)  # NumPy would turn tuples into a second dimension
    labels[:] = list(groups)
    return labels


def _resampled(a: Floats, b: Floats, group: npt.NDArray[np.int_], resamples: int, seed: int) -> Floats:
    """ρ of each resample of groups, from sums weighted by how often each group was drawn."""
    order = np.lexsort((b, a, group))  # so that rounding does not depend on the order
    a, b, group = a[order], b[order], group[order]
    # Centring leaves ρ unchanged and avoids cancellation under a large offset.
    a, b = a - a.mean(), b - b.mean()
    n_groups = int(group.max()) + 1
    draws = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples)
    moments = (np.ones_like(a), a, b, a * a, b * b, a * b)
    sums = np.stack([np.bincount(group, weights=values, minlength=n_groups) for values in moments])
    n, sa, sb, saa, sbb, sab = (draws @ sums.T).T
    variance = (saa - sa**2 / n) * (sbb - sb**2 / n)
    variance[variance <= 1e-18 * variance.max()] = np.nan  # a resample that repeats one group may have no variance
    return (sab - sa * sb / n) / np.sqrt(variance)
