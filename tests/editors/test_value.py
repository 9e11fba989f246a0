"""The value optimisation against the naive loop on plain Hugging Face (`naive.py`), in float64.

GPT-2 computes in the model's own precision throughout, so it agrees to 1e-9 (measured: 1e-14 in δ and in the
losses).  Hugging Face's GPT-J attention, Llama norms and all rotary angles are float32 even in a float64 model: there
the losses agree to 1e-5 (measured: 3e-6) and δ to 1e-4 of its length (measured: 7e-6), since Adam's steps go with
the sign of a gradient and so amplify its rounding.
"""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from driftlens.data import Fact
from driftlens.editors import ROME, SADR, LastTokenAttention
from driftlens.editors.objective import evaluate_delta
from driftlens.editors.vanilla_rows import vanilla_rows
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from tests.support.naive import NaiveValue
from tests.support.plain import PlainModel
from tests.support.tiny import one_family

pytestmark = pytest.mark.backend

MOTHER_TONGUE = Fact(
    subject="Danielle Darrieux",
    prompt="The mother tongue of {} is",
    target_true="French",
    target_new="national library",  # several tokens
)
AT_START = Fact(
    subject="Toko Yasuda", prompt="{} plays the", target_true="guitar", target_new="metal but not in Leiden"
)
AT_END = Fact(subject="Vltava", prompt="The mayor lives by the river {}", target_true="in", target_new="where")
SHORT = Fact(subject="Paris", prompt="{} is", target_true="French", target_new="Delft")
FACTS = (MOTHER_TONGUE, AT_START, SHORT, AT_END)

# The last names a subject itself: the edit belongs to the occurrence in the prompt.
CONTEXTS = ("{}", "The guitar. {}", "Toko Yasuda was born in Paris, Danielle Darrieux in Zwolle. {}")


@pytest.fixture(scope="module")
def plain(checkpoint_folder: Path) -> PlainModel:
    return PlainModel(checkpoint_folder, dtype=torch.float64)


def precise(model: LensModel) -> bool:
    return model.family == "gpt2"


def rome(model: LensModel, **settings: Any) -> ROME:
    """An editor that takes no pass but the optimisation's own, and stops for nothing but its last step."""
    defaults: dict[str, Any] = {
        "layer": 1,
        "steps": 6,
        "contexts": CONTEXTS,
        "second_moment": torch.eye(model.d_mlp, dtype=torch.float64),
        "early_stop_loss": -math.inf,
    }
    return ROME(**defaults | settings)


def naive(plain: PlainModel, fact: Fact, **settings: Any) -> NaiveValue:
    defaults: dict[str, Any] = {"layer": 1, "contexts": CONTEXTS}
    return NaiveValue(
        plain=plain, subject=fact.subject, prompt=fact.prompt, target=fact.target_new, **defaults | settings
    )


def assert_same(model: LensModel, result: Any, reference: NaiveValue, delta: Tensor, history: list[Any]) -> None:
    expected = pd.DataFrame(history)
    assert list(result.history["step"]) == list(range(len(expected)))
    found = pd.DataFrame({"sadr": 0.0, **result.history})  # without a regulariser there is no such column
    worst = float((found[expected.columns] - expected).abs().to_numpy().max())
    assert worst < (1e-9 if precise(model) else 1e-5)
    (value,) = result.values.values()
    away = float((value - reference.target_init - delta).norm())
    assert away < (1e-9 if precise(model) else 1e-4) * max(1.0, float(delta.norm()))


# --- the objective and its trajectory ---


@pytest.mark.parametrize("fact", [MOTHER_TONGUE, AT_START], ids=["inside", "at the start"])
def test_the_trajectory_is_the_naive_loops(exact_model: LensModel, plain: PlainModel, fact: Fact):
    reference = naive(plain, fact, gamma=2.0)
    delta, history = reference.optimize(steps=6, lr=0.5, clamp=4.0, early_stop_loss=-math.inf)
    result = rome(exact_model, regularizers=(SADR(gamma=2.0),)).edit(exact_model, fact)
    assert_same(exact_model, result, reference, delta, history)
    terms = result.history
    assert len(terms) == 6
    assert (terms[["nll", "kl", "weight_decay"]].iloc[1:] > 0).all(axis=None)
    difference: Any = terms["loss"] - terms[["nll", "kl", "weight_decay", "sadr"]].sum(axis=1)
    assert difference.abs().max() < 1e-12


def test_every_head_restrained_far_from_zero(exact_model: LensModel, plain: PlainModel):
    """A learning rate that takes δ to its clamp in the first step, where all terms are large."""
    settings: dict[str, Any] = {"weight_decay": 30.0, "kl_factor": 2.0}
    reference = naive(plain, MOTHER_TONGUE, gamma=3.0, heads="all", **settings)
    delta, history = reference.optimize(steps=4, lr=8.0, clamp=0.8, early_stop_loss=-math.inf)
    editor = rome(
        exact_model,
        steps=4,
        lr=8.0,
        clamp_norm_factor=0.8,
        regularizers=(SADR(gamma=3.0, heads="all"),),
        **settings,
    )
    result = editor.edit(exact_model, MOTHER_TONGUE)
    assert_same(exact_model, result, reference, delta, history)
    assert (result.history[["nll", "kl", "weight_decay", "sadr"]].iloc[1] > 1e-3).all()
    at_the_clamp = 30.0 * 0.8 / float(reference.target_init.norm())
    assert float(result.history["weight_decay"].iloc[1]) == pytest.approx(at_the_clamp, rel=1e-6)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_subject_at_the_end_of_the_prompt(exact_model: LensModel, plain: PlainModel, layer: int):
    """subject_last is then the very token whose attention drifts and that predicts the target, so that even in the
    last layer δ has an effect on it."""
    reference = naive(plain, AT_END, layer=layer, gamma=1.0)
    delta, history = reference.optimize(steps=3, lr=0.5, clamp=4.0, early_stop_loss=-math.inf)
    result: Any = rome(exact_model, layer=layer, steps=3, regularizers=(SADR(gamma=1.0),)).edit(exact_model, AT_END)
    assert_same(exact_model, result, reference, delta, history)
    assert result.history["nll"].nunique() == 3


def test_first_layer(exact_model: LensModel, plain: PlainModel):
    reference = naive(plain, MOTHER_TONGUE, layer=0, gamma=1.0, sadr_layers=(2,))
    delta, history = reference.optimize(steps=3, lr=0.5, clamp=4.0, early_stop_loss=-math.inf)
    editor = rome(exact_model, layer=0, steps=3, regularizers=(SADR(gamma=1.0, layers=(2,)),))
    result = editor.edit(exact_model, MOTHER_TONGUE)
    assert_same(exact_model, result, reference, delta, history)


def test_in_the_last_layer_nothing_reaches_the_last_token(exact_model: LensModel):
    editor = rome(exact_model, layer=2, steps=3, regularizers=(SADR(gamma=1.0, heads="all"),))
    history: Any = editor.edit(exact_model, MOTHER_TONGUE).history
    assert history["nll"].nunique() == 1
    assert (history["sadr"] == 0).all()


def test_rows_wider_than_the_context(exact_model: LensModel, plain: PlainModel):
    """Aligned at their subjects, a long beginning and a long end make a batch that no single row could be."""
    late = Fact(subject="Paris", prompt=" ".join(["the"] * 50) + " {} is", target_true="a", target_new="b")
    early = Fact(subject="Paris", prompt="{} is" + " the" * 50, target_true="a", target_new="b")
    editor = rome(exact_model, steps=2, contexts=("{}",))
    for fact, result in zip((late, early), editor.edit_many(exact_model, [late, early]), strict=True):
        reference = naive(plain, fact, contexts=("{}",))
        delta, history = reference.optimize(steps=2, lr=0.5, clamp=4.0, early_stop_loss=-math.inf)
        assert_same(exact_model, result, reference, delta, history)


# --- options ---


def test_essence_kl_the_papers_way_round(exact_model: LensModel, plain: PlainModel):
    settings: dict[str, Any] = {
        "kl_factor": 3.0,
        "essence": "Danielle Darrieux, or {}, is a",
        "essence_kl": "vanilla_from_edited",
    }
    reference = naive(plain, MOTHER_TONGUE, **settings)
    delta, history = reference.optimize(steps=3, lr=2.0, clamp=4.0, early_stop_loss=-math.inf)
    result = rome(exact_model, steps=3, lr=2.0, **settings).edit(exact_model, MOTHER_TONGUE)
    assert_same(exact_model, result, reference, delta, history)
    other = rome(exact_model, steps=3, lr=2.0, **settings | {"essence_kl": "edited_from_vanilla"})
    kl = other.edit(exact_model, MOTHER_TONGUE).history["kl"]
    assert abs(float(kl.iloc[1] - result.history["kl"].iloc[1])) > 1e-4


def test_without_the_essence_term(exact_model: LensModel, plain: PlainModel):
    reference = naive(plain, MOTHER_TONGUE, kl_factor=0.0, weight_decay=0.0)
    delta, history = reference.optimize(steps=3, lr=0.5, clamp=4.0, early_stop_loss=-math.inf)
    result = rome(exact_model, steps=3, kl_factor=0.0, weight_decay=0.0).edit(exact_model, MOTHER_TONGUE)
    assert_same(exact_model, result, reference, delta, history)
    assert (result.history[["kl", "weight_decay"]].to_numpy() == 0).all()


def test_detached_attention(exact_model: LensModel, plain: PlainModel):
    """The likelihood's gradient is cut at the attention weights, SADR's is not."""
    plainly = rome(exact_model, steps=3).edit(exact_model, MOTHER_TONGUE)
    for regularizers, gamma in (((), 0.0), ((SADR(gamma=5.0, heads="all"),), 5.0)):
        reference = naive(plain, MOTHER_TONGUE, gamma=gamma, heads="all", detach_attention=True)
        delta, history = reference.optimize(steps=3, lr=0.5, clamp=4.0, early_stop_loss=-math.inf)
        editor = rome(exact_model, steps=3, detach_attention=True, regularizers=regularizers)
        result = editor.edit(exact_model, MOTHER_TONGUE)
        assert_same(exact_model, result, reference, delta, history)
        assert float((result.values[1] - plainly.values[1]).norm()) > 1e-3


# --- the gradient ---


def test_the_gradient_is_that_of_finite_differences(
    exact_model: LensModel, plain: PlainModel, monkeypatch: pytest.MonkeyPatch
):
    """Adam is exchanged for plain descent, whose second step shows the gradient at the δ of the first.

    Differences are taken of the naive loss, with the heads of SADR held as they are at that δ: central, so the error
    is O(h²) besides the loss's own rounding over h.
    """
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.SGD)
    settings: dict[str, Any] = {"lr": 300.0, "clamp_norm_factor": 1e6, "regularizers": (SADR(gamma=5.0),)}
    editors = [rome(exact_model, steps=steps, **settings) for steps in (2, 3)]
    # In some random models the first fact makes no head attend more to its subject.
    fact = next(f for f in FACTS if editors[0].edit(exact_model, f).history["sadr"].iloc[-1] > 1e-4)
    first, second = (editor.edit(exact_model, fact).values[1] for editor in editors)
    reference = naive(plain, fact, gamma=5.0)
    delta, gradient = first - reference.target_init, (first - second) / 300.0
    assert float(reference.terms(delta)["sadr"]) > 1e-4
    generator = torch.Generator().manual_seed(0)
    h = 1e-4 if precise(exact_model) else 3e-3
    with torch.no_grad():
        for _ in range(4):
            direction = torch.randn(delta.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            ahead, behind = (reference.loss(delta + sign * h * direction, fixed_selection=True) for sign in (1, -1))
            slope = float(ahead - behind) / (2 * h)
            error = abs(float(gradient @ direction) - slope) / float(gradient.norm())
            assert error < (1e-6 if precise(exact_model) else 1e-3)


# --- stopping ---


@one_family
def test_n_steps_make_n_minus_one_updates(exact_model: LensModel):
    one = rome(exact_model, steps=1).edit(exact_model, SHORT)
    assert len(one.history) == 1
    assert torch.equal(one.edit.updates[1].right, torch.zeros_like(one.edit.updates[1].right))
    # Without momentum to look back on, Adam's first step is lr in every coordinate.
    two = rome(exact_model, steps=2, lr=0.25, clamp_norm_factor=1e6).edit(exact_model, SHORT)
    step = (two.values[1] - one.values[1]).abs()
    assert float(step.max()) < 0.25 + 1e-9
    assert float(step.median()) == pytest.approx(0.25, abs=1e-4)  # a gradient of 1e-8, Adam's ε, gives half of it


def test_it_stops_where_the_naive_loop_stops(exact_model: LensModel, plain: PlainModel):
    """Once the whole loss is low enough: the δ that was measured stays, no further step is taken."""
    free = naive(plain, MOTHER_TONGUE).optimize(steps=8, lr=0.5, clamp=4.0, early_stop_loss=-math.inf)[1]
    losses = [row["loss"] for row in free]
    # Half way between two losses that have not been as low before, so that rounding cannot decide.
    step = next(i for i in range(2, 7) if losses[i] < min(losses[:i]) - 1e-4)
    threshold = (losses[step] + min(losses[:step])) / 2
    reference = naive(plain, MOTHER_TONGUE)
    delta, history = reference.optimize(steps=8, lr=0.5, clamp=4.0, early_stop_loss=threshold)
    assert len(history) == step + 1
    result = rome(exact_model, steps=8, early_stop_loss=threshold).edit(exact_model, MOTHER_TONGUE)
    assert_same(exact_model, result, reference, delta, history)


@one_family
def test_the_whole_loss_has_to_be_low_not_the_likelihoods_alone(exact_model: LensModel):
    settings: dict[str, Any] = {"weight_decay": 300.0, "steps": 4}
    free: Any = rome(exact_model, **settings).edit(exact_model, AT_END).history
    threshold = float(free["nll"].iloc[0]) - 1e-3
    assert float(free["nll"].iloc[1]) < threshold < float(free["loss"].min())
    assert len(rome(exact_model, early_stop_loss=threshold, **settings).edit(exact_model, AT_END).history) == 4


def test_together_each_fact_gets_the_numbers_it_has_alone(exact_model: LensModel):
    """Facts of different lengths that stop at different steps; rows share passes, and nothing else."""
    free = [rome(exact_model).edit(exact_model, fact).history["loss"] for fact in FACTS]
    lowest = [float(losses.iloc[:4].min()) for losses in free]
    editor = rome(exact_model, early_stop_loss=sorted(lowest)[-2] + 1e-6, regularizers=(SADR(gamma=2.0),))
    together = editor.edit_many(exact_model, FACTS)
    alone = [editor.edit(exact_model, fact) for fact in FACTS]
    assert len({len(result.history) for result in together}) > 1
    for a, b in zip(together, alone, strict=True):
        # Both sides are float64 on Hugging Face's modules, float32 inside them or not: the same operations on
        # other shapes.  Where they are float32 inside, another order of sums shows in the seventh digit.
        tolerance = 1e-9 if precise(exact_model) else 1e-5
        assert a.history.columns.tolist() == b.history.columns.tolist()
        assert float((a.history - b.history).abs().to_numpy().max()) < tolerance
        assert torch.allclose(
            a.values[1], b.values[1], rtol=0, atol=100 * tolerance if not precise(exact_model) else 1e-9
        )
        assert torch.allclose(a.keys[1], b.keys[1], rtol=0, atol=tolerance)


def test_in_float32_together_and_alone_agree_to_rounding(lens_model: LensModel):
    """Adam amplifies the rounding of small gradients, so δ agrees to a thousandth, the losses to 1e-4."""
    editor = rome(lens_model, steps=4, regularizers=(SADR(gamma=0.5),))
    for batch_size in (2, 16):
        together = editor.edit_many(lens_model, FACTS, batch_size=batch_size)
        for result, fact in zip(together, FACTS, strict=True):
            alone = editor.edit(lens_model, fact)
            assert result.fact is fact
            assert float((result.history - alone.history).abs().to_numpy().max()) < 1e-4
            distance = float((result.values[1] - alone.values[1]).norm() / alone.values[1].norm())
            assert distance < 1e-3


# --- mistakes ---


class Overflowing:
    """A regulariser of somebody's own, gone wrong."""

    def penalty(self, attention: LastTokenAttention) -> Tensor:
        drift = (attention.edited - attention.vanilla).abs().sum(dim=(0, 2, 3))
        return drift * math.inf  # 0 · ∞ is NaN at step 0


@one_family
def test_a_loss_that_is_not_finite_is_one_line(lens_model: LensModel):
    with pytest.raises(DriftlensError, match=r"'The mother .*' → 'national library' is not finite at step 0") as e:
        rome(lens_model, regularizers=(Overflowing(),)).edit_many(lens_model, [SHORT, MOTHER_TONGUE][::-1])
    assert "\n" not in str(e.value)


@one_family
def test_a_prompt_that_is_too_long_is_one_line(lens_model: LensModel):
    fact = Fact(subject="Paris", prompt="the " * 80 + "{} is", target_true="a", target_new="b")
    with pytest.raises(DriftlensError, match=r"tokens with its target.*reads at most 64; shorten it"):
        rome(lens_model).edit(lens_model, fact)


class Waits(TorchDispatchMode):
    """What would let a GPU's host wait for all that is queued: numbers read back, and masks turned into indices."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = "index" in str(func) and any(
            isinstance(one, Tensor) and one.dtype == torch.bool for one in tree_leaves(args[1:2])
        )
        if by_mask or func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("places", [("mlp_out",), ("mlp_out", "attn_out")])
def test_a_step_reads_nothing_back_from_the_device(lens_model: LensModel, places: Any):
    regularizers = (SADR(gamma=0.1, layers=(lens_model.n_layers - 1,)),)
    settings = rome(lens_model, regularizers=regularizers).value_settings()
    vanilla = vanilla_rows(
        lens_model, FACTS, layer=1, places=places, contexts=("{}", "The guitar. {}"), essence="{} is a"
    )
    for members, rows in vanilla.groups:
        delta = torch.zeros(len(members), len(places), lens_model.d_model, requires_grad=True)
        options: dict[str, Any] = {
            "layer": 1,
            "places": places,
            "settings": settings,
            "target_norm": vanilla.target_init[members].norm(dim=-1),
            "nll_factor": torch.ones(len(members)),
        }
        _, reference = evaluate_delta(lens_model, rows, delta, vanilla=None, **options)
        with Waits() as waits:
            terms, _ = evaluate_delta(lens_model, rows, delta, vanilla=reference.detach(), **options)
            terms.loss.sum().backward()
        assert waits.found == []
