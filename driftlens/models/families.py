"""All differences between model families, in one `Family` each.

A family is chosen by the checkpoint's `architectures` entry, never by its name. Its fields are paths inside Hugging
Face's modules; its methods compute what families do differently, and subclasses override them. Hook points have
TransformerLens's names, which are the same for all families.

The table contains the families that driftlens's tests cover. `load_model(..., family=...)` accepts your own, and
`register_family` adds it to the table for every load by name.
"""

# ruff: noqa: ARG002 (methods that a family overrides take more than the common case needs)

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from driftlens.errors import DriftlensError

__all__ = ["FAMILIES", "Family", "family_for", "register_family"]

ENTRY_POINTS = "driftlens.families"
"""The entry-point group in which an installed package offers families, by architecture."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture that driftlens can run and edit."""

    name: str
    """A short name for it, e.g. "llama"."""
    blocks: str
    """Path of the list of blocks inside the Hugging Face model."""
    down_projection: str
    """Path of the MLP's second linear map inside a block."""
    transposed: bool = True
    """Whether its weight is stored as [d_model, d_mlp] (a Linear), not as [d_mlp, d_model] (a Conv1D)."""
    rescaled_outputs: bool = False
    """Whether a norm or a factor rescales the outputs of attention and MLP before the residual stream takes them up.

    `mlp_out` and `attn_out` are the projections' outputs, before that: what a change of the weights changes.
    """
    adapter: type[Any] | None = None
    """A TransformerLens `ArchitectureAdapter`, for an architecture that TransformerLens itself does not know."""

    def unsupported(self, config: Any) -> str | None:
        """Why a checkpoint of this configuration cannot be used, or None."""
        return None

    def require_supported(self, config: Any) -> None:
        """Raise an error if `unsupported` gives a reason.

        Raises:
            DriftlensError: the checkpoint cannot be used.
        """
        reason = self.unsupported(config)
        if reason is not None:
            raise DriftlensError(f"unsupported {self.name} model: {reason}; use another checkpoint of the family")
        self.windows(config)

    def windows(self, config: Any) -> tuple[int | None, ...]:
        """For each layer, the number of tokens it attends to, including the query's own; None is all of them."""
        return sliding_windows(config)

    @contextmanager
    def narrowed(self, huggingface: Any, window: int) -> Generator[None]:
        """Limit the Hugging Face model's sliding windows to this width while the body runs.

        With it, the self-check's short texts reach beyond every window.
        """
        config = huggingface.config
        wide: int | None = getattr(config, "sliding_window", None)
        if wide is None:
            yield
            return
        config.sliding_window = min(wide, window)
        try:
            yield
        finally:
            config.sliding_window = wide

    def rotary_type(self, config: Any, layer: int) -> str | None:
        """The key of a layer's rotary embedding; None if all layers share one."""
        return None

    def prepare(self, bridge: Any) -> None:
        """Correct errors of this family's bridge; repeated calls have no effect."""

    def embed(
        self, bridge: Any, tokens: Int[Tensor, "rows seq"], positions: Int[Tensor, "rows seq"]
    ) -> Float[Tensor, "rows seq d_model"]:
        """The input of block 0."""
        resid: Tensor = bridge.embed(tokens)
        if hasattr(bridge, "pos_embed"):
            resid = resid + bridge.pos_embed(positions)
        return resid

    def unembed(self, bridge: Any, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """The logits, given the output of the last block: final norm, head and, if the family has one, soft cap."""
        logits: Tensor = bridge.unembed(bridge.ln_final(resid))
        cap = getattr(bridge.original_model.config, "final_logit_softcapping", None)
        return logits if cap is None else (logits / cap).tanh() * cap


def sliding_windows(config: Any) -> tuple[int | None, ...]:
    """The sliding windows in a Hugging Face configuration: by `layer_types`, or one for all layers."""
    window: int | None = getattr(config, "sliding_window", None)
    types: list[str] | None = getattr(config, "layer_types", None)
    if types is None:
        return (window,) * int(config.num_hidden_layers)
    unknown = sorted({kind for kind in types if kind not in ("full_attention", "sliding_attention")})
    if unknown:
        raise DriftlensError(
            f"unsupported attention {', '.join(unknown)} in {config.model_type}; expected full_attention or "
            "sliding_attention in every layer"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)


class _GPTJ(Family):
    @override
    def prepare(self, bridge: Any) -> None:
        from driftlens.models.patchable import PatchableGPTJAttention, make_patchable

        make_patchable(bridge, PatchableGPTJAttention)


class _GPTNeo(Family):
    @override
    def windows(self, config: Any) -> tuple[int | None, ...]:
        return tuple(config.window_size if kind == "local" else None for kind in config.attention_layers)

    @override
    @contextmanager
    def narrowed(self, huggingface: Any, window: int) -> Generator[None]:
        # Each layer keeps its mask in a buffer.
        local = [each for each in huggingface.modules() if getattr(each, "attention_type", None) == "local"]
        local = [each for each in local if "bias" in each._buffers]  # not the module around it
        wide = [module.bias for module in local]
        for module in local:
            module.bias = module.bias & ~module.bias.tril(-window)
        try:
            yield
        finally:
            for module, bias in zip(local, wide, strict=True):
                module.bias = bias

    @override
    def prepare(self, bridge: Any) -> None:
        from driftlens.models.patchable import PatchableGPTNeoAttention, make_patchable

        make_patchable(bridge, PatchableGPTNeoAttention)


class _GPTNeoX(Family):
    @override
    def unsupported(self, config: Any) -> str | None:
        # transformer-lens splits the joint projection together with its bias.
        return None if config.attention_bias else "its attention has no biases (attention_bias=False)"


class _OPT(Family):
    @override
    def unsupported(self, config: Any) -> str | None:
        if not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size:
            return "its norms stand after the sublayers, or its embeddings are projected (as in opt-350m)"
        return None

    @override
    def prepare(self, bridge: Any) -> None:
        from driftlens.models.patchable import PatchableOPTAttention, make_patchable

        make_patchable(bridge, PatchableOPTAttention)

    @override
    def embed(
        self, bridge: Any, tokens: Int[Tensor, "rows seq"], positions: Int[Tensor, "rows seq"]
    ) -> Float[Tensor, "rows seq d_model"]:
        # The first argument, a mask, serves only to find the positions, which are given.
        return bridge.embed(tokens) + bridge.pos_embed(positions, position_ids=positions)


class _OLMo2(Family):
    @override
    def prepare(self, bridge: Any) -> None:
        from driftlens.models.patchable import CastRotary

        bridge.rotary_emb.__class__ = CastRotary


class _Gemma(Family):
    @override
    def unsupported(self, config: Any) -> str | None:
        both_ways = getattr(config, "use_bidirectional_attention", None)
        return "its attention looks ahead (use_bidirectional_attention)" if both_ways else None


class _Gemma3(_Gemma):
    @override
    def rotary_type(self, config: Any, layer: int) -> str | None:
        return config.layer_types[layer]


_LLAMA_PATHS: dict[str, Any] = {"blocks": "model.layers", "down_projection": "mlp.down_proj"}

FAMILIES: dict[str, Family] = {
    "GPT2LMHeadModel": Family(name="gpt2", blocks="transformer.h", down_projection="mlp.c_proj", transposed=False),
    "GPTJForCausalLM": _GPTJ(name="gptj", blocks="transformer.h", down_projection="mlp.fc_out"),
    "GPTNeoXForCausalLM": _GPTNeoX(name="neox", blocks="gpt_neox.layers", down_projection="mlp.dense_4h_to_h"),
    "LlamaForCausalLM": Family(name="llama", **_LLAMA_PATHS),
    "MistralForCausalLM": Family(name="mistral", **_LLAMA_PATHS),
    "Qwen2ForCausalLM": Family(name="qwen2", **_LLAMA_PATHS),
    "Qwen3ForCausalLM": Family(name="qwen3", **_LLAMA_PATHS),
    "Phi3ForCausalLM": Family(name="phi3", **_LLAMA_PATHS),
    "Gemma2ForCausalLM": _Gemma(name="gemma2", rescaled_outputs=True, **_LLAMA_PATHS),
    "Gemma3ForCausalLM": _Gemma3(name="gemma3", rescaled_outputs=True, **_LLAMA_PATHS),
    "Olmo2ForCausalLM": _OLMo2(name="olmo2", rescaled_outputs=True, **_LLAMA_PATHS),
    "GPTNeoForCausalLM": _GPTNeo(name="gptneo", blocks="transformer.h", down_projection="mlp.c_proj"),
    "OPTForCausalLM": _OPT(name="opt", blocks="model.decoder.layers", down_projection="fc2"),
    "Starcoder2ForCausalLM": Family(name="starcoder2", blocks="model.layers", down_projection="mlp.c_proj"),
}
"""Architecture → family; `register_family` adds to it."""


def register_family(architecture: str, family: Family) -> None:
    """Load every model of this architecture (its `architectures` entry) as `family` from now on.

    To make a family known to the command line and to other processes as well, a package declares it as an entry point
    in the group `driftlens.families`, under the architecture.
    """
    FAMILIES[architecture] = family


def family_for(architecture: str) -> Family | None:
    """The family of an architecture: registered, in the table, or offered by an installed package."""
    if architecture in FAMILIES:
        return FAMILIES[architecture]
    for offered in entry_points(group=ENTRY_POINTS, name=architecture):
        family = offered.load()
        if not isinstance(family, Family):
            raise DriftlensError(
                f"the entry point {offered.value} for {architecture} is a {type(family).__name__}; expected a Family"
            )
        register_family(architecture, family)
        return family
    return None


def unsupported_architecture(architectures: str) -> DriftlensError:
    """The error for an architecture without a known family."""
    return DriftlensError(
        f"unsupported architecture {architectures}; expected one of {', '.join(FAMILIES)}, "
        f"or a family of your own: load_model(..., family=Family(...))"
    )


def longest_row(config: Any, n_ctx: int) -> int:
    """The greatest length of a row in tokens, at most `n_ctx`.

    Rotary embeddings of the types "longrope" and "dynamic" change all frequencies once the longest row of a batch
    exceeds a boundary. Beyond it, a row's numbers would depend on other rows and on cached keys.
    """
    parameters: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(each for each in parameters.values() if isinstance(each, Mapping))]
    for each in kinds:
        if each.get("rope_type") in ("longrope", "dynamic"):
            given = each.get("original_max_position_embeddings")
            given = given or getattr(config, "original_max_position_embeddings", None)
            n_ctx = min(n_ctx, int(given or config.max_position_embeddings))
    return n_ctx
