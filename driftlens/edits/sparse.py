"""A change of a small share of a matrix's entries, such as WISE's side memory under its gradient mask.

In memory and in files it stores the nonzero entries, and one bit per entry of the matrix that marks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from typing_extensions import override

from driftlens.edits.changes import Change, dense_hooks
from driftlens.errors import DriftlensError
from driftlens.hooks import Hook
from driftlens.models.sites import Site

if TYPE_CHECKING:
    from driftlens.models import LensModel

__all__ = ["Sparse"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sparse(Change):
    """``W += matrix`` with few nonzero entries; :meth:`of` makes one from a matrix.

    Attributes:
        values: the nonzero entries, in the order of the matrix's rows.
        bits: where they are: bit ``i % 8`` of byte ``i // 8`` belongs to entry ``i`` in that order.
        size: ``[d_in, d_out]``.
    """

    kind: ClassVar[str] = "sparse"

    site: Site
    values: Float[Tensor, "n"]
    bits: UInt8[Tensor, "bytes"]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", Site(*self.site))
        object.__setattr__(self, "size", tuple(self.size))
        count, needed = self.size[0] * self.size[1], -(-self.size[0] * self.size[1] // 8)
        if len(self.bits) != needed or int(self._places.sum()) != len(self.values) or self._places.numel() != count:
            raise DriftlensError(
                f"a sparse change of {self.size[0]} × {self.size[1]} has {len(self.values)} values and "
                f"{len(self.bits)} bytes of bits; expected {needed} bytes with a bit for each value"
            )

    def __repr__(self) -> str:
        return f"Sparse({self.site}, {len(self.values)} of [{self.size[0]}, {self.size[1]}])"

    @classmethod
    def of(cls, site: Site, matrix: Float[Tensor, "d_in d_out"]) -> Self:
        """Make the change that adds ``matrix``."""
        flat = matrix.detach().flatten()
        there = flat != 0
        padded = torch.zeros(-(-len(flat) // 8) * 8, dtype=torch.uint8, device=flat.device)
        padded[: len(flat)] = there
        weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=flat.device)
        d_in, d_out = matrix.shape
        return cls(
            site=site,
            values=flat[there],
            bits=(padded.view(-1, 8) * weights).sum(dim=1, dtype=torch.uint8),
            size=(d_in, d_out),
        )

    @property
    def _places(self) -> Tensor:
        shifts = torch.arange(8, dtype=torch.uint8, device=self.bits.device)
        return ((self.bits[:, None] >> shifts) & 1).flatten()[: self.size[0] * self.size[1]].bool()

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return self.size

    @property
    @override
    def tensors(self) -> Mapping[str, Tensor]:
        return {"values": self.values, "bits": self.bits}

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        return {"size": list(self.size)}

    @override
    def matrix(self) -> Float[Tensor, "d_in d_out"]:
        whole = self.values.new_zeros(self.size[0] * self.size[1])
        whole[self._places.to(whole.device)] = self.values
        return whole.view(self.size)

    @classmethod
    @override
    def restored(cls, site: Site, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        return cls(site=site, values=tensors["values"], bits=tensors["bits"], size=settings["size"])

    @classmethod
    @override
    def batch_hooks(cls, model: LensModel, changes: Sequence[Any], rows: Int[Tensor, "rows"] | None) -> list[Hook]:
        return dense_hooks(model, changes, rows)

    @override
    def plus(self, other: Any) -> Self:
        precision = torch.promote_types(self.values.dtype, other.values.dtype)
        mine = self.matrix().to(precision)
        return type(self).of(self.site, mine + other.matrix().to(mine.device, precision))
