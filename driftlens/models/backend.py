"""The interface between `LensModel` and the TransformerLens model that it wraps.

Both implementations run the blocks one by one instead of calling the whole model. A pass can therefore start and stop
at any layer and leave out the head, without computing anything that it does not need.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.hooks import Hook
from driftlens.models.batch import Batch, standing, visible_columns
from driftlens.models.families import Family
from driftlens.models.key_values import KeyValues, PassCache
from driftlens.models.placement import at_home
from driftlens.models.sites import Site

__all__ = ["Backend", "Columns", "Dimensions", "chosen"]


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """The sizes of a model."""

    n_layers: int
    n_heads: int
    d_model: int
    d_mlp: int
    d_head: int
    d_vocab: int
    n_ctx: int


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of one pass: the position of each in its row, and the columns that it may attend to.

    ``seq`` counts the batch's columns, ``keys`` also those of the prefix before them.
    """

    positions: Int[Tensor, "rows seq"]
    mask: Bool[Tensor, "rows keys"]
    key_positions: Int[Tensor, "rows keys"]
    visible: Bool[Tensor, "rows seq keys"]

    @classmethod
    def of(cls, batch: Batch, past: KeyValues | None) -> "Columns":
        """The columns of a batch that follow a prefix."""
        visible = visible_columns(batch, None if past is None else past.mask)
        positions = standing(visible)
        before = positions[:, :0] if past is None else past.mask.cumsum(-1) - 1
        return cls(
            positions=positions,
            mask=batch.mask if past is None else torch.cat([past.mask, batch.mask], dim=-1),
            key_positions=torch.cat([before, positions], dim=-1),
            visible=visible,
        )

    def within(self, window: int | None) -> Bool[Tensor, "rows seq keys"]:
        """The part of `visible` within a sliding window of the last `window` positions, the query's own included.

        The window counts positions, not columns, because other branches may lie between a branch and its trunk.
        """
        if window is None:
            return self.visible
        return self.visible & (self.key_positions[:, None, :] > self.positions[:, :, None] - window)

    def only(self, read: Int[Tensor, "rows read"]) -> "Columns":
        """These columns of each row as queries, with unchanged keys."""
        return Columns(
            positions=self.positions.gather(1, read),
            mask=self.mask,
            key_positions=self.key_positions,
            visible=self.visible.gather(1, read[:, :, None].expand(-1, -1, self.visible.shape[2])),
        )


def chosen(resid: Float[Tensor, "rows seq d"], read: Int[Tensor, "rows read"]) -> Float[Tensor, "rows read d"]:
    """These columns of each row."""
    return resid.gather(1, read[:, :, None].expand(-1, -1, resid.shape[2]))


class Backend(ABC):
    """A TransformerLens model with raw weights, run block by block."""

    name: ClassVar[str]
    """"bridge" or "hooked"."""
    column_dim: ClassVar[int]
    """The columns' dimension in cached keys and values."""

    model: Any
    family: Family
    dimensions: Dimensions
    quantisation: str | None = None
    """The quantisation method; quantised weights can be read but not changed."""
    parallel_blocks: bool

    def __init__(self, model: Any) -> None:
        self.model = model
        self._hook_points: dict[str, Any] = {}
        self._hooks: list[tuple[str, dict[Any, Any]]] = []

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the weights."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The precision of the weights and of the residual stream."""

    @abstractmethod
    def processed(self) -> str | None:
        """How the weights differ from the checkpoint's, or None if they are raw."""

    @abstractmethod
    def embed(
        self, tokens: Int[Tensor, "rows seq"], positions: Int[Tensor, "rows seq"]
    ) -> Float[Tensor, "rows seq d_model"]:
        """The input of block 0."""

    @abstractmethod
    def run_blocks(
        self,
        resid: Float[Tensor, "rows seq d_model"],
        layers: range,
        columns: Columns,
        cache: PassCache | None,
    ) -> Float[Tensor, "rows seq d_model"]:
        """Run these blocks in order and return the residual stream, given the input of the first."""

    def run_block_at(
        self,
        resid: Float[Tensor, "rows seq d_model"],
        layer: int,
        columns: Columns,
        cache: PassCache | None,
        read: Int[Tensor, "rows read"],
    ) -> Float[Tensor, "rows read d_model"]:
        """The output of one block in the columns `read` of each row; keys and values cover all columns.

        This runs the whole block; backends override it to compute less.
        """
        return chosen(self.run_blocks(resid, range(layer, layer + 1), columns, cache), read)

    @abstractmethod
    def unembed(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """Final norm and head."""

    @abstractmethod
    def reference_logits(self, tokens: Int[Tensor, "rows seq"]) -> Float[Tensor, "rows seq d_vocab"]:
        """Logits of the wrapped model's own forward, for the self-check."""

    @contextmanager
    def narrowed(self, window: int) -> Generator[None]:  # noqa: ARG002 (only a backend with windows narrows them)
        """Limit all sliding windows to this width while the body runs, in passes and in `reference_logits`."""
        yield

    @abstractmethod
    def down_projection(self, layer: int) -> tuple[Float[Tensor, "d_mlp d_model"], Tensor | None]:
        """Weight (a view of the live parameter) and bias of the MLP's second linear map."""

    def linear(self, site: Site) -> tuple[Float[Tensor, "d_in d_out"], Tensor | None]:
        """Weight (a view of the live parameter) and bias of an MLP's linear map.

        Raises:
            DriftlensError: the MLP has no such map, or the backend does not reach it.
        """
        if site.map == "mlp.out":
            return self.down_projection(site.layer)
        raise DriftlensError(f"{site} cannot be changed in a {type(self.model).__name__}; load it with load_model")

    def linear_shape(self, site: Site) -> tuple[int, int]:
        """`[d_in, d_out]` of an MLP's linear map; raises as `linear`."""
        d_in, d_out = self.linear(site)[0].shape
        return d_in, d_out

    def linear_hooks(self, site: Site) -> tuple[str, str]:
        """The hook points of a linear map's input and output."""
        raise DriftlensError(f"{site} cannot be changed in a {type(self.model).__name__}; load it with load_model")

    def stored_name(self, site: Site) -> str | None:  # noqa: ARG002 (what a subclass overrides)
        """The checkpoint's name of a linear map's weight; None if the checkpoint has no separate tensor for it."""
        raise DriftlensError(f"the checkpoint of a {type(self.model).__name__} is not known; load it with load_model")

    @abstractmethod
    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All weights, under the checkpoint's names if the backend knows them."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """The configuration without names, paths and versions: with the weights, it determines the function."""

    def hook_point(self, name: str) -> Any:
        """The hook point with a name such as `blocks.3.attn.hook_pattern`.

        An unknown name is an error, because a silently ignored hook looks like an intervention without effect.
        """
        point = self._hook_points.get(name)
        if point is None:
            try:
                point = reduce(getattr, name.split("."), self.model) if name.startswith("blocks.") else None
            except AttributeError:
                point = None
            if not hasattr(point, "add_hook") or not hasattr(point, "fwd_hooks"):
                raise DriftlensError(
                    f"unknown hook {name!r}; expected a hook point of a block such as "
                    f"'blocks.0.attn.hook_pattern' (LensModel.hook_name makes these names)"
                )
            self._hook_points[name] = point
        return point

    def foreign_hooks(self) -> list[str]:
        """The places of all hooks on the model, whether TransformerLens's or PyTorch's."""
        if not self._hooks:
            for name, module in self.model.named_modules():
                self._hooks += [(name, module._forward_hooks), (name, module._forward_pre_hooks)]
        return [name for name, hooks in self._hooks if hooks and not all(map(_is_wiring, hooks.values()))]

    @contextmanager
    def attached(self, hooks: Iterable[Hook]) -> Generator[None]:
        """Put these hooks on the model while the body runs, and remove exactly these afterwards."""
        with ExitStack() as stack:
            for name, function in hooks:
                point = self.hook_point(name)
                point.add_hook(at_home(function, self.device))
                stack.callback(_remove, point, point.fwd_hooks[-1])
            yield


_WIRING = ("transformer_lens.model_bridge.", "transformers.utils.output_capturing")


def _is_wiring(hook: Callable[..., Any]) -> bool:
    """Whether a library installed this hook for its own use, and the hook changes nothing.

    transformer-lens has such hooks for aliases of hook points, and Hugging Face leaves some on a model whose hidden
    states were requested. PyTorch sees a wrapper of a hook on a hook point, which closes over the function.
    """
    names: tuple[str, ...] = getattr(getattr(hook, "__code__", None), "co_freevars", ())
    closed = dict(zip(names, getattr(hook, "__closure__", None) or (), strict=False))
    function = closed["hook"].cell_contents if "hook" in closed else hook
    return (getattr(function, "__module__", None) or "").startswith(_WIRING)


def _remove(point: Any, handle: Any) -> None:
    handle.hook.remove()
    point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]
