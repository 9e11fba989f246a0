"""The options of `driftlens evaluate`, checked as far as they can be without a model, and the records they choose."""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass

from driftlens.data import TASKS, Record
from driftlens.errors import DriftlensError, unknown_name
from driftlens.options.editing import EditorOptions, add_editor_options
from driftlens.options.model import ModelOptions
from driftlens.options.parsing import Parser, add_chat_options, add_model_options, seed_number, whole_number

__all__ = ["EvaluateOptions", "choose_records", "read_options"]

_DESCRIPTION = """\
Edit every record of a data set by itself, measure the edited model on the record's prompts, and print the scores with
their intervals. Results are kept as they come: interrupted in any way, the same command goes on where it stopped."""

_EPILOG = """\
examples:
  driftlens evaluate --limit 20
  driftlens evaluate --editor memit --sadr --split test --out results/memit-sadr
  driftlens evaluate --editor none --out results/vanilla
  driftlens evaluate --model EleutherAI/gpt-j-6b --dtype float16 --data merged_counterfact --dry-run
  driftlens evaluate --model EleutherAI/gpt-j-6b --dtype float16 --data merged_counterfact --workers 4
  driftlens evaluate --model EleutherAI/gpt-j-6b --dtype float16 --data merged_counterfact --address 10.0.0.1:6379
"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ModelOptions, EditorOptions):
    """What the command line says; None where it says nothing and the model or the data decide."""

    data: str
    split: str | None
    limit: int | None
    shuffle_seed: int | None
    tasks: tuple[str, ...] | None
    generate: bool
    perplexity_texts: str | None
    references: str | None
    batch_size: int
    edit_batch: int
    shard_size: int
    shard: tuple[int, int] | None
    workers: int | None
    address: str | None
    out: str
    dry_run: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.references is not None and not self.generate:
            raise DriftlensError("--references needs generated texts, and --no-generate leaves them out; drop one")
        if self.dry_run and self.spread:
            raise DriftlensError("--dry-run estimates one process; leave --workers and --address out")
        if self.shard is not None and (self.spread or self.dry_run):
            raise DriftlensError("--shard is for jobs without Ray; leave --workers, --address and --dry-run out")
        if self.device_map is not None and self.spread:
            raise DriftlensError(
                "--device-map puts one model on all devices, workers have one each; leave --workers and --address out"
            )

    @property
    def spread(self) -> bool:
        """Whether the run is for Ray's workers."""
        return self.workers is not None or self.address is not None


def read_options(argv: Sequence[str] | None = None) -> EvaluateOptions:
    """The options in `argv` (default: the program's arguments)."""
    return EvaluateOptions(**vars(_parser().parse_args(argv)))


def choose_records(options: EvaluateOptions, given: Sequence[Record]) -> list[Record]:
    """Of the data's, the records of the split, shuffled if wanted, the first of them if not all are wanted."""
    records = [*given]
    if options.split is not None:
        splits = {record.split for record in records if record.split is not None}
        if options.split not in splits:
            told = f"it has {', '.join(sorted(splits))}" if splits else "it has none"
            raise DriftlensError(f"{options.data} has no split {options.split!r}; {told}")
        records = [record for record in records if record.split == options.split]
    if options.shuffle_seed is not None:
        random.Random(options.shuffle_seed).shuffle(records)
    records = records[: options.limit]
    if not records:
        raise DriftlensError(f"{options.data} holds no records; choose another --data")
    return records


def _tasks(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in TASKS:
            raise argparse.ArgumentTypeError(str(unknown_name("task", name, TASKS)))
    return names


def _shard(text: str) -> tuple[int, int]:
    own, _, of = text.partition("/")
    if not (own.isascii() and own.isdigit() and of.isascii() and of.isdigit() and 1 <= int(own[:9]) <= int(of[:9])):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part of a number of parts, such as 1/8 or 8/8")
    return int(own), int(of)


def _parser() -> Parser:
    parser = Parser(
        prog="driftlens evaluate",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_chat_options(add_model_options(parser))

    data = parser.add_argument_group("records")
    data.add_argument(
        "--data", default="demo", metavar="D", help="demo (default), a data set's name, or a JSON file of records"
    )
    data.add_argument("--split", metavar="S", help="only the records of this split, where the data has some")
    data.add_argument("--shuffle-seed", type=seed_number, metavar="N", help="shuffle the records, with this seed")
    data.add_argument("--limit", type=whole_number(1), metavar="N", help="only the first N (after shuffling)")

    measured = parser.add_argument_group("what is measured")
    measured.add_argument(
        "--tasks",
        type=_tasks,
        metavar="T",
        help=f"only these, with commas between: {', '.join(TASKS)}; default: all that the records have",
    )
    measured.add_argument(
        "--no-generate", dest="generate", action="store_false", help="generate no texts, so no fluency and references"
    )
    measured.add_argument(
        "--perplexity-texts", metavar="F", help="measure PPL on these texts: me_ppl, or a JSON file with a list"
    )
    measured.add_argument(
        "--references",
        metavar="F",
        help="measure REF on these: attribute_snippets (almost a gigabyte to fetch), or a JSON file like it",
    )

    add_editor_options(parser, seed="of the editor's context prefixes and of the generated texts", none=True)

    run = parser.add_argument_group("run; none of these changes a result beyond float rounding")
    run.add_argument(
        "--batch-size",
        type=whole_number(1),
        default=64,
        metavar="N",
        help="rows of a pass (default 64); halved when memory runs out",
    )
    run.add_argument(
        "--edit-batch", type=whole_number(1), default=16, metavar="N", help="facts edited side by side (default 16)"
    )
    run.add_argument(
        "--shard-size",
        type=whole_number(1),
        default=32,
        metavar="N",
        help="records written together: the most that an interruption costs (default 32)",
    )
    run.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="for job arrays: do the I-th of N parts, which need not know of one another; when all are done, the same "
        "command without --shard puts them together",
    )
    run.add_argument(
        "--workers",
        type=whole_number(1),
        metavar="N",
        help="spread the records over N processes with Ray, each with a model, on a GPU of its own where there is one",
    )
    run.add_argument(
        "--address", metavar="A", help="join the running Ray cluster at this address (auto: the one on this machine)"
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        default="driftlens-evaluate",
        metavar="FOLDER",
        help="for scores, tables, manifest and shards: one folder for one run (default ./driftlens-evaluate)",
    )
    output.add_argument(
        "--dry-run", action="store_true", help="try a few records, estimate time and memory, and write nothing there"
    )
    return parser
