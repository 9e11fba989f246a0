"""Per-prompt NLLs: one long table that every score is computed from.

1. Different edits run as rows of one batch, through hooks; no weight is written.
2. What prompts under one edit begin with in common is run once and its keys and values are kept: all prompts
   behind a distractor share the distractor, and the two targets of a prompt share the prompt behind it.
3. What shares a pass is of like length.  Targets that need the same tokens, as two single-token targets do, share
   the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from driftlens.data import TASKS, Record, TaskPrompt
from driftlens.edits import Edit, edit_hooks
from driftlens.errors import unknown_name
from driftlens.evaluation.pairs import paired
from driftlens.hooks import Hook
from driftlens.models import KeyValues, LensModel
from driftlens.models.memory import in_batches
from driftlens.prompts import TokenizedPrompt, pad_rows, tokenize_prompt

COLUMNS = ("record", "task", "prompt_index", "group", "nll_true", "nll_new")
TYPES = {"record": "int64", "prompt_index": "int64", "nll_true": "float64", "nll_new": "float64"}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cell:
    """A prompt with one target, and where in the table its NLL belongs."""

    entry: int
    column: str
    prompt: TokenizedPrompt


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    """A row of a batch: the cells that one run over the same tokens fills, from column `start` of their prompts on."""

    edit: Edit | None
    start: int
    cells: tuple[_Cell, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.cells[0].prompt.forced[self.start :]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stem:
    """Tokens that what comes behind them, under one edit, begins with.  No target is predicted at one of them."""

    edit: Edit | None
    tokens: tuple[int, ...]
    behind: tuple[_Stem | _Row, ...]


_Placed: TypeAlias = tuple["_Stem | _Row", int]
"""A stem or a row, and the row of the keys and values that stand before it."""

_LEAST = 64
"""Rows from which a pass is full enough to keep others' lengths, and so padding, out of it."""


def evaluate(
    model: LensModel,
    records: Record | Sequence[Record],
    edits: Edit | Sequence[Edit | None] | None = None,
    *,
    tasks: Iterable[str] | None = None,
    batch_size: int = 64,
    on_rows: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Mean NLL per token of both targets of every prompt of ``records``, each record under its own edit.

    Args:
        model: the vanilla model.
        records: one record or several.
        edits: the edit of each record; ``None`` (also for single records) is the vanilla model.
        tasks: which tasks; default all that the records have.
        batch_size: prompts at a time.  It does not change the numbers beyond float rounding.
        on_rows: called with (rows done, rows in all); a row is a prompt with one target, or with two that
            need the same tokens.

    Returns:
        One row per prompt: ``record`` (its index), ``task``, ``prompt_index``, ``group`` (the data set's own
        grouping of prompts, if any), ``nll_true`` and ``nll_new``, in nats per target token.

    Raises:
        DriftlensError: the numbers of records and edits differ, or a task is unknown, or a prompt is too
            long for the model.
    """
    pairs = paired(records, edits)
    wanted = None if tasks is None else set(tasks)
    for task in wanted or ():
        if task not in TASKS:
            raise unknown_name("task", task, TASKS)

    entries: list[dict[str, object]] = []
    tree: list[_Stem | _Row] = []
    for record, edit in pairs:
        alike: dict[str, list[_Cell]] = {}
        for task, prompts in record.tasks.items():
            if wanted is not None and task not in wanted:
                continue
            for at, prompt in enumerate(prompts):
                alike.setdefault(prompt.distractor or prompt.text, []).extend(_cells(model, prompt, len(entries)))
                entries.append({"record": record.index, "task": task, "prompt_index": at, "group": prompt.group})
        tree += [each for cells in alike.values() for each in _stems(edit, cells, 0)]

    values = _Values(model, batch_size, sum(map(_n_rows, tree)), on_rows)
    values.fill([(each, 0) for each in tree], None)
    for cell, value in values.found.items():
        entries[cell.entry][cell.column] = value
    # The same types also for records without a prompt.
    return pd.DataFrame(entries, columns=list(COLUMNS)).astype(TYPES)


def _cells(model: LensModel, prompt: TaskPrompt, entry: int) -> list[_Cell]:
    return [
        _Cell(entry=entry, column=column, prompt=tokenize_prompt(model, prompt.text, target))
        for column, target in (("nll_true", prompt.target_true), ("nll_new", prompt.target_new))
    ]


def _stems(edit: Edit | None, cells: Sequence[_Cell], start: int) -> Sequence[_Stem | _Row]:
    """Cells that are alike up to column `start`, from there on: what all share, then prompt by prompt, then rows."""
    rows: dict[tuple[int, ...], list[_Cell]] = {}
    prompts: dict[tuple[int, ...], list[_Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.prompt.forced, []).append(cell)
        prompts.setdefault(cell.prompt.ids[: cell.prompt.n_prompt], []).append(cell)
    if len(rows) == 1:
        return [_Row(edit=edit, start=start, cells=tuple(cells))]
    first, *others = rows
    stop = min(cell.prompt.last for cell in cells)
    for other in others:
        stop = next((i for i in range(start, stop) if first[i] != other[i]), stop)
    stop = max(start, stop)
    if len(prompts) > 1:
        behind: list[_Stem | _Row] = [each for own in prompts.values() for each in _stems(edit, own, stop)]
    else:
        behind = [_Row(edit=edit, start=stop, cells=tuple(own)) for own in rows.values()]
    return [_Stem(edit=edit, tokens=first[start:stop], behind=tuple(behind))] if stop > start else behind


def _n_rows(each: _Stem | _Row) -> int:
    return 1 if isinstance(each, _Row) else sum(map(_n_rows, each.behind))


class _Values:
    """Mean NLLs of cells, as they come to be known."""

    def __init__(
        self, model: LensModel, batch_size: int, n_rows: int, on_rows: Callable[[int, int], None] | None
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.n_rows = n_rows
        self.on_rows = on_rows
        self.done: set[_Row] = set()  # not a number: a batch that did not fit into memory is done again
        self.found: dict[_Cell, float] = {}

    @torch.no_grad()
    def fill(self, placed: Sequence[_Placed], past: KeyValues | None) -> None:
        """All cells of these rows and behind these stems; what stands before them is in `past`."""

        def stems(batch: Sequence[_Placed]) -> Sequence[_Placed]:
            tokens, _ = pad_rows(self.model, [each.tokens for each, _ in batch])
            _, own = self.model.keys_values(
                tokens, hooks=self._hooks(batch), columns=tokens.shape[1], past=self._before(batch, past)
            )
            behind = [(row, at) for at, (each, _) in enumerate(batch) if isinstance(each, _Stem) for row in each.behind]
            self.fill(behind, own)
            return batch

        def rows(batch: Sequence[_Placed]) -> Sequence[_Placed]:
            own = [each for each, _ in batch if isinstance(each, _Row)]
            tokens, _ = pad_rows(self.model, [row.tokens for row in own])
            resid = self.model.run(tokens, hooks=self._hooks(batch), past=self._before(batch, past))
            self.found.update(_nlls(self.model, own, resid))
            self.done.update(own)
            if self.on_rows is not None:
                self.on_rows(len(self.done), self.n_rows)
            return batch

        for work, chosen in (
            (stems, [each for each in placed if isinstance(each[0], _Stem)]),
            (rows, [each for each in placed if isinstance(each[0], _Row)]),
        ):
            for bucket in _buckets(chosen):
                in_batches(bucket, self.batch_size, work)

    def _hooks(self, batch: Sequence[_Placed]) -> list[Hook]:
        edits = [each.edit for each, _ in batch]
        different = list({id(edit): edit for edit in edits}.values())
        place = {id(edit): at for at, edit in enumerate(different)}
        return edit_hooks(self.model, different, torch.tensor([place[id(edit)] for edit in edits]))

    def _before(self, batch: Sequence[_Placed], past: KeyValues | None) -> KeyValues | None:
        return None if past is None else past.select(torch.tensor([at for _, at in batch], device=self.model.device))


def _buckets(placed: Sequence[_Placed]) -> list[list[_Placed]]:
    """By length, and only as many lengths together as it takes to fill a pass."""
    buckets: list[list[_Placed]] = []
    # Long ones first: if memory runs out it does so at once.
    for each in sorted(placed, key=lambda each: len(each[0].tokens), reverse=True):
        longest = len(buckets[-1][0][0].tokens) if buckets else 0
        if buckets and (len(each[0].tokens) == longest or len(buckets[-1]) < _LEAST):
            buckets[-1].append(each)
        else:
            buckets.append([each])
    return buckets


def _nlls(
    model: LensModel, rows: Sequence[_Row], resid: Float[Tensor, "rows columns d_model"]
) -> list[tuple[_Cell, float]]:
    """Mean NLLs per target token of each row's cells, from the residual stream behind the last block."""
    # Where each target token is predicted: the cell, counted over all rows, the row and column, the token.
    predicted: list[tuple[int, int, int, int]] = []
    count = 0
    for at, row in enumerate(rows):
        for cell in row.cells:
            first = cell.prompt.last - row.start
            predicted += [(count, at, first + k, token) for k, token in enumerate(cell.prompt.target_ids)]
            count += 1
    of, at_row, column, target = torch.tensor(predicted, device=model.device).unbind(1)
    precision = torch.promote_types(model.dtype, torch.float32)
    logits = model.unembed(resid[at_row, column]).to(precision)
    token_nll = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    total = torch.zeros(count, device=model.device, dtype=precision).index_add(0, of, token_nll)
    means: list[float] = (total / torch.bincount(of, minlength=count)).double().tolist()
    return list(zip([cell for row in rows for cell in row.cells], means, strict=True))
