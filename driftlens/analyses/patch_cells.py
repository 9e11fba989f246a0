"""Attention patching as cells: the vanilla model's attention, put into the edited model.

`driftlens.analyses.cells` explains the method that all interventions share. A pass of patches begins at the first layer
of any of its cells, so cells are sorted by it before they are split into batches:

1. Scores are patched in the rows of the last prompt token and of the target tokens after it, so nothing before the last
   prompt token changes. A pass runs only those few columns, with the keys and values of the others.
2. Whole patterns are patched in every row, so such a pass runs all columns. Patterns belong to no single token, and a
   passage's grid has one row.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from driftlens.analyses.cases import Passage, target_probabilities
from driftlens.analyses.cell_rows import CellRows
from driftlens.analyses.cells import Cell, CellGroup, Intervention, Put, hooks_of_cells
from driftlens.hooks import Hook, HookFunction, patch_pattern, patch_score
from driftlens.models import LensModel
from driftlens.models.grouping import passes

__all__ = ["PatternPatches", "ScorePatches"]


class PatternPatches(Intervention):
    """The vanilla model's whole attention patterns."""

    base = "edited"
    keeps_past = False
    sites = ("pattern",)

    @override
    def tokens(self, passage: Passage) -> range:
        return range(1)

    @override
    def cost(self, model: LensModel) -> tuple[int, float]:
        # A passage's own two passes, and for each window one of half the layers on average.
        return 2 + model.n_layers // 2, 3

    @override
    def batches(
        self, model: LensModel, passages: Sequence[Passage], cells: Sequence[Cell], most: int
    ) -> list[list[int]]:
        return _by_first_layer(model, cells, [len(passages[cell.passage].ids) for cell in cells])

    @override
    def probabilities(
        self, model: LensModel, group: CellGroup, cells: Sequence[Cell]
    ) -> Float[Tensor, "cells targets"]:
        start = min(cell.first for cell in cells)
        passage = torch.tensor([cell.passage for cell in cells], device=model.device)

        def put(site: int, layer: int, at: Int[Tensor, " covered"]) -> HookFunction:
            return patch_pattern(group.source[site][layer][passage[at]], at)

        resid = model.run(
            group.batch.take(passage),
            hooks=[*group.base_hooks(model, passage), *_patches(model, self.sites, cells, put)],
            start=start,
            resid=group.inputs[start][passage],
        )
        return target_probabilities(model, resid, [group.passages[cell.passage] for cell in cells], [0] * len(cells))


class ScorePatches(Intervention):
    """The vanilla model's pre-softmax score of last token → token t."""

    base = "edited"
    sites = ("attn_scores",)

    @override
    def cost(self, model: LensModel) -> tuple[int, float]:
        # The passes of the cells run few columns of a passage, so its own two passes dominate.
        return 2, 2

    @override
    def batches(
        self, model: LensModel, passages: Sequence[Passage], cells: Sequence[Cell], most: int
    ) -> list[list[int]]:
        of = [passages[cell.passage] for cell in cells]
        return _by_first_layer(model, cells, [len(passage.ids) - passage.last for passage in of])

    @override
    def probabilities(
        self, model: LensModel, group: CellGroup, cells: Sequence[Cell]
    ) -> Float[Tensor, "cells targets"]:
        start = min(cell.first for cell in cells)
        rows = CellRows(model, group, cells, [group.passages[cell.passage].last for cell in cells])
        token = torch.tensor([cell.token for cell in cells], device=model.device)
        # The last prompt token is the first column of the pass itself, after the columns of all stored keys.
        keys = torch.where(token < rows.columns[:, 0], token, group.batch.shape[1])
        queries = torch.arange(rows.columns.shape[1], device=model.device)

        def put(site: int, layer: int, covered: Int[Tensor, " covered"]) -> HookFunction:
            # Every pair (covered row, query from the last prompt token on), flattened.
            at = covered.repeat_interleave(len(queries))
            query = queries.repeat(len(covered))
            scores = group.source[site][layer][rows.passage[at], :, rows.columns[at, query], token[at]]
            return patch_score(scores, at, query, keys[at])

        resid = model.run(
            rows.batch,
            hooks=[*group.base_hooks(model, rows.passage), *_patches(model, self.sites, cells, put)],
            start=start,
            resid=rows.inputs(start),
            past=rows.past(),
        )
        return rows.read(resid)


def _patches(model: LensModel, sites: Sequence[str], cells: Sequence[Cell], put: Put) -> list[Hook]:
    layers = range(min(cell.first for cell in cells), max(cell.stop for cell in cells))
    return hooks_of_cells(model, sites, cells, layers, put)


def _by_first_layer(model: LensModel, cells: Sequence[Cell], widths: Sequence[int]) -> list[list[int]]:
    """Group cells by similar width and keep their order, so that the cells of a batch begin at similar layers."""
    order = sorted(range(len(cells)), key=lambda at: (cells[at].first, cells[at]))
    groups = passes([widths[at] for at in order], model.pass_cost, most=len(cells))
    return [[order[place] for place in group] for group in groups]
