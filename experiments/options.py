"""The options that all experiments share."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from driftlens.commands.editing import EditorOptions, add_editor_options
from driftlens.commands.parsing import Parser, whole_number

__all__ = ["Options", "read_options"]


@dataclass(frozen=True, kw_only=True)
class Options(EditorOptions):
    """What the command line says; None where the model, its preset or the data decide."""

    model: str = "demo"
    data: str = "demo"
    records: int = 120
    prompts: int = 1
    device: str | None = None
    dtype: str | None = None
    batch_size: int = 32
    out: str = "figures"
    png: bool = True
    redo: bool = False


def read_options(argv: Sequence[str] | None, *, prog: str, description: str) -> Options:
    """The options in `argv` (default: the program's arguments)."""
    return Options(**vars(_parser(prog, description).parse_args(argv)))


def _parser(prog: str, description: str) -> Parser:
    parser = Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Options()
    model = parser.add_argument_group("model and data")
    model.add_argument(
        "--model", default=default.model, metavar="NAME", help="demo (default), a Hugging Face name or a local folder"
    )
    model.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps; default: cuda where there is one")
    model.add_argument("--dtype", metavar="D", help="float32, bfloat16, float16; default: the checkpoint's")
    model.add_argument(
        "--data", default=default.data, metavar="D", help="demo (default) or a JSON file like merged_counterfact.json"
    )
    model.add_argument(
        "--records",
        type=whole_number(1),
        default=default.records,
        metavar="N",
        help=f"records at most, for each task the first that have it (default {default.records}); where "
        "the data has a test split, of that one",
    )
    model.add_argument(
        "--prompts",
        type=whole_number(1),
        default=default.prompts,
        metavar="N",
        help="prompts of a record and group in the figures of tokens × layers, which are the costly ones "
        f"(default {default.prompts}); curves and correlations take all",
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
