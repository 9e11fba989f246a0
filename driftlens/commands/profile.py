"""`driftlens profile`: time the phases of an edit, a trace and an evaluation on this machine, and estimate a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftlens.commands.fetch import fetch_first
from driftlens.display.durations import measured_duration
from driftlens.errors import DriftlensError
from driftlens.files import atomic_path, output_file, require_apart
from driftlens.options.declaration import Further, flag, option, read
from driftlens.options.model import MODEL, ModelOptions
from driftlens.options.parsing import name_of, whole_number
from driftlens.progress import OnProgress
from driftlens.registry import EDITORS

if TYPE_CHECKING:
    from driftlens.data import Record
    from driftlens.display.terminal import Terminal
    from driftlens.models import LensModel
    from driftlens.models.timing import Phase
    from driftlens.runs.estimate import RunEstimate
    from driftlens.runs.profiling import EditorCost

__all__ = ["main"]


def _editors() -> tuple[str, ...]:
    return tuple(f"{name}{more}" for name in EDITORS.names for more in ("", "+sadr"))


def _editors_help() -> str:
    return f"{', '.join(_editors())}; may be repeated (default: rome and rome+sadr)"


_DESCRIPTION = """\
Measure the time and memory of an edit, a trace and an evaluation on this machine, and estimate a full run with each
editor."""


@dataclass(frozen=True, kw_only=True)
class ProfileOptions(ModelOptions):
    """The options of `driftlens profile`; None means the default of the model."""

    data: str = option("demo", "demo (default) or a JSON file like merged_counterfact.json", "D")
    records: int = option(4, "how many records are measured (default %(default)s)", "N", whole_number(1))
    editors: tuple[str, ...] = option(
        (), _editors_help, "E", name_of("editor", _editors), flags=("--editor",), action=Further
    )
    run: int = option(1678, "records of the full run (default %(default)s)", "N", whole_number(1))
    batch_size: int = option(16, "facts edited side by side (default %(default)s)", "N", whole_number(1))
    samples: int = option(64, "time the second moment over N texts (default %(default)s)", "N", whole_number(1))
    full_samples: int = option(
        100_000, "texts of a full second moment (default %(default)s, of about this length)", "N", whole_number(1)
    )
    generate: bool = flag("leave the fluency score out", default=True, flags=("--no-generation",))
    json: str | None = option(None, "also write all results to this file, as JSON", "FILE")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results."""
    options = read(ProfileOptions, argv, prog="driftlens profile", description=_DESCRIPTION, groups=(MODEL,))
    editors = tuple(dict.fromkeys(options.editors or ("rome", "rome+sadr")))
    from driftlens.data import load_records

    require_apart({"--json": options.json}, {"--data": options.data, "--model": options.model})
    records = load_records(options.data, limit=options.records)
    if not records:
        raise DriftlensError(f"{options.data} holds no record; profile with data that has some")
    from driftlens.display.terminal import shown_warnings, standard_error, standard_output

    errors = standard_error()
    # Before minutes of work, not after.
    with output_file(options.json) if options.json is not None else nullcontext() as target, shown_warnings(errors):
        fetch_first(options.model)
        with errors.status("load model") as status:
            phases, costs, model = _measure(options, records, editors, lambda what, _, __: status.update(what))
            from driftlens.models.pass_costs import keep_pass_cost
            from driftlens.models.timing import measured_pass_cost
            from driftlens.runs.estimate import estimate

            status.update("the cost of a pass")
            before = model.pass_cost
            a_pass = measured_pass_cost(model)
            try:
                kept = f"and takes {a_pass:,} from now on (kept in {keep_pass_cost(model, a_pass)})"
            except DriftlensError as error:
                kept = f"which model.pass_cost = {a_pass} changes; it cannot be kept: {error}"
        runs = estimate(phases, costs, options.run)
        once = _full_second_moment(phases, options.full_samples)
        if target is not None:
            _write(target, model, phases, costs, runs, once, a_pass)
    console = standard_output()
    _report(console, model, phases, costs, runs, once)
    console.print(
        f"A pass costs as much as {a_pass:,} of its tokens. driftlens grouped prompts as if it were {before:g}, {kept}."
    )
    return 0


def _measure(
    options: ProfileOptions, records: Sequence[Record], editors: Sequence[str], on_progress: OnProgress
) -> tuple[list[Phase], list[EditorCost], LensModel]:
    import torch

    from driftlens.data import true_texts
    from driftlens.editors import SecondMoment, sample_contexts
    from driftlens.editors.second_moment import stream_second_moments
    from driftlens.models.timing import measured
    from driftlens.runs.profiling import profile_model

    loaded: list[LensModel] = []
    moments: dict[int, Any] = {}
    device = torch.device("cpu")  # the model says later where it is

    phases = [
        measured(
            "load and check the model",
            lambda: loaded.append(options.load()),
            device,
            per="run",
        )
    ]
    model = loaded[0]
    made = {name: _editor(model, name) for name in editors}
    on_progress("contexts", 0, 0)
    samplings = list(dict.fromkeys(editor.sampling for editor in made.values() if hasattr(editor, "sampling")))
    phases.append(
        measured("contexts", lambda: [sample_contexts(model, one) for one in samplings], model.device, per="run")
    )
    layers = sorted({layer for editor in made.values() for layer in editor.edited_layers})
    texts = (true_texts(records) * options.samples)[: options.samples]
    on_progress("second moment", 0, 0)
    phases.append(
        measured(
            f"second moment, {len(layers)} layers",
            lambda: moments.update(stream_second_moments(model, layers, texts)),
            model.device,
            per="text",
            share=len(texts),
        )
    )
    # So few texts leave the matrix singular; what a solve costs does not ask what is in it.
    ready = {
        layer: SecondMoment(matrix + matrix.diagonal().mean() * torch.eye(model.d_mlp, device=matrix.device))
        for layer, matrix in moments.items()
    }
    on_progress("Cholesky factors", 0, 0)
    phases.append(
        measured(
            "Cholesky factor",
            lambda: [moment.cholesky for moment in ready.values()],
            model.device,
            per="layer",
            share=len(ready),
        )
    )
    given = {name: editor.with_second_moments(ready) for name, editor in made.items()}
    found, costs = profile_model(
        model, records, given, batch_size=options.batch_size, generate=options.generate, on_progress=on_progress
    )
    return [*phases, *found], costs, model


def _editor(model: LensModel, name: str) -> Any:
    from driftlens.options.editing import make_editor
    from driftlens.options.editor import EditorOptions

    kind, _, regularizer = name.partition("+")
    return make_editor(model, EditorOptions(editor=kind, sadr=bool(regularizer)))


def _full_second_moment(phases: Sequence[Phase], samples: int) -> float:
    return samples * next(phase.seconds for phase in phases if phase.name.startswith("second moment"))


def _write(
    path: Path,
    model: LensModel,
    phases: Sequence[Phase],
    costs: Sequence[EditorCost],
    runs: Sequence[RunEstimate],
    once: float,
    a_pass: int,
) -> None:
    content = {
        "model": model.name,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "phases": [asdict(phase) for phase in phases],
        "editors": [asdict(cost) | {"seconds": cost.seconds} for cost in costs],
        "full_run": [asdict(run) | {"seconds": run.seconds} for run in runs],
        "second_moments_seconds": once,
        "pass_cost_tokens": a_pass,
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _report(
    console: Terminal,
    model: LensModel,
    phases: Sequence[Phase],
    costs: Sequence[EditorCost],
    runs: Sequence[RunEstimate],
    once: float,
) -> None:
    import torch
    from rich.table import Table

    from driftlens.models.loading import computes_bfloat16

    dtype = str(model.dtype).removeprefix("torch.")
    table = Table(title=f"{model.name} on {model.device}, {dtype}", title_justify="left")
    table.add_column("phase")
    table.add_column("time", justify="right")
    table.add_column("per")
    table.add_column("memory", justify="right")
    for phase in phases:
        memory = "–" if phase.peak_bytes is None else f"{phase.peak_bytes / 1e9:.2f} GB"
        table.add_row(phase.name, measured_duration(phase.seconds), phase.per, memory)
    console.print(table)

    table = Table(title="editors, at most: facts that converge early cost less", title_justify="left")
    for column in ("editor", "steps", "before and after", "a step", "an edit"):
        table.add_column(column, justify="left" if column == "editor" else "right")
    for cost in costs:
        parts = (measured_duration(cost.fixed), measured_duration(cost.per_step), measured_duration(cost.seconds))
        table.add_row(cost.editor, str(cost.steps), *parts)
    console.print(table)

    table = Table(title=f"a full run of {runs[0].records:,} records", title_justify="left")
    for column in ("editor", "edits", "evaluation", "generation", "in all"):
        table.add_column(column, justify="left" if column == "editor" else "right")
    for run in runs:
        parts = [measured_duration(part) for part in (run.edits, run.evaluation, run.generation, run.seconds)]
        table.add_row(run.editor, *parts)
    console.print(table)
    console.print(f"Once for all of them: second moments, {measured_duration(once)} unless they are cached.")
    if model.device.type == "cpu" and model.dtype == torch.float32 and computes_bfloat16():
        console.print("This processor computes in bfloat16: profile --dtype bfloat16 too, it may be faster.")
