"""Rows of tokens with an explicit padding mask.

Positions follow from the mask, so a row gives the same numbers with padding on the left, on the right or on both sides
as it gives alone. A tokenizer's `padding_side` and the token in padded columns have no influence.

A row may also hold a *tree* of texts. Texts share the columns of a common prefix; where they diverge, such as two
targets after a prompt, the *branches* follow one another. Each column attends to the columns of its own text and has
the same position as in that text alone. Shared prefixes are therefore computed once, with the same numbers.
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
        """The position of every real token in its own text, from 0; padding columns have a valid dummy position."""
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
        """The tokens at `[rows, columns]` as a batch; the columns of each row must be consecutive."""
        until = None
        if self.until is not None:
            first = (columns.start or 0) if isinstance(columns, slice) else columns[..., :1]
            until = self.until[rows, columns] - first
        return Batch(self.tokens[rows, columns], self.mask[rows, columns], until)


def visible_columns(batch: Batch, prefix: Bool[Tensor, "rows past"] | None = None) -> Bool[Tensor, "rows seq keys"]:
    """For every query column, the key columns that it may attend to: earlier real columns of its text, and itself.

    All columns follow `prefix` and attend to its real columns. A column always attends to itself, even if it is
    padding: attention to no column is 0/0, and its NaN would reach real tokens in the backward pass.
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
    """The position of every query column: the number of columns that it attends to, except itself."""
    return visible.sum(-1) - 1
