"""Corrections of transformer-lens 4.3's bridge for some families.

For GPT-J, GPT-Neo and OPT, transformer-lens 4.3 calls Hugging Face's attention as a whole and fires `hook_attn_scores`
and `hook_pattern` afterwards, on the finished weights. Reading the scores then gives the pattern, and writing to either
has no effect. `PatchableAttention` does the same computation step by step, with both hooks at the right places.

OLMo 2's rotary embeddings are float32 in every precision, and its own attention casts the rotated tensors back. The
bridge's attention does not, and fails in half precision; `CastRotary` casts the embeddings.

Everything is reached through `self`, so a deep copy of a model runs its own hooks.
"""

# ruff: noqa: ARG002 (methods that a family overrides take more than the common case needs)

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge.generalized_components import AttentionBridge, RotaryEmbeddingBridge
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb
from typing_extensions import override

from driftlens.models.key_values import PassCache

__all__ = [
    "CastRotary",
    "PatchableAttention",
    "PatchableGPTJAttention",
    "PatchableGPTNeoAttention",
    "PatchableOPTAttention",
    "make_patchable",
]


class CastRotary(RotaryEmbeddingBridge):
    """Rotary embeddings in the precision of the residual stream."""

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        resid: Tensor = args[0] if args else kwargs["x"]
        return tuple(each.to(resid.dtype) for each in super().forward(*args, **kwargs))


class PatchableAttention(AttentionBridge):
    """query and key → scores → `hook_attn_scores` → softmax → `hook_pattern` → values → output."""

    @override
    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        attention: Any = self.original_component
        inputs: Tensor = self.hook_in(args[0] if args else kwargs["hidden_states"])
        rows, columns, _ = inputs.shape
        query, key, value = (
            projected.view(rows, columns, -1, attention.head_dim).transpose(1, 2)
            for projected in (self.q(inputs), self.k(inputs), self.v(inputs))
        )
        query, key = self.positioned(query, key, kwargs)
        key, value = self._update_kv_cache(key, value, **kwargs)

        scores = self.scores(query, key)
        mask = self.mask(scores, kwargs)
        scores = self.hook_attn_scores(scores if mask is None else scores + mask.to(scores.device))
        pattern = self.hook_pattern(scores.softmax(dim=-1, dtype=self.softmax_dtype(scores)).to(value.dtype))

        z = torch.matmul(pattern, value).transpose(1, 2).reshape(rows, columns, -1)
        return self.hook_out(self.o(z)), pattern

    @abstractmethod
    def scores(
        self, query: Float[Tensor, "rows heads query d_head"], key: Float[Tensor, "rows heads key d_head"]
    ) -> Float[Tensor, "rows heads query key"]:
        """The scores before any mask, in the precision and order of operations of Hugging Face."""

    def softmax_dtype(self, scores: Tensor) -> torch.dtype:
        """The softmax's precision: at least float32."""
        return torch.promote_types(scores.dtype, torch.float32)

    def positioned(self, query: Tensor, key: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Query and key with rotary positions applied, if the family uses them here."""
        return query, key

    def mask(self, scores: Tensor, inputs: dict[str, Any]) -> Tensor | None:
        """The additive mask of the scores."""
        return inputs.get("attention_mask")


class PatchableGPTJAttention(PatchableAttention):
    """`GPTJAttention`: rotary positions, scores in float32 whatever the model's precision."""

    @override
    def positioned(self, query: Tensor, key: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        attention: Any = self.original_component
        sin, cos = attention.embed_positions[inputs["position_ids"]].to(query.dtype).chunk(2, dim=-1)

        def rotated(states: Tensor) -> Tensor:
            return _rotate(states.transpose(1, 2), sin, cos, attention.rotary_dim).transpose(1, 2)

        return self.hook_rot_q(rotated(query)), self.hook_rot_k(rotated(key))

    @override
    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        attention: Any = self.original_component
        return torch.matmul(query.float(), key.float().transpose(-1, -2)) / attention.scale_attn


class PatchableGPTNeoAttention(PatchableAttention):
    """`GPTNeoSelfAttention`: unscaled scores in float32, and every other layer sees a window only."""

    @override
    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.matmul(query.float(), key.float().transpose(-1, -2))

    @override
    def mask(self, scores: Tensor, inputs: dict[str, Any]) -> Tensor | None:
        given: Tensor | None = inputs.get("attention_mask")
        if isinstance(inputs.get("layer_past"), PassCache):
            return given  # driftlens's masks are complete: the window counts positions, not columns
        attention: Any = self.original_component
        n_queries, n_keys = scores.shape[-2:]
        visible = attention.bias[:, :, n_keys - n_queries : n_keys, :n_keys]
        window = torch.zeros_like(visible, dtype=scores.dtype).masked_fill_(~visible, torch.finfo(scores.dtype).min)
        return window if given is None else torch.minimum(window, given)


class PatchableOPTAttention(PatchableAttention):
    """`OPTAttention`: the query is scaled, as in the original implementation."""

    @override
    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        attention: Any = self.original_component
        return torch.matmul(query * attention.scaling, key.transpose(-1, -2))


def make_patchable(bridge: Any, attention: type[PatchableAttention]) -> None:
    """Use this attention in every block of a bridge; blocks that already use it are unchanged.

    Only the class changes; components, weights and hook points stay the same objects.
    """
    for layer, block in enumerate(bridge.blocks):
        if type(block.attn) is AttentionBridge:
            block.attn.__class__ = attention
            # GPT-Neo's attention has it under another name.
            block.attn._layer_idx = layer  # pyright: ignore[reportPrivateUsage]


def _rotate(
    states: Float[Tensor, "rows seq heads d_head"], sin: Tensor, cos: Tensor, rotary_dim: int | None
) -> Float[Tensor, "rows seq heads d_head"]:
    if rotary_dim is None:
        return apply_rotary_pos_emb(states, sin, cos)
    rotated = apply_rotary_pos_emb(states[..., :rotary_dim], sin, cos)
    return torch.cat([rotated, states[..., rotary_dim:]], dim=-1)
