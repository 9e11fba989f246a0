"""The rows of a pass of cells; `driftlens.analyses.cells` tells the idea."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.analyses.cases import Passage, target_probabilities
from driftlens.hooks import Hook, substitute
from driftlens.models import Batch, KeyValues, LensModel

__all__ = ["SITES", "Cell", "CellGroup", "CellRows", "RowsOf"]

SITES = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}
"""Module of the paper -> where its output stands in the model."""


class Cell(NamedTuple):
    """A token and a window of layers in which a module's output is substituted there."""

    passage: int  # in its group
    token: int
    module: int
    first: int  # layers first … stop - 1 are substituted
    stop: int

    def covers(self, module: int, layer: int) -> bool:
        """Whether the module's output in this layer is substituted."""
        return module == self.module and self.first <= layer < self.stop


@dataclass(frozen=True, kw_only=True, eq=False)
class CellGroup:
    """Some passages and all that their cells share; right-padded, so a column is a token's place in its passage."""

    passages: Sequence[Passage]
    batch: Batch
    inputs: Sequence[Float[Tensor, "passages columns d_model"]]  # of every vanilla block, then the last one's output
    past: KeyValues
    z: Sequence[Mapping[int, Float[Tensor, "passages columns d_model"]]]  # by module, then layer
    vanilla: Float[Tensor, "passages targets"]
    edited: Float[Tensor, "passages targets"]


class CellRows:
    """The rows of one pass, sorted by the layer where they join it."""

    def __init__(self, model: LensModel, group: CellGroup, modules: Sequence[str], cells: Sequence[Cell]) -> None:
        self.model, self.group, self.modules, self.cells = model, group, modules, cells
        n_columns = group.batch.shape[1]
        self.passage = torch.tensor([cell.passage for cell in cells], device=model.device)
        self.token = torch.tensor([cell.token for cell in cells], device=model.device)
        length = torch.tensor([len(group.passages[cell.passage].ids) for cell in cells], device=model.device)
        columns = self.token[:, None] + torch.arange(int((length - self.token).max()), device=model.device)
        self.columns = columns.clamp(max=n_columns - 1)
        self.batch = replace(group.batch.take(self.passage[:, None], self.columns), mask=columns < length[:, None])
        before = torch.arange(n_columns, device=model.device) < self.token[:, None]
        self.past = group.past.mask[self.passage] & before

    def entering(self, rows: slice, layer: int) -> Float[Tensor, "rows columns d_model"]:
        """What goes into the block after `layer`, where these rows join: in column 0 something has happened."""
        passage, token = self.passage[rows], self.token[rows]
        own = self.group.inputs[layer][passage, token].unsqueeze(1)
        own = self.run(rows, layer, layer + 1, own)
        return torch.cat([own, self.group.inputs[layer + 1][passage[:, None], self.columns[rows]][:, 1:]], dim=1)

    def run(
        self, rows: slice, start: int, stop: int, resid: Float[Tensor, "rows columns d_model"]
    ) -> Float[Tensor, "rows columns d_model"]:
        """Blocks `start` … `stop` - 1 with the substitutions of these rows, for as many columns as `resid` has."""
        past = self.group.past
        own = self.passage[rows]
        return self.model.run(
            self.batch.take(rows, slice(0, resid.shape[1])),
            hooks=[hook for layer in range(start, stop) for hook in self.substitutions(rows, layer)],
            start=start,
            stop=stop,
            resid=resid,
            past=KeyValues(
                mask=self.past[rows],
                keys=RowsOf(past.keys, own),
                values=RowsOf(past.values, own),
                column_dim=past.column_dim,
            ),
        )

    def substitutions(self, rows: slice, layer: int) -> Iterator[Hook]:
        """The hooks that put z in place at a layer, in those of the rows whose window covers it."""
        for module, name in enumerate(self.modules):
            members = [at for at, cell in enumerate(self.cells[rows]) if cell.covers(module, layer)]
            if members:
                at = torch.tensor(members, device=self.model.device)
                z = self.group.z[module][layer][self.passage[rows][at], self.token[rows][at]]
                yield self.model.hook_name(SITES[name], layer), substitute(z, at, torch.zeros_like(at))

    def read(self, resid: Float[Tensor, "rows columns d_model"]) -> list[Float[Tensor, " targets"]]:
        """The probabilities of the targets of each row's passage."""
        passages = [self.group.passages[cell.passage] for cell in self.cells]
        return list(target_probabilities(self.model, resid, passages, [cell.token for cell in self.cells]).cpu())


class RowsOf(Mapping[int, Tensor]):
    """Some rows of every layer's keys or values, gathered when a layer asks: a pass holds one layer's at a time."""

    def __init__(self, tensors: Mapping[int, Tensor], rows: Int[Tensor, " rows"]) -> None:
        self.tensors = tensors
        self.rows = rows

    def __getitem__(self, layer: int) -> Tensor:
        return self.tensors[layer].index_select(0, self.rows)

    def __contains__(self, layer: object) -> bool:
        return layer in self.tensors

    def __iter__(self) -> Iterator[int]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
