"""The options of `driftlens evaluate`, their checks without a model, and the choice of records."""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass

from driftlens.data import TASKS, Record
from driftlens.errors import DriftlensError, unknown_name
from driftlens.options.declaration import flag, option, read
from driftlens.options.editor import EDITOR, RESTRAINT, EditorOptions, editor_names
from driftlens.options.model import MODEL, ChatOptions
from driftlens.options.parsing import name_of, seed_number, whole_number
from driftlens.registry import EDITORS

__all__ = ["EvaluateOptions", "choose_records", "read_options"]

_DESCRIPTION = """\
Edit each record of a dataset separately, evaluate the edited model on the record's prompts, and print the scores with
their intervals. Results are saved as they are computed; after an interruption, the same command resumes."""

_EPILOG = """\
examples:
  driftlens evaluate --limit 20
  driftlens evaluate --editor memit --sadr --split test --out results/memit-sadr
  driftlens evaluate --editor none --out results/vanilla
  driftlens evaluate --model EleutherAI/gpt-j-6b --dtype float16 --data merged_counterfact --dry-run
  driftlens evaluate --model EleutherAI/gpt-j-6b --dtype float16 --data merged_counterfact --workers 4
  driftlens evaluate --model EleutherAI/gpt-j-6b --dtype float16 --data merged_counterfact --address 10.0.0.1:6379
"""

_RECORDS = "records"
_MEASURED = "measures"
_RUN = "run; none of these changes a result beyond float rounding"
_OUTPUT = "output"


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


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(EditorOptions, ChatOptions):
    """The options of `driftlens evaluate`; None means the default of the model or the data."""

    data: str = option("demo", "demo (default), a dataset's name, or a JSON file of records", "D", group=_RECORDS)
    split: str | None = option(None, "only the records of this split, if the data has splits", "S", group=_RECORDS)
    shuffle_seed: int | None = option(None, "shuffle the records, with this seed", "N", seed_number, group=_RECORDS)
    limit: int | None = option(None, "only the first N (after shuffling)", "N", whole_number(1), group=_RECORDS)

    tasks: tuple[str, ...] | None = option(
        None,
        f"the tasks, separated by commas: {', '.join(TASKS)}; default: all that the records have",
        "T",
        _tasks,
        group=_MEASURED,
    )
    generate: bool = flag(
        "generate no texts, so measure neither fluency nor REF", default=True, group=_MEASURED, flags=("--no-generate",)
    )
    perplexity_texts: str | None = option(
        None, "measure PPL on these texts: me_ppl, or a JSON file with a list", "F", group=_MEASURED
    )
    references: str | None = option(
        None,
        "measure REF against these: attribute_snippets (almost a gigabyte to fetch), or a JSON file like it",
        "F",
        group=_MEASURED,
    )

    editor: str = option(
        "rome",
        lambda: f"{editor_names()} (default %(default)s); none: the unedited model",
        "E",
        name_of("editor", lambda: ("none", *EDITORS.names)),
        group=EDITOR,
    )
    seed: int = option(
        0,
        "seed of the editor's context prefixes and of the generated texts (default %(default)s)",
        "N",
        seed_number,
        group=EDITOR,
    )

    batch_size: int = option(
        64, "rows of a pass (default %(default)s); halved if memory runs out", "N", whole_number(1), group=_RUN
    )
    edit_batch: int = option(16, "facts edited side by side (default %(default)s)", "N", whole_number(1), group=_RUN)
    shard_size: int = option(
        32,
        "records written together: the most that an interruption costs (default %(default)s)",
        "N",
        whole_number(1),
        group=_RUN,
    )
    shard: tuple[int, int] | None = option(
        None,
        "for job arrays: compute the I-th of N independent parts; when all are done, the same "
        "command without --shard joins them",
        "I/N",
        _shard,
        group=_RUN,
    )
    workers: int | None = option(
        None,
        "distribute the records over N Ray processes, each with its own model, and its own GPU if there are enough",
        "N",
        whole_number(1),
        group=_RUN,
    )
    address: str | None = option(
        None, "join the running Ray cluster at this address (auto: the one on this machine)", "A", group=_RUN
    )

    out: str = option(
        "driftlens-evaluate",
        "for scores, tables, manifest and shards: one folder for one run (default ./%(default)s)",
        "FOLDER",
        group=_OUTPUT,
    )
    dry_run: bool = flag("try a few records, estimate time and memory, and write nothing to --out", group=_OUTPUT)

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
        """Whether the run uses Ray workers."""
        return self.workers is not None or self.address is not None


def read_options(argv: Sequence[str] | None = None) -> EvaluateOptions:
    """Parse the options in `argv` (default: the program's arguments)."""
    return read(
        EvaluateOptions,
        argv,
        prog="driftlens evaluate",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        groups=(MODEL, _RECORDS, _MEASURED, EDITOR, RESTRAINT, _RUN, _OUTPUT),
    )


def choose_records(options: EvaluateOptions, given: Sequence[Record]) -> list[Record]:
    """Choose records: those of the split, shuffled if wanted, and at most the first `--limit`."""
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
