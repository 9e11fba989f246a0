"""The options of `driftlens compare`, and their checks without a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from typing_extensions import override

from driftlens.errors import DriftlensError, unknown_name
from driftlens.options.declaration import flag, option, read
from driftlens.options.editor import EDITOR, RESTRAINT, EditorOptions
from driftlens.options.model import MODEL, ModelOptions
from driftlens.options.parsing import seed_number, whole_number
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

_SIDES = "the two sides"
_STUDY = "study"
_SERVER = "server, for a lab's network (extra 'human')"


@dataclass(frozen=True, kw_only=True)
class Side:
    """The source of one of the two texts: an editor, the unedited model, or a folder with earlier results.

    Attributes:
        name: the name in tables.
        editor: an editor's options; None for a folder.
        folder: the folder of a benchmark run or of saved edits.
    """

    name: str
    editor: EditorOptions | None = None
    folder: Path | None = None

    @property
    def is_run(self) -> bool:
        """Whether the folder holds the texts of a benchmark run."""
        return self.folder is not None and (self.folder / "generations.parquet").is_file()


@dataclass(frozen=True, kw_only=True)
class CompareOptions(EditorOptions, ModelOptions):
    """The options of `driftlens compare`; None means the default of the model, its presets or the data.

    Settings of editors apply to both sides; :attr:`baseline` and :attr:`challenger` are the resulting sides.
    """

    seed: int = option(
        0,
        "seed of context prefixes, of the texts, and of the order that hides who wrote what (default %(default)s)",
        "N",
        seed_number,
        group=EDITOR,
    )

    editor: str = option(
        "rome",
        lambda: (
            f"the baseline: {', '.join(EDITORS.names)}, each also as EDITOR{_SADR}; none for the unedited model; "
            "or a folder of a benchmark run or of saved edits (default %(default)s)"
        ),
        "E",
        group=_SIDES,
    )
    against: str = option(
        f"rome{_SADR}", "the challenger, of the same kinds; wins are its wins (default %(default)s)", "E", group=_SIDES
    )

    data: str = option("demo", "demo (default), a dataset's name, or a JSON file of records", "D", group=_STUDY)
    split: str | None = option(
        None, "only records of this split; default: test, if the data has one", "S", group=_STUDY
    )
    records: int = option(
        20, "pairs of texts (default %(default)s, as in the paper)", "N", whole_number(1), group=_STUDY
    )
    max_tokens: int = option(
        100, "length of a text in tokens, prompt included (default %(default)s)", "N", whole_number(1), group=_STUDY
    )
    checks: int = option(
        2,
        "attention checks among the pairs: identical texts, and a text with its words shuffled (default %(default)s)",
        "N",
        whole_number(0),
        group=_STUDY,
    )
    title: str = option("Comparing texts", "the title that annotators see (default: %(default)s)", "T", group=_STUDY)
    batch_size: int = option(64, "texts written at a time (default %(default)s)", "N", whole_number(1), group=_STUDY)
    out: str = option(
        "driftlens-compare",
        "for compare.html, key.json and the answers of --serve (default ./%(default)s)",
        "FOLDER",
        group=_STUDY,
    )

    serve: bool = flag(
        "serve the page with a link per annotator and collect the answers; an existing study in --out is served "
        "unchanged",
        group=_SERVER,
    )
    host: str = option("127.0.0.1", "address to listen on (default %(default)s: this machine only)", "A", group=_SERVER)
    port: int = option(8321, "port (default %(default)s)", "N", whole_number(0), group=_SERVER)
    annotators: int = option(9, "how many links to make (default %(default)s)", "N", whole_number(1), group=_SERVER)

    baseline: Side = field(init=False)
    challenger: Side = field(init=False)

    @override
    def __post_init__(self) -> None:
        # Each side's options are checked when they are made; those of both together need not fit either.
        if self.sadr:
            raise DriftlensError(
                f"--sadr does not say which of the two sides it is for; write e.g. --against rome{_SADR}"
            )
        if self.editor == self.against:
            raise DriftlensError(f"--editor and --against are both {self.editor!r}; name two that differ")
        baseline, challenger = self._side("editor"), self._side("against")
        restrained = any(side.editor is not None and side.editor.sadr for side in (baseline, challenger))
        if not restrained and (self.gamma is not None or self.sadr_heads is not None):
            raise DriftlensError(f"--gamma and --sadr-heads need a side with SADR; write e.g. --against rome{_SADR}")
        if baseline.is_run != challenger.is_run:
            run = baseline if baseline.is_run else challenger
            raise DriftlensError(
                f"{run.folder} holds texts that were generated before, the other side none; name two runs, or two "
                "editors"
            )
        object.__setattr__(self, "baseline", baseline)
        object.__setattr__(self, "challenger", challenger)

    def _side(self, option: str) -> Side:
        """Make a side: an editor with the settings that it has, "none", or a folder."""
        name: str = getattr(self, option)
        editor, plus, regularizer = name.lower().partition("+")
        if editor in EDITORS.names and (not plus or plus + regularizer == _SADR):
            own: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(EditorOptions)}
            own |= {"editor": editor, "sadr": bool(plus)}
            if not plus:
                own |= {"gamma": None, "sadr_heads": None}
            if editor in ("rome", "alphaedit"):
                own["second_moment_weight"] = None
            title = editor.upper() + (" + SADR" if plus else "")
            return Side(name=title, editor=EditorOptions(**own))
        if name == "none":
            return Side(name="unedited", editor=EditorOptions(editor="none", seed=self.seed))
        folder = Path(name)
        if not folder.is_dir():
            known = ("none", *EDITORS.names, *(f"{one}{_SADR}" for one in EDITORS.names))
            raise DriftlensError(f"--{option}: {unknown_name('editor', name, known, instead='or a folder')}")
        if not (folder / "generations.parquet").is_file() and not any(folder.glob("*.safetensors")):
            raise DriftlensError(
                f"--{option}: {folder} holds neither a run's generations.parquet nor edits (*.safetensors); name a "
                "folder that `driftlens evaluate` wrote, or one with saved edits"
            )
        return Side(name=folder.resolve().name, folder=folder)


def read_options(argv: Sequence[str] | None = None) -> CompareOptions:
    """Parse the options in `argv` (default: the program's arguments)."""
    return read(
        CompareOptions,
        argv,
        prog="driftlens compare",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        groups=(MODEL, EDITOR, RESTRAINT, _SIDES, _STUDY, _SERVER),
    )
