"""SADR (Eq. 2) on attention weights made by hand, and as a part of an edit."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from driftlens.data import Fact
from driftlens.editors import ROME, SADR, LastTokenAttention, Regularizer, last_token_kl
from driftlens.editors.sadr import over_attending
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from tests.support.tiny import one_family

FACT = Fact(
    subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_true="French", target_new="English"
)


def attention(vanilla: Tensor, edited: Tensor, subject: list[int]) -> LastTokenAttention:
    return LastTokenAttention(
        layers=tuple(range(3, 3 + len(vanilla))), vanilla=vanilla, edited=edited, subject=torch.tensor(subject)
    )


def random_attention(seed: int, shape: tuple[int, ...], *, padding: int = 0) -> Tensor:
    """Rows of weights that sum to one, the first `padding` keys masked."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    scores[..., :padding] = -torch.inf
    return scores.softmax(-1)


def by_the_definition(seen: LastTokenAttention, *, every_head: bool, layers: set[int] | None = None) -> list[float]:
    """Σ_l Σ_{h ∈ H_l} KL of each row, with plain loops over Python floats."""
    totals: list[float] = []
    for row, s in enumerate(seen.subject.tolist()):
        total = 0.0
        for at, layer in enumerate(seen.layers):
            if layers is not None and layer not in layers:
                continue
            vanilla, edited = seen.vanilla[at, row].tolist(), seen.edited[at, row].tolist()
            most = max(head[s] for head in vanilla)
            for before, after in zip(vanilla, edited, strict=True):
                if every_head or after[s] > most:
                    total += sum(
                        (p + 1e-8) * math.log((p + 1e-8) / (q + 1e-8)) for p, q in zip(before, after, strict=True)
                    )
        totals.append(total)
    return totals


# --- the penalty ---


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    layers=st.integers(1, 3),
    rows=st.integers(1, 3),
    heads=st.integers(1, 4),
    keys=st.integers(2, 6),
    padding=st.integers(0, 1),
    gamma=st.floats(0, 10),
    chosen=st.none() | st.sets(st.integers(2, 6)),
)
def test_the_penalty_is_the_papers_sum(
    seed: int,
    layers: int,
    rows: int,
    heads: int,
    keys: int,
    padding: int,
    gamma: float,
    chosen: set[int] | None,
):
    shape = (layers, rows, heads, keys)
    subject = [(seed + row) % (keys - padding) + padding for row in range(rows)]
    seen = attention(
        random_attention(seed, shape, padding=padding), random_attention(seed + 1, shape, padding=padding), subject
    )
    for heads_option in ("selected", "all"):
        regularizer = SADR(gamma=gamma, heads=heads_option, layers=None if chosen is None else tuple(chosen))
        expected = by_the_definition(seen, every_head=heads_option == "all", layers=chosen)
        wanted = gamma * torch.tensor(expected, dtype=torch.float64)
        assert torch.allclose(regularizer.penalty(seen), wanted, rtol=1e-10, atol=1e-12)


def test_a_case_done_by_hand():
    """One layer, two heads, three keys, the subject in the middle; M = 0.5, so only the second head is restrained."""
    vanilla = torch.tensor([[[[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]]]], dtype=torch.float64)
    edited = torch.tensor([[[[0.3, 0.4, 0.3], [0.1, 0.8, 0.1]]]], dtype=torch.float64)
    seen = attention(vanilla, edited, [1])
    second = 0.6 * math.log(6) + 0.2 * math.log(0.25) + 0.2 * math.log(2)
    first = 0.2 * math.log(2 / 3) + 0.5 * math.log(1.25)
    # 1e-8 on each weight moves the sum by no more than a few times that.
    assert SADR(gamma=1.0).penalty(seen).item() == pytest.approx(second, abs=1e-6)
    assert SADR(gamma=0.5, heads="all").penalty(seen).item() == pytest.approx((first + second) / 2, abs=1e-6)
    assert SADR(gamma=1.0, layers=(2, 4)).penalty(seen).item() == 0.0
    assert SADR(gamma=1.0, layers=range(3, 4)).penalty(seen).item() == pytest.approx(second, abs=1e-6)  # type: ignore[arg-type]
    assert SADR(gamma=0.0, heads="all").penalty(seen).item() == 0.0


def test_heads_at_the_threshold_are_not_restrained():
    """Strictly greater: a head that gives the subject exactly M_l is none of H_l, one that gives a hair more is."""
    vanilla = torch.tensor([[0.5, 0.5], [0.75, 0.25]], dtype=torch.float64)
    edited = torch.tensor([[0.5, 0.5], [0.5 - 2**-40, 0.5 + 2**-40]], dtype=torch.float64)
    subject = torch.tensor([1])
    assert over_attending(vanilla.view(1, 1, 2, 2), edited.view(1, 1, 2, 2), subject).tolist() == [[[False, True]]]
    same = over_attending(vanilla.view(1, 1, 2, 2), vanilla.view(1, 1, 2, 2), subject)
    assert not same.any()


def test_the_threshold_is_each_layers_and_each_rows_own():
    vanilla = torch.tensor([0.1, 0.4, 0.2, 0.8], dtype=torch.float64)  # (layer, row): (0, 0), (0, 1), (1, 0), (1, 1)
    edited = torch.full((4,), 0.3, dtype=torch.float64)
    pairs = [torch.stack([weight, 1 - weight], dim=-1).view(2, 2, 1, 2) for weight in (vanilla, edited)]
    chosen = over_attending(pairs[0], pairs[1], torch.tensor([0, 0])).squeeze(-1)
    assert chosen.tolist() == [[True, False], [True, False]]


def test_heads_below_the_threshold_carry_neither_loss_nor_gradient():
    vanilla = random_attention(0, (2, 3, 4, 5))
    scores = random_attention(1, (2, 3, 4, 5)).log().requires_grad_()
    edited = scores.softmax(-1)
    seen = attention(vanilla, edited, [1, 2, 0])
    chosen = over_attending(vanilla, edited, seen.subject)
    assert 0 < int(chosen.sum()) < chosen.numel()
    SADR(gamma=1.0).penalty(seen).sum().backward()
    assert scores.grad is not None
    moved = scores.grad.abs().amax(-1) > 0
    assert torch.equal(moved, chosen)
    others = attention(vanilla, torch.where(chosen[..., None], vanilla, edited.detach()), [1, 2, 0])
    assert torch.equal(SADR(gamma=1.0).penalty(others), torch.zeros(3, dtype=torch.float64))


def test_the_gradient_of_the_penalty_with_the_heads_held():
    """Against central differences; no gradient comes from the selection, which is a step function."""
    vanilla = random_attention(0, (2, 2, 3, 4))
    scores = random_attention(1, (2, 2, 3, 4)).log().requires_grad_()
    seen = attention(vanilla, scores.softmax(-1), [1, 2])
    chosen = over_attending(vanilla, seen.edited, seen.subject)
    SADR(gamma=2.0).penalty(seen).sum().backward()
    assert scores.grad is not None
    direction = torch.randn(scores.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def held(step: float) -> float:
        edited = (scores.detach() + step * direction).softmax(-1)
        kl = ((vanilla + 1e-8) * ((vanilla + 1e-8) / (edited + 1e-8)).log()).sum(-1)
        return 2.0 * float(kl[chosen].sum())

    slope = (held(1e-5) - held(-1e-5)) / 2e-5
    assert float((scores.grad * direction).sum()) == pytest.approx(slope, rel=1e-7)


# --- the divergence ---


@pytest.mark.parametrize("wanted", [(True, True), (False, True), (True, False)])
def test_the_gradient_of_the_divergence(wanted: tuple[bool, bool]):
    """Against finite differences, at weights so small that ε counts too."""
    p, q = (
        random_attention(seed, (2, 3, 4), padding=1).requires_grad_(requires_grad)
        for seed, requires_grad in zip((0, 1), wanted, strict=True)
    )
    assert torch.autograd.gradcheck(lambda p, q: last_token_kl(p, q, eps=1e-2), (p, q))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), keys=st.integers(1, 8), padding=st.integers(0, 3))
def test_the_divergence(seed: int, keys: int, padding: int):
    """Zero between equals, not negative, and torch's own up to what 1e-8 on each weight can change."""
    shape = (2, 3, keys + padding)
    p, q = random_attention(seed, shape, padding=padding), random_attention(seed + 1, shape, padding=padding)
    assert torch.equal(last_token_kl(p, p), torch.zeros(2, 3, dtype=torch.float64))
    kl = last_token_kl(p, q)
    assert (kl > -1e-6).all()  # with 1e-8 added the weights sum to a little over one
    p, q = p[..., padding:], q[..., padding:]
    expected = torch.nn.functional.kl_div(q.log(), p.log(), log_target=True, reduction="none").sum(-1)
    # The derivative of (p + ε) log((p + ε) / (q + ε)) in ε.
    slope = ((p / q).log().abs() + 1 + p / q).sum(-1)
    assert ((kl - expected).abs() < 2e-8 * slope).all()


def test_half_precision_is_compared_in_float32():
    vanilla, edited = (random_attention(seed, (1, 2, 2, 5)).half() for seed in (0, 1))
    penalty = SADR(gamma=1.0, heads="all").penalty(attention(vanilla, edited, [0, 1]))
    assert penalty.dtype == torch.float32
    wide = SADR(gamma=1.0, heads="all").penalty(attention(vanilla.double(), edited.double(), [0, 1]))
    assert torch.allclose(penalty.double(), wide, rtol=1e-5)


# --- mistakes ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_a_finite_gradient(dtype: torch.dtype):
    """Before the softmax it is q − p, also where q has vanished and the divergence's own is p / ε."""
    scores = torch.tensor([[[[0.0, 30.0]]]], dtype=dtype, requires_grad=True)  # [layers, rows, heads, keys]
    vanilla = torch.tensor([[[[0.9, 0.1]]]], dtype=dtype)
    attention = LastTokenAttention(
        layers=(0,), vanilla=vanilla, edited=scores.softmax(dim=-1), subject=torch.tensor([1])
    )
    SADR(gamma=1.0).penalty(attention).sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    # It still pushes the attention back, if with less than its force.
    assert scores.grad[0, 0, 0, 1] >= 0 >= scores.grad[0, 0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": -1e-3}, "gamma is -0.001; expected a number ≥ 0"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"gamma": math.inf}, "gamma is inf"),
        ({"heads": "some"}, "heads is 'some'; expected 'selected'"),
        ({"eps": 0.0}, "eps is 0.0; expected a small number above 0"),
    ],
)
def test_mistakes_are_one_line(arguments: dict[str, Any], message: str):
    with pytest.raises(DriftlensError, match=message) as error:
        SADR(**arguments)
    assert "\n" not in str(error.value)


# --- as a part of an edit ---


def rome(model: LensModel, **changes: Any) -> ROME:
    defaults: dict[str, Any] = {
        "layer": 0,
        "steps": 5,
        "contexts": ("{}", "The. {}"),
        "second_moment": torch.eye(model.d_mlp),
        "clamp_norm_factor": 100.0,
        "lr": 2.0,
        "early_stop_loss": -1.0,
    }
    return ROME(**defaults | changes)


@one_family
@pytest.mark.backend
def test_gamma_zero_is_plain_rome(lens_model: LensModel):
    plain = rome(lens_model).edit(lens_model, FACT)
    with_zero: Any = rome(lens_model, regularizers=(SADR(gamma=0.0),)).edit(lens_model, FACT)
    assert torch.equal(plain.edit.updates[0].right, with_zero.edit.updates[0].right)
    assert torch.equal(plain.edit.updates[0].left, with_zero.edit.updates[0].left)
    assert (with_zero.history["sadr"] == 0).all()
    assert with_zero.history.drop(columns="sadr").equals(plain.history)


@pytest.mark.backend
def test_it_starts_at_zero_and_restrains(lens_model: LensModel):
    """Nothing has drifted at step 0; a strong weight keeps attention where it was."""

    def drift(gamma: float) -> float:
        editor = rome(lens_model, steps=20, lr=0.2, regularizers=(SADR(gamma=gamma, heads="all"),))
        history = editor.edit(lens_model, FACT).history
        assert history["sadr"].iloc[0] == 0
        assert (history["sadr"].iloc[1:] > 0).all()
        return float(history["sadr"].iloc[-1]) / gamma

    assert drift(100.0) < 0.5 * drift(1e-6)


@one_family
@pytest.mark.backend
def test_all_layers_are_the_sum_of_each(lens_model: LensModel):
    """At the second step, where δ is the same whatever is restrained: the first gradient of the term is zero."""

    def second(**choice: Any) -> float:
        editor = rome(lens_model, steps=2, regularizers=(SADR(gamma=1.0, heads="all", **choice),))
        return float(editor.edit(lens_model, FACT).history["sadr"].iloc[1])

    assert second() == pytest.approx(second(layers=(1,)) + second(layers=(2,)), rel=1e-4)
    assert second(layers=(0, 1)) == second(layers=(1,))  # the edit's own layer cannot drift


@one_family
@pytest.mark.parametrize(
    ("layer", "layers", "message"),
    [
        (0, (1, 3), r"SADR's layers are \(1, 3\), but layer 3 is out of range; the model has layers 0 to 2"),
        (0, (-1,), "layer -1 is out of range; the model has layers 0 to 2"),
        (0, (0,), r"SADR's layers are \(0,\), but only layers 1 to 2 lie above the edit and can drift"),
        (0, (), r"SADR's layers are \(\), but only layers 1 to 2 lie above the edit"),
    ],
)
def test_where_nothing_can_be_restrained_is_one_line(lens_model: LensModel, layer: int, layers: Any, message: str):
    editor = rome(lens_model, layer=layer, regularizers=(SADR(layers=layers),))
    with pytest.raises(DriftlensError, match=message) as caught:
        editor.edit(lens_model, FACT)
    assert "\n" not in str(caught.value)


class Counting:
    """A regulariser that remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[LastTokenAttention] = []

    def penalty(self, attention: LastTokenAttention) -> Tensor:
        self.seen.append(attention)
        rows = attention.edited.shape[1]
        return torch.arange(1, rows + 1, dtype=torch.float32) + 0 * attention.edited.sum(dim=(0, 2, 3))


@one_family
@pytest.mark.backend
def test_what_a_regularizer_is_shown(lens_model: LensModel):
    """Every context of every fact and no essence prompt; weights that sum to one; a mean over a fact's contexts."""
    other = Fact(subject="Toko Yasuda", prompt="{} plays the", target_true="guitar", target_new="metal")
    counting = Counting()
    assert isinstance(counting, Regularizer)
    results = rome(lens_model, regularizers=(counting,), steps=2).edit_many(lens_model, [FACT, other])
    first, second = counting.seen
    assert tuple(first.layers) == (1, 2)
    assert first.edited.shape[:3] == (2, 4, lens_model.n_heads)
    for weights in (first.vanilla, first.edited, second.edited):
        assert torch.allclose(weights.sum(-1), torch.ones(()), rtol=0, atol=1e-5)
    assert torch.equal(first.vanilla, second.vanilla)
    assert torch.equal(first.edited.detach(), first.vanilla)
    assert not first.vanilla.requires_grad
    # Rows 1 and 2 are the first fact's, 3 and 4 the second's.
    assert [float(result.history["counting"].iloc[0]) for result in results] == [1.5, 3.5]
