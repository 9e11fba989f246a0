"""Per-prompt NLLs: one long table that every score is computed from.

Different edits run as rows of one batch, through hooks; no weight is written.  Prompts are bucketed by
length.  The two targets of a prompt share a row where they need the same forced tokens, as two single-token
targets do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from driftlens.data import TASKS, Record, TaskPrompt
from driftlens.edits import Edit, edit_hooks
from driftlens.errors import unknown_name
from driftlens.evaluation.pairs import paired
from driftlens.models import LensModel
from driftlens.models.memory import in_batches
from driftlens.prompts import TokenizedPrompt, pad_rows, target_positions, tokenize_prompt

COLUMNS = ("record", "task", "prompt_index", "group", "nll_true", "nll_new")


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One forward row: a prompt with one target, under one edit (an index into the list of edits)."""

    entry: int
    column: str
    edit: int
    prompt: TokenizedPrompt


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
        on_rows: called with (rows done, rows in all).

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
    rows: list[_Row] = []
    for number, (record, _) in enumerate(pairs):
        for task, prompts in record.tasks.items():
            if wanted is not None and task not in wanted:
                continue
            for at, prompt in enumerate(prompts):
                rows += _rows_of(model, prompt, len(entries), number)
                entries.append({"record": record.index, "task": task, "prompt_index": at, "group": prompt.group})

    # Long rows first: if memory runs out it does so at once.
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].prompt.forced))
    values = in_batches(
        [rows[i] for i in order],
        batch_size,
        lambda batch: _nlls(model, batch, [edit for _, edit in pairs]),
        on_done=None if on_rows is None else lambda done: on_rows(done, len(rows)),
    )
    for i, value in zip(order, values, strict=True):
        entries[rows[i].entry][rows[i].column] = value
    return pd.DataFrame(entries, columns=list(COLUMNS))


def _rows_of(model: LensModel, prompt: TaskPrompt, entry: int, edit: int) -> list[_Row]:
    return [
        _Row(entry=entry, column=column, edit=edit, prompt=tokenize_prompt(model, prompt.text, target))
        for column, target in (("nll_true", prompt.target_true), ("nll_new", prompt.target_new))
    ]


@torch.no_grad()
def _nlls(model: LensModel, rows: Sequence[_Row], edits: Sequence[Edit | None]) -> list[float]:
    """Mean NLL per target token of each row, in one pass."""
    forced: dict[tuple[int, tuple[int, ...]], int] = {}
    shared = [forced.setdefault((row.edit, row.prompt.forced), len(forced)) for row in rows]
    batch, shifts = pad_rows(model, [tokens for _, tokens in forced])
    needed = sorted({edit for edit, _ in forced})
    index = torch.tensor([needed.index(edit) for edit, _ in forced])
    hooks = edit_hooks(model, [edits[edit] for edit in needed], index)
    resid = model.run(batch, hooks=hooks)
    at = torch.tensor(shared, device=model.device)
    row, column, target = target_positions([row.prompt for row in rows], shifts[at])
    precision = torch.promote_types(model.dtype, torch.float32)
    logits = model.unembed(resid[at[row], column]).to(precision)
    token_nll = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    lengths = torch.bincount(row, minlength=len(rows))
    total = torch.zeros(len(rows), device=model.device, dtype=precision).index_add(0, row, token_nll)
    return (total / lengths).double().tolist()
