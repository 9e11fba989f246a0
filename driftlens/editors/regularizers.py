"""What a regulariser of the value optimisation is: a penalty on the attention of the last prompt token.

A regulariser sees, for every row (one context of one fact), what the last prompt token attends to in every
layer above the edit, in the vanilla model and with the current δ, and gives one penalty per row.  The
optimiser averages a fact's rows and adds the sum to its loss.  Layers up to the edit cannot change, so they
are never computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LastTokenAttention:
    """What the last prompt token attends to, before and during the edit.

    Attributes:
        layers: the layers of the first dimension.
        vanilla: ``[layers, rows, heads, keys]``, post-softmax, without a gradient.
        edited: the same with the current δ, differentiable.
        subject: per row, the key index of ``subject_last``.
    """

    layers: Sequence[int]
    vanilla: Float[Tensor, "layers rows heads keys"]
    edited: Float[Tensor, "layers rows heads keys"]
    subject: Int[Tensor, "rows"]


@runtime_checkable
class ChoosesLayers(Protocol):
    """A regularizer that is about layers of its choice; editors ask it whether they are there."""

    def check_layers(self, above: range) -> None:
        """Raise a :class:`~driftlens.errors.DriftlensError` unless it can work with the layers above the edit, which
        are ``above``, up to the model's last.
        """
        ...


@runtime_checkable
class Regularizer(Protocol):
    """Anything that can be added to an editor's ``regularizers``."""

    def penalty(self, attention: LastTokenAttention) -> Float[Tensor, "rows"]:
        """The weighted penalty of every row, differentiable; it must be zero where nothing has drifted."""
        ...
