"""`driftlens trace --explore`: the explorer's page of the traced fact, with all its tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from driftlens.commands.trace_options import TraceOptions
from driftlens.commands.trace_study import TraceStudy
from driftlens.data import TaskPrompt
from driftlens.data.templates import templates
from driftlens.editors import SADR
from driftlens.edits import Edit
from driftlens.explorer import Bench, Exhibit, default_windows, exhibits, explorer_page
from driftlens.explorer.bench import checked_gammas
from driftlens.models import LensModel
from driftlens.options.editing import make_editor

if TYPE_CHECKING:
    from rich.progress import Progress

    from driftlens.editors.base import Editor

__all__ = ["explore_page"]

_PROMPTS = 2
"""Prompts of each task in the page; few, because the results of every choice are precomputed."""


def explore_page(
    options: TraceOptions,
    study: TraceStudy,
    model: LensModel,
    editor: Editor,
    edit: Edit,
    bars: Progress,
) -> bytes:
    """Make the page; `editor` and `edit` are those of the run."""
    name = type(editor).__name__

    def editor_for(gamma: float | None) -> Editor:
        restrained = {"sadr": gamma is not None, "gamma": gamma}
        heads = None if gamma is None else options.sadr_heads
        own = make_editor(model, replace(options, sadr_heads=heads, **restrained))
        # The run's own second moments are reused.
        moments = editor.given_second_moments
        return own.with_second_moments(moments) if moments else own

    gammas = checked_gammas(model, None if options.gamma is None else (None, options.gamma), editor)
    bench = Bench(
        model, _exhibits(options, study), editor_for, templates=templates(study.records), batch_size=options.batch_size
    )
    gamma = next((one.gamma for one in editor.regularizers if isinstance(one, SADR)), None)
    bench.keep(0, gamma if options.sadr else None, edit)
    windows = default_windows(model.n_layers) if options.window is None else (options.window,)
    from driftlens.display.terminal import progress_line

    return explorer_page(
        bench,
        gammas,
        windows,
        editor=name,
        start=study.task,
        on_grids=progress_line(bars, "explorer, grids"),
    )


def _exhibits(options: TraceOptions, study: TraceStudy) -> list[Exhibit]:
    if options.typed:
        fact = study.fact
        own = TaskPrompt(text=fact.text, target_true=fact.target_true, target_new=fact.target_new)
        return [Exhibit(name=study.name, fact=fact, tasks={"rewrite": (own,), study.task: study.prompts})]
    first = options.record or 0
    return exhibits(study.records[first : first + (options.explore or 1)], most=_PROMPTS)
