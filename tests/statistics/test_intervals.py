"""Intervals against the equations that define them: they stay in range, hold clusters together, ignore the order."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from driftlens.statistics.correlations import correlation, correlation_difference
from driftlens.statistics.intervals import bounded_interval, numbered, positive_interval, resampled_means

PERCENTS = st.lists(st.tuples(st.integers(0, 4), st.floats(0, 100)), min_size=2, max_size=12)


def clustered_error(values: list[float], clusters: list[int]) -> float:
    """The standard error of a mean of clusters, as survey statistics has it, written out."""
    names = sorted(set(clusters))
    mean = sum(values) / len(values)
    sums = [sum(v - mean for v, c in zip(values, clusters, strict=True) if c == name) for name in names]
    return math.sqrt(len(names) / (len(names) - 1) * sum(s * s for s in sums)) / len(values)


def test_of_independent_answers_it_is_wilsons():
    """95 of 100 right, from the published formula with t of 99 degrees of freedom in place of 1.96."""
    values = np.array([100.0] * 95 + [0.0] * 5)
    mean, low, high, n = bounded_interval(values)
    assert (mean, n) == (95, 100)
    t, size, p = stats.t.ppf(0.975, 99), 99, 0.95  # the unbiased variance of the mean is p (1 − p) / (n − 1)
    root = t * math.sqrt(p * (1 - p) / size + t**2 / (4 * size**2))
    expected = [100 * (p + t**2 / (2 * size) + sign * root) / (1 + t**2 / size) for sign in (-1, 1)]
    assert [low, high] == pytest.approx(expected)


@settings(deadline=None, max_examples=30)
@given(PERCENTS.filter(lambda rows: len({cluster for cluster, _ in rows}) > 1))
def test_its_ends_are_t_standard_errors_from_the_mean_and_in_range(rows: list[tuple[int, float]]):
    clusters, values = [cluster for cluster, _ in rows], [value for _, value in rows]
    mean, low, high, _ = bounded_interval(np.array(values), np.array(clusters))
    assert 0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 100
    error, p = clustered_error(values, clusters), mean / 100
    if error < 1e-3 or not 1e-3 < p < 1 - 1e-3:
        return
    t = stats.t.ppf(0.975, len(set(clusters)) - 1)
    for end in (low / 100, high / 100):
        # Wilson: |end − p| = t · √(end (1 − end) / n), with n = p (1 − p) / v.
        there = error / 100 * math.sqrt(end * (1 - end) / (p * (1 - p)))
        assert abs(end - p) == pytest.approx(t * there, rel=1e-6)


def test_agreement_is_not_certainty():
    """Where nothing varies, there is as much to learn from as there are clusters."""
    _, low, high, n = bounded_interval(np.full(30, 100.0), np.repeat([0, 1, 2], 10))
    t = stats.t.ppf(0.975, 2)
    assert (low, high, n) == (pytest.approx(100 * 3 / (3 + t**2)), 100, 30)
    assert all(map(math.isnan, bounded_interval(np.full(30, 100.0), np.zeros(30, dtype=int))[1:3]))
    assert all(map(math.isnan, bounded_interval(np.array([]))[:3]))
    assert bounded_interval(np.array([40.0]))[0] == 40


def test_it_covers_the_truth_where_prompts_hang_together():
    """Records of ten prompts that mostly fail together, and of which 90 % succeed."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        chance = generator.beta(0.3, 0.3 / 9, size=40)  # mean 0.9
        values: Any = 100.0 * (generator.random((40, 10)) < chance[:, None]).ravel()
        _, low, high, _ = bounded_interval(values, np.repeat(np.arange(40), 10))
        covered += low <= 90 <= high
    assert covered / 300 > 0.92  # 0.95 less two standard errors


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.1, 1e4), min_size=2, max_size=8))
def test_positive_means_have_positive_intervals(values: list[float]):
    mean, low, high, _ = positive_interval(np.array(values))
    assert 0 < low <= mean <= high or low == 0  # a mean that its own error dwarfs underflows
    t = stats.t.ppf(0.975, len(values) - 1)
    if float(np.std(values)) > 1e-6 * mean and low > 0 and math.isfinite(high):
        assert math.log(high / mean) == pytest.approx(t * float(stats.sem(values)) / mean, rel=1e-6)
        assert high * low == pytest.approx(mean**2)


def test_what_is_infinite_has_no_interval():
    mean, low, high, _ = positive_interval(np.array([1.0, math.inf]))
    assert mean == math.inf
    assert math.isnan(low)
    assert math.isnan(high)


@settings(deadline=None, max_examples=30)
@given(PERCENTS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_bit(rows: list[tuple[int, float]], shuffle: Any):
    def found(of: list[tuple[int, float]]) -> tuple[Any, ...]:
        clusters, values = numbered([f"record {c}" for c, _ in of]), np.array([v for _, v in of])
        draws = resampled_means({"": values}, {"": clusters}, resamples=20, seed=0)[""]
        return (*bounded_interval(values, clusters), *positive_interval(values + 1, clusters), *draws)

    moved = [*rows]
    shuffle.shuffle(moved)
    assert str(found(moved)) == str(found(rows))  # NaN equals itself as text


def test_clusters_are_numbered_in_their_own_order():
    assert numbered([30, 4, 30, 5]).tolist() == [2, 0, 2, 1]
    assert numbered(["b", "a", "b"]).tolist() == [1, 0, 1]
    assert sorted(numbered([2, "a", 2, None]).tolist()) == [0, 1, 1, 2]


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(9)))
def test_correlations_do_not_depend_on_the_order_either(order: list[int]):
    x, other, y = ([math.sin(a * k + 1) for k in range(9)] for a in (1, 2, 3))
    groups = [("r", k // 3) for k in range(9)]

    def of(at: list[int]) -> Any:
        a, b, c = ([values[k] for k in at] for values in (x, other, y))
        found = correlation(a, c, [groups[k] for k in at], resamples=30)
        difference = correlation_difference(a, b, c, [groups[k] for k in at], resamples=30)
        return found.cluster_low, found.cluster_high, *difference[1:]

    assert of(order) == pytest.approx(of(list(range(9))), abs=1e-12)
