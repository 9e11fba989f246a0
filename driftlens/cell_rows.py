"""The rows of a pass of cells, and of what is read behind them; `driftlens.cells` tells the idea."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.cases import Passage, target_probabilities
from driftlens.hooks import Hook, substitute
from driftlens.models import Batch, KeyValues, LensModel

__all__ = ["SITES", "Cell", "CellGroup", "CellRows", "CellTails"]

SITES = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}
"""Module of the paper -> where its output stands in the model."""


class Cell(NamedTuple):
    """A token and a window of layers in which a module's output is substituted there."""

    passage: int  # in its group, the first of its prompt
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
    alike: Mapping[int, range]  # by the first of a prompt's passages: all of them
    shared: Mapping[int, int]  # likewise: how many tokens they begin with in common
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
        length = torch.tensor([group.shared[cell.passage] for cell in cells], device=model.device)
        columns = self.token[:, None] + torch.arange(int((length - self.token).max()), device=model.device)
        self.columns = columns.clamp(max=n_columns - 1)
        self.batch = Batch(
            tokens=group.batch.tokens[self.passage[:, None], self.columns], mask=columns < length[:, None]
        )
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
        return self.run_on(rows, start, stop, resid)[0]

    def run_on(
        self, rows: slice, start: int, stop: int, resid: Float[Tensor, "rows columns d_model"]
    ) -> tuple[Float[Tensor, "rows columns d_model"], KeyValues]:
        """As `run`, with the keys and values of all that stands in these rows up to here."""
        group, n_columns = self.group, resid.shape[1]
        past = KeyValues(mask=self.past[rows], keys=group.past.keys, values=group.past.values)
        return self.model.keys_values(
            Batch(tokens=self.batch.tokens[rows, :n_columns], mask=self.batch.mask[rows, :n_columns]),
            hooks=[hook for layer in range(start, stop) for hook in self.substitutions(rows, layer)],
            start=start,
            stop=stop,
            resid=resid,
            columns=n_columns,
            past=_rows_of(past, self.passage[rows], mask=past.mask),
        )

    def substitutions(self, rows: slice, layer: int) -> Iterator[Hook]:
        """The hooks that put z in place at a layer, in those of the rows whose window covers it."""
        for module, name in enumerate(self.modules):
            members = [at for at, cell in enumerate(self.cells[rows]) if cell.covers(module, layer)]
            if members:
                at = torch.tensor(members, device=self.model.device)
                z = self.group.z[module][layer][self.passage[rows][at], self.token[rows][at]]
                yield self.model.hook_name(SITES[name], layer), substitute(z, at, torch.zeros_like(at))


class CellTails:
    """What follows in each passage behind the tokens that it shares with the others of its prompt: a row for each.

    Sorted as the cells' rows are, so the tails of the first rows are the first tails.
    """

    def __init__(self, model: LensModel, group: CellGroup, cells: Sequence[Cell]) -> None:
        self.model, self.group, self.cells = model, group, cells
        self.read_in = [(row, number) for row, cell in enumerate(cells) for number in group.alike[cell.passage]]
        self.starts = [group.shared[cells[row].passage] for row, _ in self.read_in]
        lengths = [len(group.passages[n].ids) - start for (_, n), start in zip(self.read_in, self.starts, strict=True)]
        self.width = max(lengths)
        own = [at for at, length in enumerate(lengths) if length]
        self.place = {at: place for place, at in enumerate(own)}
        at = torch.tensor([(*self.read_in[at], self.starts[at], lengths[at]) for at in own], device=model.device)
        self.row, self.passage, start, length = at.view(-1, 4).long().unbind(1)
        offsets = torch.arange(self.width, device=model.device)
        self.mask = offsets < length[:, None]
        self.columns = (start[:, None] + offsets).clamp(max=group.batch.shape[1] - 1)

    def entering(self, rows: slice, layer: int) -> Float[Tensor, "tails columns d_model"]:
        """What goes into the block after `layer`, where the tails of these rows join: nothing has happened to them."""
        chosen = (self.row >= rows.start) & (self.row < rows.stop)
        return self.group.inputs[layer + 1][self.passage[chosen][:, None], self.columns[chosen]]

    def run_on(
        self, start: int, stop: int, resid: Float[Tensor, "tails columns d_model"], past: KeyValues
    ) -> Float[Tensor, "tails columns d_model"]:
        """Blocks `start` … `stop` - 1 for the tails that have joined, behind their rows."""
        n = len(resid)
        if not resid.numel() or start == stop:
            return resid
        tokens = self.group.batch.tokens[self.passage[:n, None], self.columns[:n]]
        return self.model.run(
            Batch(tokens=tokens, mask=self.mask[:n]),
            start=start,
            stop=stop,
            resid=resid,
            past=_rows_of(past, self.row[:n], mask=past.mask[self.row[:n]]),
        )

    def read(
        self, resid: Float[Tensor, "rows columns d_model"], tail: Float[Tensor, "tails columns d_model"]
    ) -> list[Float[Tensor, "passages targets"]]:
        """The probabilities of the targets of every passage of each row's prompt."""
        passages = [self.group.passages[number] for _, number in self.read_in]
        n_columns, behind = resid.shape[1], resid.shape[0] * resid.shape[1]
        width = max(len(passage.ids) - passage.last for passage in passages)
        places: list[list[int]] = []  # of each column from the prompt's last on, in rows and tails put together
        for at, ((row, _), passage, start) in enumerate(zip(self.read_in, passages, self.starts, strict=True)):
            shift = row * n_columns - self.cells[row].token
            inside = [shift + column for column in range(passage.last, start)]
            first = behind + self.place.get(at, 0) * self.width
            own = inside + [first + column for column in range(len(passage.ids) - start)]
            places.append(own + [0] * (width - len(own)))
        everything = torch.cat([resid.flatten(0, 1), tail.flatten(0, 1)])
        read = everything[torch.tensor(places, device=self.model.device)]
        found = target_probabilities(self.model, read, passages, [passage.last for passage in passages]).cpu()
        return list(found.split([len(self.group.alike[cell.passage]) for cell in self.cells]))


def _rows_of(past: KeyValues, rows: Int[Tensor, " rows"], *, mask: Tensor) -> KeyValues:
    """Some rows of the keys and values, under the rows' own masks."""
    return KeyValues(mask=mask, keys=_RowsOf(past.keys, rows), values=_RowsOf(past.values, rows))


class _RowsOf(Mapping[int, Tensor]):
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
