"""Per-prompt NLLs: the long table from which every score is computed.

1. Different edits run as rows of one batch, through hooks; no weights are changed.
2. A row holds several prompts under one edit, each with both targets, as a tree: a common prefix (a prompt of its two
   targets, a distractor of several prompts) is computed once.
3. Rows are filled up to a width, and rows of similar width share a pass, so that there is almost no padding
   (:mod:`driftlens.models.grouping`).

If the model cannot read a prompt, because it is too long with its target, only this prompt's NLL is missing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch

from driftlens.data import TASKS, Record, TaskPrompt
from driftlens.edits import Edit, Edited, check_edits, edit_hooks, routed
from driftlens.errors import DriftlensError, unknown_name
from driftlens.evaluation.pairs import paired
from driftlens.hooks import Hook
from driftlens.models import LensModel, check_loaded
from driftlens.models.grouping import passes
from driftlens.models.memory import in_groups
from driftlens.models.prompts import (
    BranchedRow,
    TokenizedPrompt,
    branched,
    mean_log_probabilities,
    pad_rows,
    read_places,
    try_tokenize_prompts,
)
from driftlens.progress import OnDone

COLUMNS = ("record", "task", "prompt_index", "group", "nll_true", "nll_new")
WIDTH = 96
"""The greatest width of a row of several prompts, in tokens.

A wider row shares more prefixes and leaves less padding, but attention is computed between all of its columns, which
costs a small model relatively much.  In operations counted on 16 of the paper's records, this width is within 3 % of
the best for a GPT-2 of 6 M and a Llama of 135 M parameters."""
TYPES = {"record": "int64", "prompt_index": "int64", "nll_true": "float64", "nll_new": "float64"}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cell:
    """A prompt with one target, and where in the table its NLL belongs."""

    entry: int
    column: str
    prompt: TokenizedPrompt


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    """A row of a batch: prompts with their targets, under one edit."""

    edit: Edit | None
    cells: tuple[_Cell, ...]

    @cached_property
    def tokens(self) -> BranchedRow:
        return branched([cell.prompt.forced for cell in self.cells])

    def __len__(self) -> int:
        return len(self.tokens.ids)

    def by_prompt(self) -> list[_Row]:
        """A row for each of its prompts."""
        under: dict[int, list[_Cell]] = {}
        for cell in self.cells:
            under.setdefault(cell.entry, []).append(cell)
        return [_Row(edit=self.edit, cells=tuple(own)) for own in under.values()]


Problem = tuple[int, str, int, str]
"""Record, task, prompt index, and why the model cannot read that prompt with one of its targets."""


def evaluate(
    model: LensModel,
    records: Record | Sequence[Record],
    edits: Edited | Sequence[Edited | None] | None = None,
    *,
    tasks: Iterable[str] | None = None,
    batch_size: int = 64,
    on_rows: OnDone | None = None,
    on_problem: Callable[[int, str, int, str], None] | None = None,
) -> pd.DataFrame:
    """Mean NLL per token of both targets of every prompt of ``records``, each record under its own edit.

    Args:
        model: the vanilla model.
        records: one record or several.
        edits: the edit of each record; ``None`` (also for single records) is the vanilla model.
        tasks: which tasks; default all that the records have.
        batch_size: prompts at a time; it changes the numbers only by float rounding.
        on_rows: called with (rows done, rows in all), in rows of the table.
        on_problem: called with (record, task, prompt index, reason) for each prompt that the model cannot read with
            one of its targets.  Default: one warning that lists them.

    Returns:
        One row per prompt: ``record`` (its index), ``task``, ``prompt_index``, ``group`` (the dataset's own grouping of
        prompts, if any), ``nll_true`` and ``nll_new``, in nats per target token.  NLLs are NaN if the model cannot read
        the prompt with that target, usually because it is too long.

    Raises:
        DriftlensError: the numbers of records and edits differ, or a task is unknown.
    """
    check_loaded(model)
    pairs = paired(records, edits)
    check_edits(model, (edit for _, edit in pairs))
    wanted = None if tasks is None else set(tasks)
    for task in wanted or ():
        if task not in TASKS:
            raise unknown_name("task", task, TASKS)

    entries: list[dict[str, object]] = []
    problems: list[Problem] = []
    rows: list[_Row] = []
    for record, edit in pairs:
        asked = [
            (task, at, prompt)
            for task, prompts in record.tasks.items()
            if wanted is None or task in wanted
            for at, prompt in enumerate(prompts)
        ]
        read = list(_cells(model, [prompt for *_, prompt in asked], len(entries)))
        prompts = [cells[0].prompt.prompt_ids if cells else () for cells, _ in read]
        acting = routed(model, [edit if cells else None for cells, _ in read], prompts)
        under: dict[int, tuple[Edit | None, list[_Cell]]] = {}  # of one edit a gate may make two
        for (task, at, prompt), (cells, errors), own in zip(asked, read, acting, strict=True):
            if cells:
                under.setdefault(id(own), (own, []))[1].extend(cells)
            problems += [(record.index, task, at, str(error)) for error in errors[:1]]
            entries.append({"record": record.index, "task": task, "prompt_index": at, "group": prompt.group})
        rows += [row for own, cells in under.values() for row in _rows(own, cells, most=2 * batch_size)]

    values = _Values(model, batch_size, rows, on_rows)
    values.fill()
    for cell, value in values.found.items():
        entries[cell.entry][cell.column] = value
    _tell(problems, len(entries), on_problem)
    # The same types also for records without a prompt.
    return pd.DataFrame(entries, columns=list(COLUMNS)).astype(TYPES)


def _cells(
    model: LensModel, prompts: Sequence[TaskPrompt], first: int
) -> Iterator[tuple[list[_Cell], list[DriftlensError]]]:
    """Return the cells of each prompt, and the errors of prompts that cannot be read.

    Entries are numbered from `first`.
    """
    pairs = [(prompt.text, target) for prompt in prompts for target in (prompt.target_true, prompt.target_new)]
    tokenized = iter(try_tokenize_prompts(model, pairs))
    for entry, both in enumerate(zip(tokenized, tokenized, strict=True), start=first):
        cells: list[_Cell] = []
        errors: list[DriftlensError] = []
        for column, prompt in zip(("nll_true", "nll_new"), both, strict=True):
            if isinstance(prompt, DriftlensError):
                errors.append(prompt)
            else:
                cells.append(_Cell(entry=entry, column=column, prompt=prompt))
        yield cells, errors


def _tell(problems: Sequence[Problem], total: int, on_problem: Callable[[int, str, int, str], None] | None) -> None:
    if on_problem is not None:
        for problem in problems:
            on_problem(*problem)
    elif problems:
        listed = "; ".join(f"record {record}, {task} {at}: {reason}" for record, task, at, reason in problems)
        warnings.warn(
            f"{len(problems)} of {total} prompts cannot be read, and their NLLs are NaN: {listed}",
            RuntimeWarning,
            stacklevel=3,
        )


def _rows(edit: Edit | None, cells: Sequence[_Cell], *, most: int) -> list[_Row]:
    """Fill rows with at most ``most`` cells, up to ``WIDTH``, in sorted order, in which neighbours share prefixes."""
    rows: list[list[_Cell]] = []
    width, before = 0, ()
    for cell in sorted(cells, key=lambda cell: cell.prompt.forced):
        ids = cell.prompt.forced
        more = len(ids) - _alike(before, ids)
        if not rows or width + more > WIDTH or len(rows[-1]) >= most:
            rows.append([])
            width, more = 0, len(ids)
        rows[-1].append(cell)
        width, before = width + more, ids
    return [_Row(edit=edit, cells=tuple(own)) for own in rows]


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the common prefix of two sequences."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class _Values:
    """Computes and collects the mean NLLs of cells."""

    def __init__(
        self,
        model: LensModel,
        batch_size: int,
        rows: Sequence[_Row],
        on_rows: OnDone | None,
    ) -> None:
        self.model = model
        self.rows = rows
        n_cells = sum(len(row.cells) for row in rows)
        # As many rows as hold so many prompts, which may be too few to be sensible: that is for `in_groups` to say.
        self.most = math.ceil(2 * batch_size * len(rows) / n_cells) if rows and batch_size > 0 else batch_size
        self.n_prompts = len({cell.entry for row in rows for cell in row.cells})
        self.on_rows = on_rows
        self.done: set[int] = set()  # entries, not a number: a batch that did not fit into memory is done again
        self.found: dict[_Cell, float] = {}

    @torch.no_grad()
    def fill(self) -> None:
        """All cells of all rows."""
        self._run(self.rows)
        # A non-finite value in one prompt spreads over its row (0 · NaN = NaN), so these prompts are run one by one.
        spoiled = [row for row in self.rows if not all(math.isfinite(self.found[cell]) for cell in row.cells)]
        alone = [own for row in spoiled for own in row.by_prompt()]
        if len(alone) > len(spoiled):
            self._run(alone)

    def _run(self, rows: Sequence[_Row]) -> None:
        groups = passes([len(row) for row in rows], self.model.pass_cost, most=self.most)
        in_groups(rows, groups, self.most, self._read)

    def _read(self, batch: Sequence[_Row]) -> Sequence[_Row]:
        tokens, _ = pad_rows(self.model, [row.tokens.ids for row in batch], until=[row.tokens.until for row in batch])
        targets = [
            (at, columns[cell.prompt.last :], cell.prompt.target_ids)
            for at, row in enumerate(batch)
            for cell, columns in zip(row.cells, row.tokens.columns, strict=True)
        ]
        read, places = read_places(self.model, len(batch), targets)
        resid = self.model.run(tokens, hooks=self._hooks([row.edit for row in batch]), read=read)
        means: list[float] = (-mean_log_probabilities(self.model, resid, places)).double().tolist()
        cells = [cell for row in batch for cell in row.cells]
        self.found.update(zip(cells, means, strict=True))
        self.done.update(cell.entry for cell in cells)
        if self.on_rows is not None:
            self.on_rows(len(self.done), self.n_prompts)
        return batch

    def _hooks(self, edits: Sequence[Edit | None]) -> list[Hook]:
        different = list({id(edit): edit for edit in edits}.values())
        place = {id(edit): at for at, edit in enumerate(different)}
        return edit_hooks(self.model, different, torch.tensor([place[id(edit)] for edit in edits]))
