"""The self-check finds every way in which a model could show one thing and compute another."""

from typing import Any

import pytest
import torch
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.models.self_check import SelfCheck, check_rows, self_check
from tests.support.tiny import BRIDGE, load_tiny, one_family

pytestmark = pytest.mark.backend


def test_a_loaded_model_is_checked(lens_model: LensModel):
    checked = lens_model.checked
    assert isinstance(checked, SelfCheck)
    assert set(checked.sites) >= {"pattern", "attn_scores", "attn_out", "mlp_out", "mlp_post", "z", "resid_pre"}
    assert checked.logits_error < 1e-5
    assert checked.pattern_error < 1e-5
    assert checked.mlp_error < 1e-5


@one_family
def test_the_check_can_be_left_out(lens_model: LensModel):
    assert LensModel(lens_model.model, check=False).checked is None


@one_family
def test_the_check_leaves_no_trace(lens_model: LensModel):
    points = [module for module in lens_model.model.modules() if hasattr(module, "fwd_hooks")]
    assert points
    assert not any(point.fwd_hooks or point._forward_hooks for point in points)


@one_family
@pytest.mark.parametrize("site", ["pattern", "attn_scores", "z", "mlp_post", "attn_out", "mlp_out", "resid_pre"])
def test_a_dead_hook_is_named(lens_model: LensModel, site: str):
    """Hooks that show the value and throw away what is written, as GPT-J's pattern does in transformer-lens 4.3."""
    name = lens_model.hook_name(site, lens_model.n_layers // 2)
    point = lens_model._backend.hook_point(name)
    add_hook = point.add_hook

    def add_deaf_hook(function: Any, **options: Any) -> Any:
        def read_only(tensor: Tensor, hook: Any) -> None:
            function(tensor, hook=hook)

        return add_hook(read_only, **options)

    point.add_hook = add_deaf_hook
    try:
        with pytest.raises(DriftlensError, match="has no effect") as caught:
            lens_model._check()
    finally:
        del point.add_hook
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@one_family
def test_a_hook_that_never_fires_is_named(lens_model: LensModel, monkeypatch: pytest.MonkeyPatch):
    name = lens_model.hook_name("z", 1)
    point = lens_model._backend.hook_point(name)
    monkeypatch.setitem(lens_model._backend._hook_points, name, type(point)())
    with pytest.raises(DriftlensError, match="never fires"):
        lens_model._check()


@one_family
@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("pattern", "do not sum to one"),
        ("mlp_out", "is not its MLP's output"),
    ],
)
def test_wrong_values_are_found(lens_model: LensModel, site: str, message: str):
    point = lens_model._backend.hook_point(lens_model.hook_name(site, lens_model.n_layers // 2))
    point.add_hook(lambda tensor, hook: tensor * 1.1)
    try:
        with pytest.raises(DriftlensError, match=message):
            lens_model._check()
    finally:
        point.remove_hooks()


@one_family
def test_other_logits_are_found(lens_model: LensModel):
    rows = check_rows(lens_model.d_vocab, lens_model.n_ctx)
    reference = [lens_model._backend.reference_logits(row) for row in rows]
    for row in range(2):
        wrong = list(reference)
        wrong[row] = wrong[row] + 0.01 * torch.randn(wrong[row].shape, generator=torch.Generator().manual_seed(0))
        with pytest.raises(DriftlensError, match="its logits are off"):
            self_check(lens_model, wrong)


@pytest.mark.skipif(not BRIDGE, reason="the bridge of transformer-lens 4")
def test_gptj_without_its_adapter_would_fail(checkpoints: Any, monkeypatch: pytest.MonkeyPatch):
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    model = load_tiny(checkpoints("gptj"))
    for block in model.model.blocks:
        block.attn.__class__ = AttentionBridge
    with (
        pytest.raises(DriftlensError, match=r"attn\.hook_attn_scores has no effect"),
        pytest.warns(UserWarning, match="edit is discarded"),
    ):
        model._check()
    assert LensModel(model.model).checked  # given its attention back
