"""Rows of tokens with an explicit mask: padding is described, never guessed.

Positions follow from the mask alone, so a row may be padded on the left, on the right or on both sides and
still gives the numbers that it gives on its own. Nothing here looks at a tokenizer's `padding_side` or at
which token stands in the padded columns.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from driftlens.errors import DriftlensError

__all__ = ["Batch", "visible_columns"]


@dataclass(frozen=True)
class Batch:
    """Token ids and, for each of them, whether it is a real token (True) or padding (False)."""

    tokens: Int[Tensor, "rows seq"]
    mask: Bool[Tensor, "rows seq"]

    def __post_init__(self) -> None:
        if self.tokens.dim() != 2 or self.tokens.shape != self.mask.shape:
            raise DriftlensError(
                f"a batch needs tokens and a mask of one shape [rows, seq], got {tuple(self.tokens.shape)} "
                f"and {tuple(self.mask.shape)}"
            )
        if self.mask.dtype != torch.bool:
            raise DriftlensError(f"a batch's mask must be boolean (True = real token), got {self.mask.dtype}")

    @property
    def positions(self) -> Int[Tensor, "rows seq"]:
        """The place of every real token in its own row, from 0; padding columns hold something harmless."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.tokens.shape
        return rows, columns

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(self.tokens.to(device), self.mask.to(device))


def visible_columns(
    mask: Bool[Tensor, "rows seq"], prefix: Bool[Tensor, "rows past"] | None = None
) -> Bool[Tensor, "rows seq past+seq"]:
    """For every query column the key columns that it may attend to: real ones, not later than itself.

    A column always sees itself, even where it is padding: a row of attention with nothing to see is 0/0, and
    its NaN would reach real tokens through the backward pass although no real token attends to padding.
    """
    columns = mask.shape[1]
    causal = torch.ones(columns, columns, dtype=torch.bool, device=mask.device).tril()
    visible = (causal & mask[:, None, :]) | torch.eye(columns, dtype=torch.bool, device=mask.device)
    if prefix is None:
        return visible
    return torch.cat([prefix[:, None, :].expand(-1, columns, -1), visible], dim=-1)
