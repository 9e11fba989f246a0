"""Norms and activations in one kernel give Hugging Face's numbers, and every hook point fires as before."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from driftlens.models import Batch, LensModel
from tests.support.plain import PlainModel
from tests.support.tiny import BRIDGE, one_family

pytestmark = pytest.mark.skipif(not BRIDGE, reason="HookedTransformer's own norms are left as they are")


@pytest.fixture
def batch(exact_model: LensModel) -> Batch:
    tokens = torch.randint(exact_model.d_vocab, (2, 7), generator=torch.Generator().manual_seed(0))
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))


def test_logits_and_gradients_are_hugging_faces(exact_model: LensModel, checkpoint_folder: Path, batch: Batch):
    plain = PlainModel(checkpoint_folder, dtype=torch.float64)
    gradients: list[Tensor] = []
    found: list[Tensor] = []
    for run in ("ours", "plain"):
        delta = torch.zeros(exact_model.d_model, dtype=torch.float64, requires_grad=True)

        def add(tensor: Tensor, hook: Any = None, delta: Tensor = delta) -> Tensor:
            return tensor + delta

        if run == "ours":
            hooks = [(exact_model.hook_name("mlp_out", 0), add)]
            logits = exact_model.unembed(exact_model.run(batch, hooks=hooks))
        else:
            logits = plain.run(batch.tokens, edits=[("mlp_out", 0, add)])[1]
        logits.log_softmax(-1)[..., 3].sum().backward()
        assert delta.grad is not None
        found.append(logits.detach())
        gradients.append(delta.grad)
    # Rotary angles, GPT-J's scores and Llama's norms are float32 in Hugging Face whatever the model is.
    tolerance = 1e-12 if exact_model.family == "gpt2" else 1e-5
    for ours, plains in (found, gradients):
        assert float((ours - plains).abs().max() / plains.abs().max()) < tolerance


def test_inner_hook_points_of_a_norm_fire_and_can_be_written(exact_model: LensModel, batch: Batch):
    if exact_model.family == "llama":
        names = ("blocks.1.ln2.hook_normalized",)
    else:
        names = ("blocks.1.ln1.hook_scale", "blocks.1.ln1.hook_normalized")
    plain = exact_model.run(batch)
    for name in names:
        seen: list[Tensor] = []

        def see(tensor: Tensor, hook: Any = None, seen: list[Tensor] = seen) -> None:
            seen.append(tensor)

        watched = exact_model.run(batch, hooks=[(name, see)])
        assert len(seen) == 1
        assert torch.allclose(watched, plain, atol=1e-6)
        with warnings.catch_warnings():
            # Where transformer-lens would take the checkpoint's own norm as well, it says that it no longer can.
            warnings.simplefilter("ignore", UserWarning)
            changed = exact_model.run(batch, hooks=[(name, lambda tensor, hook: tensor * 1.5)])
        assert float((changed - plain).abs().max()) > 1e-3
    assert torch.equal(exact_model.run(batch), plain)


@one_family
def test_fusing_twice_changes_nothing(exact_model: LensModel):
    from driftlens.models.fused import FusedNorm, fuse

    before = [type(module) for module in exact_model.model.modules()]
    fuse(exact_model.model)
    assert [type(module) for module in exact_model.model.modules()] == before
    assert FusedNorm in before
