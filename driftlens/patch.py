"""Patching attention back: vanilla attention in the edited model (paper, 3.4 and D.2).

If over-attention is why an edited model fails, then giving it the vanilla model's attention must cure it:

* :func:`patch_attention` replaces the attention weights of a window of layers (Figure 5): a curve over layers;
* :func:`patch_scores` replaces one number per head, the *pre*-softmax score of last token → token t, and lets the
  softmax renormalise (Figure 10): a grid of tokens × layers.

How it is computed, for prompts side by side, each under its own edit, aligned at their last prompt token:

1. A vanilla pass keeps patterns or scores; an edited pass keeps every block's input and the keys and values of what
   stands left of the last prompt token.
2. Attention is the same in both models up to the lowest edited layer, so a window that ends there changes nothing,
   and any other starts at the first layer above it.
3. Scores are patched in the rows of the last prompt token and of the target tokens appended behind it (they, too,
   predict the target), so nothing left of the last prompt token changes: a pass runs those few columns only.  Whole
   patterns are patched in every row, so such a pass runs all columns, of the layers from the window on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from driftlens.cases import Case, Passage, make_cases, target_probabilities, token_texts
from driftlens.data import TaskPrompt
from driftlens.edits import Edit, edit_hooks
from driftlens.hooks import Hook, HookFunction, patch_pattern, patch_score, record
from driftlens.models import Batch, KeyValues, LensModel
from driftlens.models.memory import in_batches
from driftlens.prompts import pad_rows
from driftlens.windows import window_layers

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True)
class AttentionPatch:
    """What patching whole attention patterns does, per case, target and layer.

    Attributes:
        table: ``case, target, layer, first, last, probability, effect``.  ``layer`` counts from 1, the centre of the
            window ``first`` … ``last`` (0-based layers, clipped); layer 0 is the edited model without a patch.
            ``effect`` is the probability minus that of layer 0.
        baselines: ``case, target, vanilla, edited``: the probabilities without any patch.
        window: layers per window.
    """

    table: pd.DataFrame
    baselines: pd.DataFrame
    window: int

    def plot(self) -> go.Figure:
        """Mean probability of each target over layers, with the unpatched edited model at layer 0 (Figure 5)."""
        from driftlens.plots import plot_patch_curve

        return plot_patch_curve(self.table, self.baselines, self.window)


@dataclass(frozen=True, kw_only=True)
class ScorePatch:
    """What patching one pre-softmax score does, per case, target, attended token and layer.

    Attributes:
        table: ``case, target, token, text, layer, probability, effect``; ``token`` is the index of the attended
            prompt token, ``layer`` the window's 0-based centre, ``effect`` the change against the edited model.
        baselines: ``case, target, vanilla, edited``.
        window: layers per window.
    """

    table: pd.DataFrame
    baselines: pd.DataFrame
    window: int

    def plot(self) -> go.Figure:
        """Heatmap of the mean effect, attended token × layer (Figure 10)."""
        from driftlens.plots import plot_score_grid

        return plot_score_grid(self.table, self.window)


def patch_attention(
    model: LensModel,
    edit: Edit | Sequence[Edit],
    prompt: str | TaskPrompt | Sequence[str | TaskPrompt],
    target: str | tuple[str, ...] | Sequence[str | tuple[str, ...]],
    window: int = 10,
    *,
    batch_size: int = 64,
    on_cells: Callable[[int], None] | None = None,
) -> AttentionPatch:
    """Vanilla attention weights in ``window`` layers of the edited model, for every place of the window (3.4).

    Args:
        model: the vanilla model.
        edit: one edit for all prompts, or one for each.
        prompt: one prompt or several.
        target: what to read the probability of; a tuple, such as ``(o_true, o_edit)``, reads several.  A list gives
            each prompt its own.
        window: layers per window (10 in the paper's 28; :func:`driftlens.windows.scaled_window` for other depths).
        batch_size: rows of a pass.
        on_cells: called with the number of (prompt, window) pairs done in the current batch of prompts.

    Raises:
        DriftlensError: lists of different lengths, an empty target, a window below 1, a prompt too long.
    """
    windows = [window_layers(layer, window, model.n_layers) for layer in range(model.n_layers)]

    def work(passages: Sequence[Passage]) -> list[_Measured]:
        group = _measure(model, passages, "pattern")
        cells = [_Cell(row, 0, w.start, w.stop) for row in range(len(passages)) for w in dict.fromkeys(windows)]
        return _assemble(model, group, cells, windows, 1, batch_size, _patched_patterns, on_cells)

    cases = make_cases(model, edit, prompt, target)
    rows: list[dict[str, object]] = []
    baselines: list[dict[str, object]] = []
    for base, _, measured in _measured_targets(model, cases, batch_size, work):
        edited = float(measured.edited)
        baselines.append({**base, "vanilla": float(measured.vanilla), "edited": edited})
        rows.append({**base, "layer": 0, "first": -1, "last": -1, "probability": edited, "effect": 0.0})
        for layer, (w, p) in enumerate(zip(windows, measured.grid[0].tolist(), strict=True)):
            place = {"layer": layer + 1, "first": w.start, "last": w.stop - 1}
            rows.append({**base, **place, "probability": p, "effect": p - edited})
    return AttentionPatch(table=pd.DataFrame(rows), baselines=pd.DataFrame(baselines), window=window)


def patch_scores(
    model: LensModel,
    edit: Edit | Sequence[Edit],
    prompt: str | TaskPrompt | Sequence[str | TaskPrompt],
    target: str | tuple[str, ...] | Sequence[str | tuple[str, ...]],
    window: int = 10,
    *,
    batch_size: int = 64,
    on_cells: Callable[[int], None] | None = None,
) -> ScorePatch:
    """The vanilla pre-softmax score of last token → token t in ``window`` layers of the edited model (D.2).

    Arguments and errors are those of :func:`patch_attention`.
    """
    windows = [window_layers(layer, window, model.n_layers) for layer in range(model.n_layers)]

    def work(passages: Sequence[Passage]) -> list[_Measured]:
        group = _measure(model, passages, "attn_scores")
        cells = [
            _Cell(row, token, w.start, w.stop)
            for row, passage in enumerate(passages)
            for token in range(passage.n_prompt)
            for w in dict.fromkeys(windows)  # windows that clip to the same layers are one
        ]
        tokens = max(passage.n_prompt for passage in passages)
        return _assemble(model, group, cells, windows, tokens, batch_size, _patched_scores, on_cells)

    cases = make_cases(model, edit, prompt, target)
    rows: list[dict[str, object]] = []
    baselines: list[dict[str, object]] = []
    for base, prompt_tokens, measured in _measured_targets(model, cases, batch_size, work):
        edited = float(measured.edited)
        baselines.append({**base, "vanilla": float(measured.vanilla), "edited": edited})
        for token, (text, by_layer) in enumerate(zip(prompt_tokens, measured.grid.tolist(), strict=False)):
            for layer, p in enumerate(by_layer):
                place = {"token": token, "text": text, "layer": layer}
                rows.append({**base, **place, "probability": p, "effect": p - edited})
    return ScorePatch(table=pd.DataFrame(rows), baselines=pd.DataFrame(baselines), window=window)


@dataclass(frozen=True)
class _Cell:
    row: int  # of its group
    token: int  # attended prompt token; unused for whole patterns
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Passages side by side, aligned at their last prompt token, which stands in column ``last``."""

    passages: Sequence[Passage]
    batch: Batch
    last: int
    shifts: Tensor
    lowest: int  # the lowest edited layer; attention differs only above it
    inputs: Mapping[int, Float[Tensor, "rows columns d_model"]]  # of the edited model's blocks
    past: KeyValues | None  # of the edited model, left of ``last``
    vanilla_attention: Mapping[int, Float[Tensor, "rows heads query key"]]
    vanilla: Float[Tensor, "rows targets"]
    edited: Float[Tensor, "rows targets"]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Of a passage's targets, or (without the last dimension) of one of them."""

    vanilla: Float[Tensor, "*targets"]
    edited: Float[Tensor, "*targets"]
    grid: Float[Tensor, "tokens layers *targets"]


def _measured_targets(
    model: LensModel, cases: Sequence[Case], batch_size: int, work: Callable[[Sequence[Passage]], list[_Measured]]
) -> Iterator[tuple[dict[str, object], list[str], _Measured]]:
    """Per case and target: what names it in a table, the prompt's tokens as text, and its numbers."""
    passages = [passage for case in cases for passage in case.passages]
    # A passage fills a pass with a row per window by itself.
    measured = iter(in_batches(passages, max(1, batch_size // model.n_layers), work))
    for number, case in enumerate(cases):
        own = [next(measured) for _ in case.passages]
        for target, prompt, (passage, place) in zip(case.targets, case.tokenized, case.read, strict=True):
            of = own[passage]
            one = _Measured(vanilla=of.vanilla[place], edited=of.edited[place], grid=of.grid[..., place])
            yield {"case": number, "target": target}, token_texts(model, prompt), one


@torch.no_grad()
def _measure(model: LensModel, passages: Sequence[Passage], site: str) -> _Group:
    """Step 1 of the module docstring."""
    batch, shifts = pad_rows(model, [p.ids for p in passages], align=[p.last for p in passages])
    last = int(shifts[0]) + passages[0].last
    lowest = min((layer for p in passages for layer in p.edit.updates), default=model.n_layers)
    above = range(lowest + 1, model.n_layers)
    attention: dict[int, Tensor] = {}
    seen = model.run(batch, hooks=[(model.hook_name(site, n), record(attention, n)) for n in above])
    inputs: dict[int, Tensor] = {}
    hooks: list[Hook] = edit_hooks(model, [p.edit for p in passages])
    hooks += [(model.hook_name("resid_pre", n), record(inputs, n)) for n in above]
    past = None
    if last:
        edited, past = model.keys_values(batch, hooks=hooks, columns=last)
    else:
        edited = model.run(batch, hooks=hooks)
    first_column = [-int(shift) for shift in shifts]
    return _Group(
        passages=passages,
        batch=batch,
        last=last,
        shifts=shifts,
        lowest=lowest,
        inputs=inputs,
        past=past,
        vanilla_attention=attention,
        vanilla=target_probabilities(model, seen, passages, first_column),
        edited=target_probabilities(model, edited, passages, first_column),
    )


def _assemble(
    model: LensModel,
    group: _Group,
    cells: Sequence[_Cell],
    windows: Sequence[range],
    tokens: int,
    batch_size: int,
    patched: Callable[[LensModel, _Group, Sequence[_Cell]], Tensor],
    on_cells: Callable[[int], None] | None,
) -> list[_Measured]:
    """Run the cells that can change anything, deepest start last, and lay them out as one grid per passage."""
    needed = sorted((cell for cell in cells if cell.stop > group.lowest + 1), key=lambda cell: cell.start)
    values = in_batches(needed, batch_size, lambda batch: list(patched(model, group, batch)), on_done=on_cells)
    found = {
        (cell.row, cell.token, cell.start, cell.stop): value for cell, value in zip(needed, values, strict=True)
    }
    measured: list[_Measured] = []
    for row, passage in enumerate(group.passages):
        n_targets = len(passage.targets)
        grid = group.edited[row, :n_targets].repeat(tokens, len(windows), 1)
        for token in range(tokens):
            for layer, w in enumerate(windows):
                value = found.get((row, token, w.start, w.stop))
                if value is not None:
                    grid[token, layer] = value[:n_targets]
        measured.append(
            _Measured(vanilla=group.vanilla[row, :n_targets], edited=group.edited[row, :n_targets], grid=grid.cpu())
        )
    return measured


@torch.no_grad()
def _patched_patterns(model: LensModel, group: _Group, cells: Sequence[_Cell]) -> Float[Tensor, "cells targets"]:
    """A pass whose row *i* has the vanilla patterns of ``cells[i]``'s layers, in all columns."""
    start = max(min(cell.start for cell in cells), group.lowest + 1)
    rows = torch.tensor([cell.row for cell in cells], device=model.device)

    def hook(layer: int, covered: Tensor) -> HookFunction:
        return patch_pattern(group.vanilla_attention[layer][rows[covered]], covered)

    batch = Batch(tokens=group.batch.tokens[rows], mask=group.batch.mask[rows])
    resid = model.run(
        batch,
        hooks=[*_edits_of(model, group, rows), *_hooks(model, "pattern", cells, start, hook)],
        start=start,
        resid=group.inputs[start][rows],
    )
    first_column = [-int(shift) for shift in group.shifts[rows]]
    return target_probabilities(model, resid, [group.passages[cell.row] for cell in cells], first_column)


@torch.no_grad()
def _patched_scores(model: LensModel, group: _Group, cells: Sequence[_Cell]) -> Float[Tensor, "cells targets"]:
    """A pass whose row *i* has the vanilla scores → ``cells[i].token`` in its layers, from the last prompt token on."""
    start = max(min(cell.start for cell in cells), group.lowest + 1)
    rows = torch.tensor([cell.row for cell in cells], device=model.device)
    keys = torch.tensor([cell.token for cell in cells], device=model.device) + group.shifts[rows]
    queries = torch.arange(group.batch.shape[1] - group.last, device=model.device)

    def hook(layer: int, covered: Tensor) -> HookFunction:
        # Every pair (covered row, query from the last prompt token on), flat.
        at = covered.repeat_interleave(len(queries))
        query = queries.repeat(len(covered))
        scores = group.vanilla_attention[layer][rows[at], :, group.last + query, keys[at]]
        return patch_score(scores, at, query, keys[at])

    columns = slice(group.last, None)
    batch = Batch(tokens=group.batch.tokens[rows, columns], mask=group.batch.mask[rows, columns])
    resid = model.run(
        batch,
        hooks=[*_edits_of(model, group, rows), *_hooks(model, "attn_scores", cells, start, hook)],
        start=start,
        resid=group.inputs[start][rows, columns],
        past=None if group.past is None else group.past.select(rows),
    )
    of = [group.passages[cell.row] for cell in cells]
    return target_probabilities(model, resid, of, [passage.last for passage in of])


def _edits_of(model: LensModel, group: _Group, rows: Tensor) -> list[Hook]:
    # An edit of several layers (MEMIT) reaches above the lowest of them.
    return edit_hooks(model, [passage.edit for passage in group.passages], rows)


def _hooks(
    model: LensModel, site: str, cells: Sequence[_Cell], start: int, hook: Callable[[int, Tensor], HookFunction]
) -> list[Hook]:
    """One hook per layer that any cell's window covers, on the rows whose window does."""
    hooks: list[Hook] = []
    for layer in range(start, max(cell.stop for cell in cells)):
        covered = [i for i, cell in enumerate(cells) if cell.start <= layer < cell.stop]
        if covered:
            hooks.append((model.hook_name(site, layer), hook(layer, torch.tensor(covered, device=model.device))))
    return hooks
