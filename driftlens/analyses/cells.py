"""The cell engine: put one model's activation into the other model, for every cell of a grid, and read the targets.

Contaminating substitution and attention patching are *interventions* of the same form. One of the vanilla and the
edited model is run, the *base*. In some layers it receives the activation of the other model, the *source*, at a
*site*; then the probability of the targets is read. A *cell* of the grid is a token and a window of layers at a site:

| intervention | base | source | site | module |
| --- | --- | --- | --- | --- |
| contaminating substitution | vanilla | edited | output of the block, its MLP or its attention | `substitution_cells` |
| patching attention weights | edited | vanilla | the whole pattern of a layer | `patch_cells` |
| patching attention scores | edited | vanilla | the score of last token → token t | `patch_cells` |

One full pass per cell would give the same numbers. The engine computes less:

1. Each passage is run twice. The base's pass stores the input of every block, and keys and values. Below the lowest
   edited layer both models are equal, so the source's pass starts there; it records the activations at the sites.
2. A cell starts at the first layer of its window where the two models differ: an edit changes the output of its own MLP
   and block, and attention one layer later. A cell without such a layer has the base's probability. Windows that reduce
   to the same layers are one cell.
3. Passages of similar length are measured together, and their cells share passes. The intervention decides which cells
   share a pass and what the pass has to compute.
4. When memory runs out, the number of rows per pass is halved for the rest of the call.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.analyses.cases import Passage, target_probabilities
from driftlens.analyses.windows import window_layers
from driftlens.edits import Edit, edit_hooks
from driftlens.hooks import Hook, HookFunction, record
from driftlens.models import Batch, KeyValues, LensModel
from driftlens.models.grouping import passes
from driftlens.models.memory import in_groups
from driftlens.models.prompts import pad_rows
from driftlens.progress import OnDone

__all__ = ["Cell", "CellGroup", "Intervention", "PassageEffects", "Put", "cell_effects", "hooks_of_cells"]

Put: TypeAlias = Callable[[int, int, Int[Tensor, " covered"]], HookFunction]
"""Maps a site's number, a layer and the rows whose cells cover them to a hook that inserts the source's activation."""


class Cell(NamedTuple):
    """A token and the layers in which the base receives the source's activation at a site."""

    passage: int  # in its group
    token: int
    site: int
    first: int  # layers first … stop - 1
    stop: int

    def covers(self, site: int, layer: int) -> bool:
        """Whether the base receives the source's activation at this site of this layer."""
        return site == self.site and self.first <= layer < self.stop


@dataclass(frozen=True, kw_only=True, eq=False)
class PassageEffects:
    """Probabilities of a passage's targets: in both models, and in the base with each single cell."""

    vanilla: Float[Tensor, " targets"]
    edited: Float[Tensor, " targets"]
    grid: Float[Tensor, "sites tokens layers targets"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CellGroup:
    """Some passages and the data their cells share.

    Passages are right-padded, so a column is the index of a token in its passage. Layers are those from the lowest
    edited one on; ``inputs`` also holds the output of the last block, under the model's number of layers.
    """

    passages: Sequence[Passage]
    batch: Batch
    base_edits: Sequence[Edit] | None
    inputs: Mapping[int, Float[Tensor, "passages columns d_model"]]  # of the base's blocks
    past: KeyValues | None  # of the base, if the cells read it
    source: Sequence[Mapping[int, Tensor]]  # the source's activations, by site, then layer
    vanilla: Float[Tensor, "passages targets"]
    edited: Float[Tensor, "passages targets"]

    def base_hooks(self, model: LensModel, passage: Int[Tensor, " rows"]) -> list[Hook]:
        """Hooks that turn the model into the base, in a pass over rows of these passages.

        An edit of several layers (MEMIT) also changes layers above the lowest one.
        """
        return [] if self.base_edits is None else edit_hooks(model, self.base_edits, passage)


class Intervention(ABC):
    """The activations that the base receives from the source, and the passes that compute the cells.

    Attributes:
        base: the model that the cells are run in.
        sites: where the source's activations are inserted, as sites of :meth:`LensModel.hook_name`; the grid's first
            axis.
        keeps_past: whether the cells read the base's keys and values.
    """

    base: ClassVar[Literal["vanilla", "edited"]]
    keeps_past: ClassVar[bool] = True
    sites: Sequence[str]

    def tokens(self, passage: Passage) -> range:
        """The tokens at which a passage has cells."""
        return range(passage.n_prompt)

    def is_read(self, model: LensModel, passage: Passage, token: int, first: int) -> bool:  # noqa: ARG002 (most are)
        """Whether any position that is read depends on a token from this layer on."""
        return True

    def cost(self, model: LensModel) -> tuple[int, float]:  # noqa: ARG002 (only some interventions depend on the model)
        """Estimate the cost of a passage, in rows of its own length, in how many passes; passages are grouped by it."""
        return 1, 1

    @abstractmethod
    def batches(
        self, model: LensModel, passages: Sequence[Passage], cells: Sequence[Cell], most: int
    ) -> list[list[int]]:
        """Choose which cells share a pass, by their indices; groups of more than `most` cells are split."""

    @abstractmethod
    def probabilities(
        self, model: LensModel, group: CellGroup, cells: Sequence[Cell]
    ) -> Float[Tensor, "cells targets"]:
        """Run one pass; return the probabilities of the targets of each cell's passage."""


def cell_effects(
    model: LensModel,
    passages: Sequence[Passage],
    intervention: Intervention,
    window: int,
    *,
    batch_size: int,
    on_cells: OnDone | None = None,
) -> list[PassageEffects]:
    """Compute the effect of every cell on the targets of its passage: all sites × tokens × windows of `window` layers.

    Args:
        model: the vanilla model.
        passages: each with its own edit.
        intervention: what a cell does.
        window: layers per cell, around each layer.
        batch_size: rows of a pass; it is halved when memory runs out.
        on_cells: called with the number of cells done and the total that need a pass.
    """
    work = _Work(model, passages, intervention, window, batch_size, on_cells)
    # As many passages as store no more than a pass's own activations; a deep model's grid fills batches by itself.
    most = max(1, batch_size // model.n_layers)
    rows, times = intervention.cost(model)
    groups = passes(
        [len(passage.ids) for passage in passages], model.pass_cost, most=most, rows=[rows] * len(passages), times=times
    )
    return in_groups(passages, groups, most, work.on)


class _Work:
    """Computes the grids of one call, group by group; remembers the batch size that fits, and the progress."""

    def __init__(
        self,
        model: LensModel,
        passages: Sequence[Passage],
        intervention: Intervention,
        window: int,
        batch_size: int,
        on_cells: OnDone | None,
    ) -> None:
        self.model = model
        self.intervention = intervention
        self.windows = [window_layers(layer, window, model.n_layers) for layer in range(model.n_layers)]
        self.batch_size = batch_size
        self.on_cells = on_cells
        self.done = 0
        self.total = sum(len(set(self.cells(passage, 0)) - {None}) for passage in passages)

    @torch.no_grad()
    def on(self, passages: Sequence[Passage]) -> list[PassageEffects]:
        """Compute the grids of these passages."""
        model, intervention = self.model, self.intervention
        group = _both_models(model, passages, intervention)
        by_passage = [self.cells(passage, number) for number, passage in enumerate(passages)]
        # Windows that clip to the same layers are one.
        cells = list(dict.fromkeys(cell for own in by_passage for cell in own if cell is not None))
        batches, largest = intervention.batches(model, passages, cells, self.batch_size), 0

        def work(batch: Sequence[Cell]) -> list[Tensor]:
            nonlocal largest
            probabilities = intervention.probabilities(model, group, batch).cpu()
            largest = max(largest, len(batch))
            return list(probabilities)

        values = in_groups(cells, batches, self.batch_size, work, on_done=self._tell)
        if largest < max(map(len, batches), default=0):
            self.batch_size = largest  # a batch size that once did not fit into memory is not tried again
        self.done += len(cells)
        found = dict(zip(cells, values, strict=True))
        return [self._grid(group, number, own, found) for number, own in enumerate(by_passage)]

    def cells(self, passage: Passage, number: int) -> list[Cell | None]:
        """The cells of a passage, sites × tokens × layers; None if the base's probability applies."""
        return [
            self._cell(passage, number, token, site, window)
            for site in range(len(self.intervention.sites))
            for token in self.intervention.tokens(passage)
            for window in self.windows
        ]

    def _cell(self, passage: Passage, number: int, token: int, site: int, window: range) -> Cell | None:
        changed = passage.edit.first_site
        if changed is None:
            return None
        first = max(window.start, _differs_from(changed.layer, self.intervention.sites[site]))
        if first >= window.stop or not self.intervention.is_read(self.model, passage, token, first):
            return None
        return Cell(number, token, site, first, window.stop)

    def _grid(
        self, group: CellGroup, number: int, cells: Sequence[Cell | None], found: Mapping[Cell, Tensor]
    ) -> PassageEffects:
        passage, n_targets = group.passages[number], len(group.passages[number].targets)
        vanilla, edited = group.vanilla[number, :n_targets], group.edited[number, :n_targets]
        base = vanilla if self.intervention.base == "vanilla" else edited
        grid = base.repeat(len(cells), 1)
        for place, cell in enumerate(cells):
            if cell is not None:
                grid[place] = found[cell][:n_targets]
        axes = len(self.intervention.sites), len(self.intervention.tokens(passage)), len(self.windows), n_targets
        return PassageEffects(vanilla=vanilla, edited=edited, grid=grid.view(axes))

    def _tell(self, done: int, _: int) -> None:
        if self.on_cells is not None:
            self.on_cells(self.done + done, self.total)


def _differs_from(edited: int, site: str) -> int:
    """The first layer where both models differ at a site; attention sees its own layer's MLP one layer later."""
    return edited if site in ("mlp_out", "resid_post") else edited + 1


def _both_models(model: LensModel, passages: Sequence[Passage], intervention: Intervention) -> CellGroup:
    """Step 1 of the module docstring, for several passages at once, each with its own edit."""
    batch, _ = pad_rows(model, [own.ids for own in passages], until=[own.until for own in passages])
    edits, first_columns = [own.edit for own in passages], [0] * len(passages)
    lowest = min((edit.first_site.layer for edit in edits if edit.first_site), default=model.n_layers)
    of_edited = edit_hooks(model, edits)
    of_base, of_source = ([], of_edited) if intervention.base == "vanilla" else (of_edited, [])

    inputs: dict[int, Tensor] = {}
    hooks = [*of_base, *((model.hook_name("resid_pre", n), record(inputs, n)) for n in range(lowest, model.n_layers))]
    past = None
    if intervention.keeps_past:
        out, past = model.keys_values(batch, hooks=hooks, columns=batch.shape[1])
    else:
        out = model.run(batch, hooks=hooks)
    inputs[model.n_layers] = out
    base = source = target_probabilities(model, out, passages, first_columns).cpu()

    seen: list[dict[int, Tensor]] = [{} for _ in intervention.sites]
    if lowest < model.n_layers:
        # Placed after the edit's own hooks, so that they record the edited output.
        hooks = [*of_source]
        for site, store in zip(intervention.sites, seen, strict=True):
            layers = range(_differs_from(lowest, site), model.n_layers)
            hooks += [(model.hook_name(site, n), record(store, n)) for n in layers]
        out = model.run(batch, hooks=hooks, start=lowest, resid=inputs[lowest])
        source = target_probabilities(model, out, passages, first_columns).cpu()
    vanilla, edited = (base, source) if intervention.base == "vanilla" else (source, base)
    return CellGroup(
        passages=passages,
        batch=batch,
        base_edits=None if intervention.base == "vanilla" else edits,
        inputs=inputs,
        past=past,
        source=seen,
        vanilla=vanilla,
        edited=edited,
    )


def hooks_of_cells(
    model: LensModel,
    sites: Sequence[str],
    cells: Sequence[Cell],
    layers: range,
    put: Put,
) -> list[Hook]:
    """Make a hook for each layer and site covered by a cell; it puts the source's activation into the cell's rows."""
    hooks: list[Hook] = []
    for layer in layers:
        for site, name in enumerate(sites):
            covered = [row for row, cell in enumerate(cells) if cell.covers(site, layer)]
            if covered:
                at = torch.tensor(covered, device=model.device)
                hooks.append((model.hook_name(name, layer), put(site, layer, at)))
    return hooks
