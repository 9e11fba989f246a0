"""`driftlens edit` from end to end: the edit clinic.

1. Options, data and output paths are checked before a model is loaded.
2. The model is loaded, and the clinic checks whether it knows the fact.  Only then are second moments computed (or read
   from the cache) and edits made.
3. The report is written, then the edit and the edited model, if the verdict or --force allows it.  Each of them is
   written completely or not at all.
4. Only then is anything printed, so that a closed or full terminal, or another encoding, costs no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from driftlens.commands.edit_options import REPORT, EditOptions, read_options
from driftlens.commands.fetch import fetch_first
from driftlens.data import Record, load_records
from driftlens.errors import DriftlensError
from driftlens.files import output_file, output_folder, write_together
from driftlens.options.editing import check_layers, make_editor
from driftlens.options.moments import cost_text, told_corpus, with_second_moments
from driftlens.progress import OnProgress, of_stage

if TYPE_CHECKING:
    from driftlens.clinics import ClinicReport
    from driftlens.display.terminal import Terminal
    from driftlens.editors import Corpus
    from driftlens.editors.base import Editor
    from driftlens.editors.moment_cost import MomentCost
    from driftlens.models import LensModel

__all__ = ["main"]

EXIT_CODES = {"ship": 0, "ship with care": 0, "do not ship": 3, "cannot judge": 4}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the clinic, write its report, and print a summary."""
    options = read_options(argv)
    records = load_records(options.data) if options.data is not None else None
    if records is not None and not records:
        raise DriftlensError(f"{options.data} holds no records to make probes of; choose another --data")
    with ExitStack() as places:
        folder = places.enter_context(output_folder(options.out, REPORT))
        for place in (options.save, options.export):
            if place is not None:
                places.enter_context(output_file(place))
        from driftlens.display.terminal import progress_bars, shown_warnings, standard_error, standard_output

        errors = standard_error()
        with shown_warnings(errors):
            corpus = told_corpus(options.model, options, records or (), errors)
            fetch_first(options.model)
            check_layers(options, options.model)
            with progress_bars(errors) as bars:
                shown = bars.add_task("load model", total=None)

                model = options.load()

                def on_progress(what: str, done: int, total: int) -> None:
                    bars.update(shown, description=what, completed=done, total=total or None)

                report = _visit(options, model, records, corpus, on_progress, errors)
            pages = (report.to_html().encode(), report.to_json().encode())
            written = write_together(folder, dict(zip(REPORT, pages, strict=True)))
            shipped, problem = _ship(options, report, model)
            from driftlens.commands.edit_report import tell

            console = standard_output()
            tell(report, written, console)
            for line in shipped:
                console.print(line, soft_wrap=True)
            if isinstance(problem, DriftlensError):
                raise problem
            if problem:
                errors.print(problem)
    return EXIT_CODES[report.verdict.name]


def _visit(
    options: EditOptions,
    model: LensModel,
    records: Sequence[Record] | None,
    corpus: Corpus | None,
    on_progress: OnProgress,
    errors: Terminal,
) -> ClinicReport:
    from driftlens.clinics import UserProbe, clinic

    def editor(gamma: float) -> Editor:
        heads = options.sadr_heads if gamma else None
        return make_editor(model, replace(options, sadr=bool(gamma), gamma=gamma or None, sadr_heads=heads))

    def prepare(plain: Editor) -> Editor:
        given: Any = plain

        def on_cost(cost: MomentCost) -> None:
            text = cost_text(given, cost)
            if text:
                errors.print(text)

        return with_second_moments(
            model,
            given,
            corpus,
            on_cost=on_cost,
            on_texts=of_stage(on_progress, "second moment, texts"),
        )

    return clinic(
        model,
        subject=options.subject,
        prompt=options.prompt,
        new=options.new,
        true=options.true,
        records=records,
        probes=[UserProbe(prompt=text, answer=answer) for text, answer in options.probes],
        editor=editor,
        prepare=prepare,
        gammas=(options.gamma,) if options.gamma is not None else options.gammas,
        guards=options.guards,
        kind=options.kind,
        force=options.force,
        seed=options.seed,
        batch_size=options.batch_size,
        on_progress=on_progress,
    )


def _ship(
    options: EditOptions, report: ClinicReport, model: LensModel
) -> tuple[list[str], str | DriftlensError | None]:
    """Write the edit and the edited model; return a line for each of them, written or not."""
    shipped: list[str] = []
    wanted = [name for name in ("save", "export") if getattr(options, name) is not None]
    if not wanted:
        return shipped, None
    nothing = f"nothing is written for --{' and --'.join(wanted)}"
    if report.edit is None:
        return shipped, f"{nothing}: nothing was edited"
    if EXIT_CODES[report.verdict.name] and not options.force:
        return shipped, f"{nothing}: the verdict is {report.verdict.name!r}; --force writes it all the same"
    try:
        if options.save is not None:
            report.edit.save(options.save)
            shipped.append(f"saved the edit to {options.save}")
        if options.export is not None:
            report.edit.export(model, options.export)
            shipped.append(f"exported the edited model to {options.export}")
    except DriftlensError as error:  # the verdict is printed in any case
        return shipped, error
    return shipped, None
