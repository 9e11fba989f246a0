"""Rows of a pass that start after the first tokens of their passage; see `driftlens.analyses.cells` for the method.

Tokens before a row's first column do not change, so they are neither run again nor copied. Their keys and values come
from the base's pass, cut off by the mask, which also determines positions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.analyses.cases import target_probabilities
from driftlens.analyses.cells import Cell, CellGroup
from driftlens.models import KeyValues, LensModel

__all__ = ["CellRows"]


class CellRows:
    """One row per cell, with the columns of its passage from `begins` on."""

    def __init__(self, model: LensModel, group: CellGroup, cells: Sequence[Cell], begins: Sequence[int]) -> None:
        assert group.past is not None
        self.model, self.group, self.begins = model, group, begins
        self.passages = [group.passages[cell.passage] for cell in cells]
        lengths = [len(passage.ids) for passage in self.passages]
        n_columns = group.batch.shape[1]
        self.passage = torch.tensor([cell.passage for cell in cells], device=model.device)
        begin, length = (torch.tensor(numbers, device=model.device)[:, None] for numbers in (begins, lengths))
        width = max(end - start for start, end in zip(begins, lengths, strict=True))
        columns = begin + torch.arange(width, device=model.device)
        self.columns = columns.clamp(max=n_columns - 1)
        self.batch = replace(group.batch.take(self.passage[:, None], self.columns), mask=columns < length)
        self._past = group.past
        self._past_mask = group.past.mask[self.passage] & (torch.arange(n_columns, device=model.device) < begin)

    def past(self, rows: slice = slice(None)) -> KeyValues:
        """The base's keys and values of the tokens before the rows."""
        own = self.passage[rows]
        return KeyValues(
            mask=self._past_mask[rows],
            keys=_RowsOf(self._past.keys, own),
            values=_RowsOf(self._past.values, own),
            column_dim=self._past.column_dim,
        )

    def inputs(
        self, layer: int, rows: slice = slice(None), columns: slice = slice(None)
    ) -> Float[Tensor, "rows columns d_model"]:
        """The base's input of this block."""
        return self.group.inputs[layer][self.passage[rows, None], self.columns[rows, columns]]

    def read(self, resid: Float[Tensor, "rows columns d_model"]) -> Float[Tensor, "rows targets"]:
        """The probabilities of the targets of each row's passage."""
        return target_probabilities(self.model, resid, self.passages, self.begins)


class _RowsOf(Mapping[int, Tensor]):
    """Some rows of every layer's keys or values, gathered on access: a pass holds one layer's at a time."""

    def __init__(self, tensors: Mapping[int, Tensor], rows: Int[Tensor, " rows"]) -> None:
        self.tensors = tensors
        self.rows = rows

    def __getitem__(self, layer: int) -> Tensor:
        tensor = self.tensors[layer]
        return tensor.index_select(0, self.rows.to(tensor.device))  # each layer's tensors are on the layer's device

    def __contains__(self, layer: object) -> bool:
        return layer in self.tensors

    def __iter__(self) -> Iterator[int]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
