"""The fact and the prompts of a run of `driftlens trace`, and its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from driftlens.commands.trace_options import TraceOptions
from driftlens.data import Fact, Record, TaskPrompt, load_records
from driftlens.data.joints import distractor
from driftlens.errors import DriftlensError

if TYPE_CHECKING:
    import pandas as pd

    from driftlens.analyses.substitution import Trace
    from driftlens.editors.base import Editor
    from driftlens.edits import EditResult

__all__ = ["TraceRun", "TraceStudy", "choose_study"]

_DEFAULT_TASKS = ("distract_neighborhood", "relation", "rewrite")


@dataclass(frozen=True, kw_only=True)
class TraceStudy:
    """A fact and the prompts whose prediction is traced, with `name`, `task` and `notes` for the output.

    `records` are those of the dataset, if one was read.
    """

    fact: Fact
    task: str
    prompts: tuple[TaskPrompt, ...]
    name: str
    records: tuple[Record, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class TraceRun:
    """The results of a run; `probabilities` has a row for the edit's own prompt and for each traced one.

    `doubts` is a line that says why there may be little to see, or empty (`driftlens.commands.trace_doubts`). `page` is
    the explorer's page, if requested.
    """

    study: TraceStudy
    editor: Editor
    result: EditResult
    seconds: float
    probabilities: pd.DataFrame
    trace: Trace
    doubts: str = ""
    page: bytes | None = None


def choose_study(options: TraceOptions) -> TraceStudy:
    """The typed fact or the chosen record, with the prompts of its task."""
    data = options.data or _default_data(options.model)
    records = tuple(load_records(data)) if options.data or not options.typed else ()
    study = _typed(options) if options.typed else _recorded(options, data, records)
    prompts = study.prompts
    if options.prompt_index is not None:
        if options.prompt_index >= len(prompts):
            raise DriftlensError(
                f"prompt index {options.prompt_index} is not there; task {study.task} of {study.name} has "
                f"prompts 0 to {len(prompts) - 1}"
            )
        prompts = prompts[options.prompt_index : options.prompt_index + 1]
    return replace(study, prompts=prompts[: options.max_prompts], records=records)


def _default_data(model: str) -> str:
    """The bundled world for the bundled model and for local ones, which may be derived from it; else real facts."""
    return "demo" if model == "demo" or Path(model).expanduser().exists() else "real"


def _recorded(options: TraceOptions, data: str, records: Sequence[Record]) -> TraceStudy:
    number = options.record or 0
    if number >= len(records):
        last = f"records 0 to {len(records) - 1}" if records else "no records"
        raise DriftlensError(f"record {number} is not there; {data} has {last}")
    record = records[number]
    name = f"record {number} of {data.replace(chr(92), '/').rstrip('/').split('/')[-1]}"
    tasks = {**record.tasks, "rewrite": record.tasks["rewrite"] or (_own_prompt(record.fact),)}
    if options.task is not None:
        if not tasks[options.task]:
            there = ", ".join(task for task, prompts in tasks.items() if prompts)
            raise DriftlensError(f"{name} has no prompts of task {options.task}; it has {there}")
        return TraceStudy(fact=record.fact, task=options.task, prompts=tasks[options.task], name=name)
    task = next(task for task in _DEFAULT_TASKS if tasks[task])
    notes = () if task == _DEFAULT_TASKS[0] else (f"{name} has no {_DEFAULT_TASKS[0]} prompts; tracing {task}",)
    return TraceStudy(fact=record.fact, task=task, prompts=tasks[task], name=name, notes=notes)


def _typed(options: TraceOptions) -> TraceStudy:
    subject, prompt, true, new = (part or "" for part in (options.subject, options.prompt, options.true, options.new))
    if "{}" in prompt:
        fact = Fact(subject=subject, prompt=prompt, target_true=true, target_new=new)
    else:
        fact = Fact.from_text(prompt, subject=subject, target_true=true, target_new=new)
    task = options.task or ("rewrite" if not options.test_prompt else "test prompts")
    if not options.test_prompt:
        if options.task not in (None, "rewrite"):
            raise DriftlensError(f"task {options.task} of a typed fact needs prompts; give them with --test-prompt")
        return TraceStudy(fact=fact, task=task, prompts=(_own_prompt(fact),), name="typed fact")
    targets = options.test_target or (fact.target_true,)
    targets = targets * len(options.test_prompt) if len(targets) == 1 else targets
    before = distractor(fact.text, fact.target_new) if task.startswith("distract_") else ""
    prompts = tuple(
        TaskPrompt(text=before + fact.filled(text), target_true=target, target_new=fact.target_new, distractor=before)
        for text, target in zip(options.test_prompt, targets, strict=True)
    )
    return TraceStudy(fact=fact, task=task, prompts=prompts, name="typed fact")


def _own_prompt(fact: Fact) -> TaskPrompt:
    return TaskPrompt(text=fact.text, target_true=fact.target_true, target_new=fact.target_new)
