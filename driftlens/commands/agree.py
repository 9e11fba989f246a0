"""`driftlens agree`: the win rates of a comparison, and the agreement of its annotators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftlens.errors import DriftlensError
from driftlens.files import output_folder, write_together
from driftlens.options.declaration import REQUIRED, flag, option, read
from driftlens.options.parsing import seed_number, whole_number

if TYPE_CHECKING:
    from driftlens.display.terminal import Terminal
    from driftlens.human import Agreement, AnswerSheet, Comparison

__all__ = ["main"]

_DESCRIPTION = """\
Read annotators' answers and print how often each side wins, with 95 % bootstrap intervals over pairs, how far the
annotators agree (Fleiss' and Randolph's κ), whether they prefer a side of the screen, and who fails checks."""

_EPILOG = """\
examples:
  driftlens agree answers/*.json
  driftlens agree driftlens-compare/answers.sqlite --exclude-failed
  driftlens agree rome/*.json memit/*.json --key rome/key.json memit/key.json --out table9

Without --key, key.json is looked for beside the answers, in the folder above, and in ./driftlens-compare."""

_LOOKED = Path("driftlens-compare")


@dataclass(frozen=True, kw_only=True)
class AgreeOptions:
    """The options of `driftlens agree`."""

    answers: list[str] = option(
        REQUIRED,
        "files that annotators downloaded, or the answers.sqlite of driftlens compare --serve",
        "ANSWERS",
        nargs="+",
        positional=True,
    )
    keys: list[str] | None = option(
        None, "the key.json of every study that is answered, or its folder", "KEY", flags=("--key",), nargs="+"
    )
    exclude_failed: bool = flag("leave out annotators who fail an attention check")
    resamples: int = option(2000, "draws of the bootstrap (default %(default)s)", "N", whole_number(100))
    seed: int = option(0, "seed of the bootstrap (default %(default)s)", "N", seed_number)
    out: str = option(
        "driftlens-agree",
        "for agreement.csv, .tex, .html, .png, annotators.csv and judgements.csv (default ./%(default)s)",
        "FOLDER",
    )
    png: bool = flag("write no PNG, which needs a Chrome or Chromium", default=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print and write the results of the study."""
    options = read(AgreeOptions, argv, prog="driftlens agree", description=_DESCRIPTION, epilog=_EPILOG)
    from driftlens.display.terminal import shown_warnings, standard_error, standard_output
    from driftlens.human import agreement, read_answers

    errors = standard_error()
    with shown_warnings(errors):
        sheets = read_answers(options.answers)
        studies = _keys(options, sheets)
        found = agreement(
            studies, sheets, exclude_failed=options.exclude_failed, resamples=options.resamples, seed=options.seed
        )
        with output_folder(options.out) as folder:
            written = write_together(folder, _files(found, errors, png=options.png), stale=["agreement.png"])
    out = standard_output()
    _report(found, sheets, out)
    out.print(f"wrote {folder}: {', '.join(path.name for path in written)}", soft_wrap=True)
    return 0


def _keys(options: AgreeOptions, sheets: Sequence[AnswerSheet]) -> list[Comparison]:
    """The studies of the answers, in the order of the keys."""
    from driftlens.human import KEY, Comparison

    if options.keys is not None:
        return [Comparison.load(Path(key) / KEY if Path(key).is_dir() else key) for key in options.keys]
    folders = [
        folder for answer in options.answers for folder in (Path(answer).parent, Path(answer).absolute().parent.parent)
    ]
    places = dict.fromkeys((folder / KEY).absolute() for folder in [*folders, _LOOKED])
    studies = {study.id: study for study in (Comparison.load(place) for place in places if place.is_file())}
    wanted = {sheet.study for sheet in sheets}
    if not wanted & studies.keys():
        raise DriftlensError(
            f"no {KEY} of these answers' study is beside them or in {_LOOKED}; name it with --key (driftlens compare "
            "wrote it)"
        )
    return [study for name, study in studies.items() if name in wanted]


def _files(found: Agreement, errors: Terminal, *, png: bool) -> dict[str, Any]:
    from driftlens.display.spreadsheet import csv_bytes
    from driftlens.human import agreement_figure, agreement_latex
    from driftlens.plots import figure_html, figure_png

    figure = agreement_figure(found)
    picture, problem = figure_png(figure) if png else (None, "")
    if problem:
        errors.print(f"driftlens: agreement.png is not written: {problem}")
    files: dict[str, Any] = {
        "agreement.csv": csv_bytes(found.table, float_format="%.6g"),
        "agreement.tex": agreement_latex(found).encode(),
        "agreement.html": figure_html(figure),
        "annotators.csv": csv_bytes(found.annotators, float_format="%.6g"),
        "judgements.csv": csv_bytes(found.judgements, float_format="%.6g"),
    }
    return files if picture is None else {**files, "agreement.png": picture}


def _report(found: Agreement, sheets: Sequence[AnswerSheet], out: Terminal) -> None:
    from rich.table import Table

    from driftlens.human.report import TITLES, cells, rows_by_setting

    for rows in rows_by_setting(found):
        first = rows[0]
        counts = f"{first['pairs']} pairs, {first['annotators']} annotators"
        table = Table(
            title=f"{first['challenger']} against {first['baseline']}: {counts}", title_justify="left",
            title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0),
        )  # fmt: skip
        table.add_column("")
        for name in cells(first):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(TITLES[row["criterion"]], *cells(row).values())
        out.print(table)
        out.print()
    bias: Any = found.bias
    if bias["answers"]:
        out.print(
            f"text on the left chosen in {100 * bias['value']:.1f} % of {bias['answers']:.0f} answers that are no ties "
            f"[{100 * bias['low']:.1f}, {100 * bias['high']:.1f}]",
            soft_wrap=True,
        )
    for each in found.annotators.to_dict("records"):
        if each["failed"]:
            kept = "left out" if each["annotator"] in found.excluded else "kept; --exclude-failed leaves them out"
            out.print(
                f"{each['annotator']} passed {each['passed']} of {each['checks']} attention checks ({kept})",
                soft_wrap=True,
            )
    for sheet in sheets:
        if sheet.comment.strip():
            out.print(f"{sheet.annotator} says: {' '.join(sheet.comment.split())}", soft_wrap=True)
