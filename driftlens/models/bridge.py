"""`TransformerBridge` of transformer-lens 4.x in raw mode: Hugging Face's modules with hook points put in.

A pass calls the Hugging Face block inside each `BlockBridge` and fires the block's two hook points itself.
That is what `BlockBridge.forward` comes down to, less the inspection of signatures that it repeats on every
call. All hook points inside the block fire as always, since the bridge's components sit inside Hugging Face's
block.
"""

import inspect
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, reduce
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from driftlens.errors import DriftlensError
from driftlens.models.backend import Backend, Columns, Dimensions, chosen
from driftlens.models.families import Family, family_for, longest_row, unsupported_architecture
from driftlens.models.fused import fuse
from driftlens.models.key_values import AllRead, BlockCache, PassCache
from driftlens.models.placement import computes_on, is_offloaded, kept, read
from driftlens.models.quantised import matrix_of, parts_of, quantisation_of
from driftlens.models.sites import Site

__all__ = ["BridgeBackend", "empty_twin"]

# What Hugging Face's blocks call their cache; the name differs by family and by release.
_CACHE_NAMES = ("past_key_values", "layer_past", "past_key_value")

# Linear maps as the bridge's MLPs call them.
_COMPONENTS = {"mlp.in": "in", "mlp.gate": "gate", "mlp.out": "out"}

# Parts of a configuration that say nothing about the function it computes.
_INCIDENTAL = {
    "_name_or_path",
    "_attn_implementation",
    "architectures",
    "dtype",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


class BridgeBackend(Backend):
    """A raw `TransformerBridge`, run block by block."""

    name = "bridge"
    column_dim = 2  # [rows, heads, columns, d_head]

    def __init__(self, model: Any, family: Family | None = None) -> None:
        super().__init__(model)
        cfg = model.cfg
        architecture = str(cfg.architecture)
        family = family or family_for(architecture)
        if family is None:
            raise unsupported_architecture(architecture)
        self.family = family
        config = self.huggingface.config
        self.quantisation = quantisation_of(config)
        family.require_supported(config)
        family.prepare(model)
        fuse(model)
        if self.huggingface.config._attn_implementation != "eager":
            self.huggingface.set_attn_implementation("eager")
        # After bridging, not before: splitting a joint QKV weight makes new parameters that ask for
        # gradients.
        model.eval().requires_grad_(requires_grad=False)
        self.dimensions = Dimensions(
            n_layers=int(cfg.n_layers),
            n_heads=int(cfg.n_heads),
            d_model=int(cfg.d_model),
            d_mlp=self.linear_shape(Site(0))[0],
            d_head=int(cfg.d_head),
            d_vocab=self._weight("unembed").shape[0],
            n_ctx=longest_row(config, int(cfg.n_ctx)),
        )
        self.windows = family.windows(config)
        self.parallel_blocks = "Parallel" in type(model.blocks[0]).__name__
        parameters = inspect.signature(self._block(0).forward).parameters
        self._cache_name = next(name for name in _CACHE_NAMES if name in parameters)

    @property
    def huggingface(self) -> Any:
        """The Hugging Face model that the bridge wraps (its submodules are the bridge's components)."""
        return self.model.original_model

    @property
    @override
    def device(self) -> torch.device:
        return computes_on(self.model.embed.original_component)

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self._weight("embed").dtype

    @override
    def processed(self) -> str | None:
        if getattr(self.model, "_weights_processed", False):
            return "enable_compatibility_mode() folded and centred them (no_processing=True would not)"
        return None

    @override
    def embed(
        self, tokens: Int[Tensor, "rows seq"], positions: Int[Tensor, "rows seq"]
    ) -> Float[Tensor, "rows seq d_model"]:
        return self.family.embed(self.model, tokens, positions)

    @override
    def run_blocks(
        self,
        resid: Float[Tensor, "rows seq d_model"],
        layers: range,
        columns: Columns,
        cache: PassCache | None,
    ) -> Float[Tensor, "rows seq d_model"]:
        # Without one of its own a pass still hands a cache over: it says whose mask this is (`patchable`).
        cache = cache or self._no_cache()
        inputs: dict[str, Any] = {"position_ids": columns.positions, "use_cache": True, self._cache_name: cache}
        masks = {window: _mask(columns.within(window), resid.dtype) for window in {self.windows[n] for n in layers}}
        rotary: dict[str | None, Any] = {}
        for layer in layers:
            inputs["attention_mask"] = masks[self.windows[layer]]
            if hasattr(self.model, "rotary_emb"):
                kind = self.family.rotary_type(self.huggingface.config, layer)
                if kind not in rotary:
                    which = () if kind is None else (kind,)
                    rotary[kind] = self.model.rotary_emb(resid, columns.positions, *which)
                inputs["position_embeddings"] = rotary[kind]
            block = self.model.blocks[layer]
            _tell_shape(block, resid)
            output = block.original_component(block.hook_in(resid), **inputs)
            resid = block.hook_out(output[0] if isinstance(output, tuple) else output)
        return resid.to(columns.positions.device)

    @override
    def run_block_at(
        self,
        resid: Float[Tensor, "rows seq d_model"],
        layer: int,
        columns: Columns,
        cache: PassCache | None,
        read: Int[Tensor, "rows read"],
    ) -> Float[Tensor, "rows read d_model"]:
        if getattr(self.huggingface, "hf_device_map", None) is not None:
            # accelerate brings weights to a block as it begins and takes them away as it ends.
            return super().run_block_at(resid, layer, columns, cache, read)
        twice, block = BlockCache(cache or self._no_cache()), range(layer, layer + 1)
        with suppress(AllRead):
            self.run_blocks(resid, block, columns, twice)
        return self.run_blocks(chosen(resid, read), block, columns.only(read), twice) if read.shape[1] else resid[:, :0]

    def _no_cache(self) -> PassCache:
        return PassCache(None, keep=0, column_dim=self.column_dim)

    @override
    def unembed(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        return self.family.unembed(self.model, resid).to(resid.device)

    @override
    def reference_logits(self, tokens: Int[Tensor, "rows seq"]) -> Float[Tensor, "rows seq d_vocab"]:
        mask = torch.ones_like(tokens)
        return self.huggingface(input_ids=tokens, attention_mask=mask, use_cache=False).logits

    @override
    @contextmanager
    def narrowed(self, window: int) -> Generator[None]:
        wide = self.windows
        with self.family.narrowed(self.huggingface, window):
            self.windows = tuple(width and min(width, window) for width in wide)
            try:
                yield
            finally:
                self.windows = wide

    @override
    def down_projection(self, layer: int) -> tuple[Float[Tensor, "d_mlp d_model"], Tensor | None]:
        return self.linear(Site(layer))

    @override
    def linear(self, site: Site) -> tuple[Float[Tensor, "d_in d_out"], Tensor | None]:
        linear = self._linear(site)
        if self.quantisation is not None:
            return matrix_of(linear, self.dtype), linear.bias
        weight = kept(linear, "weight")
        return (weight.T if self._transposed(site, linear) else weight), _bias(linear)

    @override
    def linear_shape(self, site: Site) -> tuple[int, int]:
        linear = self._linear(site)
        if self.quantisation is not None:
            return int(linear.in_features), int(linear.out_features)
        rows, columns = linear.weight.shape
        return (columns, rows) if self._transposed(site, linear) else (rows, columns)

    def _transposed(self, site: Site, linear: Any) -> bool:
        # Of torch's Linear and Hugging Face's Conv1D only the former holds [d_out, d_in].
        return self.family.transposed if site.map == "mlp.out" else isinstance(linear, torch.nn.Linear)

    def _linear(self, site: Site) -> Any:
        if site.map == "mlp.out":
            linear: Any = reduce(getattr, self.family.down_projection.split("."), self._block(site.layer))
            return getattr(linear, "original_component", linear)
        component = getattr(getattr(self.model.blocks[site.layer], "mlp", None), _COMPONENTS[site.map], None)
        linear = getattr(component, "original_component", None)
        if not isinstance(getattr(linear, "weight", None), Tensor):
            raise DriftlensError(f"{self.family.name} has no {site.map} of its own; expected another site, as mlp.out")
        return linear

    @override
    def linear_hooks(self, site: Site) -> tuple[str, str]:
        self._linear(site)
        component = f"blocks.{site.layer}.mlp.{_COMPONENTS[site.map]}"
        return f"{component}.hook_in", f"{component}.hook_out"

    @override
    def stored_name(self, site: Site) -> str | None:
        try:
            weight = self.linear(site)[0]
        except DriftlensError:
            return None
        return next((name for name, tensor in self.named_tensors() if tensor.data_ptr() == weight.data_ptr()), None)

    @override
    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        # The bridge's components answer for the modules that they replaced, so the checkpoint's own names
        # lead to the live tensors; the bridge's state dict would list its components' names, and some weights
        # twice.
        if self.quantisation is not None:
            yield from parts_of(self.huggingface)
            return
        tied: dict[str, Tensor] = {}
        for name, first in self._names.items():
            *path, last = name.split(".")
            module = _owner(reduce(_submodule, path, self.huggingface), last)
            # Read from a file twice, tied weights would look like two.
            tensor = tied[first] if first in tied and is_offloaded(module) else read(module, last)
            if first in self._tied:
                tied[first] = tensor
            yield name, tensor

    @cached_property
    def _names(self) -> dict[str, str]:
        """The checkpoint's names, each with the first name of the same tensor."""
        firsts: dict[int, str] = {}
        named = empty_twin(self.huggingface).state_dict(keep_vars=True)
        return {name: firsts.setdefault(id(tensor), name) for name, tensor in named.items()}

    @cached_property
    def _tied(self) -> set[str]:
        return {first for name, first in self._names.items() if name != first}

    @override
    def description(self) -> dict[str, Any]:
        config: dict[str, Any] = self.huggingface.config.to_dict()
        return {key: value for key, value in config.items() if key not in _INCIDENTAL}

    def _block(self, layer: int) -> Any:
        return self.model.blocks[layer].original_component

    def _weight(self, component: str) -> Tensor:
        return getattr(self.model, component).original_component.weight


def _mask(visible: Bool[Tensor, "rows seq keys"], dtype: torch.dtype) -> Float[Tensor, "rows 1 seq keys"]:
    """What is added to the scores: 0 where a column is visible."""
    # Finite, as in Hugging Face's own masks: with -inf some half-precision kernels give NaN.
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def _tell_shape(block: Any, resid: Tensor) -> None:
    """Tell OPT's hooks the rows and columns that its MLP sees as one dimension, as the bridge's own forward does."""
    if hasattr(block, "_unflatten_conversions"):
        for conversion in block._unflatten_conversions():
            conversion.batch_seq = tuple(resid.shape[:2])


def _bias(linear: Any) -> Tensor | None:
    return None if linear.bias is None else kept(linear, "bias")


def _owner(module: Any, name: str) -> Any:
    """The Hugging Face module that has a weight, not the component around it."""
    wrapped = getattr(module, "original_component", None)
    return module if wrapped is None or name not in {**wrapped._parameters, **wrapped._buffers} else wrapped


def _submodule(module: Any, name: str) -> Any:
    """An attribute of the Hugging Face module that this is or wraps."""
    # A bridge's component may carry the name of a module that its own one lies inside of (GPT-Neo's `attn.attention`).
    wrapped = getattr(module, "original_component", None)
    return getattr(wrapped if hasattr(wrapped, name) else module, name)


def empty_twin(model: Any) -> Any:
    """The same Hugging Face class and configuration without storage: it knows names, shapes and ties."""
    config = type(model.config).from_dict(model.config.to_dict())
    with torch.device("meta"):
        return type(model)(config)
