"""Rows of tokens with an explicit mask: padding is described, never guessed.

Positions follow from what a token may attend to, so a row may be padded on the left, on the right or on both sides
and still gives the numbers that it gives on its own. Nothing here looks at a tokenizer's `padding_side` or at which
token stands in the padded columns.

A row may also hold a *tree* of texts: where they begin alike they share columns, and where they part, such as two
targets behind a prompt, one *branch* stands after the other. Each column attends to those that lead to it and stands
where it would stand in its text alone. So what texts share is run once, in one pass, and every number is that of a row
of its own.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from driftlens.errors import DriftlensError

__all__ = ["Batch", "standing", "visible_columns"]


@dataclass(frozen=True)
class Batch:
    """Token ids and, for each of them, whether it is a real token (True) or padding (False).

    Of a row that holds a tree, column k is followed by the columns of all that continues it, and `until[k]` is the
    column after the last of them: the columns k to `until[k]` - 1 attend to k. None: every row is one text.
    """

    tokens: Int[Tensor, "rows seq"]
    mask: Bool[Tensor, "rows seq"]
    until: Int[Tensor, "rows seq"] | None = None

    def __post_init__(self) -> None:
        if self.tokens.dim() != 2 or self.tokens.shape != self.mask.shape:
            raise DriftlensError(
                f"a batch needs tokens and a mask of one shape [rows, seq], got {tuple(self.tokens.shape)} "
                f"and {tuple(self.mask.shape)}"
            )
        if self.mask.dtype != torch.bool:
            raise DriftlensError(f"a batch's mask must be boolean (True = real token), got {self.mask.dtype}")
        if self.until is not None and self.until.shape != self.tokens.shape:
            raise DriftlensError(
                f"a batch's ends of branches need the shape of its tokens, {tuple(self.tokens.shape)}, "
                f"got {tuple(self.until.shape)}"
            )

    @property
    def positions(self) -> Int[Tensor, "rows seq"]:
        """The place of every real token in its own text, from 0; padding columns hold something harmless."""
        return standing(visible_columns(self))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.tokens.shape
        return rows, columns

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        until = None if self.until is None else self.until.to(device)
        return Batch(self.tokens.to(device), self.mask.to(device), until)

    def take(self, rows: slice | Int[Tensor, "..."], columns: slice | Int[Tensor, "..."] = slice(None)) -> "Batch":
        """The tokens at `[rows, columns]`, where that is a batch again; of each row one column after the other."""
        until = None
        if self.until is not None:
            first = (columns.start or 0) if isinstance(columns, slice) else columns[..., :1]
            until = self.until[rows, columns] - first
        return Batch(self.tokens[rows, columns], self.mask[rows, columns], until)


def visible_columns(batch: Batch, prefix: Bool[Tensor, "rows past"] | None = None) -> Bool[Tensor, "rows seq keys"]:
    """For every query column the key columns that it may attend to: real ones that lead to it, and itself. All of them
    stand behind `prefix`, whose real columns they see.

    A column always sees itself, even where it is padding: a row of attention with nothing to see is 0/0, and
    its NaN would reach real tokens through the backward pass although no real token attends to padding.
    """
    mask, until = batch.mask, batch.until
    columns = mask.shape[1]
    causal = torch.ones(columns, columns, dtype=torch.bool, device=mask.device).tril()
    visible = causal & mask[:, None, :]
    if until is not None:
        visible &= torch.arange(columns, device=mask.device)[:, None] < until[:, None, :]
    visible = visible | torch.eye(columns, dtype=torch.bool, device=mask.device)
    if prefix is None:
        return visible
    return torch.cat([prefix[:, None, :].expand(-1, columns, -1), visible], dim=-1)


def standing(visible: Bool[Tensor, "rows seq keys"]) -> Int[Tensor, "rows seq"]:
    """The position of every query column: a token stands behind all that it sees but itself."""
    return visible.sum(-1) - 1
