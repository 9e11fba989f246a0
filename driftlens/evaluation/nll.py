"""Per-prompt NLLs: one long table that every score is computed from.

1. Different edits run as rows of one batch, through hooks; no weight is written.
2. What prompts under one edit begin with in common is run once and its keys and values are kept: the two
   targets of a prompt share the prompt, and all prompts behind a distractor share the distractor.
3. What is left of each row is bucketed by length.  Targets that need the same tokens, as two single-token
   targets do, share the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pandas as pd
import torch

from driftlens.data import TASKS, Record, TaskPrompt
from driftlens.edits import Edit, edit_hooks
from driftlens.errors import unknown_name
from driftlens.evaluation.pairs import paired
from driftlens.models import KeyValues, LensModel
from driftlens.models.memory import in_batches
from driftlens.prompts import TokenizedPrompt, pad_rows, tokenize_prompt

COLUMNS = ("record", "task", "prompt_index", "group", "nll_true", "nll_new")
TYPES = {"record": "int64", "prompt_index": "int64", "nll_true": "float64", "nll_new": "float64"}


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A prompt with one target, and where in the table its NLL belongs."""

    entry: int
    column: str
    prompt: TokenizedPrompt


_Row: TypeAlias = tuple[_Cell, ...]
"""A row of a batch: the cells that one run over the same tokens fills."""


@dataclass(frozen=True, kw_only=True)
class _Family:
    """Rows under one edit whose tokens begin alike.  No target is predicted at a token of the stem."""

    edit: Edit | None
    stem: tuple[int, ...]
    rows: tuple[_Row, ...]


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
    families: list[_Family] = []
    for record, edit in pairs:
        alike: dict[str, list[_Cell]] = {}
        for task, prompts in record.tasks.items():
            if wanted is not None and task not in wanted:
                continue
            for at, prompt in enumerate(prompts):
                alike.setdefault(prompt.distractor or prompt.text, []).extend(_cells(model, prompt, len(entries)))
                entries.append({"record": record.index, "task": task, "prompt_index": at, "group": prompt.group})
        families += [_family(edit, cells) for cells in alike.values()]

    total, done = sum(len(family.rows) for family in families), 0

    def work(chunk: Sequence[_Family]) -> Sequence[_Family]:
        nonlocal done

        def report(rows: int) -> None:
            if on_rows is not None:
                on_rows(done + rows, total)

        for cell, value in _nlls_of_families(model, chunk, batch_size, report):
            entries[cell.entry][cell.column] = value
        done += sum(len(family.rows) for family in chunk)
        return chunk

    # Long ones first: if memory runs out it does so at once.
    for with_stem in (True, False):
        chosen = [family for family in families if bool(family.stem) == with_stem]
        in_batches(sorted(chosen, key=_length, reverse=True), batch_size, work)
    # The same types also for records without a prompt.
    return pd.DataFrame(entries, columns=list(COLUMNS)).astype(TYPES)


def _cells(model: LensModel, prompt: TaskPrompt, entry: int) -> list[_Cell]:
    return [
        _Cell(entry=entry, column=column, prompt=tokenize_prompt(model, prompt.text, target))
        for column, target in (("nll_true", prompt.target_true), ("nll_new", prompt.target_new))
    ]


def _family(edit: Edit | None, cells: Sequence[_Cell]) -> _Family:
    """The cells as rows, and the tokens that all rows begin with, none of them a prompt's last."""
    rows: dict[tuple[int, ...], list[_Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.prompt.forced, []).append(cell)
    length = min(cell.prompt.last for cell in cells) if len(rows) > 1 else 0
    first, *others = rows
    for other in others:
        length = next((i for i in range(length) if first[i] != other[i]), length)
    return _Family(edit=edit, stem=first[:length], rows=tuple(map(tuple, rows.values())))


def _length(family: _Family) -> tuple[int, int]:
    return len(family.stem), max(len(cells[0].prompt.forced) for cells in family.rows)


@torch.no_grad()
def _nlls_of_families(
    model: LensModel, families: Sequence[_Family], batch_size: int, report: Callable[[int], None]
) -> list[tuple[_Cell, float]]:
    """All cells with their mean NLLs: the stems in one pass, what is behind them in batches."""
    past: KeyValues | None = None
    if families[0].stem:
        stems, _ = pad_rows(model, [family.stem for family in families])
        hooks = edit_hooks(model, [family.edit for family in families])
        _, past = model.keys_values(stems, hooks=hooks, columns=stems.shape[1])
    rows = [(place, cells) for place, family in enumerate(families) for cells in family.rows]
    rows.sort(key=lambda row: len(families[row[0]].stem) - len(row[1][0].prompt.forced))
    values = in_batches(rows, batch_size, lambda batch: _nlls(model, families, batch, past), on_done=report)
    return [
        (cell, value)
        for (_, cells), of_row in zip(rows, values, strict=True)
        for cell, value in zip(cells, of_row, strict=True)
    ]


def _nlls(
    model: LensModel, families: Sequence[_Family], rows: Sequence[tuple[int, _Row]], past: KeyValues | None
) -> list[list[float]]:
    """Mean NLLs per target token of each row's cells, in one pass; a row comes with its family's place."""
    places = [place for place, _ in rows]
    starts = [len(families[place].stem) for place in places]
    ends = [cells[0].prompt.forced[start:] for (_, cells), start in zip(rows, starts, strict=True)]
    resid = model.run(
        pad_rows(model, ends)[0],
        hooks=edit_hooks(model, [families[place].edit for place in places]),
        past=None if past is None else past.select(torch.tensor(places, device=model.device)),
    )
    # Where each target token is predicted: the cell, counted over all rows, the row and column, the token.
    predicted: list[tuple[int, int, int, int]] = []
    count = 0
    for at, ((_, cells), start) in enumerate(zip(rows, starts, strict=True)):
        for cell in cells:
            first = cell.prompt.last - start
            predicted += [(count, at, first + k, token) for k, token in enumerate(cell.prompt.target_ids)]
            count += 1
    of, at_row, column, target = torch.tensor(predicted, device=model.device).unbind(1)
    precision = torch.promote_types(model.dtype, torch.float32)
    logits = model.unembed(resid[at_row, column]).to(precision)
    token_nll = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    total = torch.zeros(count, device=model.device, dtype=precision).index_add(0, of, token_nll)
    means = iter((total / torch.bincount(of, minlength=count)).double().tolist())
    return [[next(means) for _ in cells] for _, cells in rows]
