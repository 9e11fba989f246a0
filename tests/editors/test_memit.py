"""MEMIT against naive layer-by-layer writing on plain Hugging Face (`naive_spread.py`), in float64.

GPT-2 computes in float64 throughout and agrees to 1e-9; the other families are float32 inside their attention, norms or
rotary angles even in a float64 model, so that losses agree to 5e-6 and updates to 1e-4 of their size.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from driftlens.data import Fact, load_records
from driftlens.editors import MEMIT, PMET, SADR, Corpus, SecondMoment
from driftlens.editors.presets import sadr_gamma, second_moment_weight_for
from driftlens.editors.spread import least_squares_factor
from driftlens.errors import DriftlensError
from driftlens.evaluation import evaluate
from driftlens.models import LensModel
from driftlens.models.prompts import pad_rows
from tests.support.naive_spread import NaiveMemitValue, write_layer_by_layer
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
    """Well-conditioned, of the keys' size, and another one for each layer."""
    generator = torch.Generator().manual_seed(1)
    moments: dict[int, Tensor] = {}
    for layer in range(model.n_layers):
        draws = torch.randn(2 * model.d_mlp, model.d_mlp, generator=generator, dtype=torch.float64)
        moments[layer] = draws.T @ draws / len(draws) + 0.1 * torch.eye(model.d_mlp, dtype=torch.float64)
    return moments


def memit(model: LensModel, **settings: Any) -> MEMIT:
    defaults: dict[str, Any] = {
        "layers": (0, 1),
        "steps": 4,
        "contexts": CONTEXTS,
        "second_moment": second_moments(model),
        "second_moment_weight": 30.0,
        "early_stop_loss": -math.inf,
        "clamp_norm_factor": 4.0,
    }
    return MEMIT(**defaults | settings)


def naive(plain: PlainModel, fact: Fact, layer: int = 1, **settings: Any) -> NaiveMemitValue:
    return NaiveMemitValue(
        plain=plain,
        subject=fact.subject,
        prompt=fact.prompt,
        target=fact.target_new,
        **{"contexts": CONTEXTS, "layer": layer} | settings,
    )


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


# --- the whole edit ---


@pytest.mark.parametrize("heads", ["selected", "all"])
def test_an_edit_is_what_writing_layer_by_layer_gives(exact_model: LensModel, plain: PlainModel, heads: Any):
    reference = naive(plain, MOTHER_TONGUE, gamma=2.0, heads=heads)
    delta, history = reference.optimize(steps=4, lr=0.5, clamp=4.0, early_stop_loss=-math.inf)
    changes = write_layer_by_layer(
        plain, [reference], [reference.target_init + delta],
        method="MEMIT", layers=(0, 1), moments=second_moments(exact_model), weight=30.0,
    )  # fmt: skip
    result = memit(exact_model, regularizers=(SADR(gamma=2.0, heads=heads),)).edit(exact_model, MOTHER_TONGUE)
    assert_same_history(exact_model, result.history, history)
    assert_same_updates(exact_model, result.edit.updates, changes)
    assert [update.rank for update in result.edit.updates.values()] == [1, 1]


def test_all_layers_and_attention_detached(exact_model: LensModel, plain: PlainModel):
    """Of the last layer's output nothing but the subject's own prediction depends on δ, so it stands at the end."""
    reference = naive(plain, AT_END, layer=2, detach_attention=True, contexts=("{}",))
    delta, history = reference.optimize(steps=3, lr=0.5, clamp=0.75, early_stop_loss=-math.inf)
    changes = write_layer_by_layer(
        plain, [reference], [reference.target_init + delta],
        method="MEMIT", layers=(0, 1, 2), moments=second_moments(exact_model), weight=0.5,
    )  # fmt: skip
    editor = memit(
        exact_model, layers=range(3), steps=3, contexts=("{}",), clamp_norm_factor=0.75,
        second_moment_weight=0.5, detach_attention=True,
    )  # fmt: skip
    result = editor.edit(exact_model, AT_END)
    assert_same_history(exact_model, result.history, history)
    assert_same_updates(exact_model, result.edit.updates, changes)


def test_several_facts_in_one_update(exact_model: LensModel, plain: PlainModel):
    references = [naive(plain, fact) for fact in FACTS]
    optimized = [r.optimize(steps=3, lr=0.5, clamp=4.0, early_stop_loss=-math.inf) for r in references]
    changes = write_layer_by_layer(
        plain, references, [r.target_init + delta for r, (delta, _) in zip(references, optimized, strict=True)],
        method="MEMIT", layers=(0, 1), moments=second_moments(exact_model), weight=30.0,
    )  # fmt: skip
    for batch_size in (2, 16):
        result: Any = memit(exact_model, steps=3).edit_together(exact_model, FACTS, batch_size=batch_size)
        assert result.facts == FACTS
        assert_same_updates(exact_model, result.edit.updates, changes)
        assert [update.rank for update in result.edit.updates.values()] == [3, 3]
        assert result.keys[0].shape == (3, exact_model.d_mlp)
        for number, (_, history) in enumerate(optimized):
            assert_same_history(exact_model, result.history[result.history["fact"] == number], history)
    assert result.edit.provenance["subject"] == "Danielle Darrieux + Toko Yasuda + Vltava"


def test_one_by_one_and_side_by_side_agree(exact_model: LensModel):
    editor = memit(exact_model, regularizers=(SADR(gamma=2.0),))
    together = editor.edit_many(exact_model, FACTS)
    for result, fact in zip(together, FACTS, strict=True):
        alone = editor.edit(exact_model, fact)
        assert result.fact is fact
        assert_same_updates(
            exact_model, result.edit.updates, {n: update.matrix() for n, update in alone.edit.updates.items()}
        )


# --- the solve ---


def test_the_small_solve_is_the_large_inverse():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(200, 40, generator=generator, dtype=torch.float64)
    moment = SecondMoment(draws.T @ draws / 200)
    for facts, weight in ((1, 15000.0), (1, 1e-3), (7, 40.0), (60, 3.0)):
        keys = torch.randn(facts, 40, generator=generator, dtype=torch.float64)
        expected = torch.linalg.inv(weight * moment.matrix + keys.T @ keys) @ keys.T
        found = least_squares_factor(keys, moment.solve(keys), weight)
        assert float((found - expected).norm() / expected.norm()) < 1e-9


@one_family
def test_one_layer_satisfies_its_normal_equations(exact_model: LensModel):
    """Δ (λ C + K Kᵀ) = R Kᵀ with C as ROME's, for one fact and for several."""
    moment = second_moments(exact_model)[1]
    editor = memit(exact_model, layers=(1,))
    joint = editor.edit_together(exact_model, FACTS)
    alone = editor.edit(exact_model, MOTHER_TONGUE)
    W_out, bias = exact_model.down_projection(1)
    for update, K, values in (
        (joint.edit.updates[1], joint.keys[1].T, joint.values[1].T),
        (alone.edit.updates[1], alone.keys[1][:, None], alone.values[1][:, None]),
    ):
        change = update.matrix().T
        R = values - W_out.T @ K - (0 if bias is None else bias[:, None])
        left, right = change @ (30.0 * moment + K @ K.T), R @ K.T
        assert float((left - right).norm() / right.norm()) < 1e-9


@one_family
def test_a_very_large_weight_changes_nothing(exact_model: LensModel):
    result = memit(exact_model, second_moment_weight=1e30).edit(exact_model, MOTHER_TONGUE)
    for update in result.edit.updates.values():
        assert float(update.matrix().abs().max()) < 1e-20


def test_a_very_small_weight_writes_the_value_itself(exact_model: LensModel):
    """Then the edited layer's output at the subject is z = what it was + δ, however many layers it comes through."""
    bare = ("{}",)
    editor = memit(exact_model, contexts=bare, second_moment_weight=1e-9)
    one = memit(exact_model, contexts=bare, second_moment_weight=1e-9, layers=(1,))
    batch, _ = pad_rows(exact_model, [exact_model.encode("The mother tongue of Danielle Darrieux").ids])
    outputs: list[Tensor] = []
    for e in (editor, one):
        edit = e.edit(exact_model, MOTHER_TONGUE).edit
        outputs.append(exact_model.run(batch, hooks=edit.hooks(exact_model), stop=2)[0, -1])
    before = exact_model.run(batch, stop=2)[0, -1]
    assert float((outputs[0] - before).norm()) > 0.1
    assert float((outputs[0] - outputs[1]).norm() / outputs[1].norm()) < 1e-5


def test_facts_that_repeat_each_other_are_one_line():
    keys = torch.ones(2, 4, dtype=torch.float64)
    with pytest.raises(DriftlensError, match="keys of 2 facts are too much alike"):
        least_squares_factor(keys, keys, 1e-30)


# --- what an edit is ---


def test_hooks_and_weights_are_the_same_edit(exact_model: LensModel):
    edit = memit(exact_model).edit(exact_model, MOTHER_TONGUE).edit
    batch, _ = pad_rows(exact_model, [exact_model.encode("Danielle Darrieux lives in Paris").ids])
    vanilla = exact_model.unembed(exact_model.run(batch))
    hooked = exact_model.unembed(exact_model.run(batch, hooks=edit.hooks(exact_model)))
    with edit.applied(exact_model):
        written = exact_model.unembed(exact_model.run(batch))
    assert torch.equal(exact_model.unembed(exact_model.run(batch)), vanilla)
    assert float((hooked - vanilla).abs().max()) > 1e-3
    assert float((hooked - written).abs().max()) < (1e-9 if precise(exact_model) else 1e-4)


@one_family
def test_a_gamma_of_zero_is_no_regularizer(exact_model: LensModel):
    plainly = memit(exact_model).edit(exact_model, AT_START)
    result = memit(exact_model, regularizers=(SADR(gamma=0.0),)).edit(exact_model, AT_START)
    pd.testing.assert_frame_equal(result.history.drop(columns="sadr"), plainly.history)
    for layer, update in plainly.edit.updates.items():
        assert torch.equal(result.edit.updates[layer].matrix(), update.matrix())


@one_family
def test_history_and_provenance(lens_model: LensModel):
    moments = {layer: moment.float() for layer, moment in second_moments(lens_model).items()}
    result = memit(lens_model, second_moment=moments, regularizers=(SADR(),)).edit(lens_model, AT_START)
    names = ["step", "loss", "nll", "kl", "weight_decay", "sadr", "probability"]
    assert result.history.columns.tolist() == names
    told = result.edit.provenance
    assert (told["editor"], told["subject"], told["second_moment"]) == ("MEMIT", "Toko Yasuda", "given")
    assert "layers" in told["settings"]
    assert "SADR" in told["regularizers"]
    assert result.edit.updates[0].left.dtype == torch.float32


@one_family
@pytest.mark.parametrize("editor", [MEMIT, PMET])
def test_facts_that_contradict_each_other_are_refused(lens_model: LensModel, editor: type[MEMIT | PMET]):
    other = Fact.from_text(
        AT_START.text, subject="Toko Yasuda", target_true=AT_START.target_true, target_new="national library"
    )
    moments = {layer: moment.float() for layer, moment in second_moments(lens_model).items()}
    settings = editor(layers=(0, 1), steps=2, contexts=("{}",), second_moment=moments)
    expected = (
        "facts 1 and 2 contradict each other: 'Toko Yasuda plays the' cannot be followed by both 'metal' and 'nat"
    )
    with pytest.raises(DriftlensError, match=expected) as caught:
        settings.edit_together(lens_model, [AT_END, AT_START, other])
    assert "\n" not in str(caught.value)
    # Apart they are two edits, and of one subject there may be many facts.
    assert len(settings.edit_many(lens_model, [AT_START, other])) == 2
    elsewhere = Fact(subject="Toko Yasuda", prompt="{} lives in", target_true="Rome", target_new="Paris")
    assert len(settings.edit_together(lens_model, [AT_START, elsewhere]).facts) == 2


# --- second moments ---


@one_family
def test_second_moments_of_all_layers_come_from_one_pass(
    lens_model: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path))
    passes = 0

    def texts() -> Iterator[str]:
        nonlocal passes
        passes += 1
        return iter(["The mayor lives by the river Vltava, where it meets the Elbe."] * 20 + words)

    generator = torch.Generator().manual_seed(0)
    words = [lens_model.tokenizer.decode(torch.randint(1, 400, (40,), generator=generator)) for _ in range(40)]
    corpus = Corpus(name="some words", digest="0", texts=texts)
    for _ in range(2):  # the second editor finds them in the cache
        editor = memit(lens_model, second_moment=None, corpus=corpus, steps=1, samples=60)
        editor.edit(lens_model, AT_START)
        told = editor.edit(lens_model, AT_END).edit.provenance
        assert "some words" in told["second_moment"]
    assert passes == 1
    assert len(list(tmp_path.iterdir())) == 2


# --- presets ---

C2 = {
    "EleutherAI/gpt-j-6b": (range(3, 9), 20, 5e-3),
    "meta-llama/Meta-Llama-3-8B": (range(4, 9), 80, 1e-2),
    "EleutherAI/gpt-neox-20b": (range(13, 17), 80, 5e-3),
    "meta-llama/Llama-2-13b-hf": (range(5, 10), 80, 4e-2),
    "TinyLlama/TinyLlama-1.1B-intermediate": (range(3, 6), 80, 8e-2),
}


@pytest.mark.parametrize("name", C2)
def test_the_papers_settings(name: str):
    model: Any = SimpleNamespace(name=name)
    layers, steps, gamma = C2[name]
    plainly, restrained = (MEMIT(**MEMIT.preset(model, regularized=on)) for on in (False, True))
    assert plainly.layers == restrained.layers == tuple(layers)
    assert (plainly.steps, restrained.steps, sadr_gamma(model, "MEMIT")) == (20, steps, gamma)
    assert (plainly.lr, plainly.kl_factor) == (0.5, 0.0625)
    assert plainly.second_moment_weight == (20000.0 if "Tiny" in name else 15000.0)
    assert plainly.weight_decay == (1e-3 if name.startswith("meta") else 0.5)
    assert plainly.clamp_norm_factor == {"E": 0.75, "m": 4.0, "T": 8.0}[name[0]]
    assert plainly.sampling.lengths == ((10, 5),)


@one_family
def test_defaults_for_a_model_nobody_has_tuned(lens_model: LensModel):
    editor = MEMIT.for_model(lens_model, steps=7)
    assert editor.layers == (1,)
    assert editor.steps == 7
    # With one layer λ alone decides how much is written: kᵀ C⁻¹ k / (λ + kᵀ C⁻¹ k), for a key of average length.
    assert lens_model.d_mlp / (editor.second_moment_weight + lens_model.d_mlp) == pytest.approx(0.9, abs=0.01)
    assert MEMIT.for_model(lens_model, regularizers=(SADR(),)).steps == 80


def test_the_second_moments_weight_of_a_model_nobody_has_tuned():
    """Nine tenths of what is missing are written, by adding up what each layer takes of its part."""

    def written(d_mlp: int, n_layers: int) -> float:
        weight, missing = second_moment_weight_for(d_mlp, n_layers), 1.0
        for left in range(n_layers, 0, -1):
            missing -= missing / left * d_mlp / (weight + d_mlp)
        return 1 - missing

    assert 5000 < second_moment_weight_for(16384, 6) < 15000  # GPT-J's is 15,000
    for d_mlp, n_layers in ((6400, 5), (14336, 5), (896, 2), (768, 1), (100, 12)):
        assert written(d_mlp, n_layers) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("method", [MEMIT, PMET])
def test_the_bundled_model_is_edited_out_of_the_box(
    demo_model: LensModel, method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With the second moments that come with it: nothing is computed over a corpus, nothing cached."""
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path))
    record = load_records("demo", limit=1)[0]
    editor = method.for_model(demo_model, regularizers=(SADR(gamma=sadr_gamma(demo_model, method.__name__)),))
    result = editor.edit(demo_model, record.fact)
    assert list(tmp_path.iterdir()) == []
    nlls = evaluate(demo_model, [record] * 2, [None, result.edit], tasks=("rewrite",))
    assert (nlls["nll_new"] < nlls["nll_true"]).tolist() == [False, True]


# --- mistakes ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, r"layers is empty; give at least one"),
        ({"layers": (4, 3)}, r"layers is \(4, 3\); expected different layers from 0 on, in ascending order"),
        ({"layers": (3, 3)}, r"in ascending order"),
        ({"layers": (-1, 0)}, r"from 0 on"),
        ({"second_moment_weight": -1.0}, r"second_moment_weight is -1.0; expected a number above 0"),
        ({"second_moment": {3: torch.eye(2)}}, r"second_moment lacks layer 4 of \(3, 4\)"),
        ({"second_moment": {3: torch.eye(2), 4: torch.ones(2, 3)}}, r"a second moment has shape \[d_mlp, d_mlp\]"),
        ({"steps": 0}, r"steps is 0; expected at least 1"),
        ({"lr": 0.0}, r"lr is 0.0; expected a number above 0"),
    ],
)
def test_mistakes_are_one_line(settings: dict[str, Any], message: str):
    given: dict[str, Any] = {"layers": (3, 4)} | settings
    with pytest.raises(DriftlensError, match=message) as error:
        MEMIT(**given)
    assert "\n" not in str(error.value)


@one_family
def test_mistakes_that_only_the_model_shows(lens_model: LensModel):
    with pytest.raises(DriftlensError, match=r"layer 3 is out of range; .* has layers 0 to 2"):
        MEMIT(layers=(2, 3)).edit(lens_model, AT_START)
    wrong = {0: torch.eye(5), 1: torch.eye(5)}
    with pytest.raises(DriftlensError, match="the second moment is for d_mlp = 5, but"):
        memit(lens_model, second_moment=wrong).edit(lens_model, AT_START)
    with pytest.raises(DriftlensError, match="there are no facts to edit"):
        memit(lens_model).edit_together(lens_model, [])
    assert memit(lens_model).edit_many(lens_model, []) == []
