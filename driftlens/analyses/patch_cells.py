"""The cells of attention patching, as rows of batched passes that compute no more than they change.

For prompts of similar length side by side, each under its own edit:

1. A vanilla pass keeps patterns or scores; an edited pass keeps every block's input, and for scores its keys and
   values.
2. Attention is the same in both models up to the lowest edited layer, so a window that ends there changes nothing,
   and any other starts at the first layer above it.
3. Scores are patched in the rows of the last prompt token and of the target tokens appended behind it, so nothing left
   of the last prompt token changes: a pass runs those few columns only, after the keys and values of the others.
   Whole patterns are patched in every row, so such a pass runs all columns, of the layers from the window on.
4. Cells with a similar number of columns share passes; they are sorted by their first layer and cut into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.analyses.cases import Passage, target_probabilities
from driftlens.analyses.cell_rows import RowsOf
from driftlens.edits import edit_hooks
from driftlens.hooks import Hook, HookFunction, patch_pattern, patch_score, record
from driftlens.models import Batch, KeyValues, LensModel
from driftlens.models.grouping import passes
from driftlens.models.memory import in_groups
from driftlens.models.prompts import pad_rows

__all__ = ["Patched", "patched_patterns", "patched_scores"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Patched:
    """Probabilities of a passage's targets: in both models, and in the edited one with every single patch.

    For whole patterns, which belong to no token, the grid has one row.
    """

    vanilla: Float[Tensor, " targets"]
    edited: Float[Tensor, " targets"]
    grid: Float[Tensor, "tokens layers targets"]


def patched_patterns(
    model: LensModel,
    passages: Sequence[Passage],
    windows: Sequence[range],
    *,
    batch_size: int,
    on_done: Callable[[int], None] | None = None,
) -> list[Patched]:
    """The vanilla attention weights in the layers of each of ``windows``."""

    def work(group: Sequence[Passage]) -> list[Patched]:
        places = [[0]] * len(group)
        return _grids(model, _measure(model, group, "pattern"), places, windows, batch_size, _with_patterns)

    # Two passes of a prompt's own, and one of half the layers, on average, for each window.
    return _in_groups(model, passages, batch_size, work, on_done, rows=2 + len(windows) // 2, times=3)


def patched_scores(
    model: LensModel,
    passages: Sequence[Passage],
    windows: Sequence[range],
    *,
    batch_size: int,
    on_done: Callable[[int], None] | None = None,
) -> list[Patched]:
    """The vanilla score of last token → token t in the layers of each of ``windows``, for every prompt token t."""

    def work(group: Sequence[Passage]) -> list[Patched]:
        places = [range(passage.n_prompt) for passage in group]
        return _grids(model, _measure(model, group, "attn_scores"), places, windows, batch_size, _with_scores)

    # The passes of the cells hold few columns of a prompt, so its own two decide.
    return _in_groups(model, passages, batch_size, work, on_done, rows=2, times=2)


def _in_groups(
    model: LensModel,
    passages: Sequence[Passage],
    batch_size: int,
    work: Callable[[Sequence[Passage]], list[Patched]],
    on_done: Callable[[int], None] | None,
    *,
    rows: int,
    times: int,
) -> list[Patched]:
    """`work` on passages of similar length, each read in about `rows` rows of `times` passes; few enough for what is
    kept of them.
    """
    most = max(1, batch_size // model.n_layers)
    widths = [len(one.ids) for one in passages]
    groups = passes(widths, model.pass_cost, most=most, rows=[rows] * len(passages), times=times)
    return in_groups(passages, groups, most, work, on_done=on_done)


class _Cell(NamedTuple):
    row: int  # of its group
    token: int  # attended prompt token; 0 for whole patterns
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    """Passages side by side, right-padded, so a column is a token's place in its passage."""

    passages: Sequence[Passage]
    batch: Batch
    lowest: int  # the lowest edited layer; attention differs only above it
    inputs: Mapping[int, Float[Tensor, "rows columns d_model"]]  # of the edited model's blocks
    past: KeyValues | None  # of the edited model, where scores are patched
    vanilla_attention: Mapping[int, Float[Tensor, "rows heads query key"]]
    vanilla: Float[Tensor, "rows targets"]
    edited: Float[Tensor, "rows targets"]

    def first_column(self, cell: _Cell) -> int:
        """The column where the cell's pass begins."""
        return 0 if self.past is None else self.passages[cell.row].last


@torch.no_grad()
def _measure(model: LensModel, passages: Sequence[Passage], site: str) -> _Group:
    """Step 1 of the module docstring."""
    batch, _ = pad_rows(model, [p.ids for p in passages], until=[p.until for p in passages])
    lowest = min((_lowest(model, passage) for passage in passages), default=model.n_layers)
    above = range(lowest + 1, model.n_layers)
    attention: dict[int, Tensor] = {}
    seen = model.run(batch, hooks=[(model.hook_name(site, n), record(attention, n)) for n in above])
    inputs: dict[int, Tensor] = {}
    hooks: list[Hook] = edit_hooks(model, [p.edit for p in passages])
    hooks += [(model.hook_name("resid_pre", n), record(inputs, n)) for n in above]
    past = None
    if site == "attn_scores":
        edited, past = model.keys_values(batch, hooks=hooks, columns=batch.shape[1])
    else:
        edited = model.run(batch, hooks=hooks)
    first_column = [0] * len(passages)
    return _Group(
        passages=passages,
        batch=batch,
        lowest=lowest,
        inputs=inputs,
        past=past,
        vanilla_attention=attention,
        vanilla=target_probabilities(model, seen, passages, first_column).cpu(),
        edited=target_probabilities(model, edited, passages, first_column).cpu(),
    )


def _grids(
    model: LensModel,
    group: _Group,
    tokens: Sequence[Sequence[int]],
    windows: Sequence[range],
    batch_size: int,
    patched: Callable[[LensModel, _Group, Sequence[_Cell]], Tensor],
) -> list[Patched]:
    """Run the cells that can change anything, and lay them out as one grid per passage."""

    def cell(row: int, token: int, window: range) -> _Cell | None:
        start = max(window.start, _lowest(model, group.passages[row]) + 1)
        return _Cell(row, token, start, window.stop) if start < window.stop else None

    all_cells = (cell(row, token, w) for row, own in enumerate(tokens) for token in own for w in windows)
    # Windows that clip to the same layers are one.
    needed = sorted({each for each in all_cells if each is not None}, key=lambda each: (each.start, each))
    widths = [len(group.passages[each.row].ids) - group.first_column(each) for each in needed]
    # In a group cells keep their order, so that those of a batch begin at similar layers.
    groups = passes(widths, model.pass_cost, most=len(needed))
    values = in_groups(needed, groups, batch_size, lambda batch: list(patched(model, group, batch).cpu()))
    found = dict(zip(needed, values, strict=True))
    results: list[Patched] = []
    for row, own in enumerate(tokens):
        n_targets = len(group.passages[row].targets)
        vanilla, edited = group.vanilla[row, :n_targets], group.edited[row, :n_targets]
        grid = edited.repeat(len(own), len(windows), 1)
        for place, token in enumerate(own):
            for layer, window in enumerate(windows):
                at = cell(row, token, window)
                if at is not None:
                    grid[place, layer] = found[at][:n_targets]
        results.append(Patched(vanilla=vanilla, edited=edited, grid=grid))
    return results


@torch.no_grad()
def _with_patterns(model: LensModel, group: _Group, cells: Sequence[_Cell]) -> Float[Tensor, "cells targets"]:
    """A pass whose row *i* has the vanilla patterns of ``cells[i]``'s layers, in all columns."""
    start = min(cell.start for cell in cells)
    rows = torch.tensor([cell.row for cell in cells], device=model.device)

    def hook(layer: int, covered: Tensor) -> HookFunction:
        return patch_pattern(group.vanilla_attention[layer][rows[covered]], covered)

    batch = group.batch.take(rows)
    resid = model.run(
        batch,
        hooks=[*_edits_of(model, group, rows), *_hooks(model, "pattern", cells, hook)],
        start=start,
        resid=group.inputs[start][rows],
    )
    return target_probabilities(model, resid, [group.passages[cell.row] for cell in cells], [0] * len(cells))


@torch.no_grad()
def _with_scores(model: LensModel, group: _Group, cells: Sequence[_Cell]) -> Float[Tensor, "cells targets"]:
    """A pass whose row *i* has the vanilla scores → ``cells[i].token`` in its layers, from the last prompt token on."""
    start = min(cell.start for cell in cells)
    rows = torch.tensor([cell.row for cell in cells], device=model.device)
    of = [group.passages[cell.row] for cell in cells]
    last = torch.tensor([passage.last for passage in of], device=model.device)
    token = torch.tensor([cell.token for cell in cells], device=model.device)
    length = torch.tensor([len(passage.ids) for passage in of], device=model.device)
    n_columns = group.batch.shape[1]
    columns = last[:, None] + torch.arange(max(len(passage.ids) - passage.last for passage in of), device=model.device)
    inside = columns.clamp(max=n_columns - 1)
    # The last prompt token is the first column of the pass itself, after those of all keys that are kept.
    keys = torch.where(token < last, token, n_columns)
    queries = torch.arange(columns.shape[1], device=model.device)

    def hook(layer: int, covered: Tensor) -> HookFunction:
        # Every pair (covered row, query from the last prompt token on), flat.
        at = covered.repeat_interleave(len(queries))
        query = queries.repeat(len(covered))
        scores = group.vanilla_attention[layer][rows[at], :, inside[at, query], token[at]]
        return patch_score(scores, at, query, keys[at])

    assert group.past is not None
    before = torch.arange(n_columns, device=model.device) < last[:, None]
    past = KeyValues(
        mask=group.past.mask[rows] & before,
        keys=RowsOf(group.past.keys, rows),
        values=RowsOf(group.past.values, rows),
        column_dim=group.past.column_dim,
    )
    resid = model.run(
        replace(group.batch.take(rows[:, None], inside), mask=columns < length[:, None]),
        hooks=[*_edits_of(model, group, rows), *_hooks(model, "attn_scores", cells, hook)],
        start=start,
        resid=group.inputs[start][rows[:, None], inside],
        past=past,
    )
    return target_probabilities(model, resid, of, [passage.last for passage in of])


def _lowest(model: LensModel, passage: Passage) -> int:
    return min(passage.edit.layers, default=model.n_layers)


def _edits_of(model: LensModel, group: _Group, rows: Int[Tensor, " cells"]) -> list[Hook]:
    # An edit of several layers (MEMIT) reaches above the lowest of them.
    return edit_hooks(model, [passage.edit for passage in group.passages], rows)


def _hooks(
    model: LensModel, site: str, cells: Sequence[_Cell], hook: Callable[[int, Tensor], HookFunction]
) -> list[Hook]:
    """One hook per layer that any cell's window covers, on the rows whose window does."""
    hooks: list[Hook] = []
    for layer in range(min(cell.start for cell in cells), max(cell.stop for cell in cells)):
        covered = [i for i, cell in enumerate(cells) if cell.start <= layer < cell.stop]
        if covered:
            hooks.append((model.hook_name(site, layer), hook(layer, torch.tensor(covered, device=model.device))))
    return hooks
