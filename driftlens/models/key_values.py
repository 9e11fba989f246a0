"""Keys and values of a prefix, so that many passes over different endings compute the prefix once.

Hugging Face's and TransformerLens's own caches grow in place when a pass uses them. `KeyValues` never
changes: each pass gets a fresh `PassCache`, which puts the prefix's columns in front of the pass's own and,
when asked, keeps the prefix and the first columns of its own, together, for a later pass. So a prefix grows,
as generation needs it, by the very tensors that attention has put together anyway.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from typing_extensions import override

from driftlens.errors import DriftlensError

__all__ = ["AllRead", "BlockCache", "KeyValues", "PassCache"]


@dataclass(frozen=True, kw_only=True)
class KeyValues:
    """The keys and values of some layers for the first columns of a batch, and which of those columns are
    real.

    The layout of the tensors belongs to the backend that made them: the first dimension is rows on both, and
    `column_dim` says which one counts columns.
    """

    mask: Bool[Tensor, "rows columns"]
    keys: Mapping[int, Tensor] = field(repr=False)
    values: Mapping[int, Tensor] = field(repr=False)
    column_dim: int

    def select(self, rows: Int[Tensor, " n"]) -> "KeyValues":
        """The prefixes of these rows, in this order; a row may be repeated."""
        return KeyValues(
            mask=self.mask.index_select(0, rows),
            # Each layer's are where the layer is.
            keys={layer: keys.index_select(0, rows.to(keys.device)) for layer, keys in self.keys.items()},
            values={layer: values.index_select(0, rows.to(values.device)) for layer, values in self.values.items()},
            column_dim=self.column_dim,
        )

    def within(self, layers: range) -> "KeyValues":
        """Those of some of the layers."""
        keys, values = (
            {layer: kept for layer, kept in of.items() if layer in layers} for of in (self.keys, self.values)
        )
        return KeyValues(mask=self.mask, keys=keys, values=values, column_dim=self.column_dim)

    def widened(self, columns: int) -> "KeyValues":
        """The same in so many columns; the new ones stand in front and are padding."""
        added = columns - self.mask.shape[1]
        if not added:
            return self

        def padded(tensor: Tensor, dim: int) -> Tensor:
            shape = list(tensor.shape)
            shape[dim] = added
            return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)

        return KeyValues(
            mask=padded(self.mask, 1),
            keys={layer: padded(keys, self.column_dim) for layer, keys in self.keys.items()},
            values={layer: padded(values, self.column_dim) for layer, values in self.values.items()},
            column_dim=self.column_dim,
        )

    @staticmethod
    def together(parts: "Sequence[KeyValues]") -> "KeyValues":
        """The rows of all parts, which are equally wide, in one."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        return KeyValues(
            mask=torch.cat([part.mask for part in parts]),
            keys={layer: torch.cat([part.keys[layer] for part in parts]) for layer in first.keys},
            values={layer: torch.cat([part.values[layer] for part in parts]) for layer in first.values},
            column_dim=first.column_dim,
        )


class PassCache:
    """What one pass reads from a prefix and keeps for another; made anew for every pass."""

    def __init__(self, past: KeyValues | None, *, keep: int, column_dim: int) -> None:
        self.past = past
        self.keep = keep
        self.column_dim = column_dim
        self.kept_keys: dict[int, Tensor] = {}
        self.kept_values: dict[int, Tensor] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that this layer's queries see: the prefix's, then the pass's own."""
        columns = self.keep
        if self.past is not None:
            if layer not in self.past.keys:
                raise DriftlensError(
                    f"the given prefix holds no keys and values of layer {layer}; compute it from there on"
                )
            keys = torch.cat([self.past.keys[layer], keys], dim=self.column_dim)
            values = torch.cat([self.past.values[layer], values], dim=self.column_dim)
            columns += self.past.mask.shape[1]
        if self.keep:
            self.kept_keys[layer] = keys.narrow(self.column_dim, 0, columns)
            self.kept_values[layer] = values.narrow(self.column_dim, 0, columns)
        return keys, values

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """`extend` under the name and order by which Hugging Face's attention layers call their cache."""
        return self.extend(layer, keys, values)


class AllRead(Exception):  # noqa: N818 (no error: the way out of a block)
    """A block's keys and values are known, and no more of this call is needed."""


class BlockCache(PassCache):
    """For a block that is called twice: for the keys and values of all columns, and then for a few columns alone.

    The first call takes them from the block and leaves it, by `AllRead`, before it attends to anything.  In the second
    call the block's own few columns are among them already.
    """

    def __init__(self, cache: PassCache) -> None:
        super().__init__(cache.past, keep=0, column_dim=cache.column_dim)
        self._cache = cache
        self._found: tuple[Tensor, Tensor] | None = None

    @override
    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self._found is None:
            self._found = self._cache.extend(layer, keys, values)
            raise AllRead
        return self._found
