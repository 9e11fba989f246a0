"""The hook functions: each against arithmetic on plain tensors, and in a model against plain Hugging Face."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from driftlens.hooks import (
    add_delta,
    apply_low_rank,
    detach_pattern,
    knock_out,
    patch_pattern,
    patch_pattern_row,
    patch_score,
    record,
    substitute,
)
from driftlens.models import Batch, LensModel
from tests.support.plain import PlainModel

ROWS = torch.tensor([0, 2])
COLUMNS = torch.tensor([3, 1])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- on tensors ---


def test_record_keeps_the_activation_or_what_is_picked_of_it():
    store: dict[str, Tensor] = {}
    activation = noise(2, 3, 4).requires_grad_()
    assert record(store, "all")(activation, hook=None) is None
    assert record(store, "some", lambda a: a[:, -1])(activation, hook=None) is None
    assert store["all"] is activation
    assert torch.equal(store["some"], activation[:, 2])
    assert store["some"].requires_grad


def test_substitute_touches_only_the_named_places():
    activation, replacement = noise(3, 5, 4), noise(2, 4, seed=1)
    before = activation.clone()
    changed: Any = substitute(replacement, ROWS, COLUMNS)(activation, hook=None)
    expected = before.clone()
    expected[0, 3], expected[2, 1] = replacement[0], replacement[1]
    assert torch.equal(changed, expected)
    assert torch.equal(activation, before)


def test_add_delta_adds_and_lets_the_gradient_through():
    activation, delta = noise(3, 5, 4), noise(2, 4, seed=1).requires_grad_()
    changed: Any = add_delta(delta, ROWS, COLUMNS)(activation, hook=None)
    expected = activation.clone()
    expected[0, 3] += delta[0].detach()
    expected[2, 1] += delta[1].detach()
    assert torch.equal(changed.detach(), expected)
    weights = noise(3, 5, 4, seed=2)
    (changed * weights).sum().backward()
    assert delta.grad is not None
    assert torch.equal(delta.grad, torch.stack([weights[0, 3], weights[2, 1]]))


def test_add_delta_twice_at_one_place_adds_twice():
    twice: Any = add_delta(torch.ones(2, 4), torch.tensor([0, 0]), torch.tensor([1, 1]))(
        torch.zeros(1, 2, 4), hook=None
    )
    assert torch.equal(twice[0], torch.tensor([[0.0] * 4, [2.0] * 4]))


@pytest.mark.parametrize("own", [True, False], ids=["an edit for each row", "one for all"])
def test_apply_low_rank_is_a_change_of_the_weight(own: bool):
    post, W = noise(3, 5, 6), noise(6, 4, seed=1)
    left, right = (noise(3, 6, 2, seed=2), noise(3, 2, 4, seed=3)) if own else (noise(6, 2), noise(2, 4))
    on_post, on_out = apply_low_rank(left, right)
    assert on_post(post, hook=None) is None
    out: Any = on_out(post @ W, hook=None)
    for row in range(3):
        changed = W + (left[row] @ right[row] if own else left @ right)
        assert torch.allclose(out[row], post[row] @ changed, atol=1e-5)


def test_apply_low_rank_in_half_precision_rounds_once():
    """A change too small for bf16 beside the output must survive until the sum is rounded."""
    post = noise(1, 2, 6).bfloat16()
    left, right = noise(6, 1), noise(1, 4) / 100
    on_post, on_out = apply_low_rank(left, right)
    on_post(post, hook=None)
    out = (100 * noise(1, 2, 4)).bfloat16()
    expected = (out.double() + (post.double() @ left.double()) @ right.double()).bfloat16()
    rounded: Any = on_out(out, hook=None)
    assert torch.equal(rounded, expected)


def test_patch_pattern_whole_rows():
    activation, pattern = noise(3, 2, 4, 4), noise(2, 2, 4, 4, seed=1)
    before = activation.clone()
    changed: Any = patch_pattern(pattern, ROWS)(activation, hook=None)
    assert torch.equal(changed, torch.stack([pattern[0], before[1], pattern[1]]))
    assert torch.equal(activation, before)
    everywhere: Any = patch_pattern(pattern[:1])(activation, hook=None)
    assert torch.equal(everywhere, pattern[:1].expand(3, 2, 4, 4))


def test_patch_pattern_row_changes_one_query_of_each_row():
    activation, weights = noise(3, 2, 5, 5), noise(2, 2, 5, seed=1)
    changed: Any = patch_pattern_row(weights, ROWS, COLUMNS)(activation, hook=None)
    expected = activation.clone()
    for i, (row, query) in enumerate([(0, 3), (2, 1)]):
        for head in range(2):
            expected[row, head, query] = weights[i, head]
    assert torch.equal(changed, expected)


def test_patch_score_changes_one_score_of_every_head_and_the_softmax_renormalises():
    activation, scores = noise(3, 2, 5, 5), noise(2, 2, seed=1)
    keys = torch.tensor([2, 0])
    changed: Any = patch_score(scores, ROWS, COLUMNS, keys)(activation, hook=None)
    expected = activation.clone()
    for i, (row, query, key) in enumerate([(0, 3, 2), (2, 1, 0)]):
        for head in range(2):
            expected[row, head, query, key] = scores[i, head]
    assert torch.equal(changed, expected)
    # Softmax by hand: the patched weight is exp(s) / Σ, and the others keep their proportions.
    weights, others = changed[0, 1, 3].exp(), torch.tensor([0, 1, 3, 4])
    assert torch.allclose(changed.softmax(-1)[0, 1, 3], weights / weights.sum())
    kept, vanilla = changed.softmax(-1)[0, 1, 3, others], activation.softmax(-1)[0, 1, 3, others]
    assert torch.allclose(kept / kept.sum(), vanilla / vanilla.sum())


@pytest.mark.parametrize("per_head", [True, False])
def test_knock_out_removes_the_token_and_renormalises(per_head: bool):
    """Attention with an edge closed is attention over the sequence without that key."""
    scores = noise(2, 3, 4, 4)
    edges = torch.zeros(2, 4, 4, dtype=torch.bool)
    edges[0, 3, 1] = edges[1, 2, 0] = True
    closed = edges.unsqueeze(1).repeat(1, 3, 1, 1) if per_head else edges
    if per_head:
        closed[:, 0] = False
    masked: Any = knock_out(closed)(scores, hook=None)
    pattern = masked.softmax(-1)
    for head in range(3):
        for row, query, key in ((0, 3, 1), (1, 2, 0)):
            if per_head and head == 0:
                assert torch.equal(pattern[row, head], scores.softmax(-1)[row, head])
                continue
            left = [k for k in range(4) if k != key]
            assert pattern[row, head, query, key] == 0
            assert torch.allclose(pattern[row, head, query, left], scores[row, head, query, left].softmax(-1))
    assert torch.equal(pattern[0, :, :3], scores.softmax(-1)[0, :, :3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_knock_out_of_every_edge_is_no_nan(dtype: torch.dtype):
    masked: Any = knock_out(torch.ones(1, 2, 2, dtype=torch.bool))(noise(1, 1, 2, 2).to(dtype), hook=None)
    assert torch.isfinite(masked.softmax(-1)).all()


def test_detach_pattern_leaves_the_value_and_cuts_the_gradient():
    pattern = noise(1, 2, 3, 3).requires_grad_()
    changed: Any = detach_pattern()(pattern, hook=None)
    assert torch.equal(changed, pattern)
    assert not changed.requires_grad


# --- in a model, on rows with different prompts, padding and positions ---

TEXTS = ("Toko Yasuda plays the guitar in Leiden", "The mother tongue of Danielle Darrieux is", "Paris is a")
LAYER = 1


@pytest.fixture(scope="module")
def plain(checkpoint_folder: Path) -> PlainModel:
    return PlainModel(checkpoint_folder)


class Rows:
    """The three texts as a batch with padding on either side, and each by itself for the reference."""

    def __init__(self, model: LensModel) -> None:
        self.model = model
        self.ids = [torch.tensor([model.encode(text).ids]) for text in TEXTS]
        self.shifts = [2, 0, 5]
        width = max(shift + ids.shape[1] for shift, ids in zip(self.shifts, self.ids, strict=True)) + 1
        tokens = torch.zeros(3, width, dtype=torch.long)
        mask = torch.zeros(3, width, dtype=torch.bool)
        for row, (shift, ids) in enumerate(zip(self.shifts, self.ids, strict=True)):
            tokens[row, shift : shift + ids.shape[1]] = ids[0]
            mask[row, shift : shift + ids.shape[1]] = True
        self.batch = Batch(tokens, mask)
        self.width = width

    def column(self, row: int, token: int) -> int:
        return self.shifts[row] + token % self.ids[row].shape[1]

    def final(self, hooks: list[Any]) -> list[Tensor]:
        """The last token's residual of every row, in one batched pass with hooks."""
        resid = self.model.run(self.batch, hooks=hooks)
        return [resid[row, self.column(row, -1)] for row in range(3)]

    def assert_equal(self, plain: PlainModel, hooks: list[Any], edits: Callable[[int], list[Any]]) -> None:
        """`edits(row)` is the same intervention on the row alone in plain Hugging Face."""
        for row, found in enumerate(self.final(hooks)):
            expected = plain.run(self.ids[row], edits=edits(row))[0][0, -1]
            # float32 through three blocks.
            assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def at(row: int, rows: dict[int, int], change: Callable[[Tensor, int], object]) -> Callable[[Tensor], Tensor]:
    """A reference's edit: `change(tensor, token)` of a copy where `row` is one of `rows`."""

    def function(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        if row in rows:
            change(changed, rows[row])
        return changed

    return function


@pytest.mark.backend
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out"])
def test_substitution_and_delta_in_a_model(lens_model: LensModel, plain: PlainModel, site: str):
    rows, tokens, vectors = Rows(lens_model), {0: 1, 2: 2}, noise(2, lens_model.d_model)
    index, columns = torch.tensor([0, 2]), torch.tensor([rows.column(0, 1), rows.column(2, 2)])
    name = lens_model.hook_name(site, LAYER)

    def put(row: int) -> list[Any]:
        return [(site, LAYER, at(row, tokens, lambda t, i: t[0, i].copy_(vectors[row // 2])))]

    def add(row: int) -> list[Any]:
        return [(site, LAYER, at(row, tokens, lambda t, i: t[0, i].add_(vectors[row // 2])))]

    rows.assert_equal(plain, [(name, substitute(vectors, index, columns))], put)
    rows.assert_equal(plain, [(name, add_delta(vectors, index, columns))], add)


@pytest.mark.backend
def test_patched_scores_and_knocked_out_edges_in_a_model(lens_model: LensModel, plain: PlainModel):
    """Also on grouped-query models there is one score for every query head."""
    rows, keys = Rows(lens_model), {0: 2, 2: 1}
    values = 3 * noise(2, lens_model.n_heads)
    index = torch.tensor([0, 2])
    queries = torch.tensor([rows.column(row, -1) for row in (0, 2)])
    columns = torch.tensor([rows.column(row, keys[row]) for row in (0, 2)])
    name = lens_model.hook_name("attn_scores", LAYER)

    def patch(row: int) -> list[Any]:
        change = at(row, keys, lambda t, i: t[0, :, -1, i].copy_(values[row // 2]))
        return [("attn_scores", LAYER, change)]

    def remove(row: int) -> list[Any]:
        return [("attn_scores", LAYER, at(row, keys, lambda t, i: t[0, :, -1, i].fill_(-torch.inf)))]

    rows.assert_equal(plain, [(name, patch_score(values, index, queries, columns))], patch)
    edges = torch.zeros(3, rows.width, rows.width, dtype=torch.bool)
    edges[index, queries, columns] = True
    rows.assert_equal(plain, [(name, knock_out(edges))], remove)


@pytest.mark.backend
def test_patched_patterns_in_a_model(lens_model: LensModel, plain: PlainModel):
    """The patterns of one layer in place of another's, for the last token and for whole rows."""
    rows, index = Rows(lens_model), torch.tensor([0, 2])
    queries = torch.tensor([rows.column(row, -1) for row in (0, 2)])
    store: dict[str, Tensor] = {}
    lens_model.run(rows.batch, hooks=[(lens_model.hook_name("pattern", 0), record(store, "other"))])
    other = store["other"]
    assert other.shape == (3, lens_model.n_heads, rows.width, rows.width)
    alone = [plain.value("pattern", 0, ids) for ids in rows.ids]
    name = lens_model.hook_name("pattern", LAYER)

    def last(row: int) -> list[Any]:
        change = at(row, {0: -1, 2: -1}, lambda t, i: t[0, :, i].copy_(alone[row][0, :, i]))
        return [("pattern", LAYER, change)]

    def whole(row: int) -> list[Any]:
        return [("pattern", LAYER, lambda pattern: alone[row] if row in (0, 2) else None)]

    weights = other[index, :, queries]
    rows.assert_equal(plain, [(name, patch_pattern_row(weights, index, queries))], last)
    rows.assert_equal(plain, [(name, patch_pattern(other[index], index))], whole)


@pytest.mark.backend
def test_detached_pattern_in_a_model(lens_model: LensModel, plain: PlainModel):
    """The gradient with every pattern detached is Hugging Face's with every pattern held at its value."""
    ids = torch.tensor([lens_model.encode(TEXTS[1]).ids])
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
    place, layers = (torch.tensor([0]), torch.tensor([3])), range(lens_model.n_layers)

    def gradient(run: Callable[[Tensor], Tensor]) -> Tensor:
        delta = torch.zeros(1, lens_model.d_model, requires_grad=True)
        run(delta)[0, -1].square().sum().backward()
        assert delta.grad is not None
        return delta.grad[0]

    def with_hooks(delta: Tensor) -> Tensor:
        hooks = [(lens_model.hook_name("pattern", n), detach_pattern()) for n in layers]
        return lens_model.run(batch, hooks=[*hooks, (lens_model.hook_name("mlp_out", 0), add_delta(delta, *place))])

    def reference(delta: Tensor) -> Tensor:
        def add(out: Tensor) -> Tensor:
            return torch.cat([out[:, :3], out[:, 3:4] + delta, out[:, 4:]], dim=1)

        return plain.run(ids, edits=[("mlp_out", 0, add), *(("pattern", n, Tensor.detach) for n in layers)])[0]

    found, expected = gradient(with_hooks), gradient(reference)
    assert float((found - expected).norm() / expected.norm()) < 1e-4  # float32
