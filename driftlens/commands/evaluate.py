"""`driftlens evaluate` from end to end.

1. Everything that can be wrong without a model is looked at first: options, data, texts, the output folder.
2. The run itself is `driftlens.runs.benchmark`, or `cluster_benchmark` with workers; both keep what is done, so that
   the same command goes on after any interruption.
3. In the end the scores are printed, and scores and tables written beside the shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftlens.commands.evaluate_options import EvaluateOptions, choose_records, read_options
from driftlens.commands.fetch import fetch_first
from driftlens.data import Record, load_records, load_snippets, load_texts
from driftlens.files import output_folder, path_of, require_apart, write_together
from driftlens.options.editing import check_layers, choose_corpus, make_editor, with_second_moments

if TYPE_CHECKING:
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

_WIDE = 110
"""Columns of a terminal that has room for what each score counts."""
_INTERRUPTED = 128 + 2  # as a shell reports SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run or go on with a run, print and write what it found."""
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
    # Of all the data: an edit must not depend on how many records are asked for.
    corpus = (
        None
        if options.editor == "none"
        else choose_corpus(options.model, options.corpus, data, given=options.second_moment)
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
    """The editor that the options mean for a model, with its second moments; None for no editor."""
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
    from driftlens.display.terminal import standard_output

    with output_folder(options.out, _NAMES) as folder:
        with shown_progress(errors, len(records)) as shown:
            try:
                result = _result(options, records, measures, corpus, folder, shown)
            except KeyboardInterrupt:
                shown.close()
                errors.print(
                    f"driftlens: interrupted; {shown.done:,} of {len(records):,} records are kept in {folder}: give "
                    "the same command again to go on there",
                )
                return _INTERRUPTED
        written = write_together(folder, _files(result))
        _report(result, folder, [path.name for path in written], standard_output())
    return 0


def _result(
    options: EvaluateOptions,
    records: Sequence[Record],
    measures: Measures,
    corpus: Corpus | None,
    folder: Path,
    shown: Shown,
) -> BenchmarkResult:
    from driftlens.runs import Recipe, benchmark, cluster_benchmark

    if options.spread:
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
        shown.stage("start workers")
        return cluster_benchmark(
            recipe,
            records,
            folder,
            workers=options.workers,
            address=options.address,
            shard_size=options.shard_size,
            on_progress=shown.update,
        )
    from driftlens.models import load_model

    shown.stage("load model")
    model = load_model(
        options.model, device=options.device, dtype=options.dtype, chat=options.chat, system=options.system
    )
    shown.stage("second moments")
    editor = editor_for(model, options=options, corpus=corpus, shown=shown)
    return benchmark(
        model,
        records,
        editor,
        folder,
        tasks=measures.tasks,
        generate=measures.generate,
        perplexity_texts=measures.perplexity_texts,
        snippets=measures.snippets,
        edit_batch=options.edit_batch,
        batch_size=options.batch_size,
        shard_size=options.shard_size,
        seed=measures.seed,
        on_progress=shown.update,
    )


def _files(result: BenchmarkResult) -> dict[str, bytes]:
    from driftlens.display.spreadsheet import csv_bytes

    scores = result.scores.rename_axis("score").reset_index()
    tables = {
        "scores": scores,
        "nlls": result.nlls,
        "records": result.records,
        "generations": result.generations,
        "problems": result.problems,
    }
    files = {f"{name}.parquet": table.to_parquet(index=False) for name, table in tables.items()}
    return {"scores.csv": csv_bytes(scores), **files}


def _report(result: BenchmarkResult, folder: Path, names: Sequence[str], console: Terminal) -> None:
    from rich.table import Table

    counts = sum(1 for problem in result.records["problem"] if problem)
    about: dict[str, Any] = result.manifest["configuration"]
    editor = about["editor"]
    title = f"{'no editor' if editor is None else editor['name']}, {len(result.records):,} records"
    title += f", {counts:,} of them without an edit" if counts else ""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("score")
    for name in ("value", "95 % interval", "of resampled records", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    told = console.width >= _WIDE
    if told:
        table.add_column("of", overflow="fold")
    rows: Any = result.scores.loc[result.scores["n"] > 0].itertuples()
    for row in rows:
        value = "–" if row.value != row.value else f"{row.value:.2f}"
        intervals = [_interval(row.low, row.high), _interval(row.cluster_low, row.cluster_high)]
        meaning = [_meaning(str(row.Index))] if told else []
        table.add_row(str(row.Index), value, *intervals, f"{int(row.n):,}", *meaning)
    console.print(table)
    console.print()
    console.print(f"wrote {folder}: {', '.join(names)}, manifest.json", soft_wrap=True)


def _meaning(score: str) -> str:
    """What is counted, in a few words; `docs/metrics.md` has all of it."""
    from driftlens.evaluation.scores import AVERAGED, MAGNITUDES, SCORES

    others = {
        "Avg.S": f"harmonic mean of {', '.join(AVERAGED)}",
        "FL": "fluency: entropy of the words generated",
        "REF": "generated texts' likeness to texts about the new object, %",
        "PPL": "perplexity of ordinary texts",
    }
    if score in others:
        return others[score]
    of = {magnitude: name for name, magnitude in MAGNITUDES.items()}.get(score, score)
    task, likelier = SCORES[of]
    other = "true" if likelier == "new" else "new"
    counted = f"P({likelier})" if of != score else f"P({likelier}) > P({other})"
    return f"{task}: {counted}, %"


def _interval(low: float, high: float) -> str:
    return "–" if low != low else f"{low:.2f} – {high:.2f}"
