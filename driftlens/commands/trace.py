"""`driftlens trace` from end to end.

1. Options, data, the record and the output folder are checked before a model is loaded.
2. The model is loaded, and all prompts are tokenised, so that a prompt that is too long is reported before the edit.
3. The second moment (cached), the edit, the probabilities before and after, and the trace are computed.
4. All files are written under temporary names, then renamed together, so that either all or none exist.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftlens.commands.fetch import fetch_first
from driftlens.commands.trace_doubts import doubts
from driftlens.commands.trace_options import TraceOptions, read_options
from driftlens.commands.trace_study import TraceRun, TraceStudy, choose_study
from driftlens.data.templates import templates
from driftlens.files import output_folder, path_of, require_apart, write_together
from driftlens.options.editing import check_layers, make_editor
from driftlens.options.moments import cost_text, told_corpus, with_second_moments

if TYPE_CHECKING:
    import pandas as pd
    from rich.progress import Progress

    from driftlens.display.terminal import Terminal
    from driftlens.editors import Corpus
    from driftlens.editors.base import Editor
    from driftlens.editors.moment_cost import MomentCost
    from driftlens.edits import Edit, EditResult
    from driftlens.models import LensModel

__all__ = ["main"]

_NAMES = ("trace.html", "trace.png", "trace.parquet", "trace.csv", "edit.safetensors", "explore.html")


def main(argv: Sequence[str] | None = None) -> int:
    """Edit, trace, write the files, and print a summary."""
    options = read_options(argv)
    require_apart(
        {f"--out's {name}": path_of(options.out) / name for name in _NAMES},
        {"--data": options.data, "--corpus": options.corpus, "--model": options.model},
    )
    study = choose_study(options)
    with output_folder(options.out, _NAMES) as folder:
        from driftlens.display.terminal import shown_warnings, standard_error, standard_output

        errors = standard_error()
        with shown_warnings(errors):
            for note in study.notes:
                errors.print(note)
            run = _run(options, study, errors)
            files, problem = _files(run, png=options.png)
            written = write_together(folder, files, stale=_NAMES)
            if run.doubts:
                errors.print(f"warning: {run.doubts}")
            if problem:
                errors.print(f"trace.png is not written: {problem}")
            from driftlens.commands.trace_report import report

            report(run, written, standard_output())
    return 0


def _run(options: TraceOptions, study: TraceStudy, errors: Terminal) -> TraceRun:
    from driftlens.display.terminal import progress_bars, progress_line

    corpus = told_corpus(options.model, options, study.records, errors)
    fetch_first(options.model)
    check_layers(options, options.model)
    with progress_bars(errors) as bars:
        done = progress_line(bars, "load model")
        model = options.load()
        done(1, 1)
        editor = make_editor(model, options)
        targets = [_targets(options, prompt.target_true, prompt.target_new) for prompt in study.prompts]
        _check_lengths(model, study, targets)

        editor = _with_second_moments(model, editor, corpus, bars, errors)
        start = time.perf_counter()
        result = _edit(model, editor, study, bars)
        seconds = time.perf_counter() - start
        probabilities = _probabilities(model, study, result.edit)

        from driftlens.analyses.substitution import contaminating_substitution
        from driftlens.analyses.windows import default_window

        trace = contaminating_substitution(
            model,
            result.edit,
            list(study.prompts),
            targets,
            options.modules,
            options.window or default_window(model.n_layers),
            templates=templates(study.records),
            target_names=options.target_names,
            batch_size=options.batch_size,
            on_cells=progress_line(bars, "trace, cells"),
        )
        doubt = doubts(model, study, probabilities)
        page = None
        if options.explore:
            from driftlens.commands.trace_explore import explore_page

            page = explore_page(options, study, model, editor, result.edit, bars)
    return TraceRun(
        study=study,
        editor=editor,
        result=result,
        seconds=seconds,
        probabilities=probabilities,
        trace=trace,
        doubts=doubt,
        page=page,
    )


def _targets(options: TraceOptions, true: str, new: str) -> tuple[str, ...]:
    return {"true": (true,), "new": (new,), "both": (true, new)}[options.target]


def _check_lengths(model: LensModel, study: TraceStudy, targets: Sequence[tuple[str, ...]]) -> None:
    """Tokenise all prompts, so that one that is too long is an error before the edit."""
    from driftlens.models.prompts import tokenize_prompt

    fact = study.fact
    pairs = [(fact.text, fact.target_true), (fact.text, fact.target_new)]
    pairs += [(prompt.text, target) for prompt, own in zip(study.prompts, targets, strict=True) for target in own]
    for text, target in pairs:
        tokenize_prompt(model, text, target)


def _with_second_moments(
    model: LensModel, editor: Editor, corpus: Corpus | None, bars: Progress, errors: Terminal
) -> Editor:
    from driftlens.display.terminal import progress_line

    done = progress_line(bars, "second moment, texts")

    def on_cost(cost: MomentCost) -> None:
        done(0, cost.texts)
        text = cost_text(editor, cost)
        if text:
            errors.print(text)

    complete = with_second_moments(model, editor, corpus, on_cost=on_cost, on_texts=done)
    done(1, 1)
    return complete


def _edit(model: LensModel, editor: Editor, study: TraceStudy, bars: Progress) -> EditResult:
    from driftlens.display.terminal import progress_line

    done = progress_line(bars, "edit, steps")
    done(0, editor.most_steps)
    results = editor.edit_many(model, [study.fact], on_step=done)
    done(editor.most_steps, editor.most_steps)
    return results[0]


def _probabilities(model: LensModel, study: TraceStudy, edit: Edit) -> pd.DataFrame:
    """P(o_true) and P(o_edit) in both models, on the edit's own prompt and the traced prompts."""
    import numpy as np

    from driftlens.data import TASKS, Record, TaskPrompt
    from driftlens.evaluation import evaluate

    fact = study.fact
    own = TaskPrompt(text=fact.text, target_true=fact.target_true, target_new=fact.target_new)
    # The evaluation accepts only its own tasks, so two of them carry these prompts.
    tasks = {**dict.fromkeys(TASKS, ()), "rewrite": (own,), "relation": study.prompts}
    record = Record(index=0, fact=fact, tasks=tasks)
    before: Any
    after: Any
    before, after = (evaluate(model, record, one, tasks=["rewrite", "relation"]) for one in (None, edit))
    table = before[["task", "prompt_index"]].copy()
    table["task"] = table["task"].map({"rewrite": "the edit", "relation": study.task})
    texts = {"the edit": [fact.text], study.task: [prompt.text for prompt in study.prompts]}
    table["prompt"] = [texts[task][at] for task, at in zip(table["task"], table["prompt_index"], strict=True)]
    for name, column in (("true", "nll_true"), ("edit", "nll_new")):
        table[f"{name}_before"], table[f"{name}_after"] = np.exp(-before[column]), np.exp(-after[column])
    return table


def _files(run: TraceRun, *, png: bool) -> tuple[dict[str, bytes | Callable[[Path], None]], str]:
    """The contents of all files, made before any is written, and the reason for a missing PNG in one line."""
    from driftlens.commands.trace_report import note, title
    from driftlens.display.spreadsheet import csv_bytes
    from driftlens.plots import figure_html, figure_png

    figure = run.trace.plot(title=title(run), note=note(run))
    files: dict[str, bytes | Callable[[Path], None]] = {"trace.html": figure_html(figure)}
    problem = ""
    if png:
        picture, problem = figure_png(figure)
        if picture is not None:
            files["trace.png"] = picture
    files["trace.parquet"] = run.trace.table.to_parquet(index=False)
    files["trace.csv"] = csv_bytes(run.trace.table)
    files["edit.safetensors"] = run.result.edit.save
    if run.page is not None:
        files["explore.html"] = run.page
    return files, problem
