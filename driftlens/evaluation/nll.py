"""Per-prompt NLLs: one long table that every score is computed from.

1. Different edits run as rows of one batch, through hooks; no weight is written.
2. A prompt is one row, with its targets as branches after it: the prompt is run once for both.
3. What prompts under one edit begin with in common, as all after a distractor do, is run once and its keys and values
   are kept.
4. Rows of similar width share a pass, so that almost no column is padding (:mod:`driftlens.models.grouping`).

A prompt that the model cannot read, because it is too long with its target, costs its own NLL and no other.
"""

from __future__ import annotations

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
from driftlens.models import KeyValues, LensModel, check_loaded
from driftlens.models.grouping import passes
from driftlens.models.memory import in_groups
from driftlens.models.prompts import (
    BranchedRow,
    Target,
    TokenizedPrompt,
    branched,
    mean_log_probabilities,
    pad_rows,
    read_places,
    try_tokenize_prompts,
)

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
    """A row of a batch: a prompt from token `start` on, and behind it the targets of all cells that ask for it."""

    edit: Edit | None
    start: int
    cells: tuple[_Cell, ...]

    @cached_property
    def tokens(self) -> BranchedRow:
        return branched([cell.prompt.forced[self.start :] for cell in self.cells])

    def __len__(self) -> int:
        return len(self.tokens.ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stem:
    """Tokens that rows under one edit begin with; a single row has none.  No target is predicted at one of them."""

    edit: Edit | None
    ids: tuple[int, ...]
    rows: tuple[_Row, ...]

    def __len__(self) -> int:
        return len(self.ids)


Problem = tuple[int, str, int, str]
"""Record, task, prompt index, and why the model cannot read that prompt with one of its targets."""


def evaluate(
    model: LensModel,
    records: Record | Sequence[Record],
    edits: Edited | Sequence[Edited | None] | None = None,
    *,
    tasks: Iterable[str] | None = None,
    batch_size: int = 64,
    on_rows: Callable[[int, int], None] | None = None,
    on_problem: Callable[[int, str, int, str], None] | None = None,
) -> pd.DataFrame:
    """Mean NLL per token of both targets of every prompt of ``records``, each record under its own edit.

    Args:
        model: the vanilla model.
        records: one record or several.
        edits: the edit of each record; ``None`` (also for single records) is the vanilla model.
        tasks: which tasks; default all that the records have.
        batch_size: prompts at a time.  It does not change the numbers beyond float rounding.
        on_rows: called with (rows done, rows in all); a row is a prompt with both of its targets.
        on_problem: called with (record, task, prompt index, reason) for each prompt that the model cannot read with
            one of its targets.  Default: one warning that lists them.

    Returns:
        One row per prompt: ``record`` (its index), ``task``, ``prompt_index``, ``group`` (the data set's own
        grouping of prompts, if any), ``nll_true`` and ``nll_new``, in nats per target token; NaN where the model
        cannot read the prompt with that target, which is too long, as a rule.

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
    stems: list[_Stem] = []
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
        # What may share a stem begins alike under the same edit, of which a gate may make two.
        alike: dict[tuple[str, int], tuple[Edit | None, list[_Cell]]] = {}
        for (task, at, prompt), (cells, errors), own in zip(asked, read, acting, strict=True):
            if cells:
                alike.setdefault((prompt.distractor or prompt.text, id(own)), (own, []))[1].extend(cells)
            problems += [(record.index, task, at, str(error)) for error in errors[:1]]
            entries.append({"record": record.index, "task": task, "prompt_index": at, "group": prompt.group})
        stems += [_stem(own, cells) for own, cells in alike.values()]

    values = _Values(model, batch_size, stems, on_rows)
    values.fill()
    for cell, value in values.found.items():
        entries[cell.entry][cell.column] = value
    _tell(problems, len(entries), on_problem)
    # The same types also for records without a prompt.
    return pd.DataFrame(entries, columns=list(COLUMNS)).astype(TYPES)


def _cells(
    model: LensModel, prompts: Sequence[TaskPrompt], first: int
) -> Iterator[tuple[list[_Cell], list[DriftlensError]]]:
    """The cells of each prompt, and the errors of those that cannot be read; the first prompt's entry is number
    `first`.
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


def _stem(edit: Edit | None, cells: Sequence[_Cell]) -> _Stem:
    """The rows of cells that may begin alike, behind what they share."""
    prompts: dict[tuple[int, ...], list[_Cell]] = {}
    for cell in cells:
        prompts.setdefault(cell.prompt.ids[: cell.prompt.n_prompt], []).append(cell)
    # The last prompt token predicts the targets' first, so it stays in the row.
    stop = min(len(prompt) - 1 for prompt in prompts)
    first, *others = prompts
    shared = next((i for i in range(stop) if any(other[i] != first[i] for other in others)), stop)
    start = shared if others else 0
    rows = tuple(_Row(edit=edit, start=start, cells=tuple(own)) for own in prompts.values())
    return _Stem(edit=edit, ids=first[:start], rows=rows)


class _Values:
    """Mean NLLs of cells, as they come to be known."""

    def __init__(
        self,
        model: LensModel,
        batch_size: int,
        stems: Sequence[_Stem],
        on_rows: Callable[[int, int], None] | None,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.stems = stems
        self.n_rows = sum(len(stem.rows) for stem in stems)
        self.on_rows = on_rows
        self.done: set[_Row] = set()  # not a number: a batch that did not fit into memory is done again
        self.found: dict[_Cell, float] = {}

    @torch.no_grad()
    def fill(self) -> None:
        """All cells of all rows."""

        def after(batch: Sequence[_Stem]) -> Sequence[_Stem]:
            tokens, _ = pad_rows(self.model, [stem.ids for stem in batch])
            hooks = self._hooks([stem.edit for stem in batch])
            past = self.model.prefix(tokens, hooks=hooks, columns=tokens.shape[1])
            self._fill([(row, at) for at, stem in enumerate(batch) for row in stem.rows], past)
            return batch

        stems = [stem for stem in self.stems if stem.ids]
        in_groups(stems, self._groups([len(stem) for stem in stems]), self.batch_size, after)
        self._fill([(row, 0) for stem in self.stems if not stem.ids for row in stem.rows], None)

    def _fill(self, rows: Sequence[tuple[_Row, int]], past: KeyValues | None) -> None:
        """Rows, each with the row of `past` that it stands after."""
        place = dict(rows)

        def read(batch: Sequence[_Row]) -> Sequence[_Row]:
            tokens, _ = pad_rows(
                self.model, [row.tokens.ids for row in batch], branches=[row.tokens.branch for row in batch]
            )
            at = torch.tensor([place[row] for row in batch], device=self.model.device)
            before = None if past is None else past.select(at)
            targets = _targets(batch)
            read, places = read_places(self.model, len(batch), targets)
            hooks = self._hooks([row.edit for row in batch])
            resid = self.model.run(tokens, hooks=hooks, past=before, read=read)
            means: list[float] = (-mean_log_probabilities(self.model, resid, places)).double().tolist()
            self.found.update(zip([cell for row in batch for cell in row.cells], means, strict=True))
            self.done.update(batch)
            if self.on_rows is not None:
                self.on_rows(len(self.done), self.n_rows)
            return batch

        in_groups(list(place), self._groups([len(row) for row in place]), self.batch_size, read)

    def _groups(self, widths: Sequence[int]) -> list[list[int]]:
        return passes(widths, self.model.pass_cost, most=self.batch_size)

    def _hooks(self, edits: Sequence[Edit | None]) -> list[Hook]:
        different = list({id(edit): edit for edit in edits}.values())
        place = {id(edit): at for at, edit in enumerate(different)}
        return edit_hooks(self.model, different, torch.tensor([place[id(edit)] for edit in edits]))


def _targets(rows: Sequence[_Row]) -> list[Target]:
    """Those of each row's cells, in their order."""
    return [
        (at, columns[cell.prompt.last - row.start :], cell.prompt.target_ids)
        for at, row in enumerate(rows)
        for cell, columns in zip(row.cells, row.tokens.columns, strict=True)
    ]
