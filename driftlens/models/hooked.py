"""The backend for an unprocessed `HookedTransformer` of transformer-lens 3.9, the class in most notebooks.

Its blocks run unchanged, with two corrections during a pass. Its attention mask lets a padding column at the beginning
of a row attend to nothing; the NaN of this softmax is removed in the forward pass but reappears in every gradient.
Therefore the mask is that of `visible_columns`. Its cache grows in place, so each pass gets its own cache entries.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from driftlens.errors import DriftlensError
from driftlens.models.backend import Backend, Columns, Dimensions
from driftlens.models.families import FAMILIES, Family
from driftlens.models.key_values import PassCache

__all__ = ["HookedBackend"]

_ARCHITECTURES = ("GPT2LMHeadModel", "GPTJForCausalLM", "GPTNeoXForCausalLM", "LlamaForCausalLM")
"""Those whose blocks this backend is proven on; the others need the bridge."""

# The parts of a HookedTransformerConfig that, with the weights, make the function.
_MEANINGFUL = (
    "original_architecture n_layers d_model n_heads d_head d_mlp n_ctx d_vocab act_fn eps normalization_type "
    "positional_embedding_type rotary_dim rotary_base n_key_value_heads gated_mlp parallel_attn_mlp final_rms"
).split()


class HookedBackend(Backend):
    """A `HookedTransformer`, run block by block."""

    name = "hooked"
    column_dim = 1  # [rows, columns, heads, d_head]

    def __init__(self, model: Any, family: Family | None = None) -> None:
        super().__init__(model)
        cfg = model.cfg
        _require_supported(cfg)
        self.family = family or FAMILIES[_architecture(cfg)]
        self.dimensions = Dimensions(
            n_layers=int(cfg.n_layers),
            n_heads=int(cfg.n_heads),
            d_model=int(cfg.d_model),
            d_mlp=int(cfg.d_mlp),
            d_head=int(cfg.d_head),
            d_vocab=int(cfg.d_vocab),
            n_ctx=int(cfg.n_ctx),
        )
        self.parallel_blocks = bool(cfg.parallel_attn_mlp)
        model.eval().requires_grad_(requires_grad=False)

    @property
    @override
    def device(self) -> torch.device:
        return self.model.embed.W_E.device

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.model.embed.W_E.dtype

    @override
    def embed(
        self, tokens: Int[Tensor, "rows seq"], positions: Int[Tensor, "rows seq"]
    ) -> Float[Tensor, "rows seq d_model"]:
        resid = self.model.hook_embed(self.model.embed(tokens))
        if self.model.cfg.positional_embedding_type == "standard":
            resid = resid + self.model.hook_pos_embed(self.model.pos_embed.W_pos[positions])
        return resid

    @override
    def run_blocks(
        self,
        resid: Float[Tensor, "rows seq d_model"],
        layers: range,
        columns: Columns,
        cache: PassCache | None,
    ) -> Float[Tensor, "rows seq d_model"]:
        mask = _steps(columns)
        blocks = [self.model.blocks[layer] for layer in layers]
        with _mask_replaced(blocks, columns.visible):
            for layer, block in zip(layers, blocks, strict=True):
                entry = None if cache is None else _CacheEntry(cache, layer)
                resid = block(resid, past_kv_cache_entry=entry, attention_mask=mask)
        return resid

    @override
    def unembed(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        flat = resid.reshape(1, -1, resid.shape[-1])  # TransformerLens's head takes three dimensions only
        return self.model.unembed(self.model.ln_final(flat)).reshape(*resid.shape[:-1], -1)

    @override
    def reference_logits(self, tokens: Int[Tensor, "rows seq"]) -> Float[Tensor, "rows seq d_vocab"]:
        return self.model(tokens, return_type="logits", prepend_bos=False)

    @override
    def down_projection(self, layer: int) -> tuple[Float[Tensor, "d_mlp d_model"], Tensor | None]:
        mlp = self.model.blocks[layer].mlp
        return mlp.W_out, mlp.b_out

    @override
    def processed(self) -> str | None:
        normalization = str(self.model.cfg.normalization_type)
        if normalization.endswith("Pre"):
            return "the layer norms are folded into them (load with from_pretrained_no_processing)"
        weight = self.down_projection(0)[0].float()
        spread = float(weight.abs().mean())
        if normalization == "LN" and spread and float(weight.mean(-1).abs().max()) < 1e-5 * spread:
            return "the writing weights are centred (load with from_pretrained_no_processing)"
        return None

    @override
    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_parameters()

    @override
    def description(self) -> dict[str, Any]:
        return {key: getattr(self.model.cfg, key, None) for key in _MEANINGFUL}


def _steps(columns: Columns) -> Int[Tensor, "rows keys"]:
    """What to hand over as the attention mask, of which the block takes nothing but rotary positions.

    It counts them: the sum up to a column, less 1, is its position. A branch begins where its trunk ends, so its first
    column steps back.
    """
    own = columns.positions
    before = columns.mask[:, : -own.shape[1]].long()
    return torch.cat([before, own.diff(prepend=before.sum(-1, keepdim=True) - 1)], dim=-1)


class _CacheEntry:
    """What a block of a `HookedTransformer` expects of its cache, over a `PassCache`."""

    def __init__(self, cache: PassCache, layer: int) -> None:
        self._cache = cache
        self._layer = layer

    @property
    def past_keys(self) -> Tensor:
        """Only its number of columns is looked at."""
        past = self._cache.past
        return torch.empty(0, 0) if past is None else torch.empty(0, past.mask.shape[1])

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self._cache.extend(self._layer, keys, values)


@contextmanager
def _mask_replaced(blocks: list[Any], visible: Bool[Tensor, "rows seq keys"]) -> Generator[None]:
    hidden = ~visible[:, None]

    def apply_causal_mask(scores: Tensor, *_: Any, **__: Any) -> Tensor:
        return scores.masked_fill(hidden, -torch.inf)

    try:
        for block in blocks:
            block.attn.apply_causal_mask = apply_causal_mask
        yield
    finally:
        for block in blocks:
            block.attn.__dict__.pop("apply_causal_mask", None)


def _require_supported(cfg: Any) -> None:
    if cfg.positional_embedding_type not in ("standard", "rotary"):
        raise DriftlensError(
            f"unsupported positional embedding {cfg.positional_embedding_type!r}; expected standard or rotary"
        )
    if cfg.use_local_attn or cfg.attention_dir != "causal" or cfg.attn_only:
        raise DriftlensError("unsupported attention: expected causal, global attention with an MLP in every block")
    if cfg.n_devices > 1:
        raise DriftlensError(f"the model is spread over {cfg.n_devices} devices; load it on one (n_devices=1)")


def _architecture(cfg: Any) -> str:
    """The checkpoint's architecture; for a model built by hand, the family whose blocks it has."""
    architecture = cfg.original_architecture
    if architecture in _ARCHITECTURES:
        return str(architecture)
    if architecture is not None:
        raise DriftlensError(
            f"unsupported architecture {architecture} for a HookedTransformer; expected one of "
            f"{', '.join(_ARCHITECTURES)}, or load the checkpoint with load_model"
        )
    if cfg.gated_mlp:
        return "LlamaForCausalLM"
    if cfg.positional_embedding_type == "standard":
        return "GPT2LMHeadModel"
    return "GPTJForCausalLM" if cfg.rotary_adjacent_pairs else "GPTNeoXForCausalLM"
