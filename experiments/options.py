"""The options that all experiments share."""

from collections.abc import Sequence
from dataclasses import dataclass

from driftlens.options.declaration import flag, option, read
from driftlens.options.editor import EDITOR, RESTRAINT, EditorOptions
from driftlens.options.model import MODEL, ModelOptions
from driftlens.options.parsing import number, seed_number, whole_number

__all__ = ["Options", "read_options"]

_DATA = "data"
_TUNING = "benchmark tables of a model that nobody has tuned"
_RUN = "run and output"


def number_list(text: str) -> tuple[float, ...]:
    """An argument type: a list of numbers above 0, such as `0.5,1,2`."""
    return tuple(map(number(above=0), text.split(",")))


@dataclass(frozen=True, kw_only=True)
class Options(EditorOptions, ModelOptions):
    """The options of the command line; None leaves the choice to the model, its preset or the data."""

    data: str = option("demo", "demo (default) or a JSON file like merged_counterfact.json", "D", group=_DATA)
    records: int | None = option(
        None,
        "at most N records, of the test split if the data has one. Default: 120 that have the task for the "
        "figures of tokens and layers, 200 for the benchmark's tables, 40 for their ablations",
        "N",
        whole_number(1),
        group=_DATA,
    )
    text_records: int | None = option(
        None,
        "measure fluency and perplexity only on the first N of a table's records; on a CPU they cost many times "
        "what all other scores do (default: on all records)",
        "N",
        whole_number(1),
        group=_DATA,
    )
    prompts: int = option(
        1,
        "prompts of a record and group in the figures of tokens × layers, which are the costly ones "
        "(default %(default)s); curves and correlations take all",
        "N",
        whole_number(1),
        group=_DATA,
    )

    tune: int | None = option(
        None,
        "choose learning rate and SADR's γ of each editor on N records beside the test records; default: presets",
        "N",
        whole_number(1),
        group=_TUNING,
    )
    lrs: tuple[float, ...] = option((), "the learning rates that --tune tries", "X,X", number_list, group=_TUNING)
    gammas: tuple[float, ...] = option(
        (),
        "the γ that --tune tries, and those that Figures 6 and 7 and Table 10 compare, with or without --tune "
        "(default: the paper's)",
        "G,G",
        number_list,
        group=_TUNING,
    )

    seed: int = option(
        0,
        "seed of the editor's context prefixes and of bootstrap intervals (default %(default)s)",
        "N",
        seed_number,
        group=EDITOR,
    )

    batch_size: int = option(
        32,
        "facts edited side by side (default %(default)s) and half a pass's rows; halved when memory runs out",
        "N",
        whole_number(1),
        group=_RUN,
    )
    out: str = option(
        "figures", "for NAME.html, .png, .parquet, .csv, .md and .json (default %(default)s/)", "FOLDER", group=_RUN
    )
    png: bool = flag("write no PNG, which needs a Chrome or Chromium", default=True, group=_RUN)
    redo: bool = flag(
        "make everything again, also what was measured before with these settings; edits are read from the cache",
        group=_RUN,
    )


def read_options(argv: Sequence[str] | None, *, prog: str, description: str) -> Options:
    """The options in `argv` (default: the program's arguments)."""
    return read(
        Options,
        argv,
        prog=prog,
        description=description,
        groups=(MODEL, _DATA, _TUNING, EDITOR, RESTRAINT, _RUN),
    )
