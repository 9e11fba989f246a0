"""Keys and values of a prefix, which many passes over different endings share.

The caches of Hugging Face and TransformerLens grow in place during a pass. `KeyValues` is immutable: each pass gets a
new `PassCache`, which puts the prefix's columns before the pass's own. On request, it stores the prefix together with
the pass's first columns for a later pass, as generation needs; these are the tensors that attention has concatenated
anyway.
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
    """The keys and values of some layers for the first columns of a batch, and a mask of real columns.

    The layout of the tensors depends on the backend: the first dimension is rows in both, and `column_dim` is the
    dimension of columns.
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
        """The keys and values of some of the layers."""
        keys, values = (
            {layer: kept for layer, kept in of.items() if layer in layers} for of in (self.keys, self.values)
        )
        return KeyValues(mask=self.mask, keys=keys, values=values, column_dim=self.column_dim)

    def widened(self, columns: int) -> "KeyValues":
        """Add padding columns in front, up to this number of columns."""
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
        """Concatenate the rows of all parts, which must have the same number of columns."""
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
    """What one pass reads from a prefix and stores for another; a new one for every pass."""

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
        """`extend` with the name and the arguments of Hugging Face's caches."""
        return self.extend(layer, keys, values)


class AllRead(Exception):  # noqa: N818 (no error: the way out of a block)
    """Raised to leave a block as soon as its keys and values are known."""


class BlockCache(PassCache):
    """The cache of a block that is called twice: for the keys and values of all columns, then for a few columns.

    The first call takes the keys and values and leaves the block with `AllRead`, before attention.  They include those
    of the few columns of the second call.
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
