"""`driftlens train-mend`: train a hypernetwork for the editor MEND."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from driftlens.commands.fetch import fetch_first
from driftlens.data import Record, load_records
from driftlens.display.durations import duration
from driftlens.errors import DriftlensError
from driftlens.files import require_apart
from driftlens.options.declaration import flag, option, read
from driftlens.options.editor import RESTRAINT, SADROptions
from driftlens.options.model import MODEL, ModelOptions
from driftlens.options.parsing import layer_list, number, seed_number, whole_number
from driftlens.progress import Pace

if TYPE_CHECKING:
    from driftlens.display.terminal import Terminal
    from driftlens.editors import MENDTraining, TrainedMEND
    from driftlens.models import LensModel

__all__ = ["main"]

_DESCRIPTION = """\
Train MEND's hypernetwork for a model. The training excludes the records that are used for measurement: the data's test
split, or its first 400 records, and all records with one of their subjects. After an interruption, the same command
resumes."""

_EPILOG = """\
examples:
  driftlens train-mend --model smollm2-135m --dtype bfloat16 --data merged_counterfact
  driftlens train-mend --data records.json --out mend.safetensors
  driftlens train-mend --data records.json --sadr --out mend-sadr.safetensors"""


_DATA = "data"
_TRAINING = "training"


@dataclass(frozen=True, kw_only=True)
class TrainMendOptions(SADROptions, ModelOptions):
    """The options of `driftlens train-mend`; None means the default of the model or of `MENDTraining`."""

    data: str = option("demo", "demo (default), merged_counterfact or a JSON file of records", "D", group=_DATA)
    measured: int | None = option(
        None,
        "leave the first N records for measuring, if the data has no splits (default 400)",
        "N",
        whole_number(0),
        group=_DATA,
    )

    layers: tuple[int, ...] | None = option(
        None, "blocks to edit (default: the last three)", "L", layer_list, group=_TRAINING
    )
    rank: int | None = option(
        None,
        "rank of the hypernetwork's layers (default: a sixteenth of the model's width; the paper: 1920 for GPT-J)",
        "N",
        whole_number(1),
        group=_TRAINING,
    )
    steps: int | None = option(None, "optimisation steps (default 1000)", "N", whole_number(1), group=_TRAINING)
    batch_size: int | None = option(None, "edits of a step (default 10)", "N", whole_number(1), group=_TRAINING)
    lr: float | None = option(None, "learning rate (default 3e-4)", "X", number(above=0), group=_TRAINING)
    validate_every: int | None = option(
        None, "steps between two validations (default 50)", "N", whole_number(1), group=_TRAINING
    )
    seed: int | None = option(None, "seed of weights, order and split (default 0)", "N", seed_number, group=_TRAINING)

    sadr: bool = flag("restrain attention drift in the training", group=RESTRAINT)

    out: str | None = option(
        None, "the hypernetwork (safetensors); default: in the cache, where --editor mend looks", "FILE"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train, show the validation curve, and print the hypernetwork's path."""
    options = read(
        TrainMendOptions,
        argv,
        prog="driftlens train-mend",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        groups=(MODEL, _DATA, _TRAINING, RESTRAINT),
    )
    if options.out is not None:
        require_apart({"--out": options.out}, {"--data": options.data, "--model": options.model})
    records = load_records(options.data)
    from driftlens.display.terminal import shown_warnings, standard_error, standard_output

    errors = standard_error()
    with shown_warnings(errors):
        fetch_first(options.model)
        trained, path = _train(options, records, errors)
    _report(standard_output(), trained, path)
    return 0


def _train(options: TrainMendOptions, records: Sequence[Record], errors: Terminal) -> tuple[TrainedMEND, str]:
    from driftlens.display.terminal import progress_bars, progress_line, while_shown
    from driftlens.editors import train_mend
    from driftlens.editors.mend_files import cached_path

    with progress_bars(errors) as bars:
        with while_shown(bars, "load model"):
            model = options.load()
        settings = _settings(model, options)
        path = options.out or str(cached_path(model, settings.sadr))
        done = progress_line(bars, "train, steps")
        pace, first = Pace(), 0

        def on_step(step: int, total: int) -> None:
            nonlocal first
            first = first or step
            done(step, total)

        def on_validation(row: Mapping[str, float]) -> None:
            step = int(row["step"])
            left = pace.left(step - max(first - 1, 0), settings.steps - step)
            errors.print(
                f"step {step}: validation loss {row['loss']:.4f} (edit {row['edit']:.3f}, locality "
                f"{row['locality']:.4f}, drift {row['drift']:.3f}); about {duration(left)} left"
                if step < settings.steps
                else f"step {step}: validation loss {row['loss']:.4f}"
            )

        try:
            return (
                train_mend(
                    model,
                    records,
                    path,
                    settings,
                    data=options.data,
                    on_step=on_step,
                    on_validation=on_validation,
                ),
                path,
            )
        except KeyboardInterrupt:
            errors.print("interrupted; the same command goes on from here")
            raise


def _settings(model: LensModel, options: TrainMendOptions) -> MENDTraining:
    from driftlens.editors import SADR, MENDTraining, sadr_gamma

    names = ("layers", "rank", "steps", "batch_size", "lr", "validate_every", "measured", "seed")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.sadr:
        gamma = sadr_gamma(model, "mend") if options.gamma is None else options.gamma
        if not gamma:
            raise DriftlensError("--gamma 0 restrains nothing; leave it and --sadr out, or give a number above 0")
        given["sadr"] = SADR(gamma=gamma, heads=options.sadr_heads or "selected")
    return MENDTraining(**given)


def _report(console: Terminal, trained: TrainedMEND, path: str) -> None:
    from rich.table import Table

    about = trained.about
    table = Table(title=f"validation, {len(about.data['validation'])} records", title_justify="left")
    for column in ("step", "loss", "NLL before", "NLL after", "locality KL", "drift", ""):
        table.add_column(column, justify="right")
    for row in about.curve:
        values = [f"{row[name]:.4f}" for name in ("loss", "before", "edit", "locality", "drift")]
        table.add_row(f"{row['step']:.0f}", *values, "best" if row["step"] == about.step else "")
    console.print(table)
    console.print(
        f"trained on {len(about.data['train'])} records; {trained.network.size:,} parameters, rank {about.rank}"
    )
    console.print(f"wrote {path}", soft_wrap=True)
