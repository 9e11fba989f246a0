"""The options of `driftlens compare`, checked as far as they can be without a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from driftlens.errors import DriftlensError, unknown_name
from driftlens.options.editing import EditorOptions, add_editor_options
from driftlens.options.parsing import Parser, add_model_options, whole_number
from driftlens.registry import EDITORS

__all__ = ["CompareOptions", "Side", "read_options"]

_DESCRIPTION = """\
Let people compare what two edited models write: generate pairs of texts and write one page that shows them side by
side, without names and in random order, and asks which text is better (edit success, specificity, fluency)."""

_EPILOG = """\
examples:
  driftlens compare
  driftlens compare --editor memit --against memit+sadr --records 40 --out memit
  driftlens compare --editor results/rome --against results/rome-sadr --data merged_counterfact.json
  driftlens compare --serve --annotators 9 --host 0.0.0.0

Send compare.html to the annotators and keep key.json, which says who wrote what. `driftlens agree` reads the answers
that they send back, or the database of --serve."""

_SADR = "+sadr"


@dataclass(frozen=True, kw_only=True)
class Side:
    """Who writes one of the two texts: an editor, the unedited model, or a folder with what was made before.

    Attributes:
        name: as it is written in tables.
        editor: an editor's options; None for a folder.
        folder: of a benchmark run or of saved edits.
    """

    name: str
    editor: EditorOptions | None = None
    folder: Path | None = None

    @property
    def is_run(self) -> bool:
        """Whether the folder holds the texts of a benchmark run."""
        return self.folder is not None and (self.folder / "generations.parquet").is_file()


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What the command line says; None where the model, its presets or the data decide."""

    model: str
    device: str | None
    device_map: str | None
    dtype: str | None
    data: str
    split: str | None
    records: int
    baseline: Side
    challenger: Side
    corpus: str | None
    seed: int
    max_tokens: int
    checks: int
    title: str
    batch_size: int
    out: str
    serve: bool
    host: str
    port: int
    annotators: int


def read_options(argv: Sequence[str] | None = None) -> CompareOptions:
    """The options in `argv` (default: the program's arguments)."""
    given = vars(_parser().parse_args(argv))
    names = {item.name for item in fields(EditorOptions)} - {"editor", "sadr"}
    settings = {name: given.pop(name) for name in names if name not in ("corpus", "seed")}
    settings |= {"corpus": given["corpus"], "seed": given["seed"]}
    if given.pop("sadr"):
        raise DriftlensError(f"--sadr does not say which of the two sides it is for; write e.g. --against rome{_SADR}")
    sides = {name: given.pop(name) for name in ("editor", "against")}
    if sides["editor"] == sides["against"]:
        raise DriftlensError(f"--editor and --against are both {sides['editor']!r}; name two that differ")
    baseline, challenger = (_side(name, settings, option) for option, name in sides.items())
    restrained = any(side.editor is not None and side.editor.sadr for side in (baseline, challenger))
    if not restrained and (settings["gamma"] is not None or settings["sadr_heads"] is not None):
        raise DriftlensError(f"--gamma and --sadr-heads need a side with SADR; write e.g. --against rome{_SADR}")
    if baseline.is_run != challenger.is_run:
        run = baseline if baseline.is_run else challenger
        raise DriftlensError(
            f"{run.folder} holds texts that were generated before, the other side none; name two runs, or two editors"
        )
    return CompareOptions(baseline=baseline, challenger=challenger, **given)


def _side(name: str, settings: dict[str, Any], option: str) -> Side:
    """An editor with the settings that concern it, "none", or a folder."""
    editor, plus, regularizer = name.lower().partition("+")
    if editor in EDITORS.names and (not plus or plus + regularizer == _SADR):
        own = dict(settings)
        if not plus:
            own |= {"gamma": None, "sadr_heads": None}
        if editor in ("rome", "alphaedit"):
            own["second_moment_weight"] = None
        title = editor.upper() + (" + SADR" if plus else "")
        return Side(name=title, editor=EditorOptions(editor=editor, sadr=bool(plus), **own))
    if name == "none":
        return Side(name="unedited", editor=EditorOptions(editor="none", seed=settings["seed"]))
    folder = Path(name)
    if not folder.is_dir():
        known = ("none", *EDITORS.names, *(f"{one}{_SADR}" for one in EDITORS.names))
        raise DriftlensError(f"--{option}: {unknown_name('editor', name, known, instead='or a folder')}")
    if not (folder / "generations.parquet").is_file() and not any(folder.glob("*.safetensors")):
        raise DriftlensError(
            f"--{option}: {folder} holds neither a run's generations.parquet nor edits (*.safetensors); name a folder "
            "that `driftlens evaluate` wrote, or one with saved edits"
        )
    return Side(name=folder.resolve().name, folder=folder)


def _parser() -> Parser:
    parser = Parser(
        prog="driftlens compare",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",  # --editor below takes more than an editor's name
    )
    add_model_options(parser)
    add_editor_options(parser, seed="of context prefixes, of the texts, and of the order that hides who wrote what")

    sides = parser.add_argument_group("the two sides")
    sides.add_argument(
        "--editor",
        default="rome",
        metavar="E",
        help=f"the baseline: {', '.join(EDITORS.names)}, each also as EDITOR{_SADR}; none for the unedited model; "
        "or a folder of a benchmark run or of saved edits (default rome)",
    )
    sides.add_argument(
        "--against",
        default=f"rome{_SADR}",
        metavar="E",
        help=f"the challenger, of the same kinds; wins are its wins (default rome{_SADR})",
    )

    study = parser.add_argument_group("study")
    study.add_argument(
        "--data", default="demo", metavar="D", help="demo (default), a data set's name, or a JSON file of records"
    )
    study.add_argument("--split", metavar="S", help="records of this split only; default: test, where the data has one")
    study.add_argument(
        "--records", type=whole_number(1), default=20, metavar="N", help="pairs of texts (default 20, as in the paper)"
    )
    study.add_argument(
        "--max-tokens", type=whole_number(1), default=100, metavar="N", help="length of a text, prompt included (100)"
    )
    study.add_argument(
        "--checks",
        type=whole_number(0),
        default=2,
        metavar="N",
        help="attention checks among the pairs: identical texts, and a text with its words shuffled (default 2)",
    )
    study.add_argument("--title", default="Comparing texts", metavar="T", help="what annotators see as the title")
    study.add_argument(
        "--batch-size", type=whole_number(1), default=64, metavar="N", help="texts written at a time (default 64)"
    )
    study.add_argument(
        "--out",
        default="driftlens-compare",
        metavar="FOLDER",
        help="for compare.html, key.json and the answers of --serve (default ./driftlens-compare)",
    )

    server = parser.add_argument_group("server, for a lab's network (extra 'human')")
    server.add_argument(
        "--serve",
        action="store_true",
        help="hand the page out with a link per annotator and collect the answers; a study that is in --out is served "
        "as it is",
    )
    server.add_argument(
        "--host", default="127.0.0.1", metavar="A", help="address to listen at (default 127.0.0.1: this machine only)"
    )
    server.add_argument("--port", type=whole_number(0), default=8321, metavar="N", help="port (default 8321)")
    server.add_argument(
        "--annotators", type=whole_number(1), default=9, metavar="N", help="how many links to make (default 9)"
    )
    return parser
