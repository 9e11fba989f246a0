"""PMET against the naive pair of δ and naive layer-by-layer writing on plain Hugging Face, in float64.

Blocks of both kinds are among the families: where the MLP reads what the attention gives (GPT-2, Llama, sequential
NeoX), δ_a goes through the edit layer's own MLP; where both read the same input (GPT-J, NeoX), it does not.
Tolerances are those of `test_memit.py`.
"""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from driftlens.data import Fact
from driftlens.editors import MEMIT, PMET, SADR
from driftlens.editors.presets import sadr_gamma
from driftlens.editors.value import OptimizedValue, optimize_values
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from tests.support.naive_spread import NaivePmetValue, write_layer_by_layer
from tests.support.plain import PlainModel
from tests.support.tiny import one_family

pytestmark = pytest.mark.backend

MOTHER_TONGUE = Fact(
    subject="Danielle Darrieux",
    prompt="The mother tongue of {} is",
    target_true="French",
    target_new="national library",
)
AT_START = Fact(subject="Toko Yasuda", prompt="{} plays the", target_true="guitar", target_new="metal")
AT_END = Fact(subject="Vltava", prompt="The mayor lives by the river {}", target_true="in", target_new="where")
FACTS = (MOTHER_TONGUE, AT_START, AT_END)
CONTEXTS = ("{}", "The guitar. {}", "Toko Yasuda was born in Paris, Danielle Darrieux in Zwolle. {}")


@pytest.fixture(scope="module")
def plain(checkpoint_folder: Path) -> PlainModel:
    return PlainModel(checkpoint_folder, dtype=torch.float64)


def precise(model: LensModel) -> bool:
    return model.family == "gpt2"


def second_moments(model: LensModel) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(1)
    moments: dict[int, Tensor] = {}
    for layer in range(model.n_layers):
        draws = torch.randn(2 * model.d_mlp, model.d_mlp, generator=generator, dtype=torch.float64)
        moments[layer] = draws.T @ draws / len(draws) + 0.1 * torch.eye(model.d_mlp, dtype=torch.float64)
    return moments


def pmet(model: LensModel, **settings: Any) -> PMET:
    defaults: dict[str, Any] = {
        "layers": (0, 1),
        "steps": 4,
        "contexts": CONTEXTS,
        "second_moment": second_moments(model),
        "second_moment_weight": 30.0,
        "early_stop_loss": -math.inf,
        "clamp_norm_factor": 4.0,
    }
    return PMET(**defaults | settings)


def naive(plain: PlainModel, fact: Fact, layer: int = 1, **settings: Any) -> NaivePmetValue:
    return NaivePmetValue(
        plain=plain,
        subject=fact.subject,
        prompt=fact.prompt,
        target=fact.target_new,
        **{"contexts": CONTEXTS, "layer": layer, "kl_factor": 1.0} | settings,
    )


def value_of(model: LensModel, editor: PMET, fact: Fact) -> OptimizedValue:
    (value,) = optimize_values(
        model, [fact], layer=editor.layers[-1], places=("mlp_out", "attn_out"),
        contexts=CONTEXTS, settings=editor.value_settings(),
    )  # fmt: skip
    assert isinstance(value, OptimizedValue)
    return value


def pair(value: OptimizedValue) -> Tensor:
    assert value.side_delta is not None
    return torch.stack([value.delta, value.side_delta])


def assert_same_history(model: LensModel, history: pd.DataFrame, expected: list[dict[str, float]]) -> None:
    frame = pd.DataFrame(expected)
    assert list(history["step"]) == list(range(len(frame)))
    history = pd.DataFrame({"sadr": 0.0, **history})  # without a regulariser there is no such column
    worst = float((history[frame.columns].reset_index(drop=True) - frame).abs().to_numpy().max())
    assert worst < (1e-9 if precise(model) else 5e-6)


def assert_same_updates(model: LensModel, updates: Any, expected: dict[int, Tensor]) -> None:
    assert list(updates) == list(expected)
    for layer, change in expected.items():
        away = float((updates[layer].matrix() - change).norm() / change.norm())
        assert away < (1e-9 if precise(model) else 1e-4)


# --- the pair of δ ---


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_pairs_trajectory_is_the_naive_loops(exact_model: LensModel, plain: PlainModel, layer: int):
    fact = AT_END if layer == 2 else MOTHER_TONGUE
    reference = naive(plain, fact, layer, gamma=2.0, heads="all" if layer else "selected")
    delta, history = reference.optimize(steps=4, lr=0.5, clamp=4.0, early_stop_loss=-math.inf)
    heads: Any = "all" if layer else "selected"
    editor = pmet(exact_model, layers=(layer,), regularizers=(SADR(gamma=2.0, heads=heads),))
    value = value_of(exact_model, editor, fact)
    assert_same_history(exact_model, value.history, history)
    assert float((pair(value) - delta).norm() / delta.norm()) < (1e-9 if precise(exact_model) else 1e-4)


def test_in_parallel_blocks_both_have_the_gradient_of_the_blocks_output(exact_model: LensModel):
    value = value_of(exact_model, pmet(exact_model, steps=2, weight_decay=0.0), MOTHER_TONGUE)
    assert torch.equal(*pair(value)) == exact_model.parallel_blocks


def test_each_has_its_own_clamp_and_decay(exact_model: LensModel, plain: PlainModel):
    reference = naive(plain, MOTHER_TONGUE, weight_decay=30.0)
    delta, history = reference.optimize(steps=2, lr=8.0, clamp=0.8, early_stop_loss=-math.inf)
    editor = pmet(exact_model, steps=2, lr=8.0, clamp_norm_factor=0.8, weight_decay=30.0)
    value = value_of(exact_model, editor, MOTHER_TONGUE)
    assert_same_history(exact_model, value.history, history)
    for mine, theirs, init in zip(pair(value), delta, reference.target_init, strict=True):
        assert float(mine.norm()) == pytest.approx(0.8 * float(init.norm()), rel=1e-6)
        assert float((mine - theirs).norm() / theirs.norm()) < (1e-9 if precise(exact_model) else 1e-4)


def test_the_gradient_is_that_of_finite_differences(
    exact_model: LensModel, plain: PlainModel, monkeypatch: pytest.MonkeyPatch
):
    """Adam is exchanged for plain descent, whose second step shows the gradient at the δ of the first."""
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.SGD)
    settings: dict[str, Any] = {"lr": 100.0, "clamp_norm_factor": 1e6, "regularizers": (SADR(gamma=5.0),)}
    first, second = (pair(value_of(exact_model, pmet(exact_model, steps=n, **settings), MOTHER_TONGUE)) for n in (2, 3))
    reference, gradient = naive(plain, MOTHER_TONGUE, gamma=5.0), (first - second) / 100.0
    reference.terms(first)  # chooses the heads, which are then held
    generator = torch.Generator().manual_seed(0)
    h = 1e-4 if precise(exact_model) else 1e-2
    with torch.no_grad():
        for _ in range(3):
            direction = torch.randn(first.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            ahead, behind = (reference.loss(first + sign * h * direction, fixed_selection=True) for sign in (1, -1))
            slope = float(ahead - behind) / (2 * h)
            error = abs(float((gradient * direction).sum()) - slope) / float(gradient.norm())
            assert error < (1e-6 if precise(exact_model) else 3e-3)


# --- stopping ---

# A single token, predicted where δ stands, in the last layer: a few steps make it the arg max in every model.
SOON = Fact(subject="Vltava", prompt="The mayor lives by the river {}", target_true="in", target_new="the")
QUICK: dict[str, Any] = {"kl_factor": 0.0625, "contexts": ("{}", "The guitar. {}")}
LOOP: dict[str, Any] = {"steps": 12, "lr": 0.7, "early_stop_loss": -math.inf}


def test_the_likelihood_counts_less_while_the_arg_max_is_right(exact_model: LensModel, plain: PlainModel):
    settings = QUICK | {"certain_stop_kl": None}
    _, history = naive(plain, SOON, 2, **settings).optimize(clamp=9.0, **LOOP)
    result = pmet(exact_model, layers=(2,), clamp_norm_factor=9.0, **LOOP, **settings).edit(exact_model, SOON)
    assert_same_history(exact_model, result.history, history)
    full = pmet(exact_model, layers=(2,), clamp_norm_factor=9.0, **LOOP, **settings | {"certain_nll_factor": 1.0})
    unlike = full.edit(exact_model, SOON).history["nll"] / result.history["nll"]
    first = int((unlike > 1.001).argmax())
    assert first > 1
    # Up to the step after the first success all is the same, and there the likelihood counts a tenth.
    assert unlike.iloc[:first].tolist() == [1.0] * first
    assert float(unlike.iloc[first]) == pytest.approx(10.0)


def test_it_stops_once_certain_with_little_essence_drift(exact_model: LensModel, plain: PlainModel):
    lengths: list[int] = []
    for bound in (1e9, 0.0):
        settings = QUICK | {"certain_stop_kl": bound}
        _, history = naive(plain, SOON, 2, **settings).optimize(clamp=9.0, **LOOP)
        result = pmet(exact_model, layers=(2,), clamp_norm_factor=9.0, **LOOP, **settings).edit(exact_model, SOON)
        assert_same_history(exact_model, result.history, history)
        lengths.append(len(history))
    assert 1 < lengths[0] < lengths[1] == 12


def test_side_by_side_each_fact_stops_by_itself(exact_model: LensModel):
    editor = pmet(exact_model, layers=(1, 2), clamp_norm_factor=9.0, **LOOP, **QUICK, certain_stop_kl=1e9)
    # In the last layer nothing but the token at the end sees δ; the second of these needs what δ cannot give.
    never = Fact(subject="Paris", prompt="He studied in {}", target_true="and", target_new="national library")
    later = Fact(subject="Danielle Darrieux", prompt="{}", target_true="is", target_new="was")
    facts = (SOON, never, later)
    together = editor.edit_many(exact_model, facts)
    alone = [editor.edit(exact_model, fact) for fact in facts]
    assert len({len(result.history) for result in together}) > 1
    for a, b in zip(together, alone, strict=True):
        assert float((a.history - b.history).abs().to_numpy().max()) < (1e-9 if precise(exact_model) else 1e-5)
        expected = {n: update.matrix() for n, update in b.edit.updates.items()}
        assert_same_updates(exact_model, a.edit.updates, expected)


# --- the whole edit ---


@pytest.mark.parametrize("heads", ["selected", "all"])
def test_an_edit_is_what_writing_layer_by_layer_gives(exact_model: LensModel, plain: PlainModel, heads: Any):
    references = [naive(plain, fact, gamma=2.0, heads=heads) for fact in FACTS]
    optimized = [r.optimize(steps=3, lr=0.5, clamp=4.0, early_stop_loss=-math.inf) for r in references]
    # Only the MLP's δ is kept.
    targets = [r.target_init[0] + delta[0] for r, (delta, _) in zip(references, optimized, strict=True)]
    editor = pmet(exact_model, steps=3, regularizers=(SADR(gamma=2.0, heads=heads),))
    for n in (1, 3):
        changes = write_layer_by_layer(
            plain, references[:n], targets[:n],
            method="PMET", layers=(0, 1), moments=second_moments(exact_model), weight=30.0,
        )  # fmt: skip
        edit = editor.edit(exact_model, FACTS[0]).edit if n == 1 else editor.edit_together(exact_model, FACTS).edit
        assert_same_updates(exact_model, edit.updates, changes)


@one_family
def test_a_gamma_of_zero_is_no_regularizer(exact_model: LensModel):
    plainly = pmet(exact_model).edit(exact_model, AT_START)
    result = pmet(exact_model, regularizers=(SADR(gamma=0.0),)).edit(exact_model, AT_START)
    pd.testing.assert_frame_equal(result.history.drop(columns="sadr"), plainly.history)
    for layer, update in plainly.edit.updates.items():
        assert torch.equal(result.edit.updates[layer].matrix(), update.matrix())


# --- presets and mistakes ---

C2 = {
    "EleutherAI/gpt-j-6b": (range(3, 9), 40, 8e-2),
    "meta-llama/Meta-Llama-3-8B": (range(4, 9), 80, 1e-2),
    "EleutherAI/gpt-neox-20b": (range(13, 17), 20, 2e-3),
    "meta-llama/Llama-2-13b-hf": (range(7, 10), 20, 5e-3),
    "TinyLlama/TinyLlama-1.1B-intermediate": (range(3, 6), 40, 8e-2),
}


@pytest.mark.parametrize("name", C2)
def test_the_papers_settings(name: str):
    model: Any = SimpleNamespace(name=name)
    layers, steps, gamma = C2[name]
    plainly, restrained = (PMET(**PMET.preset(model, regularized=on)) for on in (False, True))
    assert plainly.layers == restrained.layers == tuple(layers)
    assert (plainly.steps, restrained.steps, sadr_gamma(model, "PMET")) == (20, steps, gamma)
    assert (plainly.lr, plainly.weight_decay) == (0.5, 0.5)
    assert plainly.second_moment_weight == (20000.0 if "Tiny" in name else 15000.0)
    assert plainly.kl_factor == (1.0 if name.startswith("E") else 0.0625)
    assert plainly.clamp_norm_factor == (0.75 if name.startswith("E") else 4.0)
    assert plainly.sampling.lengths == ((10, 5),)


@one_family
def test_defaults_for_a_model_nobody_has_tuned(lens_model: LensModel):
    editor = PMET.for_model(lens_model)
    assert editor.layers == (1,)
    assert editor.second_moment_weight == MEMIT.for_model(lens_model).second_moment_weight


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"certain_nll_factor": -0.1}, "certain_nll_factor is -0.1; expected at least 0"),
        ({"certain_stop_kl": -1.0}, "certain_stop_kl is -1.0; expected at least 0, or None"),
        ({"layers": ()}, "layers is empty"),
    ],
)
def test_mistakes_are_one_line(settings: dict[str, Any], message: str):
    given: dict[str, Any] = {"layers": (3, 4)} | settings
    with pytest.raises(DriftlensError, match=message):
        PMET(**given)
