"""Contaminating substitution as cells: the edited model's output of a module, put into the vanilla model.

`driftlens.analyses.cells` explains the method that all interventions share. A pass of substitutions computes only the
columns that can change:

1. In the block `a` where a cell starts, only the column of the cell's own token t can change: attention there still
   sees vanilla inputs. So block `a` runs for that column, and the blocks above run for the columns from t on, with the
   vanilla keys and values of the tokens before t. In the last block, only the last token's output is read.
2. All targets of a prompt are branches after it, in one row: they share all tokens before them.
3. Cells of all modules and several passages share a pass. It holds cells with suffixes of similar length, to limit
   padding, and a cell's row joins it at its own block `a`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from driftlens.analyses.cases import Passage
from driftlens.analyses.cell_rows import CellRows
from driftlens.analyses.cells import Cell, CellGroup, Intervention, hooks_of_cells
from driftlens.hooks import HookFunction, substitute
from driftlens.models import LensModel
from driftlens.models.grouping import passes

__all__ = ["SITES", "Substitution"]

SITES = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}
"""Maps the paper's modules to the sites of their outputs in the model."""


class Substitution(Intervention):
    """Substitute the edited model's output z of some modules at one token of the vanilla model."""

    base = "vanilla"

    def __init__(self, modules: Sequence[str]) -> None:
        self.sites = [SITES[module] for module in modules]

    @override
    def is_read(self, model: LensModel, passage: Passage, token: int, first: int) -> bool:
        # In the last block a change reaches no column but its own.
        return first < model.n_layers - 1 or token >= passage.n_prompt - 1

    @override
    def batches(
        self, model: LensModel, passages: Sequence[Passage], cells: Sequence[Cell], most: int
    ) -> list[list[int]]:
        suffixes = [len(passages[cell.passage].ids) - cell.token for cell in cells]
        # A pass of cells runs a block for every layer at which some of them join it.
        return passes(suffixes, model.pass_cost, most=most, times=3)

    @override
    def probabilities(
        self, model: LensModel, group: CellGroup, cells: Sequence[Cell]
    ) -> Float[Tensor, "cells targets"]:
        order = sorted(range(len(cells)), key=lambda at: cells[at].first)
        joining = _Joining(model, group, self.sites, [cells[at] for at in order])
        return joining.rows.read(joining.run())[torch.tensor(order, device=model.device).argsort()]


class _Joining:
    """One pass with a row for each cell, whose own token is in column 0; cells are sorted by their first layer."""

    def __init__(self, model: LensModel, group: CellGroup, sites: Sequence[str], cells: Sequence[Cell]) -> None:
        self.model, self.group, self.sites, self.cells = model, group, sites, cells
        self.rows = CellRows(model, group, cells, [cell.token for cell in cells])
        self.token = torch.tensor([cell.token for cell in cells], device=model.device)

    def run(self) -> Float[Tensor, "rows columns d_model"]:
        """Return the output of the last block."""
        starts = sorted({cell.first for cell in self.cells})
        resid: Tensor | None = None
        joined = 0
        for start, following in zip(starts, [*starts[1:], self.model.n_layers - 1], strict=True):
            joining = slice(joined, joined + sum(cell.first == start for cell in self.cells))
            new = self._entering(joining, start)
            resid = new if resid is None else torch.cat([resid, new])
            joined = joining.stop
            resid = self._blocks(slice(0, joined), start + 1, following + 1, resid)
        assert resid is not None
        return resid

    def _entering(self, rows: slice, layer: int) -> Float[Tensor, "rows columns d_model"]:
        """The input of the block after `layer`, where these rows join: column 0 is already substituted."""
        own = self._blocks(rows, layer, layer + 1, self.rows.inputs(layer, rows, slice(0, 1)))
        return torch.cat([own, self.rows.inputs(layer + 1, rows, slice(1, None))], dim=1)

    def _blocks(
        self, rows: slice, start: int, stop: int, resid: Float[Tensor, "rows columns d_model"]
    ) -> Float[Tensor, "rows columns d_model"]:
        """Run blocks `start` … `stop` - 1 with the substitutions of these rows, for as many columns as `resid` has."""
        passage, token = self.rows.passage[rows], self.token[rows]

        def put(site: int, layer: int, at: Int[Tensor, " covered"]) -> HookFunction:
            z = self.group.source[site][layer][passage[at], token[at]]
            return substitute(z, at, torch.zeros_like(at))

        return self.model.run(
            self.rows.batch.take(rows, slice(0, resid.shape[1])),
            hooks=hooks_of_cells(self.model, self.sites, self.cells[rows], range(start, stop), put),
            start=start,
            stop=stop,
            resid=resid,
            past=self.rows.past(rows),
        )
