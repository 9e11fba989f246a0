"""Changes: what an edit adds to the output of one linear map, ``y = x W + b``.

Every kind of change can act on the fly, as hooks on the map's input and output. Many different changes of one kind can
run side by side as rows of one batch (:meth:`Change.batch_hooks`).  A change of the weight also has a ``matrix``, which
can be written into a model or exported.

===========================  ==================================================================================
:class:`LowRank`             ``W += left @ right``: ROME, MEMIT and PMET at down-projections, MEND also at the others
:class:`Dense`               ``W += matrix``: fine-tuning, the difference of two checkpoints
:class:`~driftlens.edits.sparse.Sparse`  the same, with most entries 0
:class:`~driftlens.edits.gated.Gated`  one of these for some prompts only: the side memory of WISE
===========================  ==================================================================================

To define your own kind, subclass :class:`Change` with a new ``kind``. Files refer to it by that name, so the module
that defines it must be imported before such a file is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from driftlens.errors import DriftlensError, unknown_name
from driftlens.hooks import Hook, apply_dense, apply_low_rank
from driftlens.models.sites import Site

if TYPE_CHECKING:
    from driftlens.models import LensModel

__all__ = ["Change", "Dense", "LowRank", "LowRankUpdate", "change_kind", "dense_hooks"]

_KINDS: dict[str, type[Change]] = {}


class Change(ABC):
    """A change of the output of one linear map."""

    kind: ClassVar[str]
    """The name of this kind of change in files."""
    is_weights: ClassVar[bool] = True
    """Whether it is a change of the weight matrix, the same for every input."""

    site: Site

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "kind" in cls.__dict__:
            _KINDS[cls.kind] = cls

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """``[d_in, d_out]`` of the linear map that it fits."""

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """Its tensors by name, as stored in files."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its other settings, as JSON."""
        return {}

    @classmethod
    @abstractmethod
    def restored(cls, site: Site, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        """Make the change with these ``tensors`` and ``settings``."""

    @classmethod
    @abstractmethod
    def batch_hooks(cls, model: LensModel, changes: Sequence[Any], rows: Int[Tensor, "rows"] | None) -> list[Hook]:
        """Make hooks for a batch whose row *i* sees ``changes[rows[i]]``; ``None`` stands for no change.

        All changes are of one site. Without ``rows`` there is one change, and every row sees it.
        """

    def matrix(self) -> Float[Tensor, "d_in d_out"]:
        """The matrix added to the weight; only if ``is_weights``."""
        raise DriftlensError(f"a {self.kind} change of {self.site} is no change of weights; it has no matrix")

    def added(self, inputs: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """What it adds to the map's output, for ``inputs`` of its own precision and device."""
        return inputs @ self.matrix()

    def added_to(self, model: LensModel, weight: Float[Tensor, "d_in d_out"]) -> Float[Tensor, "d_in d_out"]:
        """``weight`` with the change added, in the change's precision (float32 or better)."""
        (matrix,) = placed(model, self.matrix())
        return weight.to(matrix) + matrix

    def plus(self, other: Any) -> Self:  # noqa: ARG002 (what a subclass overrides)
        """Combine this and another change of the same kind and site into one."""
        raise DriftlensError(f"two {self.kind} changes of {self.site} cannot be added; make one edit of them")

    @property
    def summary(self) -> str:
        """Describe it in a word or two, for tables."""
        return self.kind.replace("_", " ")

    @cached_property
    def is_finite(self) -> bool:
        """Whether all its numbers are finite."""
        return all(bool(tensor.isfinite().all()) for tensor in self.tensors.values())

    def equals(self, other: Change) -> bool:
        """Whether the two have the same numbers."""
        mine, theirs = self.tensors, other.tensors
        return (
            type(self) is type(other)
            and self.site == other.site
            and self.settings == other.settings
            and mine.keys() == theirs.keys()
            and all(
                mine[name].shape == theirs[name].shape
                and torch.equal(mine[name].double().cpu(), theirs[name].double().cpu())
                for name in mine
            )
        )

    def check(self, model: LensModel) -> None:
        """Refuse a model that the change does not fit.

        Raises:
            DriftlensError: the layer is out of range, the family has no such map, or the map has another shape.
        """
        if not 0 <= self.site.layer < model.n_layers:
            raise DriftlensError(
                f"the edit changes layer {self.site.layer}, but {model.name} has layers 0 to {model.n_layers - 1}; "
                "apply it to the model it was made on"
            )
        expected = model.linear_shape(self.site)
        if self.shape != expected:
            what = {"mlp.out": "a down-projection", "mlp.in": "an up-projection", "mlp.gate": "an MLP's gate"}
            raise DriftlensError(
                f"the edit is for {what[self.site.map]} of {self.shape[0]} × {self.shape[1]}, "
                f"but {model.name}'s is {expected[0]} × {expected[1]}; apply it to the model it was made on"
            )


@dataclass(frozen=True, kw_only=True)
class LowRankUpdate:
    """The factors of a low-rank change, ``left @ right``, of rank ``r``."""

    left: Float[Tensor, "d_in r"]
    right: Float[Tensor, "r d_out"]

    def __post_init__(self) -> None:
        if self.left.dim() != 2 or self.right.dim() != 2 or self.left.shape[1] != self.right.shape[0]:
            raise DriftlensError(
                f"the factors have shapes {tuple(self.left.shape)} and {tuple(self.right.shape)}; "
                "expected [d_mlp, r] and [r, d_model]"
            )

    def __repr__(self) -> str:
        return f"LowRankUpdate([{self.left.shape[0]}, {self.rank}] @ [{self.rank}, {self.right.shape[1]}])"

    @property
    def rank(self) -> int:
        """The largest rank that the change can have."""
        return self.left.shape[1]

    def matrix(self) -> Float[Tensor, "d_in d_out"]:
        """The change itself, in the factors' dtype."""
        return self.left @ self.right


@dataclass(frozen=True, kw_only=True, repr=False)
class LowRank(LowRankUpdate, Change):
    """``W += left @ right``."""

    kind: ClassVar[str] = "low_rank"

    site: Site

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "site", Site(*self.site))  # a plain pair is accepted

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    @override
    def tensors(self) -> Mapping[str, Tensor]:
        return {"left": self.left, "right": self.right}

    @property
    @override
    def summary(self) -> str:
        return f"rank {self.rank}"

    @classmethod
    @override
    def restored(cls, site: Site, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        return cls(site=site, left=tensors["left"], right=tensors["right"])

    @classmethod
    @override
    def batch_hooks(cls, model: LensModel, changes: Sequence[Any], rows: Int[Tensor, "rows"] | None) -> list[Hook]:
        present: list[Self] = [change for change in changes if change is not None]
        if rows is None:  # a single change for all rows needs no copy of its factors per row
            left, right = placed(model, present[0].left, present[0].right)
        else:
            left, right = (factor[rows] for factor in _stacked(changes))
            left, right = placed(model, left, right)
        names = model.linear_hooks(present[0].site)
        return list(zip(names, apply_low_rank(left, right), strict=True))

    @override
    def added(self, inputs: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return (inputs @ self.left) @ self.right

    @override
    def added_to(self, model: LensModel, weight: Float[Tensor, "d_in d_out"]) -> Float[Tensor, "d_in d_out"]:
        left, right = placed(model, self.left, self.right)
        return weight.to(left) + left @ right

    def columns_from(self, first: int) -> Self:
        """Drop the first columns of ``left`` and rows of ``right``; what remains is what :meth:`plus` added last."""
        return type(self)(site=self.site, left=self.left[:, first:], right=self.right[first:])

    @override
    def plus(self, other: Any) -> Self:
        precision = torch.promote_types(self.left.dtype, other.left.dtype)
        lefts = (self.left.to(precision), other.left.to(self.left.device, precision))
        rights = (self.right.to(precision), other.right.to(self.right.device, precision))
        return type(self)(site=self.site, left=torch.cat(lefts, dim=1), right=torch.cat(rights, dim=0))


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Change):
    """``W += weight``, a full matrix; as rows of a batch, each costs a product with the whole matrix."""

    kind: ClassVar[str] = "dense"

    site: Site
    weight: Float[Tensor, "d_in d_out"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", Site(*self.site))
        if self.weight.dim() != 2:
            raise DriftlensError(f"a dense change has shape {tuple(self.weight.shape)}; expected [d_in, d_out]")

    def __repr__(self) -> str:
        return f"Dense({self.site}, [{self.shape[0]}, {self.shape[1]}])"

    @property
    @override
    def shape(self) -> tuple[int, int]:
        d_in, d_out = self.weight.shape
        return d_in, d_out

    @property
    @override
    def tensors(self) -> Mapping[str, Tensor]:
        return {"weight": self.weight}

    @override
    def matrix(self) -> Float[Tensor, "d_in d_out"]:
        return self.weight

    @classmethod
    @override
    def restored(cls, site: Site, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        return cls(site=site, weight=tensors["weight"])

    @classmethod
    @override
    def batch_hooks(cls, model: LensModel, changes: Sequence[Any], rows: Int[Tensor, "rows"] | None) -> list[Hook]:
        return dense_hooks(model, changes, rows)

    @override
    def plus(self, other: Any) -> Self:
        precision = torch.promote_types(self.weight.dtype, other.weight.dtype)
        return type(self)(
            site=self.site, weight=self.weight.to(precision) + other.weight.to(self.weight.device, precision)
        )


def dense_hooks(model: LensModel, changes: Sequence[Change | None], rows: Int[Tensor, "rows"] | None) -> list[Hook]:
    """Make hooks for changes of one site from their full matrices; see :meth:`Change.batch_hooks`."""
    hooks: list[Hook] = []
    for number, change in enumerate(changes):
        if change is None:
            continue
        members = None if rows is None else (rows == number).nonzero().squeeze(1).to(model.device)
        if members is not None and not len(members):
            continue
        (weight,) = placed(model, change.matrix())
        pair = apply_dense(weight, members)
        hooks += zip(model.linear_hooks(change.site), pair, strict=True)
    return hooks


def change_kind(name: str) -> type[Change]:
    """Return the class of a kind of change, by its name in files.

    Raises:
        DriftlensError: no imported module defines it.
    """
    if name not in _KINDS:
        raise unknown_name("kind of change", name, list(_KINDS))
    return _KINDS[name]


def placed(model: LensModel, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Move tensors to the model's device, in float32 or better: a bf16 model's edit must not lose its small entries."""
    precision = torch.promote_types(model.dtype, torch.float32)
    return tuple(tensor.to(device=model.device, dtype=precision) for tensor in tensors)


def _stacked(changes: Sequence[LowRankUpdate | None]) -> tuple[Tensor, Tensor]:
    """Stack factors of different rank (``None``: no change) into two tensors, padded with zeros to the largest rank."""
    present = [change for change in changes if change is not None]
    rank = max(change.rank for change in present)
    left, right = present[0].left, present[0].right
    # The widest precision among them; otherwise stacking would round all edits but the first.
    precision = reduce(torch.promote_types, (change.left.dtype for change in present))
    left = left.new_zeros(len(changes), left.shape[0], rank, dtype=precision)
    right = right.new_zeros(len(changes), rank, right.shape[1], dtype=precision)
    for i, change in enumerate(changes):
        if change is not None:
            left[i, :, : change.rank] = change.left
            right[i, : change.rank] = change.right
    return left, right
