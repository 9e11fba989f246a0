"""`TransformerBridge` of transformer-lens 4.x in raw mode: Hugging Face's own modules with hook points put in.

A pass calls the Hugging Face block inside each `BlockBridge` and fires the block's two hook points itself. That is
what `BlockBridge.forward` comes down to, less the inspection of signatures that it repeats on every call. All hook
points inside the block fire as always, since the bridge's components sit inside Hugging Face's block.
"""

import inspect
from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.models.backend import Columns, Dimensions, find_hook_point
from driftlens.models.families import FAMILIES
from driftlens.models.gptj import make_patchable
from driftlens.models.key_values import PassCache

__all__ = ["BridgeBackend"]

# What Hugging Face's blocks call their cache; the name differs by family and by release.
_CACHE_NAMES = ("past_key_values", "layer_past", "past_key_value")

# Parts of a configuration that say nothing about the function it computes.
_INCIDENTAL = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "_attn_implementation"}


class BridgeBackend:
    name = "bridge"
    column_dim = 2  # [rows, heads, columns, d_head]

    def __init__(self, model: Any) -> None:
        architecture = str(model.cfg.architecture)
        if architecture not in FAMILIES:
            raise DriftlensError(f"unsupported architecture {architecture}; expected one of {', '.join(FAMILIES)}")
        self.model = model
        self.family = FAMILIES[architecture]
        if self.family.name == "gptj":
            make_patchable(model)
        if self.huggingface.config._attn_implementation != "eager":
            self.huggingface.set_attn_implementation("eager")
        # After bridging, not before: splitting a joint QKV weight makes new parameters that ask for gradients.
        model.eval().requires_grad_(False)
        cfg = model.cfg
        self.dimensions = Dimensions(
            n_layers=int(cfg.n_layers),
            n_heads=int(cfg.n_heads),
            d_model=int(cfg.d_model),
            d_mlp=self.down_projection(0)[0].shape[0],
            d_head=int(cfg.d_head),
            d_vocab=int(self._parameter("unembed").shape[0]),
            n_ctx=int(cfg.n_ctx),
        )
        self.parallel_blocks = "Parallel" in type(model.blocks[0]).__name__
        parameters = inspect.signature(self._block(0).forward).parameters
        self._cache_name = next(name for name in _CACHE_NAMES if name in parameters)
        self._hook_points: dict[str, Any] = {}

    @property
    def huggingface(self) -> Any:
        """The Hugging Face model that the bridge wraps (its submodules are the bridge's components)."""
        return self.model.original_model

    @property
    def device(self) -> torch.device:
        return self._parameter("embed").device

    @property
    def dtype(self) -> torch.dtype:
        return self._parameter("embed").dtype

    def hook_point(self, name: str) -> Any:
        point = self._hook_points.get(name)
        if point is None:
            point = self._hook_points[name] = find_hook_point(self.model, name)
        return point

    def embed(
        self, tokens: Int[Tensor, "rows seq"], positions: Int[Tensor, "rows seq"]
    ) -> Float[Tensor, "rows seq d_model"]:
        resid = self.model.embed(tokens)
        if hasattr(self.model, "pos_embed"):
            resid = resid + self.model.pos_embed(positions)
        return resid

    def run_blocks(
        self, resid: Float[Tensor, "rows seq d_model"], layers: range, columns: Columns, cache: PassCache | None
    ) -> Float[Tensor, "rows seq d_model"]:
        # Finite, as in Hugging Face's own masks: half-precision scores plus -inf are safe only in some kernels.
        hidden = torch.finfo(resid.dtype).min
        mask = torch.zeros_like(columns.visible, dtype=resid.dtype).masked_fill_(~columns.visible, hidden)
        inputs: dict[str, Any] = {
            "attention_mask": mask[:, None],
            "position_ids": columns.positions,
            "use_cache": cache is not None,
            self._cache_name: cache,
        }
        if hasattr(self.model, "rotary_emb"):
            inputs["position_embeddings"] = self.model.rotary_emb(resid, columns.positions)
        for layer in layers:
            block = self.model.blocks[layer]
            output = block.original_component(block.hook_in(resid), **inputs)
            resid = block.hook_out(output[0] if isinstance(output, tuple) else output)
        return resid

    def unembed(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        return self.model.unembed(self.model.ln_final(resid))

    def reference_logits(self, tokens: Int[Tensor, "rows seq"]) -> Float[Tensor, "rows seq d_vocab"]:
        return self.huggingface(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits

    def down_projection(self, layer: int) -> tuple[Float[Tensor, "d_mlp d_model"], Tensor | None]:
        linear = reduce(getattr, self.family.down_projection.split("."), self._block(layer))
        weight: Tensor = linear.weight
        return (weight.T if self.family.transposed else weight), linear.bias

    def processed(self) -> str | None:
        if getattr(self.model, "_weights_processed", False):
            return "enable_compatibility_mode() folded and centred its weights (use no_processing=True)"
        return None

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        # The bridge's components answer for the modules that they replaced, so the checkpoint's own names lead to
        # the live tensors; the bridge's state dict would list its components' names, and some weights twice.
        for name in checkpoint_names(self.huggingface):
            yield name, reduce(getattr, name.split("."), self.huggingface)

    def description(self) -> dict[str, Any]:
        config: dict[str, Any] = self.huggingface.config.to_dict()
        return {key: value for key, value in config.items() if key not in _INCIDENTAL}

    def _block(self, layer: int) -> Any:
        return self.model.blocks[layer].original_component

    def _parameter(self, component: str) -> Tensor:
        return getattr(self.model, component).original_component.weight


def empty_twin(model: Any) -> Any:
    """The same Hugging Face class with the same configuration and no storage: it knows names, shapes and ties."""
    with torch.device("meta"):
        return type(model)(type(model.config).from_dict(model.config.to_dict()))


def checkpoint_names(model: Any) -> list[str]:
    return list(empty_twin(model).state_dict())
