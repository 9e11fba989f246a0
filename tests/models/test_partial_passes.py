"""Parts of a pass are the whole pass: other first and last blocks, a reused prefix, forward and backward."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.models import Batch, LensModel
from driftlens.models.prompts import branched, pad_rows
from tests.support.tiny import one_family

pytestmark = pytest.mark.backend

PREFIXES = ("The Eiffel Tower is located in", "Danielle Darrieux", "Toko Yasuda plays the")
SUFFIXES = (" Paris, and", " speaks French", " guitar")


def rows(model: LensModel, texts: tuple[str, ...], *, left: bool, bos: bool = True) -> Batch:
    """A row per text, padded on the left or on the right."""
    ids = [model.encode(text).ids[0 if bos else int(model.adds_bos) :] for text in texts]
    width = max(map(len, ids))
    tokens = torch.full((len(ids), width), 5)
    mask = torch.zeros(len(ids), width, dtype=torch.bool)
    for row, row_ids in enumerate(ids):
        at = width - len(row_ids) if left else 0
        tokens[row, at : at + len(row_ids)] = torch.tensor(row_ids)
        mask[row, at : at + len(row_ids)] = True
    return Batch(tokens, mask)


def joined(first: Batch, second: Batch) -> Batch:
    return Batch(torch.cat([first.tokens, second.tokens], 1), torch.cat([first.mask, second.mask], 1))


@pytest.fixture
def prefix(lens_model: LensModel) -> Batch:
    return rows(lens_model, PREFIXES, left=True)


@pytest.fixture
def suffix(lens_model: LensModel) -> Batch:
    return rows(lens_model, SUFFIXES, left=False, bos=False)


def error(found: Tensor, expected: Tensor, mask: Tensor) -> float:
    return float((found - expected)[mask].abs().max() / expected[mask].abs().max())


@contextmanager
def refusing(*modules: Any) -> Iterator[None]:
    """Let none of these modules be called."""

    def refuse(module: Any, args: Any) -> None:
        raise AssertionError(f"{type(module).__name__} was called")

    handles = [module.register_forward_pre_hook(refuse) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_a_pass_can_be_cut_at_any_layer(lens_model: LensModel, prefix: Batch):
    whole = lens_model.run(prefix)
    for layer in range(lens_model.n_layers + 1):
        below = lens_model.run(prefix, stop=layer)
        assert torch.equal(lens_model.run(prefix, start=layer, resid=below), whole), layer


@one_family
def test_only_the_blocks_asked_for_are_run(lens_model: LensModel, prefix: Batch):
    model, wanted = lens_model.model, 1
    others = [block.mlp for layer, block in enumerate(model.blocks) if layer != wanted]
    below = lens_model.run(prefix, stop=wanted)
    with refusing(model.embed, model.ln_final, model.unembed, *others):
        lens_model.run(prefix, start=wanted, stop=wanted + 1, resid=below)
    with refusing(model.ln_final, model.unembed):
        lens_model.run(prefix)


@one_family
def test_hooks_outside_the_pass_do_not_fire(lens_model: LensModel, prefix: Batch):
    fired: list[int] = []
    hooks = [
        (lens_model.hook_name("mlp_out", layer), lambda tensor, hook: fired.append(hook.layer()))
        for layer in range(lens_model.n_layers)
    ]
    below = lens_model.run(prefix, stop=1)
    lens_model.run(prefix, start=1, resid=below, hooks=hooks)
    assert fired == [1, 2]


@one_family
def test_resid_pre_of_the_first_block_can_be_written(lens_model: LensModel, prefix: Batch):
    below = lens_model.run(prefix, stop=1)
    hook = (lens_model.hook_name("resid_pre", 1), lambda tensor, hook: tensor * 0.5)
    halved = lens_model.run(prefix, start=1, resid=0.5 * below)
    assert torch.equal(lens_model.run(prefix, start=1, resid=below, hooks=[hook]), halved)


def test_a_suffix_behind_a_prefix_is_the_whole_pass(lens_model: LensModel, prefix: Batch, suffix: Batch):
    whole_batch = joined(prefix, suffix)
    whole = lens_model.run(whole_batch)
    columns = prefix.shape[1]
    resid, past = lens_model.keys_values(whole_batch, columns=columns)
    assert torch.equal(resid, whole)
    expected, mask = whole[:, columns:], suffix.mask
    first = lens_model.run(suffix, past=past)
    assert error(first, expected, mask) < 1e-5
    # A prefix is not used up by a pass.
    assert torch.equal(lens_model.run(suffix, past=past), first)
    # It depends on nothing behind it.
    alone = lens_model.keys_values(prefix, columns=columns)[1]
    assert error(lens_model.run(suffix, past=alone), expected, mask) < 1e-5


def test_a_suffix_equals_the_row_on_its_own(lens_model: LensModel, prefix: Batch, suffix: Batch):
    past = lens_model.keys_values(prefix, columns=prefix.shape[1])[1]
    found = lens_model.run(suffix, past=past)
    for row in range(len(PREFIXES)):
        ids = torch.cat([prefix.tokens[row][prefix.mask[row]], suffix.tokens[row][suffix.mask[row]]])
        alone = lens_model.run(Batch(ids[None], torch.ones_like(ids[None], dtype=torch.bool)))[0]
        count = int(suffix.mask[row].sum())
        assert error(found[row, :count], alone[-count:], torch.ones(count, dtype=torch.bool)) < 1e-5


def test_a_prefix_can_grow(lens_model: LensModel, prefix: Batch, suffix: Batch):
    more = rows(lens_model, (" by", " is an", ""), left=True, bos=False)
    past = lens_model.keys_values(prefix, columns=prefix.shape[1])[1]
    resid, grown = lens_model.keys_values(more, past=past, columns=more.shape[1])
    both = joined(prefix, more)
    assert error(resid, lens_model.run(both)[:, prefix.shape[1] :], more.mask) < 1e-5
    assert torch.equal(grown.mask, both.mask)
    at_once = lens_model.keys_values(both, columns=both.shape[1])[1]
    found, expected = (lens_model.run(suffix, past=kept) for kept in (grown, at_once))
    assert error(found, expected, suffix.mask) < 1e-5


@one_family
def test_rows_of_a_prefix_can_be_repeated(lens_model: LensModel, prefix: Batch, suffix: Batch):
    past = lens_model.keys_values(prefix, columns=prefix.shape[1])[1]
    chosen = torch.tensor([2, 0, 0, 1])
    many = Batch(suffix.tokens[chosen], suffix.mask[chosen])
    found = lens_model.run(many, past=past.select(chosen))
    once = lens_model.run(suffix, past=past)[chosen]
    assert error(found, once, many.mask) < 1e-5


def test_a_prefix_kept_from_a_layer_on_serves_passes_from_there(lens_model: LensModel, prefix: Batch, suffix: Batch):
    batch, columns = joined(prefix, suffix), prefix.shape[1]
    below = lens_model.run(batch, stop=1)
    whole, past = lens_model.keys_values(batch, start=1, resid=below, columns=columns)
    found = lens_model.run(suffix, start=1, resid=below[:, columns:], past=past)
    assert error(found, whole[:, columns:], suffix.mask) < 1e-5
    with pytest.raises(DriftlensError, match="no keys and values of layer 0"):
        lens_model.run(suffix, past=past)
    with pytest.raises(DriftlensError, match="3 rows and the batch 2"):
        lens_model.run(Batch(suffix.tokens[:2], suffix.mask[:2]), past=past)


@pytest.mark.parametrize("site", ["mlp_out", "pattern", "attn_scores", "z"])
def test_hooks_act_on_a_suffix_as_on_the_whole(lens_model: LensModel, prefix: Batch, suffix: Batch, site: str):
    batch, columns = joined(prefix, suffix), prefix.shape[1]
    by_query = site in ("pattern", "attn_scores")
    seen: list[Tensor] = []

    def scale(tensor: Tensor, hook: Any) -> Tensor:
        tensor = tensor.clone()
        seen.append(tensor)
        tail = tensor[:, :, -suffix.shape[1] :] if by_query else tensor[:, -suffix.shape[1] :]
        tail *= torch.linspace(0.5, 1.5, tail.shape[-1])  # one factor for all would be lost in a norm behind it
        return tensor

    hook = (lens_model.hook_name(site, 1), scale)
    whole = lens_model.run(batch, hooks=[hook])
    past = lens_model.keys_values(prefix, columns=columns)[1]
    found = lens_model.run(suffix, past=past, hooks=[hook])
    assert error(found, whole[:, columns:], suffix.mask) < 1e-5
    assert error(found, lens_model.run(suffix, past=past), suffix.mask) > 1e-3
    if by_query:
        assert seen[1].shape[2:] == (suffix.shape[1], batch.shape[1])


def test_gradients_through_a_suffix_are_those_of_the_whole(lens_model: LensModel, prefix: Batch, suffix: Batch):
    batch, columns = joined(prefix, suffix), prefix.shape[1]
    past = lens_model.keys_values(prefix, columns=columns)[1]
    gradients: list[Tensor] = []
    for part in (batch, suffix):
        delta = torch.zeros(len(PREFIXES), lens_model.d_model, requires_grad=True)

        def add(tensor: Tensor, hook: Any, delta: Tensor = delta) -> Tensor:
            tensor = tensor.clone()
            tensor[:, -suffix.shape[1]] += delta
            return tensor

        hook = (lens_model.hook_name("mlp_out", 1), add)
        resid = lens_model.run(part, hooks=[hook], past=past if part is suffix else None)
        logits = lens_model.unembed(resid[:, -suffix.shape[1] :])
        logits.log_softmax(-1)[..., 9].masked_select(suffix.mask).sum().backward()
        assert delta.grad is not None
        gradients.append(delta.grad)
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 5e-6


@one_family
def test_gradients_reach_a_given_residual(lens_model: LensModel, prefix: Batch):
    below = lens_model.run(prefix, stop=2).requires_grad_()
    lens_model.run(prefix, start=2, resid=below)[prefix.mask].square().sum().backward()
    assert below.grad is not None
    assert bool(below.grad.isfinite().all())
    assert float(below.grad[~prefix.mask].abs().max()) == 0  # no real token sees the padding


@pytest.fixture
def free_passes(lens_model: LensModel) -> Iterator[None]:
    """Passes that cost nothing besides their tokens, so that a small batch is treated as a large one."""
    estimate, lens_model.pass_cost = lens_model.pass_cost, 0
    yield
    lens_model.pass_cost = estimate


@pytest.mark.usefixtures("free_passes")
@pytest.mark.parametrize("read", [[[0], [1], [2]], [[2, 0], [1, 1], [0, 2]]], ids=["one", "two"])
def test_columns_that_are_read_alone_are_those_of_the_whole(
    lens_model: LensModel, prefix: Batch, suffix: Batch, read: list[list[int]]
):
    at = torch.tensor(read)
    past = lens_model.keys_values(prefix, columns=prefix.shape[1])[1]
    whole = lens_model.run(suffix, past=past)
    found = lens_model.run(suffix, past=past, read=at)
    expected = torch.stack([whole[row, own] for row, own in enumerate(read)])
    real = suffix.mask.gather(1, at)
    assert error(found, expected, real) < 1e-5
    resid, grown = lens_model.keys_values(suffix, columns=suffix.shape[1], past=past, read=at)
    assert torch.equal(resid, found)
    expected_past = lens_model.keys_values(suffix, columns=suffix.shape[1], past=past)[1]
    for kept in (grown, lens_model.prefix(suffix, columns=suffix.shape[1], past=past)):
        assert torch.equal(kept.mask, expected_past.mask)
        for of, other in ((kept.keys, expected_past.keys), (kept.values, expected_past.values)):
            assert all(torch.equal(of[layer], other[layer]) for layer in range(lens_model.n_layers))


@pytest.mark.usefixtures("free_passes")
def test_gradients_from_columns_that_are_read_alone(lens_model: LensModel, prefix: Batch):
    below = lens_model.run(prefix, stop=1)
    at = torch.full((len(PREFIXES), 1), prefix.shape[1] - 1)
    gradients: list[Tensor] = []
    for read in (None, at):
        resid = below.clone().requires_grad_()
        last = lens_model.run(prefix, start=1, resid=resid, read=read)[:, -1]
        gradients.append(torch.autograd.grad(lens_model.unembed(last).log_softmax(-1)[:, 9].sum(), resid)[0])
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 5e-6


@pytest.mark.usefixtures("free_passes")
def test_the_last_block_computes_only_what_is_read(lens_model: LensModel, prefix: Batch):
    at = torch.full((len(PREFIXES), 1), prefix.shape[1] - 1)
    seen: list[tuple[int, ...]] = []
    handles = [
        block.mlp.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
        for block in lens_model.model.blocks
    ]
    try:
        lens_model.run(prefix, read=at)
        columns = [shape[-2] if len(shape) == 3 else shape[0] // len(PREFIXES) for shape in seen]
        by_hooks = lens_model.backend == "hooked"
        assert columns == [*[prefix.shape[1]] * (lens_model.n_layers - 1), prefix.shape[1] if by_hooks else 1]
        seen.clear()
        lens_model.prefix(prefix, columns=prefix.shape[1])
        assert len(seen) == lens_model.n_layers - (not by_hooks)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.usefixtures("free_passes")
def test_a_hook_on_the_last_block_sees_every_column(lens_model: LensModel, prefix: Batch):
    at = torch.full((len(PREFIXES), 1), prefix.shape[1] - 1)
    shapes: list[tuple[int, ...]] = []

    def halve(out: Tensor, hook: Any) -> Tensor:
        shapes.append(tuple(out.shape))
        return 0.5 * out

    hook = (lens_model.hook_name("mlp_out", lens_model.n_layers - 1), halve)
    found = lens_model.run(prefix, hooks=[hook], read=at)
    assert shapes == [(*prefix.shape, lens_model.d_model)]
    assert torch.equal(found, lens_model.run(prefix, hooks=[hook])[:, -1:])


CONTINUATIONS = ((" Paris", " the city of Rome"), (" French", " guitar and"), (" Rome and Paris", ""))


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "behind a prefix"])
def test_branches_are_rows_of_their_own(lens_model: LensModel, cut: bool):
    prompts = [lens_model.encode(text).ids for text in PREFIXES]
    ends = [[lens_model.encode(end).ids[int(lens_model.adds_bos) :] for end in own] for own in CONTINUATIONS]
    rows_ = [branched([prompt + end for end in own]) for prompt, own in zip(prompts, ends, strict=True)]
    assert any(min(row.until) < len(row.ids) for row in rows_)
    batch, _ = pad_rows(lens_model, [row.ids for row in rows_], until=[row.until for row in rows_])
    past, first = None, 0
    if cut:
        first = 2
        _, past = lens_model.keys_values(batch.take(slice(None), slice(0, first)), columns=first)
    found = lens_model.unembed(lens_model.run(batch.take(slice(None), slice(first, None)), past=past))
    for at, (prompt, own) in enumerate(zip(prompts, ends, strict=True)):
        for end, columns in zip(own, rows_[at].columns, strict=True):
            alone = Batch(torch.tensor([prompt + end]), torch.ones(1, len(prompt + end), dtype=torch.bool))
            expected = lens_model.unembed(lens_model.run(alone))[0, first:]
            # Float rounding: another shape of the same products.
            difference = (found[at, [column - first for column in columns[first:]]] - expected).abs().max()
            assert float(difference / expected.abs().max()) < 1e-5


def test_hooks_and_gradients_in_branches(lens_model: LensModel):
    row = branched([lens_model.encode(PREFIXES[0] + end).ids for end in CONTINUATIONS[0]])
    batch, _ = pad_rows(lens_model, [row.ids], until=[row.until])
    delta = torch.zeros(lens_model.d_model, requires_grad=True)

    def gradient(batch: Batch, columns: tuple[int, ...]) -> Tensor:
        hook = (lens_model.hook_name("mlp_out", 1), lambda out, hook=None: out + delta)
        loss = lens_model.unembed(lens_model.run(batch, hooks=[hook]))[0, list(columns)].square().mean()
        return torch.autograd.grad(loss, delta)[0]

    for columns in row.columns:
        tokens = batch.tokens[:, list(columns)]
        alone = gradient(Batch(tokens, torch.ones_like(tokens, dtype=torch.bool)), tuple(range(len(columns))))
        assert torch.allclose(gradient(batch, columns), alone, rtol=1e-4, atol=1e-6 * float(alone.abs().max()))


@one_family
def test_branches_count_for_the_context_one_by_one(lens_model: LensModel):
    trunk, end = [5] * (lens_model.n_ctx - 4), [7, 7, 7]
    row = branched([[*trunk, 6, *end], [*trunk, 8, *end]])
    assert len(row.ids) > lens_model.n_ctx
    batch, _ = pad_rows(lens_model, [row.ids], until=[row.until])
    assert batch.positions.max() == lens_model.n_ctx - 1
    lens_model.run(batch)
    longer = branched([[*trunk, 6, *end, 7], [*trunk, 8, *end]])
    batch, _ = pad_rows(lens_model, [longer.ids], until=[longer.until])
    with pytest.raises(DriftlensError, match=f"a row has {lens_model.n_ctx + 1} tokens"):
        lens_model.run(batch)


def test_branches_need_the_shape_of_the_tokens():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(DriftlensError, match=r"branches need the shape of its tokens, \(2, 3\), got \(2, 2\)"):
        Batch(tokens, tokens == 0, tokens[:, :2])
