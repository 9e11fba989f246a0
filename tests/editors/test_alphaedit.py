"""AlphaEdit against its printed equation, solved densely in float64, and what a projection must keep."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from driftlens import AlphaEdit, DriftlensError, Fact, evaluate, load_records, summarize
from driftlens.editors import MEMIT, SADR, SecondMoment
from driftlens.editors.alphaedit import null_space_factor
from driftlens.models import LensModel
from driftlens.models.prompts import pad_rows
from tests.support.tiny import one_family

pytestmark = pytest.mark.backend

FIRST = Fact(
    subject="Danielle Darrieux",
    prompt="The mother tongue of {} is",
    target_true="French",
    target_new="national library",
)
SECOND = Fact(subject="Toko Yasuda", prompt="{} plays the", target_true="guitar", target_new="metal")
THIRD = Fact(subject="Vltava", prompt="The mayor lives by the river {}", target_true="in", target_new="where")
THRESHOLD, RIDGE = 0.02, 0.5


def moments(model: LensModel) -> dict[int, Tensor]:
    """Half the directions far above the threshold, half far below it, along random axes."""
    generator = torch.Generator().manual_seed(1)
    found: dict[int, Tensor] = {}
    for layer in range(model.n_layers):
        axes = torch.linalg.qr(torch.randn(model.d_mlp, model.d_mlp, generator=generator, dtype=torch.float64))[0]
        spectrum = torch.where(torch.arange(model.d_mlp) < model.d_mlp // 2, 1.0, 1e-3).double()
        found[layer] = axes @ torch.diag(spectrum) @ axes.T
    return found


def alphaedit(model: LensModel, **settings: Any) -> AlphaEdit:
    defaults: dict[str, Any] = {
        "layers": (0, 1), "steps": 4, "contexts": ("{}", "The guitar. {}"), "second_moment": moments(model),
        "ridge": RIDGE, "early_stop_loss": -math.inf,
    }  # fmt: skip
    return AlphaEdit(**defaults | settings)


def projection(moment: Tensor) -> Tensor:
    """P by its definition, from the published code's singular value decomposition."""
    axes, spectrum, _ = torch.linalg.svd(moment)
    return axes[:, spectrum < THRESHOLD] @ axes[:, spectrum < THRESHOLD].T


def dense(moment: Tensor, K: Tensor, K_p: Tensor, R: Tensor) -> Tensor:
    P = projection(moment)
    return torch.linalg.solve(P @ (K @ K.T + K_p @ K_p.T) + RIDGE * torch.eye(len(P)), P @ K @ R.T)


def residuals(model: LensModel, layer: int, keys: Tensor, values: Tensor) -> Tensor:
    W_out, bias = model.down_projection(layer)
    return (values - keys @ W_out - (0 if bias is None else bias)).T


def away(found: Tensor, expected: Tensor) -> float:
    assert float(expected.norm()) > 0
    return float((found - expected).norm() / expected.norm())


def test_the_small_solve_is_the_dense_one():
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))[0]
    moment = axes @ torch.diag(torch.logspace(-4, 2, 40).double()) @ axes.T
    for facts, earlier in ((1, 0), (3, 0), (1, 2), (30, 30)):  # the last are more than the null space has dimensions
        K, K_p = (torch.randn(40, n, generator=generator, dtype=torch.float64) for n in (facts, earlier))
        projected = SecondMoment(moment).in_null_space(torch.cat([K, K_p], dim=1).T, THRESHOLD)
        found = null_space_factor(projected, facts, RIDGE)
        assert away(found, dense(moment, K, K_p, torch.eye(facts, dtype=torch.float64))) < 1e-9


def test_an_update_solves_the_equation_and_spares_what_is_known(exact_model: LensModel):
    """In both layers, for one fact and for several; K₀ are random sums of C's large directions."""
    editor = alphaedit(exact_model)
    joint = editor.edit_together(exact_model, [FIRST, SECOND, THIRD])
    alone = editor.edit(exact_model, FIRST)
    for layer, moment in moments(exact_model).items():
        if layer not in editor.layers:
            continue
        known = torch.eye(len(moment), dtype=torch.float64) - projection(moment)
        for update, keys, values in (
            (joint.edit.updates[layer], joint.keys[layer], joint.values[layer]),
            (alone.edit.updates[layer], alone.keys[layer][None], alone.values[layer][None]),
        ):
            X, K = update.matrix(), keys.T
            R = residuals(exact_model, layer, keys, values)
            P = torch.eye(len(moment), dtype=torch.float64) - known
            assert away(P @ (K @ K.T) @ X + RIDGE * X, P @ K @ R.T) < 1e-9
            assert away(X, dense(moment, K, K[:, :0], R)) < 1e-9
            assert update.rank == len(keys)
            assert float((known @ X).norm()) < 1e-12 * float(X.norm())


def test_a_sequence_solves_the_equation_with_the_earlier_keys(exact_model: LensModel):
    """One layer: the second update's residual is measured in the model that has the first."""
    editor = alphaedit(exact_model, layers=(1,), regularizers=(SADR(gamma=2.0),))
    before = exact_model.model_hash
    first = editor.edit(exact_model, FIRST)
    both = editor.edit_after(exact_model, first, [SECOND])
    assert exact_model.model_hash == before
    assert both.facts == (FIRST, SECOND)
    assert sorted(set(both.history["fact"])) == [0, 1]
    K_p, K = both.keys[1][:1].T, both.keys[1][1:].T
    assert torch.equal(K_p[:, 0], first.keys[1])
    with first.edit.applied(exact_model):
        R = residuals(exact_model, 1, K.T, both.values[1][1:])
    added = both.edit.updates[1].matrix() - first.edit.updates[1].matrix()
    assert away(added, dense(moments(exact_model)[1], K, K_p, R)) < 1e-8
    third = editor.edit_after(exact_model, both, [THIRD])
    assert third.edit.updates[1].rank == 3
    assert third.edit.facts == (FIRST, SECOND, THIRD)
    assert third.edit.provenance["model_hash"] == before


@one_family
def test_earlier_keys_keep_their_values_better_than_without_them(exact_model: LensModel):
    """The second of two facts whose keys are alike disturbs the first one's value."""
    editor = alphaedit(exact_model, layers=(1,), ridge=1e-6, second_moment={1: 1e-3 * moments(exact_model)[1]})
    like = Fact(subject="Danielle Darrieux", prompt="{} plays the", target_true="guitar", target_new="metal")
    first = editor.edit(exact_model, FIRST)
    both = editor.edit_after(exact_model, first, [like])
    with first.edit.applied(exact_model):
        unaware = editor.edit(exact_model, like).edit.updates[1].matrix()
    aware = both.edit.updates[1].matrix() - first.edit.updates[1].matrix()
    key = first.keys[1]
    assert float((key @ aware).norm()) < 0.1 * float((key @ unaware).norm())


def test_hooks_and_weights_are_the_same_edit(exact_model: LensModel):
    editor = alphaedit(exact_model)
    edit = editor.edit_after(exact_model, editor.edit(exact_model, FIRST), [SECOND]).edit
    batch, _ = pad_rows(exact_model, [exact_model.encode("Danielle Darrieux lives in Paris").ids])
    vanilla = exact_model.unembed(exact_model.run(batch))
    hooked = exact_model.unembed(exact_model.run(batch, hooks=edit.hooks(exact_model)))
    with edit.applied(exact_model):
        written = exact_model.unembed(exact_model.run(batch))
    assert float((hooked - vanilla).abs().max()) > 1e-4
    # Families other than GPT-2 compute parts of a pass in float32.
    assert float((hooked - written).abs().max()) < (1e-9 if exact_model.family == "gpt2" else 1e-4)


@one_family
def test_with_all_directions_free_and_a_unit_moment_it_is_memit(exact_model: LensModel):
    """λ I in place of λ C: both are ridge regressions then."""
    unit = {layer: torch.eye(exact_model.d_mlp, dtype=torch.float64) for layer in (0, 1)}
    settings: dict[str, Any] = {"second_moment": unit, "clamp_norm_factor": 0.75}
    mine = alphaedit(exact_model, null_space_threshold=2.0, **settings).edit(exact_model, FIRST)
    memit = MEMIT(
        layers=(0, 1), steps=4, contexts=("{}", "The guitar. {}"), second_moment_weight=RIDGE,
        early_stop_loss=-math.inf, **settings,
    ).edit(exact_model, FIRST)  # fmt: skip
    for layer, update in memit.edit.updates.items():
        assert away(mine.edit.updates[layer].matrix(), update.matrix()) < 1e-9


def test_the_bundled_model_is_edited_out_of_the_box(demo_model: LensModel):
    records = load_records("demo")[:4]
    edits = [result.edit for result in AlphaEdit.for_model(demo_model).edit_many(demo_model, [r.fact for r in records])]
    scores: Any = summarize(evaluate(demo_model, records, edits, tasks=("rewrite", "neighborhood")), resamples=0)[
        "value"
    ]
    assert scores["ES"] >= 75
    assert scores["NS"] >= 75


@one_family
def test_mistakes_are_one_line(lens_model: LensModel):
    for name in ("null_space_threshold", "ridge"):
        with pytest.raises(DriftlensError, match=f"{name} is 0.0; expected a number above 0"):
            AlphaEdit(**{"layers": (0,), name: 0.0})
    unit = {layer: torch.eye(lens_model.d_mlp) for layer in (0, 1)}
    editor = alphaedit(lens_model, second_moment=unit)
    with pytest.raises(DriftlensError, match=r"no eigenvalue .* is below null_space_threshold = 0\.02"):
        editor.edit(lens_model, FIRST)
    free = alphaedit(lens_model, second_moment=unit, null_space_threshold=2.0)
    one = alphaedit(lens_model, second_moment=unit, null_space_threshold=2.0, layers=(1,)).edit(lens_model, FIRST)
    with pytest.raises(DriftlensError, match=r"the earlier edit is of layers \(1,\), this editor's are \(0, 1\)"):
        free.edit_after(lens_model, one, [SECOND])
