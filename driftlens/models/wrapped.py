"""`WrappedModel`: one interface to both TransformerLens backends: hook points, weights by site, passes over blocks.

A pass (`run`) goes from any layer to any layer and returns the residual stream. The head is a separate step
(`unembed`), which is computed only at the positions that need it. A pass costs only the blocks that it runs: lower
blocks are skipped if their output is given, and the keys and values of a prefix can be computed once and reused.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.hooks import Hook
from driftlens.models.backend import Backend, Columns, chosen
from driftlens.models.batch import Batch
from driftlens.models.families import Family
from driftlens.models.grouping import read_pays
from driftlens.models.key_values import KeyValues, PassCache
from driftlens.models.quantised import refuse_writing
from driftlens.models.sharing import Shared, shared
from driftlens.models.sites import Site

__all__ = ["WrappedModel"]

# TransformerLens's names; on a bridge they are aliases of its own, so hooks are written once for both.
_SITES: Mapping[str, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "mlp_post": "mlp.hook_post",
    "pattern": "attn.hook_pattern",
    "attn_scores": "attn.hook_attn_scores",
    "z": "attn.hook_z",
}


# Where a family rescales these before it adds them, TransformerLens's names are what is added; these, what is rescaled.
_UNSCALED: Mapping[str, str] = {"attn_out": "attn.o.hook_out", "mlp_out": "mlp.out.hook_out"}


class WrappedModel:
    """A runnable `TransformerBridge` of transformer-lens 4.x or unprocessed `HookedTransformer` of 3.9.

    The model is put into eval mode and its parameters are frozen.

    Raises:
        DriftlensError: its weights are processed, it has hooks, or it is another kind of model.
    """

    pass_cost: float
    """The fixed cost of a pass in tokens, by which rows are grouped into passes (:mod:`driftlens.models.grouping`).  It
    affects only speed.  The value is the one that `driftlens profile` measured on this machine, or an estimate for the
    device (:mod:`driftlens.models.pass_costs`)."""

    def __init__(self, model: Any, *, name: str | None = None, family: Family | None = None) -> None:
        backend = _backend_of(model, family)
        reason = backend.processed()
        if reason is not None:
            raise DriftlensError(
                f"the model's weights are not the checkpoint's: {reason}; hand over an unprocessed model"
            )
        if hooks := backend.foreign_hooks():
            raise DriftlensError(
                f"a hook is left on the model at {hooks[0]}, and would change every number; remove it first, with "
                "reset_hooks() if it is TransformerLens's"
            )
        self._backend: Backend = backend
        self.model = model
        self.name: str = name or str(model.cfg.model_name)
        self.backend: str = backend.name
        self.family: str = backend.family.name
        self.parallel_blocks: bool = backend.parallel_blocks
        dimensions = backend.dimensions
        self.n_layers: int = dimensions.n_layers
        self.n_heads: int = dimensions.n_heads
        self.d_model: int = dimensions.d_model
        self.d_mlp: int = dimensions.d_mlp
        self.d_head: int = dimensions.d_head
        self.d_vocab: int = dimensions.d_vocab
        self.n_ctx: int = dimensions.n_ctx

    @property
    def device(self) -> torch.device:
        """The device of the weights; batches and residuals must be on it too."""
        return self._backend.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights and of the residual stream."""
        return self._backend.dtype

    @property
    def foreign_hooks(self) -> list[str]:
        """The places of foreign hooks on the model, TransformerLens's or PyTorch's, between passes."""
        with self.exclusive():
            return self._backend.foreign_hooks()

    @contextmanager
    def exclusive(self) -> Generator[None]:
        """Reserve the model for this thread; other threads wait."""
        with self._shared.exclusive():
            yield

    @property
    def quantisation(self) -> str | None:
        """The quantisation method of the weights, in which case edits act only as hooks; None if not quantised."""
        return self._backend.quantisation

    def _require_writable(self, wanted: str) -> None:
        if self.quantisation is not None:
            raise refuse_writing(self.name, self.quantisation, wanted)

    @property
    def _shared(self) -> Shared:
        return shared(self.model)

    # --- names and weights ---

    def hook_name(self, site: str, layer: int) -> str:
        """The hook point of a site: resid_pre, resid_post, attn_out, mlp_out, mlp_post, pattern, attn_scores
        or z.

        `mlp_post` and `mlp_out` are the input and the output of the MLP's down-projection in every family, `attn_out`
        the output of the attention's output projection: before the norm or factor that some families put after them.
        """
        if site not in _SITES:
            raise DriftlensError(f"unknown site {site!r}; expected one of {', '.join(_SITES)}")
        point = _UNSCALED.get(site) if self._backend.family.rescaled_outputs else None
        return f"blocks.{self._layer(layer)}.{point or _SITES[site]}"

    def adds_to_resid(self, site: str) -> bool:
        """Whether a vector added at `mlp_out`, `attn_out` or `resid_post` is added unchanged to the block's output.

        It is not if a norm or a factor follows the site, nor at `attn_out` if the MLP reads the attention's output.
        """
        if site == "resid_post":
            return True
        if self._backend.family.rescaled_outputs:
            return False
        return site == "mlp_out" or (site == "attn_out" and self.parallel_blocks)

    def W_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:  # noqa: N802 (the matrix\'s name everywhere)
        """The MLP's down-projection as a live view; changing it in place changes the model.

        Raises:
            DriftlensError: the model is quantised.
        """
        self._require_writable("has no matrix that could be changed in place")
        return self.down_projection(layer)[0]

    def down_projection(self, layer: int) -> tuple[Float[Tensor, "d_mlp d_model"], Float[Tensor, " d_model"] | None]:
        """`W_out` and its bias, None if the family has none; copies for a quantised model."""
        return self._backend.down_projection(self._layer(layer))

    def linear(self, site: Site) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"] | None]:
        """The weight, as a live view, and the bias of a linear map of an MLP, `y = x W + b`; copies if quantised.

        Raises:
            DriftlensError: a layer out of range, or a family without such a map.
        """
        return self._backend.linear(Site(self._layer(site.layer), site.map))

    def linear_shape(self, site: Site) -> tuple[int, int]:
        """`[d_in, d_out]` of one linear map of an MLP; raises as `linear`."""
        return self._backend.linear_shape(Site(self._layer(site.layer), site.map))

    def linear_hooks(self, site: Site) -> tuple[str, str]:
        """The hook points on a linear map's input and on its output."""
        if site.map == "mlp.out":
            return self.hook_name("mlp_post", site.layer), self.hook_name("mlp_out", site.layer)
        return self._backend.linear_hooks(Site(self._layer(site.layer), site.map))

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight, live, under the checkpoint's name."""
        return self._backend.named_tensors()

    def stored_name(self, site: Site) -> str | None:
        """The checkpoint's name of a linear map's weight; None if the checkpoint has no separate tensor for it."""
        return self._backend.stored_name(site)

    # --- passes ---

    def run(
        self,
        batch: Batch,
        *,
        hooks: Sequence[Hook] = (),
        start: int = 0,
        resid: Float[Tensor, "rows seq d_model"] | None = None,
        stop: int | None = None,
        past: KeyValues | None = None,
        read: Int[Tensor, "rows read"] | None = None,
    ) -> Float[Tensor, "rows columns d_model"]:
        """Run blocks `start` … `stop` − 1 and return the residual stream after the last one, before the final norm.

        With `start` above 0, `resid` is the input of block `start` and no block below is run. With `past`,
        the batch holds only the columns after that prefix, and they attend to the prefix and to themselves.
        `hooks` are TransformerLens hook functions on names of `hook_name`; those on blocks outside the pass
        do not fire. With `read`, only these columns of each row are returned, in this order, and the last block
        computes little else: a column may be named twice.
        """
        return self._pass(batch, hooks=hooks, start=start, resid=resid, stop=stop, past=past, keep=0, read=read)[0]

    def keys_values(
        self,
        batch: Batch,
        *,
        hooks: Sequence[Hook] = (),
        start: int = 0,
        resid: Float[Tensor, "rows seq d_model"] | None = None,
        columns: int,
        past: KeyValues | None = None,
        read: Int[Tensor, "rows read"] | None = None,
    ) -> tuple[Float[Tensor, "rows columns d_model"], KeyValues]:
        """Run a pass to the last block and return also the keys and values of its first `columns` columns.

        With `past`, the batch holds only the columns after that prefix, and the returned keys and values are those of
        the prefix followed by these columns. With `read`, only these columns of the residual stream are returned, as by
        `run`.
        """
        if not 0 < columns <= batch.shape[1]:
            raise DriftlensError(f"cannot keep {columns} columns of a batch of {batch.shape[1]}; expected 1 or more")
        resid, cache = self._pass(
            batch, hooks=hooks, start=start, resid=resid, stop=None, past=past, keep=columns, read=read
        )
        assert cache is not None
        mask = batch.mask[:, :columns]
        if past is not None:
            mask = torch.cat([past.mask, mask], dim=-1)
        return resid, KeyValues(mask=mask, keys=cache.kept_keys, values=cache.kept_values, column_dim=cache.column_dim)

    def prefix(
        self,
        batch: Batch,
        *,
        hooks: Sequence[Hook] = (),
        start: int = 0,
        resid: Float[Tensor, "rows seq d_model"] | None = None,
        columns: int,
        past: KeyValues | None = None,
    ) -> KeyValues:
        """Only the keys and values of `keys_values`, without the rest of the last block."""
        none = batch.tokens[:, :0]
        return self.keys_values(batch, hooks=hooks, start=start, resid=resid, columns=columns, past=past, read=none)[1]

    def unembed(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """Final norm and head: `unembed(run(batch))` are the model's logits."""
        with torch.autocast(self.device.type, enabled=False):
            return self._backend.unembed(resid.to(self.dtype))

    def _pass(
        self,
        batch: Batch,
        *,
        hooks: Sequence[Hook],
        start: int,
        resid: Tensor | None,
        stop: int | None,
        past: KeyValues | None,
        keep: int,
        read: Tensor | None,
    ) -> tuple[Tensor, PassCache | None]:
        stop = self.n_layers if stop is None else stop
        if not 0 <= start <= stop <= self.n_layers:
            raise DriftlensError(f"cannot run blocks {start} to {stop}; the model has blocks 0 to {self.n_layers}")
        if resid is None and start > 0:
            raise DriftlensError(f"a pass that starts at block {start} needs resid, the input of that block")
        if resid is not None and resid.shape != (*batch.shape, self.d_model):
            raise DriftlensError(
                f"resid has shape {tuple(resid.shape)}; this batch needs {(*batch.shape, self.d_model)}"
            )
        backend, layers = self._backend, range(start, stop)
        # Autocast would round what is computed here and not what it is compared with.
        with self.exclusive(), torch.autocast(self.device.type, enabled=False):
            columns = self._columns(batch, past)
            if resid is None:
                resid = backend.embed(batch.tokens, columns.positions)
            cache = PassCache(past, keep=keep, column_dim=backend.column_dim) if past is not None or keep else None
            with backend.attached(hooks):
                if read is None:
                    resid = backend.run_blocks(resid.to(self.dtype), layers, columns, cache)
                # What hooks on the last block see is always all columns.
                elif layers and not _on_block(layers[-1], hooks) and read_pays(read, *batch.shape, self.pass_cost):
                    resid = backend.run_blocks(resid.to(self.dtype), layers[:-1], columns, cache)
                    resid = backend.run_block_at(resid, layers[-1], columns, cache, read)
                else:
                    resid = chosen(backend.run_blocks(resid.to(self.dtype), layers, columns, cache), read)
        return resid, cache

    def _columns(self, batch: Batch, past: KeyValues | None) -> Columns:
        if past is not None and past.mask.shape[0] != batch.shape[0]:
            raise DriftlensError(
                f"the prefix has {past.mask.shape[0]} rows and the batch {batch.shape[0]}; "
                f"choose the prefix's rows with select()"
            )
        columns = Columns.of(batch, past)
        if columns.mask.shape[1] > self.n_ctx:
            longest = int(columns.positions.masked_fill(~batch.mask, 0).max()) + 1
            if longest > self.n_ctx:
                raise DriftlensError(
                    f"a row has {longest} tokens, but {self.name} reads at most {self.n_ctx}; shorten the prompt"
                )
        # A row without a token of its own behind a full prefix would otherwise stand beyond the context.
        return replace(columns, positions=columns.positions.clamp(max=self.n_ctx - 1))

    def _layer(self, layer: int) -> int:
        if not 0 <= layer < self.n_layers:
            raise DriftlensError(f"layer {layer} is out of range; {self.name} has layers 0 to {self.n_layers - 1}")
        return layer


def _on_block(layer: int, hooks: Iterable[Hook]) -> bool:
    return any(name.startswith(f"blocks.{layer}.") for name, _ in hooks)


def _backend_of(model: Any, family: Family | None) -> Backend:
    # By name: no transformer-lens has both classes in a state that can be used.
    kinds = {cls.__name__ for cls in type(model).__mro__}
    if "HookedTransformer" in kinds:
        from driftlens.models.hooked import HookedBackend

        return HookedBackend(model, family)
    # The bridge of 3.x ignores hook names that it does not know.
    if "TransformerBridge" in kinds and not version("transformer-lens").startswith("3."):
        from driftlens.models.bridge import BridgeBackend

        return BridgeBackend(model, family)
    raise DriftlensError(
        f"cannot use a {type(model).__name__}; expected a TransformerBridge (transformer-lens 4.3 or later) "
        f"or an unprocessed HookedTransformer (3.9)"
    )
