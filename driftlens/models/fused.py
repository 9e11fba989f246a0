"""Compute norms and activations of a bridged model in one kernel each.

transformer-lens computes a LayerNorm step by step, so that its two inner hook points fire, and Hugging Face computes
GPT-2's GELU in eight operations on the widest tensor of a block.  In forward and backward passes, both take more time
than many matrix products on a CPU, and much memory traffic on a GPU.  Here the checkpoint's own norm module runs unless
an inner hook point has a hook, and the GELU is torch's.  The functions are the same, with fewer roundings.

Weights and hook points stay the same objects.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import NormalizationBridge, RMSNormalizationBridge
from transformers.activations import NewGELUActivation
from typing_extensions import override

__all__ = ["FusedNorm", "TanhGELU", "fuse"]


class FusedNorm(NormalizationBridge):
    """`hook_in` → the checkpoint's own norm → `hook_out`; the bridge's computation if an inner hook point is used."""

    @override
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        inner: tuple[Any, ...] = (self.hook_scale, self.hook_normalized)
        if any(point.fwd_hooks or point.bwd_hooks for point in inner):
            return super().forward(hidden_states, **kwargs)
        norm: Any = self.original_component
        return self.hook_out(norm(self.hook_in(hidden_states)))


class TanhGELU(nn.Module):
    """GPT-2's and GPT-J's GELU in one kernel."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        return torch.nn.functional.gelu(input, approximate="tanh")


def fuse(bridge: Any) -> None:
    """Make the norms and activations of a bridge run in one kernel each; repeated calls have no effect."""
    for module in list(bridge.modules()):
        # These classes and no others: another subclass may compute something of its own.
        if type(module) in (NormalizationBridge, RMSNormalizationBridge):
            module.__class__ = FusedNorm
    for parent in list(bridge.original_model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is NewGELUActivation:
                setattr(parent, name, TanhGELU())
