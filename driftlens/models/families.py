"""What differs between the model families, as data.

A family is chosen by the checkpoint's `architectures` entry, never by its name. The paths are those of
Hugging Face's modules; the TransformerLens names are the same for all families.
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture that driftlens can edit."""

    name: str
    blocks: str
    """Path of the list of blocks inside the Hugging Face model."""
    down_projection: str
    """Path of the MLP's second linear map inside a block."""
    transposed: bool
    """Whether its weight is stored as [d_model, d_mlp] (a Linear), not as [d_mlp, d_model] (a Conv1D)."""


FAMILIES: Mapping[str, Family] = {
    "GPT2LMHeadModel": Family(name="gpt2", blocks="transformer.h", down_projection="mlp.c_proj", transposed=False),
    "GPTJForCausalLM": Family(name="gptj", blocks="transformer.h", down_projection="mlp.fc_out", transposed=True),
    "GPTNeoXForCausalLM": Family(
        name="neox", blocks="gpt_neox.layers", down_projection="mlp.dense_4h_to_h", transposed=True
    ),
    "LlamaForCausalLM": Family(name="llama", blocks="model.layers", down_projection="mlp.down_proj", transposed=True),
}
