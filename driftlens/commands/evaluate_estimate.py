"""`driftlens evaluate --dry-run`: what a run would cost, measured on a few of its records.

Time, memory and file sizes are extrapolated from a few records (:func:`driftlens.runs.estimate.try_out`).  Cached
second moments are used.  Others are not computed, because that may take hours: the identity replaces them, a few texts
are run, and their time is extrapolated linearly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from driftlens.commands.evaluate_options import EvaluateOptions
from driftlens.display.durations import duration
from driftlens.editors import Corpus, SecondMoment, default_corpus, open_corpus
from driftlens.editors.moment_cost import MomentCost, moment_cost
from driftlens.editors.second_moment import are_cached
from driftlens.models.timing import most_bytes
from driftlens.options.editing import editor_text, make_editor
from driftlens.options.moments import with_second_moments
from driftlens.runs.estimate import try_out
from driftlens.runs.work import Work

if TYPE_CHECKING:
    from driftlens.data import Record
    from driftlens.display.terminal import Terminal
    from driftlens.editors.base import Editor
    from driftlens.models import LensModel
    from driftlens.runs import Measures

__all__ = ["estimate"]


def estimate(
    options: EvaluateOptions,
    records: Sequence[Record],
    measures: Measures,
    corpus: Corpus | None,
    console: Terminal,
    errors: Terminal,
) -> None:
    """Measure a few records and print the estimate."""
    with errors.status("trying a few records") if errors.is_terminal else nullcontext():
        start = time.perf_counter()
        model = options.load()
        loading, weights = time.perf_counter() - start, most_bytes(model.device)
        editor, moments = _editor(model, options, corpus)
        work = Work(
            model=model,
            editor=editor,
            measures=measures,
            edit_batch=options.edit_batch,
            batch_size=options.batch_size,
        )
        batch = min(options.edit_batch, options.shard_size, len(records))
        trial = try_out(work, records, batch=batch)
    total = loading + (moments.seconds if moments else 0.0) + trial.seconds * len(records)
    where = "GPU memory" if model.device.type == "cuda" else "memory"
    print_lines(
        console,
        {
            "model": f"{options.model}, {model.n_layers} layers, {str(model.dtype).removeprefix('torch.')} on "
            f"{model.device}, {where} {_gib(weights)}, loaded in {duration(loading)}",
            "editor": "none" if editor is None else editor_text(editor),
            "records": f"{len(records):,} of {options.data}",
            "second moments": _moments_text(editor, moments),
            "time": f"about {duration(total)}: {trial.seconds:.2g} s per record, in one process",
            where: f"about {_gib(trial.needed_bytes)} with {batch} fact{'s' if batch > 1 else ''} side by side",
            "disk": f"about {trial.written_bytes / 2**20:.1f} MiB in {options.out}",
        },
        f"An estimate, measured on {trial.records} of the records; nothing was written to {options.out}.",
    )


def print_lines(console: Terminal, lines: dict[str, str], note: str) -> None:
    """Print a small table without rules, and a note."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in lines.items():
        table.add_row(name, text)
    console.print(table)
    console.print(note, soft_wrap=True)


def _editor(
    model: LensModel, options: EvaluateOptions, corpus: Corpus | None
) -> tuple[Editor | None, MomentCost | None]:
    if options.editor == "none":
        return None, None
    editor = make_editor(model, options)
    layers = editor.missing_second_moments
    if not layers:
        return editor, None
    corpus = corpus or open_corpus(default_corpus(model))
    if are_cached(model, layers, corpus, samples=editor.moment_samples):
        return with_second_moments(model, editor, corpus), None
    cost = moment_cost(model, layers, corpus, editor.moment_samples)
    identity = SecondMoment(torch.eye(model.d_mlp, device=model.device))
    return editor.with_second_moments(dict.fromkeys(layers, identity)), cost


def _moments_text(editor: Editor | None, moments: MomentCost | None) -> str:
    if editor is None:
        return "none needed"
    if moments is None:
        return "in the cache"
    return f"to be taken over at most {moments.texts:,} texts, about {duration(moments.seconds)}, then cached"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size else "unknown"
