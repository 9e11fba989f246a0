"""Every score against numbers worked out by hand, and the intervals against their definitions."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftlens.errors import DriftlensError
from driftlens.evaluation import summarize
from driftlens.evaluation.scores import ORDER, harmonic_mean
from driftlens.statistics.intervals import COLUMNS, bounded_interval, percentile_interval, resampled_means


def nll(probability: float) -> float:
    return -math.log(probability)


# (task, record, P(true), P(new)); what each score must be stands beside it.
TABLE = [
    ("rewrite", 0, 0.1, 0.6),  # ES: yes
    ("rewrite", 1, 0.5, 0.2),  # no
    ("rewrite", 2, 0.1, 0.7),  # yes, so 66.67; EM: (0.6 + 0.2 + 0.7) / 3 = 50
    ("paraphrase", 0, 0.2, 0.3),  # PS: yes
    ("paraphrase", 0, 0.3, 0.3),  # a tie: no
    ("paraphrase", 1, 0.1, 0.2),  # yes
    ("paraphrase", 2, 0.1, 0.4),  # yes, so 75; PM: 30
    ("neighborhood", 0, 0.4, 0.3),  # NS: yes
    ("neighborhood", 1, 0.2, 0.3),  # no, so 50; NM: 30
    ("relation", 0, 0.2, 0.1),  # RS: yes
    ("relation", 1, 0.1, 0.1),  # a tie: no
    ("relation", 1, 0.1, 0.8),  # no
    ("relation", 2, 0.4, 0.9),  # no, so 25; RM: 20
    ("distract_neighborhood", 0, 0.3, 0.2),  # DNS: yes
    ("distract_neighborhood", 1, 0.1, 0.2),  # no
    ("distract_neighborhood", 1, 0.1, 0.3),  # no
    ("distract_neighborhood", 2, 0.1, 0.05),  # yes, so 50; DNM: 15
    ("reasoning", 0, 0.1, 0.2),  # RES: yes
    ("reasoning", 0, 0.3, 0.2),  # no, so 50
    ("alias", 2, 0.1, 0.2),  # AS: yes
    ("alias", 2, 0.2, 0.1),
    ("alias", 2, 0.2, 0.1),
    ("alias", 2, 0.2, 0.1),  # so 25
    ("other_task", 0, 0.2, 0.1),  # OS: yes, so 100
    ("distract_other_task", 0, 0.1, 0.2),  # DOS: no, so 0
    ("distract_relation", 0, 0.2, 0.1),  # DRS: yes
    ("distract_relation", 1, 0.1, 0.2),
    ("distract_relation", 1, 0.1, 0.2),
    ("distract_relation", 1, 0.1, 0.2),
    ("distract_relation", 1, 0.1, 0.2),  # so 20
]
BY_HAND = {
    "ES": (200 / 3, 3), "EM": (50, 3), "PS": (75, 4), "PM": (30, 4), "NS": (50, 2), "NM": (30, 2),
    "RS": (25, 4), "RM": (20, 4), "DNS": (50, 4), "DNM": (15, 4), "RES": (50, 2), "OS": (100, 1), "DOS": (0, 1),
    # 5 / (3/200 + 1/75 + 1/50 + 1/25 + 1/50) = 5 / (65/600)
    "Avg.S": (600 / 13, 2), "AS": (25, 4), "DRS": (20, 5),
}  # fmt: skip


def frame(rows: list[tuple[str, int, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "task": [task for task, *_ in rows],
            "record": [record for _, record, *_ in rows],
            "nll_true": [nll(true) for *_, true, _ in rows],
            "nll_new": [nll(new) for *_, new in rows],
        }
    )


def test_every_score_is_what_a_hand_makes_of_the_table():
    summary = summarize(frame(TABLE))
    assert list(summary.index) == list(BY_HAND)
    assert tuple(summary.columns) == COLUMNS
    for name, (value, n) in BY_HAND.items():
        assert summary.loc[name, "value"] == pytest.approx(value), name
        assert summary.loc[name, "n"] == n, name


def test_a_scores_interval_is_that_of_its_values_by_record():
    summary = summarize(frame(TABLE))
    for score, values, records in (
        ("ES", [100.0, 0.0, 100.0], [0, 1, 2]),
        ("EM", [60.0, 20.0, 70.0], [0, 1, 2]),
        ("PS", [100.0, 0.0, 100.0, 100.0], [0, 0, 1, 2]),
        ("RM", [20.0, 10.0, 10.0, 40.0], [0, 1, 1, 2]),
    ):
        _, low, high, _ = bounded_interval(np.array(values), np.array(records))
        assert summary.loc[score, ["low", "high"]].tolist() == pytest.approx([low, high]), score
    assert summary.loc[["OS", "Avg.S"], ["low", "high"]].isna().all(axis=None)


def test_the_bootstrap_takes_records_whole():
    # Two records, every prompt of one right and of the other wrong: a draw is 0, 50 or 100 with chances 1/4,
    # 1/2 and 1/4.
    rows = [("neighborhood", 0, 0.2, 0.1)] * 10 + [("neighborhood", 1, 0.1, 0.2)] * 10
    summary = summarize(frame(rows))
    assert summary.loc["NS", ["cluster_low", "value", "cluster_high"]].tolist() == [0, 50, 100]
    assert 0 < summary.loc["NS", "low"] < 5  # two records say little
    # Means are over prompts within a draw too: the record with more prompts weighs more.
    rows = [("neighborhood", 0, 0.2, 0.1)] * 30 + [("neighborhood", 1, 0.1, 0.2)] * 10
    clusters = np.repeat([0, 1], [30, 10])
    values = np.repeat([100.0, 0.0], [30, 10])
    draws = resampled_means({"NS": values}, {"NS": clusters}, resamples=200, seed=0)["NS"]
    assert set(draws) == {0.0, 75.0, 100.0}
    assert summarize(frame(rows)).loc["NS", "value"] == 75


def test_the_average_is_drawn_with_its_parts():
    summary = summarize(frame(TABLE), resamples=300, seed=3)
    parts = ("ES", "PS", "NS", "RS", "DNS")
    low, high = summary.loc["Avg.S", ["cluster_low", "cluster_high"]]
    assert 0 <= low <= summary.loc["Avg.S", "value"] <= high <= 100
    assert high <= summary.loc[list(parts), "cluster_high"].max()
    again = summarize(frame(TABLE), resamples=300, seed=3)
    pd.testing.assert_frame_equal(summary, again)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 100), st.integers(1, 4)), min_size=2, max_size=12).filter(
        lambda rows: len({record for record, *_ in rows}) > 1
    )
)
def test_draws_are_means_over_the_drawn_records(rows: list[tuple[int, float, int]]):
    clusters = np.concatenate([np.full(n, record) for record, _, n in rows])
    values = np.concatenate([np.full(n, value) for _, value, n in rows])
    draws = resampled_means({"": values}, {"": clusters}, resamples=20, seed=1)[""]
    generator = np.random.default_rng(1)
    count = clusters.max() + 1
    for found in draws:
        chosen = generator.integers(count, size=count)
        pooled = [value for record in chosen for value in values[clusters == record]]
        assert found == pytest.approx(np.mean(pooled)) if pooled else np.isnan(found)


def test_without_records_there_is_no_bootstrap_and_nothing_else_changes():
    with_records: Any = summarize(frame(TABLE))
    without: Any = summarize(frame(TABLE).drop(columns="record"))
    pd.testing.assert_frame_equal(with_records[["value", "n"]], without[["value", "n"]])
    values = np.array([100.0, 0.0, 100.0, 100.0])  # each prompt stands for itself
    assert without.loc["PS", ["low", "high"]].tolist() == pytest.approx(list(bounded_interval(values)[1:3]))
    assert without[["cluster_low", "cluster_high"]].isna().all(axis=None)
    none: Any = summarize(frame(TABLE), resamples=0)
    assert none["cluster_low"].isna().all()
    one: Any = summarize(frame([row for row in TABLE if row[1] == 0]))
    assert one["cluster_low"].isna().all()


@settings(deadline=None, max_examples=10)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_number(shuffle: Any):
    rows = [*TABLE]
    shuffle.shuffle(rows)
    pd.testing.assert_frame_equal(
        summarize(frame(rows), resamples=50), summarize(frame(TABLE), resamples=50), check_exact=True
    )


def test_no_score_leaves_0_to_100():
    rows = [
        ("rewrite", 0, 0.001, 0.999),
        ("rewrite", 1, 0.3, 0.7),
        ("neighborhood", 0, 0.9, 0.1),
        ("neighborhood", 1, 0.1, 0.9),
    ]
    summary = summarize(frame(rows))
    for score in ("ES", "EM", "NS", "NM"):
        low, value, high = summary.loc[score, ["low", "value", "high"]]
        assert 0 <= low <= value <= high <= 100
        assert high - low > 10  # of two records, which agree or not


def test_missing_tasks_are_nan_and_leave_no_average():
    summary = summarize(frame(TABLE[:3]))
    assert list(summary.index) == list(ORDER)
    assert summary.loc["PS", "n"] == 0
    assert np.isnan(summary.loc["PS", "value"])
    assert np.isnan(summary.loc["Avg.S", "value"])
    assert summary.loc["Avg.S", "n"] == 0
    assert summarize(frame([])).loc["ES", "n"] == 0


def test_an_average_with_a_zero_is_zero():
    rows = [(task, 0, 0.1, 0.2) for task in ("rewrite", "paraphrase", "neighborhood")]
    rows += [(task, 0, 0.2, 0.1) for task in ("relation", "distract_neighborhood")]
    assert summarize(frame(rows)).loc["Avg.S", "value"] == 0
    assert harmonic_mean(np.array([[40.0], [60.0]]))[0] == pytest.approx(48)


def test_very_unlikely_targets_are_still_compared():
    table = pd.DataFrame({"task": ["rewrite"], "nll_true": [1000.0], "nll_new": [999.0]})
    assert summarize(table).loc["ES", "value"] == 100


def test_a_missing_column_is_named():
    with pytest.raises(DriftlensError, match="no column 'nll_new'"):
        summarize(frame(TABLE).drop(columns="nll_new"))


@pytest.mark.parametrize(
    ("average", "parts"),
    [
        (34.43, (20.86, 17.70, 82.43, 79.73, 61.99)),  # GPT-J unedited
        (33.56, (99.88, 99.58, 80.26, 11.94, 30.42)),  # ROME
        (51.07, (99.64, 95.47, 81.42, 25.78, 38.00)),  # MEMIT
        (70.99, (99.82, 96.90, 83.18, 47.67, 58.51)),  # Llama-3, ROME with SADR
    ],
)
def test_averages_of_the_papers_table_3(average: float, parts: tuple[float, ...]):
    assert harmonic_mean(np.array(parts)[:, None])[0] == pytest.approx(average, abs=0.05)


def test_percentiles_of_nothing_are_nan():
    assert all(np.isnan(percentile_interval(np.full(3, np.nan))))
