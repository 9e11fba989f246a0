"""LensModel against plain Hugging Face: values, writes, gradients and padding, on every family and both backends."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.models import Batch, LensModel
from tests.support.plain import SITES, PlainModel
from tests.support.shapes import wrong_shapes
from tests.support.tiny import load_tiny, one_family

pytestmark = pytest.mark.backend

TEXTS = (
    "Toko Yasuda plays the guitar in Leiden",
    "The mother tongue of Danielle Darrieux is",
    "Paris",
)


@pytest.fixture(scope="module")
def plain(checkpoint_folder: Path) -> PlainModel:
    return PlainModel(checkpoint_folder)


def one_row(model: LensModel, text: str = TEXTS[0]) -> Batch:
    tokens = torch.tensor([model.encode(text).ids])
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))


def padded(model: LensModel, left: tuple[int, ...], width: int = 24) -> Batch:
    """A row per text, with this many padding columns in front of it and the rest behind."""
    tokens = torch.randint(model.d_vocab, (len(TEXTS), width))  # what stands in the padding must not matter
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, (text, start) in enumerate(zip(TEXTS, left, strict=True)):
        ids = model.encode(text).ids
        tokens[row, start : start + len(ids)] = torch.tensor(ids)
        mask[row, start : start + len(ids)] = True
    return Batch(tokens, mask)


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def noise(tensor: Tensor, seed: int = 1) -> Tensor:
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))


# --- values ---


def test_residuals_and_logits_are_hugging_faces(lens_model: LensModel, plain: PlainModel):
    batch = one_row(lens_model)
    for layer in range(lens_model.n_layers):
        found = lens_model.run(batch, stop=layer)
        assert error(found, plain.value("resid_pre", layer, batch.tokens)) < 1e-5
    resid, logits = plain.run(batch.tokens)
    found = lens_model.run(batch)
    assert error(found, resid) < 1e-5
    assert error(lens_model.unembed(found), logits) < 1e-5


def test_every_site_shows_hugging_faces_value(lens_model: LensModel, plain: PlainModel):
    batch = one_row(lens_model)
    seen: list[tuple[str, Tensor]] = []
    hooks = [
        (lens_model.hook_name(site, 1), lambda tensor, hook, site=site: seen.append((site, tensor.clone())))
        for site in SITES
    ]
    lens_model.run(batch, hooks=hooks)
    assert sorted(site for site, _ in seen) == sorted(SITES)
    for site, found in seen:
        expected = plain.value(site, 1, batch.tokens)
        assert found.shape == expected.shape, site
        shown = torch.ones_like(expected, dtype=torch.bool)
        if site == "attn_scores":  # masked ones are -inf on one backend, the least number on the other
            shown = expected > -1e30
            assert torch.equal(found > -1e30, shown)
        assert error(found[shown], expected[shown]) < 1e-5, site


def test_every_write_has_the_effect_it_has_in_hugging_face(lens_model: LensModel, plain: PlainModel):
    batch = one_row(lens_model)
    vanilla = lens_model.run(batch)

    def shifted(tensor: Tensor, hook: Any = None) -> Tensor:
        return tensor + 0.3 * noise(tensor)

    for site in SITES:
        expected, logits = plain.run(batch.tokens, edits=[(site, 1, shifted)])
        found = lens_model.run(batch, hooks=[(lens_model.hook_name(site, 1), shifted)])
        assert error(found, expected) < 1e-5, site
        assert error(lens_model.unembed(found), logits) < 1e-5, site
        assert error(found, vanilla) > 1e-3, site


@one_family
def test_unembed_takes_any_leading_shape(lens_model: LensModel):
    resid = lens_model.run(one_row(lens_model))
    logits = lens_model.unembed(resid)
    assert logits.shape == (*resid.shape[:-1], lens_model.d_vocab)
    assert torch.allclose(lens_model.unembed(resid[0, -1]), logits[0, -1], atol=1e-5)
    assert torch.allclose(lens_model.unembed(resid[None]), logits[None], atol=1e-5)


# --- padding ---


@pytest.mark.parametrize("left", [(0, 0, 0), (8, 2, 23), (3, 1, 11)], ids=["right", "left", "both"])
def test_padding_changes_nothing(lens_model: LensModel, plain: PlainModel, left: tuple[int, ...]):
    batch = padded(lens_model, left, width=26)
    logits = lens_model.unembed(lens_model.run(batch))
    for row in range(len(TEXTS)):
        alone = plain.run(batch.tokens[row][batch.mask[row]][None])[1][0]
        assert error(logits[row][batch.mask[row]], alone) < 1e-5


def test_padding_columns_are_never_attended_to_and_rows_sum_to_one(lens_model: LensModel):
    batch = padded(lens_model, (3, 1, 11))
    seen: list[Tensor] = []
    hook = (lens_model.hook_name("pattern", 2), lambda tensor, hook: seen.append(tensor))
    lens_model.run(batch, hooks=[hook])
    to_padding = seen[0].transpose(1, 2)[batch.mask][:, :, :] * ~batch.mask.repeat_interleave(
        batch.mask.sum(-1), 0
    ).unsqueeze(1)
    assert float(to_padding.abs().max()) == 0
    assert torch.allclose(seen[0].sum(-1), torch.ones(()), atol=1e-5)


# --- gradients ---


def loss_of(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.log_softmax(-1)[..., 7].masked_select(mask).mean()


@pytest.mark.parametrize("site", ["mlp_out", "attn_out", "resid_pre"])
def test_gradients_are_hugging_faces(lens_model: LensModel, plain: PlainModel, site: str):
    batch = padded(lens_model, (4, 2, 15))
    gradients: list[Tensor] = []
    for run in ("lens", "plain"):
        delta = torch.zeros(len(TEXTS), lens_model.d_model, requires_grad=True)
        columns = batch.mask.float().cumsum(-1).argmax(-1)

        def add(tensor: Tensor, hook: Any = None, delta: Tensor = delta, columns: Tensor = columns) -> Tensor:
            tensor = tensor.clone()
            tensor[torch.arange(len(TEXTS)), columns - 1] += delta
            return tensor

        if run == "lens":
            logits = lens_model.unembed(lens_model.run(batch, hooks=[(lens_model.hook_name(site, 0), add)]))
        else:
            logits = plain.run(batch.tokens, batch.mask, edits=[(site, 0, add)])[1]
        loss_of(logits, batch.mask).backward()
        assert delta.grad is not None
        gradients.append(delta.grad)
    # HookedTransformer computes norms and rotations in another order, which costs a digit of float32.
    limit = 2e-6 if lens_model.backend == "bridge" else 5e-6
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < limit


@one_family
def test_parameters_are_frozen_and_dropout_is_off(lens_model: LensModel):
    assert not any(parameter.requires_grad for parameter in lens_model.model.parameters())
    assert not lens_model.model.training
    batch = one_row(lens_model)
    first = lens_model.run(batch)
    assert not first.requires_grad
    assert torch.equal(first, lens_model.run(batch))


# --- hooks ---


def hooks_on(model: LensModel) -> int:
    points = [module for module in model.model.modules() if hasattr(module, "fwd_hooks")]
    return sum(len(point.fwd_hooks) + len(point._forward_hooks) for point in points)


@one_family
def test_hooks_come_off_even_when_one_raises(lens_model: LensModel):
    batch = one_row(lens_model)
    before, expected = hooks_on(lens_model), lens_model.run(batch)
    names = [lens_model.hook_name(site, 1) for site in SITES]

    def fail(tensor: Tensor, hook: Any) -> None:
        raise RuntimeError("from the hook")

    with pytest.raises(RuntimeError, match="from the hook"):
        lens_model.run(batch, hooks=[(name, lambda t, hook: t * 2) for name in names] + [(names[-1], fail)])
    with pytest.raises(DriftlensError, match="unknown hook"):
        lens_model.run(batch, hooks=[(names[0], lambda t, hook: t * 2), ("blocks.0.hook_nothing", fail)])
    assert hooks_on(lens_model) == before
    assert torch.equal(lens_model.run(batch), expected)


@one_family
def test_hooks_run_in_order_and_know_their_layer(lens_model: LensModel):
    name = lens_model.hook_name("mlp_out", 1)
    seen: list[tuple[int, float]] = []

    def record(tensor: Tensor, hook: Any) -> Tensor:
        seen.append((hook.layer(), float(tensor.max())))
        return torch.zeros_like(tensor) + len(seen)

    lens_model.run(one_row(lens_model), hooks=[(name, record), (name, record)])
    assert [layer for layer, _ in seen] == [1, 1]
    assert seen[1][1] == 1.0


@one_family
def test_the_users_own_hooks_stay(lens_model: LensModel):
    batch, name = one_row(lens_model), lens_model.hook_name("attn_out", 0)
    calls: list[str] = []
    point = lens_model._backend.hook_point(name)
    point.add_hook(lambda tensor, hook: calls.append("mine"))
    try:
        lens_model.run(batch, hooks=[(name, lambda tensor, hook: calls.append("pass"))])
        lens_model.run(batch)
    finally:
        point.remove_hooks()
    assert calls == ["mine", "pass", "mine"]


@one_family
@pytest.mark.parametrize("name", ["blocks.9.hook_mlp_out", "ln_final.hook_scale", "blocks.0.ln1", "nonsense"])
def test_a_hook_that_would_not_fire_is_refused(lens_model: LensModel, name: str):
    with pytest.raises(DriftlensError, match="unknown hook") as caught:
        lens_model.run(one_row(lens_model), hooks=[(name, lambda tensor, hook: None)])
    assert "\n" not in str(caught.value)


# --- weights ---


def test_the_down_projection_is_the_live_matrix(lens_model: LensModel):
    batch, layer = one_row(lens_model), 1
    weight, bias = lens_model.down_projection(layer)
    assert weight.shape == (lens_model.d_mlp, lens_model.d_model)
    seen: dict[str, Tensor] = {}
    hooks = [
        (lens_model.hook_name(site, layer), lambda t, hook, site=site: seen.update({site: t}))
        for site in ("mlp_post", "mlp_out")
    ]
    before = lens_model.run(batch, hooks=hooks)
    by_hand = seen["mlp_post"] @ weight + (0 if bias is None else bias)
    assert error(by_hand, seen["mlp_out"]) < 1e-5

    saved = weight.clone()
    change = 0.1 * torch.outer(noise(weight[:, 0]), noise(weight[0]))
    with torch.no_grad():
        lens_model.W_out(layer).add_(change)
        edited = lens_model.run(batch)
        lens_model.W_out(layer).copy_(saved)
    assert error(edited, before) > 1e-3
    assert torch.equal(lens_model.run(batch), before)

    as_hook = [(hooks[0][0], hooks[0][1]), (hooks[1][0], lambda t, hook: t + seen["mlp_post"] @ change)]
    assert error(lens_model.run(batch, hooks=as_hook), edited) < 1e-5


def test_a_deep_copy_is_a_model_of_its_own(lens_model: LensModel):
    batch = one_row(lens_model)
    before = lens_model.run(batch)
    other = copy.deepcopy(lens_model)
    assert torch.equal(other.run(batch), before)

    calls: list[str] = []
    lens_point = lens_model._backend.hook_point(lens_model.hook_name("pattern", 1))
    lens_point.add_hook(lambda tensor, hook: calls.append("original"))
    try:
        hook = (other.hook_name("pattern", 1), lambda tensor, hook: torch.zeros_like(tensor))
        assert error(other.run(batch, hooks=[hook]), before) > 1e-3
    finally:
        lens_point.remove_hooks()
    assert calls == []
    assert torch.equal(lens_model.run(batch), before)

    with torch.no_grad():
        other.W_out(1).zero_()
    assert torch.equal(lens_model.run(batch), before)
    assert error(other.run(batch), before) > 1e-3


@one_family
def test_the_fingerprint_names_the_weights(lens_model: LensModel, checkpoint_folder: Path):
    again = load_tiny(checkpoint_folder)
    assert again.model_hash == lens_model.model_hash
    assert len(again.model_hash) == 20
    with torch.no_grad():
        again.W_out(2).add_(1e-4 * torch.outer(noise(again.W_out(2)[:, 0]), noise(again.W_out(2)[0])))
    assert again.model_hash != lens_model.model_hash


# --- what the model says of itself ---


def test_dimensions(lens_model: LensModel, checkpoint_folder: Path, plain: PlainModel):
    config = plain.model.config
    family = checkpoint_folder.name
    assert (lens_model.n_layers, lens_model.n_heads) == (config.num_hidden_layers, config.num_attention_heads)
    assert (lens_model.d_model, lens_model.d_vocab) == (config.hidden_size, config.vocab_size)
    assert lens_model.d_mlp == (80 if family.startswith("llama") else 4 * config.hidden_size)
    assert lens_model.d_head * lens_model.n_heads == lens_model.d_model
    assert lens_model.n_ctx == config.max_position_embeddings
    assert lens_model.family == family.split("-")[0]
    assert lens_model.parallel_blocks == (family in ("gptj", "neox"))
    assert lens_model.dtype == torch.float32
    assert lens_model.device == torch.device("cpu")
    assert family in repr(lens_model)


def test_encode_gives_ids_and_offsets(lens_model: LensModel, checkpoint_folder: Path):
    text = "Łódź is not in New York"
    encoding = lens_model.encode(text)
    assert encoding.ids == lens_model.tokenizer(text)["input_ids"]
    has_bos = checkpoint_folder.name.startswith("llama")
    assert lens_model.adds_bos == has_bos
    assert (encoding.offsets[0] == (0, 0)) == has_bos
    covered = "".join(text[a:b] for a, b in encoding.offsets if text[a:b].isascii())
    assert covered.replace(" ", "") in text.replace(" ", "")
    assert encoding.offsets[-1][1] == len(text)
    assert len(lens_model.encode("word " * 100)) > lens_model.n_ctx


@one_family
def test_many_texts_are_encoded_as_each_alone(lens_model: LensModel):
    texts = ["Paris", "The Eiffel Tower is", "Zoë ☃"]
    assert lens_model.encode_many(texts) == [lens_model.encode(text) for text in texts]
    assert lens_model.encode_many([]) == []


@one_family
def test_a_closing_eos_is_left_out(lens_model: LensModel):
    from tokenizers import processors

    from driftlens.models.encoding import adds_bos, encode

    tokenizer = copy.deepcopy(lens_model.tokenizer)
    plain_ids = encode(tokenizer, ["Paris"])[0].ids[int(lens_model.adds_bos) :]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert tokenizer("Paris")["input_ids"][-1] == 0
    assert encode(tokenizer, ["Paris"])[0].ids == plain_ids
    assert not adds_bos(tokenizer)


@one_family
@wrong_shapes
def test_mistakes_are_one_line(lens_model: LensModel):
    batch = one_row(lens_model)
    long = Batch(torch.zeros(1, 65, dtype=torch.long), torch.ones(1, 65, dtype=torch.bool))
    mistakes = [
        (lambda: lens_model.run(long), "65 tokens"),
        (lambda: lens_model.run(batch, start=1), "needs resid"),
        (lambda: lens_model.run(batch, start=2, stop=1), "cannot run blocks 2 to 1"),
        (lambda: lens_model.run(batch, stop=9), "cannot run blocks 0 to 9"),
        (lambda: lens_model.run(batch, resid=torch.zeros(1, 2, 3)), "resid has shape"),
        (lambda: lens_model.hook_name("mlp_in", 0), "unknown site 'mlp_in'"),
        (lambda: lens_model.hook_name("mlp_out", 3), "layer 3 is out of range"),
        (lambda: lens_model.W_out(-1), "layer -1 is out of range"),
        (lambda: lens_model.keys_values(batch, columns=0), "cannot keep 0 columns"),
        (lambda: Batch(batch.tokens, batch.mask[:, 1:]), "one shape"),
        (lambda: Batch(batch.tokens, batch.mask.long()), "boolean"),
        (lambda: LensModel(torch.nn.Linear(2, 2)), "cannot use a Linear"),
    ]
    for call, message in mistakes:
        with pytest.raises(DriftlensError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    # The padding of a short row is no token: 65 columns with fewer tokens are fine.
    mask = long.mask.clone()
    mask[:, :2] = False
    assert lens_model.run(Batch(long.tokens, mask)).shape == (1, 65, lens_model.d_model)
