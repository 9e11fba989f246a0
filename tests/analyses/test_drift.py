"""Attention drift against loops over heads and layers, correlations against scipy and simulations."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor

from driftlens import DriftlensError, TaskPrompt, attention_drift, correlation
from driftlens.analyses.drift import FACTORS, significant_layers
from driftlens.edits import Edit, LowRankUpdate
from driftlens.models import Batch
from driftlens.statistics.correlations import correlation_difference
from tests.analyses.test_patch import random_edit
from tests.support.checkpoints import LAYERS
from tests.support.tiny import one_family

PROMPTS = ("The Eiffel Tower is in Rome. Apple A5 is", "Toko Yasuda plays the")
SUBJECTS = ("Eiffel Tower", "Toko Yasuda")


def seen(model: Any, text: str, hooks: Any, layer: int) -> tuple[list[Any], Any]:
    """Per layer what the last token attends to, [heads, keys], and the residual stream behind `layer`."""
    ids = torch.tensor([model.encode(text).ids])
    kept: dict[Any, Tensor] = {}
    names: list[Any] = [
        (model.hook_name("pattern", n), lambda tensor, hook, n=n: kept.__setitem__(n, tensor)) for n in range(LAYERS)
    ]
    names.append((model.hook_name("resid_post", layer), lambda tensor, hook: kept.__setitem__("h", tensor)))
    with torch.no_grad():
        model.run(Batch(tokens=ids, mask=torch.ones_like(ids, dtype=torch.bool)), hooks=[*hooks, *names])
    return [kept[n][0, :, -1].double().numpy() for n in range(LAYERS)], kept["h"][0].double().numpy()


def subject_token(model: Any, text: str, subject: str) -> int:
    stop = text.index(subject) + len(subject)
    return next(at for at, (_, end) in enumerate(model.encode(text).offsets) if end >= stop)


@pytest.mark.backend
def test_every_factor_by_hand(exact_model: Any):
    model, edits = exact_model, [random_edit(exact_model, 0), random_edit(exact_model, 1, seed=1)]
    layers = (1, 2)
    drift = attention_drift(model, edits, PROMPTS, SUBJECTS, layers)
    assert drift.layers == layers
    for case, (edit, text, subject) in enumerate(zip(edits, PROMPTS, SUBJECTS, strict=True)):
        (layer,) = edit.updates
        before, h = seen(model, text, [], layer)
        after, h_edited = seen(model, text, edit.hooks(model), layer)
        s = subject_token(model, text, subject)
        expected = dict.fromkeys(FACTORS, 0.0)
        for n in layers:
            at_subject, others = [], []
            for head in range(model.n_heads):
                p, q = before[n][head] + 1e-8, after[n][head] + 1e-8
                expected["kl"] += float((p * np.log(p / q)).sum())
                at_subject.append(after[n][head, s] - before[n][head, s])
                others.append(
                    math.sqrt(
                        sum(
                            (a - b) ** 2
                            for k, (a, b) in enumerate(zip(after[n][head], before[n][head], strict=True))
                            if k != s
                        )
                    )
                )
            expected["max_subject"] += max(at_subject)
            expected["max_others"] += max(others)
            expected["sum_subject"] += sum(at_subject)
        expected["hidden_norm"] = float(np.linalg.norm(h_edited[s]))
        expected["hidden_l2"] = float(np.linalg.norm(h_edited[s] - h[s]))
        expected["hidden_cosine"] = float(h[s] @ h_edited[s] / np.linalg.norm(h[s]) / np.linalg.norm(h_edited[s]))
        row = drift.table.iloc[case]
        assert (row["prompt"], row["subject"]) == (text, subject)
        for name, value in expected.items():
            # Attention and residuals are compared in float32.
            assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        assert abs(row["kl"]) > 1e-3


@one_family
@pytest.mark.backend
def test_heads_and_layers_add_up_to_the_table(lens_model: Any):
    edits = [random_edit(lens_model, 0), random_edit(lens_model, 0, seed=1)]
    drift: Any = attention_drift(lens_model, edits, PROMPTS, SUBJECTS)
    assert drift.layers == tuple(range(1, LAYERS))
    assert len(drift.heads) == 2 * len(drift.layers) * lens_model.n_heads
    by_layer: Any = drift.by_layer()
    assert list(by_layer.groupby("case").size()) == [LAYERS - 1] * 2
    for name in ("kl", "max_subject", "max_others", "sum_subject"):
        np.testing.assert_allclose(by_layer.groupby("case")[name].sum(), drift.table[name], rtol=1e-5)
    gained = drift.heads["edited_subject"] - drift.heads["vanilla_subject"]
    np.testing.assert_allclose(gained, drift.heads["drift_subject"], atol=1e-6)
    panel: Any = next(trace for trace in drift.plot().data if trace.type == "heatmap")
    expected: Any = drift.heads.groupby(["head", "layer"])["drift_subject"].mean().unstack()
    np.testing.assert_allclose(panel.z, expected)
    assert "2 prompts" in repr(drift)


@one_family
@pytest.mark.backend
def test_identical_models_do_not_drift(lens_model: Any):
    nothing = LowRankUpdate(left=torch.zeros(lens_model.d_mlp, 1), right=torch.zeros(1, lens_model.d_model))
    for edit in (Edit(updates={}), Edit(updates={0: nothing})):
        table: Any = attention_drift(lens_model, edit, PROMPTS, SUBJECTS).table
        assert (table[["kl", "max_subject", "max_others", "sum_subject", "hidden_l2"]] == 0).all(axis=None)
        np.testing.assert_allclose(table["hidden_cosine"], 1, rtol=1e-6)


@pytest.mark.backend
def test_no_attention_up_to_the_edit_drifts(lens_model: Any):
    heads: Any = attention_drift(lens_model, random_edit(lens_model, 1), PROMPTS[0], SUBJECTS[0], range(LAYERS)).heads
    assert (heads[heads["layer"] <= 1]["kl"] == 0).all()
    assert heads[heads["layer"] == 2]["kl"].abs().max() > 1e-4


@pytest.mark.backend
def test_a_batch_equals_its_cases_one_by_one(lens_model: Any):
    edits = [random_edit(lens_model, 0), random_edit(lens_model, 1, 0, seed=1)]
    together = attention_drift(lens_model, edits, PROMPTS, SUBJECTS, (1, 2))
    prompts = [TaskPrompt(text=text, target_true="a", target_new="b") for text in PROMPTS]
    for case, (edit, prompt, subject) in enumerate(zip(edits, prompts, SUBJECTS, strict=True)):
        alone = attention_drift(lens_model, edit, prompt, subject, (1, 2))
        np.testing.assert_allclose(
            together.table.loc[case, list(FACTORS)].astype(float),
            alone.table.loc[0, list(FACTORS)].astype(float),
            rtol=1e-4,
            atol=1e-5,
        )
        own = together.heads[together.heads["case"] == case].reset_index(drop=True)
        pd.testing.assert_frame_equal(own.assign(case=0), alone.heads, rtol=1e-4, atol=1e-5)


@one_family
@pytest.mark.backend
def test_mistakes_are_told(lens_model: Any):
    edit = random_edit(lens_model, 0)
    mistakes: list[tuple[Any, str]] = [
        ((edit, [], []), "no prompt"),
        ((edit, PROMPTS, ["Toko"]), "2 prompts, 2 edits and 1 subjects"),
        ((edit, PROMPTS[0], "Louvre"), "does not occur"),
        ((edit, PROMPTS[0], SUBJECTS[0], [LAYERS]), "expected at least one of 0 to"),
        ((edit, PROMPTS[0], SUBJECTS[0], []), "expected at least one of 0 to"),
        ((random_edit(lens_model, LAYERS - 1), PROMPTS[0], SUBJECTS[0]), "no layer lies above"),
        ((random_edit(lens_model, LAYERS), PROMPTS[0], SUBJECTS[0]), "has layers 0 to"),
    ]
    for arguments, part in mistakes:
        with pytest.raises(DriftlensError, match=part):
            attention_drift(lens_model, *arguments)


def test_correlation_is_scipys():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(80)
    y = 0.5 * x + rng.standard_normal(80)
    found = correlation(x, y)
    expected: Any = stats.pearsonr(x, y)
    interval = expected.confidence_interval(0.95)
    assert (found.rho, found.p, found.n) == (expected.statistic, expected.pvalue, 80)
    assert (found.low, found.high) == (interval.low, interval.high)
    assert math.isnan(found.cluster_low)
    assert math.isnan(found.cluster_high)


def test_groups_of_one_are_an_ordinary_bootstrap():
    rng = np.random.default_rng(1)
    x = rng.standard_normal(200)
    y = x + rng.standard_normal(200)
    found = correlation(x, y, range(200))
    # For normal variables both intervals mean the same.
    assert (found.cluster_low, found.cluster_high) == pytest.approx((found.low, found.high), abs=0.03)
    shifted = correlation(x + 1e6, 1e-3 * y - 50, range(200))
    assert (shifted.cluster_low, shifted.cluster_high) == pytest.approx(
        (found.cluster_low, found.cluster_high), abs=1e-6
    )
    draws = np.random.default_rng(0).multinomial(200, np.full(200, 1 / 200), size=2000)
    by_hand = [np.corrcoef(np.repeat(x, d), np.repeat(y, d))[0, 1] for d in draws[:200]]
    several = correlation(x, y, range(200), resamples=200)
    draws = np.random.default_rng(0).multinomial(200, np.full(200, 1 / 200), size=200)
    by_hand = [np.corrcoef(np.repeat(x, d), np.repeat(y, d))[0, 1] for d in draws]
    assert (several.cluster_low, several.cluster_high) == pytest.approx(tuple(np.percentile(by_hand, [2.5, 97.5])))


def clustered(rng: np.random.Generator, n_groups: int, size: int) -> tuple[Any, Any, Any]:
    """Prompts that share most of what they are with their record; x and y are independent."""
    group = np.repeat(np.arange(n_groups), size)
    x = rng.standard_normal(n_groups)[group] + 0.3 * rng.standard_normal(n_groups * size)
    y = rng.standard_normal(n_groups)[group] + 0.3 * rng.standard_normal(n_groups * size)
    return x, y, group


def test_resampling_records_tells_how_far_a_correlation_varies():
    rng = np.random.default_rng(2)
    found = [correlation(*clustered(rng, 40, 6), resamples=300) for _ in range(120)]
    spread = np.std([each.rho for each in found])
    by_record = np.mean([(each.cluster_high - each.cluster_low) / 3.92 for each in found])
    by_prompt = np.mean([(each.high - each.low) / 3.92 for each in found])
    assert by_record == pytest.approx(spread, rel=0.2)
    assert by_prompt < 0.6 * spread, "Fisher's interval takes six prompts of a record for independent"
    held = np.mean([each.cluster_low <= 0 <= each.cluster_high for each in found])
    assert held > 0.85


def test_what_cannot_be_correlated_is_told():
    for arguments, part in (
        (([1, 2], [1, 2]), "at least three pairs"),
        (([1, 2, 3], [1, 2]), "3 and 2 values"),
        (([1, 1, 1], [1, 2, 3]), "constant"),
        (([1, 2, math.nan], [1, 2, 3]), "NaN"),
        (([1, 2, 3], [1, 3, 2], [0, 1]), "2 groups for 3 pairs"),
    ):
        with pytest.raises(DriftlensError, match=part):
            correlation(*arguments)
    assert math.isnan(correlation([1, 2, 3], [1, 3, 2], ["a", "a", "a"]).cluster_low)


def test_the_difference_of_two_factors_is_paired():
    rng = np.random.default_rng(3)
    y = rng.standard_normal(300)
    good, poor = y + rng.standard_normal(300), y + 4 * rng.standard_normal(300)
    group = np.arange(300) // 3
    difference, low, high = correlation_difference(good, poor, y, group)
    assert difference == pytest.approx(abs(correlation(good, y).rho) - abs(correlation(poor, y).rho))
    assert 0 < low < difference < high
    # A factor against its mirror image: as strong, in every resample.
    assert correlation_difference(good, -good, y, group) == pytest.approx((0, 0, 0), abs=1e-12)
    assert math.isnan(correlation_difference(good, poor, y, [0] * 300)[1])


def made_up_grid(effects: list[float], *, target: str = "o_true") -> pd.DataFrame:
    rows = [
        {"case": case, "target_name": target, "module": module, "role": role, "layer": layer,
         "effect": effect + 0.01 * (case - 0.5) if (module, role) == ("attn", "last token") else -9.0}
        for case in range(2) for module in ("mlp", "attn") for role in ("last token", "after subject")
        for layer, effect in enumerate(effects)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_significant_layers_have_half_of_the_largest_effect():
    grid: Any = made_up_grid([0, -0.1, -0.4, -0.31, -0.19, 0.35])
    assert significant_layers(grid) == (2, 3)
    assert significant_layers(grid, share=0.45) == (2, 3, 4)
    both = pd.concat([grid, made_up_grid([0, 0, 0, 0.9, 0.1, 0.8], target="o_edit")])
    assert significant_layers(both) == (2, 3)
    assert significant_layers(both, target_name="o_edit") == (3, 5)
    with pytest.raises(DriftlensError, match="no attention cell"):
        significant_layers(grid[grid["module"] == "mlp"])
    with pytest.raises(DriftlensError, match="has an effect"):
        significant_layers(grid.assign(effect=0.0))
