"""What `LensModel` needs from the model inside it, whichever TransformerLens class that is.

Both implementations run the blocks themselves, one after the other, instead of calling the whole model: that is how a
pass can start at any layer, stop at any layer and leave out the head without computing what it does not need.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.models.families import Family
from driftlens.models.key_values import PassCache

__all__ = ["Backend", "Columns", "Dimensions", "attached", "find_hook_point"]

Hook = tuple[str, Callable[..., Any]]


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    n_layers: int
    n_heads: int
    d_model: int
    d_mlp: int
    d_head: int
    d_vocab: int
    n_ctx: int


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of one pass: where each stands in its row and what it may attend to."""

    positions: Int[Tensor, "rows seq"]
    mask: Bool[Tensor, "rows past+seq"]
    visible: Bool[Tensor, "rows seq past+seq"]


class Backend(Protocol):
    """A TransformerLens model with raw weights, run block by block."""

    name: str
    """"bridge" or "hooked"."""
    model: Any
    family: Family
    dimensions: Dimensions
    parallel_blocks: bool
    column_dim: int
    """The dimension of cached keys and values that counts columns."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def hook_point(self, name: str) -> Any: ...

    def embed(self, tokens: Int[Tensor, "rows seq"], positions: Int[Tensor, "rows seq"]) -> Tensor: ...

    def run_blocks(
        self, resid: Float[Tensor, "rows seq d_model"], layers: range, columns: Columns, cache: PassCache | None
    ) -> Float[Tensor, "rows seq d_model"]: ...

    def unembed(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]: ...

    def reference_logits(self, tokens: Int[Tensor, "rows seq"]) -> Float[Tensor, "rows seq d_vocab"]:
        """Logits of the wrapped model's own forward, for the self-check."""
        ...

    def down_projection(self, layer: int) -> tuple[Float[Tensor, "d_mlp d_model"], Tensor | None]:
        """Weight (a view of the live parameter) and bias of the MLP's second linear map."""
        ...

    def processed(self) -> str | None:
        """How the weights differ from the checkpoint's, or None when they are raw."""
        ...

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight, under the checkpoint's names where the backend knows them."""
        ...

    def description(self) -> dict[str, Any]:
        """What besides the weights makes the model: its configuration, without names, paths and versions."""
        ...


def find_hook_point(model: Any, name: str) -> Any:
    """The hook point behind a name such as `blocks.3.attn.hook_pattern`; an unknown name is an error, never ignored."""
    try:
        point = reduce(getattr, name.split("."), model) if name.startswith("blocks.") else None
    except AttributeError:
        point = None
    if not hasattr(point, "add_hook") or not hasattr(point, "fwd_hooks"):
        raise DriftlensError(
            f"unknown hook {name!r}; expected a block's hook point such as 'blocks.0.attn.hook_pattern' "
            f"(LensModel.hook_name makes these names)"
        )
    return point


@contextmanager
def attached(backend: Backend, hooks: Iterable[Hook] | Sequence[Hook]) -> Iterator[None]:
    """Have these hooks on the model while the body runs; afterwards exactly these are gone, whatever happened."""
    with ExitStack() as stack:
        for name, function in hooks:
            point = backend.hook_point(name)
            point.add_hook(_plain(function))
            stack.callback(_remove, point, point.fwd_hooks[-1])
        yield


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    # TransformerLens keeps repr(function) as a label; for a hook object that holds tensors that would print them all.
    def hook_function(tensor: Tensor, hook: Any) -> Any:
        return function(tensor, hook=hook)

    return hook_function


def _remove(point: Any, handle: Any) -> None:
    handle.hook.remove()
    point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]
