"""`driftlens evaluate` from end to end.

1. Options, data, texts and the output folder are checked before a model is loaded.
2. The run is `driftlens.runs.benchmark`, or `cluster_benchmark` with workers.  Both store finished shards, so that the
   same command resumes after any interruption.
3. The unedited model is measured on the same records, in the subfolder `unedited`.
4. Finally the scores are printed beside the unedited model's, and scores and tables are written beside the shards.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from driftlens.commands.evaluate_options import EvaluateOptions, choose_records, read_options
from driftlens.commands.fetch import fetch_first
from driftlens.data import Record, load_records, load_snippets, load_texts
from driftlens.files import output_folder, path_of, require_apart, write_together
from driftlens.options.editing import check_layers, make_editor
from driftlens.options.moments import choose_corpus, with_second_moments

if TYPE_CHECKING:
    import pandas as pd

    from driftlens.commands.evaluate_progress import Shown
    from driftlens.display.terminal import Terminal
    from driftlens.editors import Corpus
    from driftlens.editors.base import Editor
    from driftlens.models import LensModel
    from driftlens.runs import BenchmarkResult, Measures

__all__ = ["editor_for", "main"]

_NAMES = (
    "manifest.json",
    "scores.csv",
    *(f"{name}.parquet" for name in ("scores", "nlls", "records", "generations", "problems")),
)

_UNEDITED = "unedited"
"""The folder of the unedited model's run, inside the run's folder."""
_INTERRUPTED = 128 + 2  # as a shell reports SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Start or resume a run, and print and write its results."""
    options = read_options(argv)
    require_apart(
        {f"--out's {name}": path_of(options.out) / name for name in _NAMES},
        {
            "--data": options.data,
            "--corpus": options.corpus,
            "--model": options.model,
            "--perplexity-texts": options.perplexity_texts,
            "--references": options.references,
        },
    )
    data = load_records(options.data)
    records = choose_records(options, data)
    texts = None if options.perplexity_texts is None else tuple(load_texts(options.perplexity_texts))
    snippets = None if options.references is None else load_snippets(options.references)
    check_layers(options, options.model)
    # Of all the data, because an edit must not depend on the number of records.
    corpus = (
        None
        if options.editor == "none"
        else choose_corpus(options.model, options.corpus, data, given=options.second_moment, editor=options.editor)
    )

    from driftlens.display.terminal import shown_warnings, standard_error, standard_output

    errors = standard_error()
    if corpus is not None and options.corpus is None:
        errors.print("no --corpus: the second moments are taken over the true statements of the data")
    with shown_warnings(errors):
        fetch_first(options.model)
        from driftlens.runs import Measures

        measures = Measures(
            tasks=options.tasks,
            generate=options.generate,
            perplexity_texts=texts,
            snippets=snippets,
            seed=options.seed,
        )
        if options.dry_run:
            from driftlens.commands.evaluate_estimate import estimate

            estimate(options, records, measures, corpus, standard_output(), errors)
            return 0
        return _run(options, records, measures, corpus, errors)


def editor_for(
    model: LensModel,
    *,
    options: EvaluateOptions,
    corpus: Corpus | None,
    shown: Shown | None = None,
) -> Editor | None:
    """Make the editor that the options describe, with its second moments; None for no editor."""
    if options.editor == "none":
        return None
    editor = make_editor(model, options)
    if shown is None:
        return with_second_moments(model, editor, corpus)
    return with_second_moments(
        model, editor, corpus, on_cost=partial(shown.texts_to_read, editor), on_texts=shown.texts
    )


def _run(
    options: EvaluateOptions, records: Sequence[Record], measures: Measures, corpus: Corpus | None, errors: Terminal
) -> int:
    from driftlens.commands.evaluate_progress import shown_progress
    from driftlens.commands.evaluate_report import report, scores_beside
    from driftlens.display.terminal import standard_output
    from driftlens.runs import part_folder

    home = path_of(options.out)
    with output_folder(home if options.shard is None else part_folder(home, options.shard), _NAMES) as folder:
        with shown_progress(errors, len(records)) as shown:
            try:
                result, unedited = _results(options, records, measures, corpus, home, shown)
            except KeyboardInterrupt:
                shown.close()
                errors.print(
                    f"driftlens: interrupted; {shown.done:,} of {len(records):,} records are kept in {folder}: give "
                    "the same command again to go on there",
                )
                return _INTERRUPTED
        scores = scores_beside(result, unedited)
        written = write_together(folder, _files(result, scores))
        report(result, scores, folder, [path.name for path in written], standard_output())
        if options.shard is not None:
            own, of = options.shard
            standard_output().print(
                f"These are the scores of part {own} of {of} alone. When all {of} are done, the same command without "
                "--shard puts them together.",
                soft_wrap=True,
            )
    return 0


def _results(
    options: EvaluateOptions,
    records: Sequence[Record],
    measures: Measures,
    corpus: Corpus | None,
    folder: Path,
    shown: Shown,
) -> tuple[BenchmarkResult, BenchmarkResult | None]:
    """The results of the run and, if there is an editor, those of the unedited model."""
    from driftlens.runs import benchmark

    if options.spread:
        return _spread(options, records, measures, corpus, folder, shown)

    shown.stage("load model")
    model = options.load()
    shown.stage("second moments")
    editor = editor_for(model, options=options, corpus=corpus, shown=shown)
    measured = partial(
        benchmark,
        model,
        records,
        tasks=measures.tasks,
        generate=measures.generate,
        perplexity_texts=measures.perplexity_texts,
        snippets=measures.snippets,
        edit_batch=options.edit_batch,
        batch_size=options.batch_size,
        shard_size=options.shard_size,
        seed=measures.seed,
        part=options.shard,
    )
    result = measured(editor, folder, on_progress=shown.progress, on_shard=shown.shard)
    if editor is None:
        return result, None
    with _said_once():
        return result, measured(None, folder / _UNEDITED, on_progress=shown.unedited)


def _spread(
    options: EvaluateOptions,
    records: Sequence[Record],
    measures: Measures,
    corpus: Corpus | None,
    folder: Path,
    shown: Shown,
) -> tuple[BenchmarkResult, BenchmarkResult | None]:
    """As :func:`_results`, with Ray workers."""
    from driftlens.runs import Recipe, cluster_benchmark

    recipe = Recipe(
        model=options.model,
        editor=partial(editor_for, options=options, corpus=corpus),
        measures=measures,
        device=options.device,
        dtype=options.dtype,
        chat=options.chat,
        system=options.system,
        edit_batch=options.edit_batch,
        batch_size=options.batch_size,
    )
    measured = partial(
        cluster_benchmark,
        records=records,
        workers=options.workers,
        address=options.address,
        shard_size=options.shard_size,
    )
    shown.stage("start workers")
    result = measured(recipe, folder=folder, on_progress=shown.progress, on_shard=shown.shard)
    if options.editor == "none":
        return result, None
    with _said_once():
        without = replace(recipe, editor=None)
        return result, measured(without, folder=folder / _UNEDITED, on_progress=shown.unedited)


@contextmanager
def _said_once() -> Generator[None]:
    """Suppress the unedited run's warning about prompts that the edited run has already reported."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*could not be measured", category=RuntimeWarning)
        yield


def _files(result: BenchmarkResult, scores: pd.DataFrame) -> dict[str, bytes]:
    from driftlens.display.spreadsheet import csv_bytes

    listed = scores.rename_axis("score").reset_index()
    tables = {
        "scores": listed,
        "nlls": result.nlls,
        "records": result.records,
        "generations": result.generations,
        "problems": result.problems,
    }
    files = {f"{name}.parquet": table.to_parquet(index=False) for name, table in tables.items()}
    return {"scores.csv": csv_bytes(listed), **files}
