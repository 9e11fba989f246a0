"""The options that all experiments share."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from driftlens.options.editing import EditorOptions, add_editor_options
from driftlens.options.parsing import Parser, add_model_options, number, whole_number

__all__ = ["Options", "read_options"]


@dataclass(frozen=True, kw_only=True)
class Options(EditorOptions):
    """What the command line says; None where the model, its preset or the data decide."""

    model: str = "demo"
    data: str = "demo"
    records: int | None = None
    prompts: int = 1
    text_records: int | None = None
    device: str | None = None
    device_map: str | None = None
    dtype: str | None = None
    tune: int | None = None
    lrs: tuple[float, ...] = ()
    gammas: tuple[float, ...] = ()
    batch_size: int = 32
    out: str = "figures"
    png: bool = True
    redo: bool = False


def read_options(argv: Sequence[str] | None, *, prog: str, description: str) -> Options:
    """The options in `argv` (default: the program's arguments)."""
    return Options(**vars(_parser(prog, description).parse_args(argv)))


def number_list(text: str) -> tuple[float, ...]:
    """A type for arguments: numbers above 0, such as `0.5,1,2`."""
    return tuple(map(number(above=0), text.split(",")))


def _parser(prog: str, description: str) -> Parser:
    parser = Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Options()
    model = add_model_options(parser, "model and data")
    model.add_argument(
        "--data", default=default.data, metavar="D", help="demo (default) or a JSON file like merged_counterfact.json"
    )
    model.add_argument(
        "--records",
        type=whole_number(1),
        metavar="N",
        help="records at most; where the data has a test split, of that one.  Default: 120 that have the task for the "
        "figures of tokens and layers, 200 for the benchmark's tables, 40 for their ablations",
    )
    model.add_argument(
        "--text-records",
        type=whole_number(1),
        metavar="N",
        help="measure fluency and perplexity on the first N of a table's records only; on a CPU they cost many times "
        "what all other scores do (default: on all records)",
    )
    model.add_argument(
        "--prompts",
        type=whole_number(1),
        default=default.prompts,
        metavar="N",
        help="prompts of a record and group in the figures of tokens × layers, which are the costly ones "
        f"(default {default.prompts}); curves and correlations take all",
    )

    tuning = parser.add_argument_group("benchmark tables of a model that nobody has tuned")
    tuning.add_argument(
        "--tune",
        type=whole_number(1),
        metavar="N",
        help="choose learning rate and SADR's γ of each editor on N records beside the test records; default: presets",
    )
    tuning.add_argument(
        "--lrs", type=number_list, default=default.lrs, metavar="X,X", help="the learning rates that --tune tries"
    )
    tuning.add_argument(
        "--gammas",
        type=number_list,
        default=default.gammas,
        metavar="G,G",
        help="and the γ; also those that Figures 6 and 7 and Table 10 compare, with or without --tune "
        "(default: the paper's)",
    )

    add_editor_options(parser, seed="of the editor's context prefixes and of bootstrap intervals")

    run = parser.add_argument_group("run and output")
    run.add_argument(
        "--batch-size",
        type=whole_number(1),
        default=default.batch_size,
        metavar="N",
        help=f"facts edited side by side (default {default.batch_size}) and half a pass's rows; halved when "
        "memory runs out",
    )
    run.add_argument(
        "--out",
        default=default.out,
        metavar="FOLDER",
        help=f"for NAME.html, .png, .parquet, .csv, .md and .json (default {default.out}/)",
    )
    run.add_argument("--no-png", dest="png", action="store_false", help="no PNG, which needs a Chrome or Chromium")
    run.add_argument(
        "--redo",
        action="store_true",
        help="make everything again, also what was measured before with these settings; edits are kept",
    )
    return parser
