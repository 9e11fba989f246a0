"""GPT-J's attention for the bridge, written out so that its scores and its pattern can be changed.

transformer-lens 4.3 hands GPT-J's attention to Hugging Face as a whole and fires `hook_attn_scores` and
`hook_pattern` afterwards, on the finished weights: reading the scores gives the pattern, and writing to
either does nothing. `PatchableGPTJAttention` does the same computation step by step, with both hooks where
they belong.

Everything is reached through `self`, so a deep copy of a model runs its own hooks.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.generalized_components import AttentionBridge
from transformer_lens.model_bridge.supported_architectures.gptj import GptjArchitectureAdapter
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb
from typing_extensions import override

__all__ = ["PatchableGPTJAdapter", "PatchableGPTJAttention", "make_patchable", "register"]


class PatchableGPTJAttention(AttentionBridge):
    """scores → `hook_attn_scores` → softmax → `hook_pattern` → values, as `GPTJAttention` computes them."""

    @override
    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        attention: Any = self.original_component
        inputs: Tensor = self.hook_in(args[0] if args else kwargs["hidden_states"])
        rows, columns, _ = inputs.shape
        heads = (rows, columns, attention.num_attention_heads, attention.head_dim)
        sin, cos = attention.embed_positions[kwargs["position_ids"]].to(inputs.dtype).chunk(2, dim=-1)

        def rotated(states: Tensor) -> Tensor:
            return _rotate(states.view(heads), sin, cos, attention.rotary_dim).transpose(1, 2)

        query = self.hook_rot_q(rotated(self.q(inputs)))
        key = self.hook_rot_k(rotated(self.k(inputs)))
        key, value = self._update_kv_cache(key, self.v(inputs).view(heads).transpose(1, 2), **kwargs)

        # Hugging Face computes GPT-J's scores and their softmax in float32, whatever the model's precision.
        scores = torch.matmul(query.float(), key.float().transpose(-1, -2)) / attention.scale_attn
        mask = kwargs.get("attention_mask")
        if mask is not None:
            scores = scores + mask
        scores = self.hook_attn_scores(scores)
        pattern = self.hook_pattern(attention.attn_dropout(scores.softmax(dim=-1).to(value.dtype)))

        z = torch.matmul(pattern, value).transpose(1, 2).reshape(rows, columns, -1)
        output = attention.resid_dropout(self.o(z))
        return self.hook_out(output), pattern


class PatchableGPTJAdapter(GptjArchitectureAdapter):
    """transformer-lens's description of GPT-J with the attention above in it."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        blocks: Any = (self.component_mapping or {})["blocks"]
        plain = blocks.submodules["attn"]
        blocks.submodules["attn"] = PatchableGPTJAttention(
            name=plain.name, config=self.cfg, submodules=plain.submodules
        )


def register() -> None:
    """Have transformer-lens use the adapter above for every GPT-J that it bridges from now on."""
    ArchitectureAdapterFactory.register_adapter("GPTJForCausalLM", PatchableGPTJAdapter)


def make_patchable(bridge: Any) -> None:
    """Give a GPT-J that was bridged without the adapter above its attention; a no-op for one that has it.

    Nothing but the class differs: components, weights and hook points stay the same objects.
    """
    for block in bridge.blocks:
        if type(block.attn) is AttentionBridge:
            block.attn.__class__ = PatchableGPTJAttention


def _rotate(
    states: Float[Tensor, "rows seq heads d_head"], sin: Tensor, cos: Tensor, rotary_dim: int | None
) -> Float[Tensor, "rows seq heads d_head"]:
    if rotary_dim is None:
        return apply_rotary_pos_emb(states, sin, cos)
    rotated = apply_rotary_pos_emb(states[..., :rotary_dim], sin, cos)
    return torch.cat([rotated, states[..., rotary_dim:]], dim=-1)
