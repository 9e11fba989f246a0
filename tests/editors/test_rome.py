"""ROME's update: Eq. 3 in closed form, what it needs and what it leaves alone, its provenance and its presets."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from driftlens.data import Fact
from driftlens.editors import MEMIT, ROME, SADR, ContextSampling, SecondMoment, open_corpus, sadr_gamma
from driftlens.edits import Edit, EditResult
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from tests.support.plain import PlainModel
from tests.support.tiny import one_family

FACT = Fact(
    subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_true="French", target_new="English"
)
OTHER = Fact(subject="Toko Yasuda", prompt="{} plays the", target_true="guitar", target_new="metal")
CONTEXTS = ("{}", "The guitar. {}", "You were in Paris. {}")
LAYER = 1


def random_moment(d_mlp: int, *, seed: int = 0) -> Tensor:
    """A second moment as of real keys: far from isotropic, and not of mean zero."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(4 * d_mlp, d_mlp, generator=generator, dtype=torch.float64)
    X = X * torch.logspace(0, -1, d_mlp, dtype=torch.float64) + 0.3
    return X.T @ X / len(X)


def rome(model: LensModel, **changes: Any) -> ROME:
    defaults: dict[str, Any] = {
        "layer": LAYER,
        "steps": 4,
        "contexts": CONTEXTS,
        "second_moment": random_moment(model.d_mlp),
        "early_stop_loss": -math.inf,
    }
    return ROME(**defaults | changes)


def keys_by_hand(plain: PlainModel, contexts: tuple[str, ...] = CONTEXTS) -> Tensor:
    """[contexts, d_mlp], one plain forward each."""
    rows = []
    for context in contexts:
        text = context.replace("{}", FACT.text)
        at = len(plain.tokenizer(text[: text.index(FACT.subject) + len(FACT.subject)])["input_ids"]) - 1
        rows.append(plain.value("mlp_post", LAYER, torch.tensor([plain.tokenizer(text)["input_ids"]]))[0, at])
    return torch.stack(rows)


def mlp_output(model: LensModel, key: Tensor, result: EditResult) -> Tensor:
    """Ŵ k + b, with the edit written into a copy of the weight by hand."""
    W, bias = model.down_projection(LAYER)
    update = result.edit.updates[LAYER]
    return key @ (W.double() + update.left.double() @ update.right.double()) + (0 if bias is None else bias.double())


@pytest.fixture(scope="module")
def plain(checkpoint_folder: Path) -> PlainModel:
    return PlainModel(checkpoint_folder, dtype=torch.float64)


# --- the update ---


@pytest.mark.backend
def test_the_update_is_equation_3(exact_model: LensModel, plain: PlainModel):
    """With the published code's keys: C⁻¹ k̄ by explicit inverse, the residual and the denominator with k₀."""
    result = rome(exact_model).edit(exact_model, FACT)
    update, C = result.edit.updates[LAYER], random_moment(exact_model.d_mlp)
    assert update.rank == 1
    keys = keys_by_hand(plain)
    bare, mean = keys[0], keys.mean(0)
    # See test_value.py for what is float32 inside the other families; entries are of the order of 1 (measured: 7e-6).
    tolerance = 1e-9 if exact_model.family == "gpt2" else 5e-5
    direction = torch.linalg.inv(C) @ mean
    assert torch.allclose(update.left[:, 0], direction / direction.norm(), rtol=0, atol=tolerance)
    W, bias = exact_model.down_projection(LAYER)
    residual = result.values[LAYER] - bare @ W - (0 if bias is None else bias)
    expected = direction[:, None] * residual / (bare @ direction)
    assert torch.allclose(update.matrix(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    assert torch.allclose(result.keys[LAYER], bare, rtol=0, atol=tolerance)


@pytest.mark.backend
@pytest.mark.parametrize("residual_key", ["bare", "mean"])
def test_the_key_is_given_its_value(exact_model: LensModel, plain: PlainModel, residual_key: Any):
    """Ŵ k₀ + b = v*, or Ŵ k̄ + b = v* in the paper's form."""
    result = rome(exact_model, residual_key=residual_key).edit(exact_model, FACT)
    keys = keys_by_hand(plain)
    key = keys[0] if residual_key == "bare" else keys.mean(0)
    tolerance = 1e-10 if exact_model.family == "gpt2" else 5e-5
    assert torch.allclose(mlp_output(exact_model, key, result), result.values[LAYER], rtol=0, atol=tolerance)
    assert torch.allclose(mlp_output(exact_model, result.keys[LAYER], result), result.values[LAYER], rtol=0, atol=1e-10)
    assert torch.allclose(result.keys[LAYER], key, rtol=0, atol=tolerance)


@one_family
@pytest.mark.backend
def test_orthogonal_keys_are_left_alone(exact_model: LensModel, plain: PlainModel):
    """Keys with kᵀ C⁻¹ k̄ = 0 give what they gave."""
    result = rome(exact_model, residual_key="mean").edit(exact_model, FACT)
    mean, inverse = result.keys[LAYER], torch.linalg.inv(random_moment(exact_model.d_mlp))
    keys = torch.randn(20, exact_model.d_mlp, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    keys -= (keys @ inverse @ mean / (mean @ inverse @ mean))[:, None] * mean
    W, bias = exact_model.down_projection(LAYER)
    before = keys @ W.double() + (0 if bias is None else bias)
    assert float((mlp_output(exact_model, mean, result) - mean @ W - (0 if bias is None else bias)).norm()) > 0.1
    assert torch.allclose(mlp_output(exact_model, keys, result), before, rtol=0, atol=1e-9)


@pytest.mark.backend
def test_in_the_model_the_subject_gives_the_value(exact_model: LensModel, plain: PlainModel):
    """Read in plain Hugging Face with the weight changed: the MLP's output at the subject's end is v*."""
    result = rome(exact_model).edit(exact_model, FACT)
    text = FACT.text
    at = len(plain.tokenizer(text[: text.index(FACT.subject) + len(FACT.subject)])["input_ids"]) - 1
    update = result.edit.updates[LAYER].matrix()
    post = plain.value("mlp_post", LAYER, torch.tensor([plain.tokenizer(text)["input_ids"]]))
    out = plain.value("mlp_out", LAYER, torch.tensor([plain.tokenizer(text)["input_ids"]]))
    found = (out + post @ update)[0, at]
    tolerance = 1e-10 if exact_model.family == "gpt2" else 1e-4
    assert torch.allclose(found, result.values[LAYER], rtol=0, atol=tolerance)


@one_family
@pytest.mark.backend
def test_the_model_stays_as_it_is(lens_model: LensModel):
    before = [lens_model.W_out(n).clone() for n in range(lens_model.n_layers)]
    rome(lens_model, regularizers=(SADR(),)).edit_many(lens_model, [FACT, OTHER], batch_size=1)
    for layer, weight in enumerate(before):
        assert torch.equal(lens_model.W_out(layer), weight)


@pytest.mark.backend
def test_the_edit_raises_the_new_target(lens_model: LensModel):
    """The point of it all: written into the weights, the target is likelier than before.

    Not by just as much as in the history, where δ moves the subject's last token alone: the weight moves every token
    whose key is like the subject's, and in a random model all are.
    """
    from driftlens.models import Batch
    from driftlens.models.prompts import tokenize_prompt

    editor = rome(lens_model, steps=15, lr=2.0, clamp_norm_factor=50.0, contexts=("{}",), kl_factor=0.0)
    result = editor.edit(lens_model, FACT)
    prompt = tokenize_prompt(lens_model, FACT.text, FACT.target_new)
    tokens = torch.tensor([prompt.forced])

    def nll() -> float:
        resid = lens_model.run(Batch(tokens, torch.ones_like(tokens, dtype=torch.bool)))[0, prompt.last :]
        log_probs = lens_model.unembed(resid).log_softmax(-1)
        return -float(log_probs.gather(1, torch.tensor(prompt.target_ids)[:, None]).mean())

    before = nll()
    with result.edit.applied(lens_model):
        after = nll()
    assert after < before - 0.05
    assert before == pytest.approx(float(result.history["nll"].iloc[0]), rel=1e-4)
    last = result.history.iloc[-1]
    assert float(last["probability"]) == pytest.approx(math.exp(-float(last["nll"])), rel=1e-4)


# --- what it needs ---


@one_family
@pytest.mark.backend
def test_nothing_is_sampled_or_streamed_when_both_are_given(lens_model: LensModel, monkeypatch: pytest.MonkeyPatch):
    import driftlens.editors.contexts
    import driftlens.editors.second_moment

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a pass that nobody asked for")

    monkeypatch.setattr(driftlens.editors.contexts, "_sample", refuse)
    for name in ("stream_second_moments", "read_second_moment"):
        monkeypatch.setattr(driftlens.editors.second_moment, name, refuse)
    rome(lens_model, steps=1).edit(lens_model, FACT)


@pytest.fixture
def tiny(checkpoints: Any) -> LensModel:
    from tests.support.tiny import load_tiny

    return load_tiny(checkpoints("gpt2"))


def corpus_for(model: LensModel) -> list[str]:
    """More tokens than the second moment has dimensions."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, model.d_vocab, (20, 30), generator=generator).tolist()
    return [model.tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def test_both_are_found_when_none_is_given(tiny: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Contexts are sampled, and the second moment is taken over the corpus and kept in the cache."""
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path))
    texts, sampling = corpus_for(tiny), ContextSampling(lengths=((4, 2),))
    editor = rome(tiny, contexts=None, sampling=sampling, second_moment=None, corpus=texts, samples=15)
    result = editor.edit(tiny, FACT)
    assert len(list(tmp_path.iterdir())) == 1
    from driftlens.editors import sample_contexts, stream_second_moments

    by_hand = rome(
        tiny,
        contexts=sample_contexts(tiny, sampling),
        second_moment=stream_second_moments(tiny, [LAYER], texts[:15])[LAYER],
    ).edit(tiny, FACT)
    assert torch.equal(result.edit.updates[LAYER].left, by_hand.edit.updates[LAYER].left)
    assert torch.equal(result.edit.updates[LAYER].right, by_hand.edit.updates[LAYER].right)
    assert "20 texts" in result.edit.provenance["second_moment"]
    assert "15" in result.edit.provenance["second_moment"]


def test_one_editor_serves_two_models(tiny: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of the same width, so that the first one's second moment would fit the second in shape alone."""
    from tests.support.checkpoints import tiny_checkpoint
    from tests.support.tiny import load_tiny

    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    other = load_tiny(tiny_checkpoint("gpt2", tmp_path / "other", seed=1))
    settings: dict[str, Any] = {"second_moment": None, "corpus": corpus_for(tiny)}
    shared = rome(tiny, **settings)
    shared.edit(tiny, FACT)
    found = shared.edit(other, FACT)
    expected = rome(other, **settings).edit(other, FACT)
    assert torch.equal(found.edit.updates[LAYER].left, expected.edit.updates[LAYER].left)


def test_a_local_model_without_a_corpus_is_one_line(tiny: LensModel):
    """Nothing is fetched from the network for a model that lies on this machine."""
    local = tiny if Path(tiny.name).exists() else None
    if local is None:
        pytest.skip("this backend's model does not know where it came from")
    editor = rome(tiny, second_moment=None)
    with pytest.raises(DriftlensError, match="is a local model and no corpus for its second moments is given") as error:
        editor.edit(tiny, FACT)
    assert "\n" not in str(error.value)


# --- many facts ---


def test_no_fact_is_no_edit(tiny: LensModel):
    assert rome(tiny).edit_many(tiny, []) == []


def test_progress(tiny: LensModel):
    steps: list[tuple[int, int]] = []
    facts: list[tuple[int, int]] = []
    rome(tiny, steps=3).edit_many(
        tiny,
        [FACT, OTHER, FACT],
        batch_size=2,
        on_step=lambda *now: steps.append(now),
        on_facts=lambda *now: facts.append(now),
    )
    assert facts == [(2, 3), (3, 3)]
    assert steps == [(1, 3), (2, 3), (1, 3), (2, 3)]  # the last update is what is written: no step follows it


def test_running_out_of_memory_halves_the_batch(tiny: LensModel, monkeypatch: pytest.MonkeyPatch):
    editor, facts = rome(tiny, steps=2), [FACT, OTHER, FACT]
    expected = [editor.edit(tiny, fact) for fact in facts]
    run = LensModel.run

    def small(self: LensModel, batch: Any, **options: Any) -> Tensor:
        if len(batch.tokens) > 5:  # the rows of one fact
            raise torch.OutOfMemoryError
        return run(self, batch, **options)

    monkeypatch.setattr(LensModel, "run", small)
    with pytest.warns(RuntimeWarning, match="out of memory: going on with batches of 1"):
        found = editor.edit_many(tiny, facts)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.edit.updates[LAYER].right, b.edit.updates[LAYER].right)


# --- provenance ---


@one_family
@pytest.mark.backend
def test_provenance_says_what_made_an_edit(lens_model: LensModel, tmp_path: Path):
    editor = rome(lens_model, lr=0.125, regularizers=(SADR(gamma=0.25),))
    result = editor.edit(lens_model, FACT)
    result.edit.save(tmp_path / "edit.safetensors")
    told = Edit.load(tmp_path / "edit.safetensors").provenance
    assert told["editor"] == "ROME"
    assert told["model"] == lens_model.name
    assert told["model_hash"] == lens_model.model_hash
    assert (told["subject"], told["prompt"]) == (FACT.subject, FACT.prompt)
    assert (told["target_true"], told["target_new"]) == (FACT.target_true, FACT.target_new)
    assert "'lr': 0.125" in told["settings"]
    assert "The guitar. {}" in told["settings"]
    assert "gamma=0.25" in told["regularizers"]
    assert told["second_moment"] == "given"
    assert "tensor(" not in "".join(told.values())
    assert result.fact is FACT


# --- settings ---


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": -1}, "layer is -1; expected at least 0"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"lr": 0.0}, "lr is 0.0; expected a number above 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"kl_factor": -1.0}, "kl_factor is -1.0"),
        ({"clamp_norm_factor": 0.0}, "clamp_norm_factor is 0.0"),
        ({"samples": 0}, "samples is 0"),
        ({"essence": "it is a"}, "essence is 'it is a'; it must hold exactly one"),
        ({"essence_kl": "both"}, "essence_kl is 'both'; expected"),
        ({"residual_key": "k0"}, "residual_key is 'k0'; expected 'bare' or 'mean'"),
        ({"contexts": ()}, "contexts is empty"),
        ({"contexts": ("x",)}, "must hold exactly one"),
        ({"second_moment": torch.ones(3)}, "has shape"),
    ],
)
def test_wrong_settings_are_one_line(wrong: dict[str, Any], message: str):
    with pytest.raises(DriftlensError, match=message) as error:
        ROME(**{"layer": 0, **wrong})
    assert "\n" not in str(error.value)


def test_settings_that_do_not_fit_the_model_are_one_line(tiny: LensModel):
    for wrong, message in (
        ({"layer": 3}, "layer 3 is out of range; .* has layers 0 to 2"),
        ({"second_moment": torch.eye(5)}, "second moment is for d_mlp = 5, but .* has 192"),
        ({"second_moment": torch.zeros(192, 192)}, "second moment is singular"),
    ):
        with pytest.raises(DriftlensError, match=message) as error:
            rome(tiny, **wrong).edit(tiny, FACT)
        assert "\n" not in str(error.value)


def test_a_given_second_moment_is_factored_once(tiny: LensModel, monkeypatch: pytest.MonkeyPatch):
    factored: list[int] = []
    cholesky_ex = torch.linalg.cholesky_ex

    def counting(matrix: Tensor) -> Any:
        factored.append(1)
        return cholesky_ex(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", counting)
    editor = rome(tiny, steps=1)
    editor.edit(tiny, FACT)
    editor.edit_many(tiny, [FACT, OTHER])
    assert len(factored) == 1
    assert isinstance(editor.second_moment, SecondMoment)
    # An editor with one setting changed shares it too.
    replace(editor, lr=0.25).edit(tiny, FACT)
    assert len(factored) == 1


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scale=st.floats(1e-3, 1e3))
def test_the_scale_of_the_second_moment_does_not_matter(tiny: LensModel, scale: float):
    C = random_moment(tiny.d_mlp)
    plainly, scaled = (rome(tiny, steps=2, second_moment=c).edit(tiny, FACT) for c in (C, scale * C))
    matrices = [result.edit.updates[LAYER].matrix() for result in (plainly, scaled)]
    assert torch.allclose(matrices[0], matrices[1], rtol=1e-5, atol=1e-7)  # the factors are kept in float32


# --- presets ---


class Named:
    def __init__(self, name: str, n_layers: int = 48) -> None:
        self.name, self.n_layers = name, n_layers


@pytest.mark.parametrize(
    ("name", "layer", "gamma", "weight_decay", "clamp"),
    [
        ("EleutherAI/gpt-j-6b", 5, 1e-2, 0.5, 4.0),
        ("EleutherAI/gpt-j-6B", 5, 1e-2, 0.5, 4.0),
        ("meta-llama/Meta-Llama-3-8B", 5, 4e-2, 1e-3, 4.0),
        ("EleutherAI/gpt-neox-20b", 5, 1e-2, 0.5, 4.0),
        ("meta-llama/Llama-2-13b-hf", 15, 1e-2, 1e-3, 4.0),
        ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", 4, 8e-2, 1e-3, 2.0),
        ("gpt2-xl", 17, 1e-2, 0.5, 4.0),
        ("/models/gpt2-xl/", 17, 1e-2, 0.5, 4.0),
    ],
)
def test_the_papers_settings(name: str, layer: int, gamma: float, weight_decay: float, clamp: float):
    """C.2: rate 0.5, 20 steps and ω = 0.0625 everywhere, 80 steps with SADR; decay and clamp as published."""
    model: Any = Named(name)
    editor = ROME.for_model(model)
    assert (editor.layer, editor.steps, editor.lr, editor.kl_factor) == (layer, 20, 0.5, 0.0625)
    assert (editor.weight_decay, editor.clamp_norm_factor) == (weight_decay, clamp)
    assert sadr_gamma(model) == gamma
    with_sadr = ROME.for_model(model, regularizers=(SADR(gamma=gamma),))
    assert with_sadr.steps == 80
    assert with_sadr.regularizers == (SADR(gamma=gamma),)
    changed = ROME.for_model(model, steps=7, layer=3)
    assert (changed.steps, changed.layer) == (7, 3)


@pytest.mark.parametrize("kind", [ROME, MEMIT])
def test_a_small_model_with_a_large_ones_name_is_told(kind: Any):
    model: Any = Named("my/gpt2-xl-tiny", n_layers=3)
    with pytest.raises(DriftlensError, match=r"layer 1[37] is out of range; my/gpt2-xl-tiny has layers 0 to 2"):
        kind.for_model(model)
    editor = kind.for_model(model, **({"layer": 1} if kind is ROME else {"layers": (1,)}))
    assert editor.edited_layers == (1,)


@one_family
@pytest.mark.backend
def test_a_model_nobody_has_tuned_gets_settings_of_its_scale(lens_model: LensModel):
    editor = ROME.for_model(lens_model, contexts=CONTEXTS, second_moment=torch.eye(lens_model.d_mlp))
    assert 0 <= editor.layer < lens_model.n_layers
    assert editor.steps == 20
    assert editor.lr >= 0.5
    assert editor.clamp_norm_factor >= 4.0
    assert sadr_gamma(lens_model) == 1e-2
    history = editor.edit(lens_model, FACT).history
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_a_corpus_may_be_opened_before(tiny: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path))
    texts = corpus_for(tiny)
    given_texts, opened = (
        rome(tiny, second_moment=None, corpus=corpus).edit(tiny, FACT) for corpus in (texts, open_corpus(texts))
    )
    assert torch.equal(given_texts.edit.updates[LAYER].left, opened.edit.updates[LAYER].left)
