"""The cells of contaminating substitution, as rows of batched passes that compute no more than they change.

A cell puts the edited model's output z of one module at one token `t`, in a window of layers, into the vanilla model
and reads the probability of the targets. One full pass per cell would do; this is what it comes down to:

1. A vanilla pass per passage keeps the input of every block and every column's keys and values. An edited pass, which
   starts at the edited layer with the vanilla input, records z.
2. Below the edit z *is* the vanilla output. So a cell starts at the first layer `a` of its window whose z differs; a
   cell whose whole window lies below has the vanilla probability, and so has one whose token is never looked at again.
3. In block `a` no column but `t` can change: attention there still sees vanilla inputs. So block `a` runs for that one
   column, and the blocks above run for the columns from `t` on. What stands before `t` comes from the vanilla keys and
   values, cut by the mask to columns < t, from which positions follow as well.
4. All targets of a prompt are branches behind it, in one row: they share all that stands before them.
5. Cells of all modules and several passages share a pass. It holds cells of similar suffix, so that little is padded,
   and a cell's row joins it at its own block `a`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftlens.analyses.cases import Passage, target_probabilities
from driftlens.analyses.cell_rows import SITES, Cell, CellGroup, CellRows
from driftlens.analyses.windows import window_layers
from driftlens.edits import edit_hooks
from driftlens.hooks import Hook, record
from driftlens.models import LensModel
from driftlens.models.grouping import passes
from driftlens.models.memory import in_groups
from driftlens.models.prompts import pad_rows

__all__ = ["PassageEffects", "substitution_effects"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PassageEffects:
    """Probabilities of a passage's targets: in both models, and with every single substitution."""

    vanilla: Float[Tensor, " targets"]
    edited: Float[Tensor, " targets"]
    substituted: Float[Tensor, "modules tokens layers targets"]


def substitution_effects(
    model: LensModel,
    passages: Sequence[Passage],
    modules: Sequence[str],
    window: int,
    *,
    batch_size: int,
    on_cells: Callable[[int, int], None] | None = None,
) -> list[PassageEffects]:
    """What every cell does to the targets of its passage: all prompt tokens × all layers, for each of `modules`.

    `batch_size` is in rows of a pass; out of memory halves it and goes on. `on_cells` is called with the number of
    cells done and the number of all that need a pass.
    """
    work = _Work(model, modules, window, batch_size, passages, on_cells)
    # As many passages as keep no more than a pass's own activations; a deep model's grid fills batches by itself.
    most = max(1, batch_size // model.n_layers)
    groups = passes([len(passage.ids) for passage in passages], model.pass_cost, most=most)
    return in_groups(passages, groups, most, work.on)


class _Work:
    """The grids of one call, a group of passages at a time; what it learns about memory and progress it keeps."""

    def __init__(
        self,
        model: LensModel,
        modules: Sequence[str],
        window: int,
        batch_size: int,
        passages: Sequence[Passage],
        on_cells: Callable[[int, int], None] | None,
    ) -> None:
        self.model = model
        self.modules = modules
        self.windows = [window_layers(layer, window, model.n_layers) for layer in range(model.n_layers)]
        self.batch_size = batch_size
        self.on_cells = on_cells
        self.done = 0
        self.total = sum(len(self.cells(passage, 0)) for passage in passages)

    @torch.no_grad()
    def on(self, passages: Sequence[Passage]) -> list[PassageEffects]:
        """The grids of these passages."""
        group = _vanilla_and_edited(self.model, passages, self.modules)
        cells = [cell for number, passage in enumerate(passages) for cell in self.cells(passage, number)]
        suffixes = [len(passages[cell.passage].ids) - cell.token for cell in cells]
        # A pass of cells runs a block for every layer where some of them join it.
        batches, largest = passes(suffixes, self.model.pass_cost, most=self.batch_size, times=3), 0

        def work(batch: Sequence[Cell]) -> list[Tensor]:
            nonlocal largest
            probabilities = _substituted(self.model, group, self.modules, batch)
            largest = max(largest, len(batch))
            return probabilities

        found = dict(zip(cells, in_groups(cells, batches, self.batch_size, work, on_done=self._tell), strict=True))
        if largest < max(map(len, batches), default=0):
            self.batch_size = largest  # what did not fit into memory once is not tried again
        self.done += len(cells)
        return [self._grid(group, number, found) for number in range(len(passages))]

    def cells(self, passage: Passage, number: int) -> list[Cell]:
        """The different cells of a passage that need a pass: windows that clip to the same layers are one."""
        cells = (
            self.cell(passage, number, token, module, window)
            for module in range(len(self.modules))
            for token in range(passage.n_prompt)
            for window in self.windows
        )
        return list(dict.fromkeys(cell for cell in cells if cell is not None))

    def cell(self, passage: Passage, number: int, token: int, module: int, window: range) -> Cell | None:
        """What a window at a token comes down to; None where it cannot change the probability of a target."""
        if passage.edit.first_site is None:
            return None
        # Attention sees an edit of its own layer's MLP one layer later.
        changed = passage.edit.first_site.layer + (self.modules[module] == "attn")
        first = max(window.start, changed)
        # In the last block a change reaches no column but its own.
        unread = first == self.model.n_layers - 1 and token < passage.n_prompt - 1
        return None if first >= window.stop or unread else Cell(number, token, module, first, window.stop)

    def _grid(self, group: CellGroup, number: int, found: Mapping[Cell, Tensor]) -> PassageEffects:
        passage, n_targets = group.passages[number], len(group.passages[number].targets)
        vanilla = group.vanilla[number, :n_targets]
        grid = vanilla.repeat(len(self.modules), passage.n_prompt, self.model.n_layers, 1)
        for module in range(len(self.modules)):
            for token in range(passage.n_prompt):
                for layer, window in enumerate(self.windows):
                    cell = self.cell(passage, number, token, module, window)
                    if cell is not None:
                        grid[module, token, layer] = found[cell][:n_targets]
        return PassageEffects(vanilla=vanilla, edited=group.edited[number, :n_targets], substituted=grid)

    def _tell(self, done: int) -> None:
        if self.on_cells is not None:
            self.on_cells(self.done + done, self.total)


def _vanilla_and_edited(model: LensModel, passages: Sequence[Passage], modules: Sequence[str]) -> CellGroup:
    """Step 1 of the module docstring, for passages side by side, each with its own edit."""
    batch, _ = pad_rows(model, [own.ids for own in passages], until=[own.until for own in passages])
    kept: dict[int, Tensor] = {}
    hooks: list[Hook] = [(model.hook_name("resid_pre", n), record(kept, n)) for n in range(model.n_layers)]
    out, past = model.keys_values(batch, hooks=hooks, columns=batch.shape[1])
    inputs = [*(kept[n] for n in range(model.n_layers)), out]
    vanilla = edited = target_probabilities(model, out, passages, [0] * len(passages)).cpu()

    z: list[dict[int, Tensor]] = [{} for _ in modules]
    changed = [layer for passage in passages for layer in passage.edit.layers]
    if changed:
        first = min(changed)
        # Behind the edit's own hooks, so that what is recorded is the edited output.
        hooks = edit_hooks(model, [passage.edit for passage in passages])
        for module, store in zip(modules, z, strict=True):
            hooks += [(model.hook_name(SITES[module], n), record(store, n)) for n in range(first, model.n_layers)]
        out = model.run(batch, hooks=hooks, start=first, resid=inputs[first])
        edited = target_probabilities(model, out, passages, [0] * len(passages)).cpu()
    return CellGroup(
        passages=passages,
        batch=batch,
        inputs=inputs,
        past=past,
        z=z,
        vanilla=vanilla,
        edited=edited,
    )


def _substituted(
    model: LensModel, group: CellGroup, modules: Sequence[str], cells: Sequence[Cell]
) -> list[Float[Tensor, " targets"]]:
    """Steps 2 to 4: one pass with a row for each cell, whose own token stands in column 0."""
    order = sorted(range(len(cells)), key=lambda at: cells[at].first)
    rows = CellRows(model, group, modules, [cells[at] for at in order])
    starts = sorted({cell.first for cell in cells})
    resid: Tensor | None = None
    joined = 0
    for start, following in zip(starts, [*starts[1:], model.n_layers - 1], strict=True):
        joining = slice(joined, joined + sum(cell.first == start for cell in cells))
        new = rows.entering(joining, start)
        resid = new if resid is None else torch.cat([resid, new])
        joined = joining.stop
        resid = rows.run(slice(0, joined), start + 1, following + 1, resid)
    assert resid is not None
    found = dict(zip(order, rows.read(resid), strict=True))
    return [found[at] for at in range(len(cells))]
