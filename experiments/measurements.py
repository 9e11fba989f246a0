"""The measurements that experiments share: traces, patches, drift and evaluations of a study's cases.

Each is computed a few cases at a time and cached on disk (`driftlens.runs.shards`) under a hash of everything it
depends on. Figures 3 and 9b therefore share one trace, Figure 4 and Tables 2 and 4 share one pass over the prompts, and
an interrupted run continues.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from driftlens.analyses.drift import attention_drift, significant_layers
from driftlens.analyses.patch import AttentionPatch, ScorePatch, patch_attention, patch_scores
from driftlens.analyses.substitution import MODULES, Trace, contaminating_substitution
from driftlens.analyses.windows import default_window, scaled_window
from driftlens.data import TASKS, Record
from driftlens.edits import Edit
from driftlens.evaluation import evaluate
from driftlens.files import cache_folder
from driftlens.runs.shards import settings_hash, sharded
from experiments.study import EditedPrompt, Study

__all__ = [
    "attention_patch",
    "drift",
    "drift_layers",
    "evaluations",
    "patch_window",
    "score_patch",
    "trace",
    "trace_window",
]

MAIN_TASK = "distract_neighborhood"


def trace_window(study: Study) -> int:
    """The paper's 6 of 28 layers, scaled."""
    return default_window(study.model.n_layers)


def patch_window(study: Study) -> int:
    """The paper's 10 of 28 layers, scaled."""
    return scaled_window(10, study.model.n_layers)


def trace(study: Study, task: str = MAIN_TASK, window: int | None = None) -> Trace:
    """Contaminating substitution of all modules, averaged by token role within each prompt."""
    window = trace_window(study) if window is None else window
    cases = study.cases(task, prompts=study.options.prompts)

    def work(some: Sequence[EditedPrompt]) -> dict[str, pd.DataFrame]:
        found = contaminating_substitution(
            study.model,
            [case.edit for case in some],
            [case.prompt for case in some],
            [case.targets for case in some],
            MODULES,
            window,
            templates=study.templates,
            batch_size=4 * study.options.batch_size,
        )
        keys = ["case", "target_name", "target", "module", "role", "layer", "window", "vanilla", "edited"]
        return {"table": _by_role(found.table, keys), "baselines": found.baselines}

    tables = _measured(study, f"trace {task} window {window}", cases, work)
    return Trace(
        table=_with_records(tables["table"], cases),
        baselines=_with_records(tables["baselines"], cases),
        model=study.model_name,
        window=window,
        edited_layers=_edited_layers(cases),
    )


def attention_patch(study: Study, task: str) -> AttentionPatch:
    """Figure 5's curves, of all prompts."""
    window = patch_window(study)
    cases = study.cases(task)

    def work(some: Sequence[EditedPrompt]) -> dict[str, pd.DataFrame]:
        found = patch_attention(
            study.model,
            [case.edit for case in some],
            [case.prompt for case in some],
            [case.targets for case in some],
            window,
            batch_size=4 * study.options.batch_size,
        )
        return {"table": found.table, "baselines": found.baselines}

    tables = _measured(study, f"patch attention {task} window {window}, layers from 0", cases, work)
    return AttentionPatch(
        table=_with_records(tables["table"], cases),
        baselines=_with_records(tables["baselines"], cases),
        window=window,
        model=study.model_name,
        edited_layers=_edited_layers(cases),
    )


def score_patch(study: Study, task: str) -> ScorePatch:
    """Figure 10's grids, averaged by token role within each prompt."""
    window = patch_window(study)
    cases = study.cases(task, prompts=study.options.prompts)

    def work(some: Sequence[EditedPrompt]) -> dict[str, pd.DataFrame]:
        found = patch_scores(
            study.model,
            [case.edit for case in some],
            [case.prompt for case in some],
            [case.targets for case in some],
            window,
            templates=study.templates,
            batch_size=4 * study.options.batch_size,
        )
        table = _by_role(found.table, ["case", "target_name", "target", "role", "layer"])
        return {"table": table, "baselines": found.baselines}

    tables = _measured(study, f"patch scores {task} window {window}", cases, work)
    return ScorePatch(
        table=_with_records(tables["table"], cases),
        baselines=_with_records(tables["baselines"], cases),
        window=window,
        model=study.model_name,
        edited_layers=_edited_layers(cases),
    )


def drift_layers(study: Study) -> tuple[int, ...]:
    """The layers over which drift is summed: those where attention contaminates in Figure 3's trace."""
    return significant_layers(trace(study).table)


def drift(study: Study, task: str, *, records: Sequence[Record] | None = None) -> pd.DataFrame:
    """Every factor of every prompt of a task (of `records`), with P(o_true) and P(o_edit) in both models."""
    layers = drift_layers(study)
    cases = study.cases(task, records=records)

    def work(some: Sequence[EditedPrompt]) -> dict[str, pd.DataFrame]:
        found = attention_drift(
            study.model,
            [case.edit for case in some],
            [case.prompt for case in some],
            [case.record.fact.subject for case in some],
            layers,
            batch_size=2 * study.options.batch_size,
        )
        return {"table": pd.concat([found.table, _probabilities(study, some)], axis=1)}

    tables = _measured(study, f"drift {task} layers {layers}", cases, work, size=64)
    return _with_records(tables["table"], cases)


def evaluations(study: Study, records: Sequence[Record], tasks: Sequence[str]) -> pd.DataFrame:
    """Per-prompt NLLs with no edit, with ROME and with ROME-AWD (`editor`)."""
    items = list(zip(records, study.edits(records), study.edits(records, detached=True), strict=True))

    def work(some: Sequence[tuple[Record, Edit, Edit]]) -> dict[str, pd.DataFrame]:
        chosen = [record for record, *_ in some]
        by_editor = {"None": None, "ROME": [rome for _, rome, _ in some], "ROME-AWD": [awd for *_, awd in some]}
        tables = [
            evaluate(study.model, chosen, edits, tasks=tasks, batch_size=2 * study.options.batch_size).assign(
                editor=name
            )
            for name, edits in by_editor.items()
        ]
        return {"nlls": pd.concat(tables, ignore_index=True)}

    about = [record.fact for record in records], list(tasks)
    key = f"evaluate {settings_hash([repr(about), [[repr(record.tasks[t]) for t in tasks] for record in records]])}"
    return _kept(study, key, "evaluate", items, work, 64)["nlls"]


def _probabilities(study: Study, cases: Sequence[EditedPrompt]) -> pd.DataFrame:
    """P(o_true) and P(o_edit) of each case, unedited and edited."""
    # The evaluation works on records; each case becomes one of its own.
    records = [
        Record(index=at, fact=case.record.fact, tasks={**dict.fromkeys(TASKS, ()), "relation": (case.prompt,)})
        for at, case in enumerate(cases)
    ]
    columns: dict[str, Any] = {}
    for name, edits in (("vanilla", None), ("edited", [case.edit for case in cases])):
        nlls = evaluate(study.model, records, edits, batch_size=2 * study.options.batch_size)
        columns[f"true_{name}"] = np.exp(-nlls["nll_true"].to_numpy())
        columns[f"edit_{name}"] = np.exp(-nlls["nll_new"].to_numpy())
    return pd.DataFrame(columns)


def _by_role(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The mean over a role's tokens in a prompt; `token` is the first of them, `token_text` all of them."""
    cells: Any = table.groupby(keys, sort=False)[["probability", "effect"]].mean()
    tokens: Any = table[["case", "target_name", "role", "token", "token_text"]].drop_duplicates()
    tokens = tokens.sort_values("token").groupby(["case", "target_name", "role"], sort=False)
    texts = tokens.agg(token=("token", "first"), token_text=("token_text", "".join)).reset_index()
    return cells.reset_index().merge(texts, on=["case", "target_name", "role"])


def _with_records(table: pd.DataFrame, cases: Sequence[EditedPrompt]) -> pd.DataFrame:
    """Add the record and group of each case."""
    numbers = table["case"].tolist()
    return table.assign(
        record=[cases[number].record.index for number in numbers], group=[cases[number].group for number in numbers]
    )


def _edited_layers(cases: Sequence[EditedPrompt]) -> tuple[int, ...]:
    return tuple(sorted({layer for case in cases for layer in case.edit.layers}))


def _measured(
    study: Study,
    name: str,
    cases: Sequence[EditedPrompt],
    work: Callable[[Sequence[EditedPrompt]], dict[str, pd.DataFrame]],
    size: int = 16,
) -> dict[str, pd.DataFrame]:
    # Templates identify a test prompt's subject, and so the roles of its tokens.
    asked = [[repr(case.record.fact), repr(case.prompt)] for case in cases]
    prompts = settings_hash([asked, list(study.templates)])
    return _kept(study, f"{name} {prompts}", " ".join(name.split()[:3]).replace("_", " "), cases, work, size)


def _kept(
    study: Study,
    key: str,
    shown: str,
    items: Sequence[Any],
    work: Callable[[Sequence[Any]], dict[str, pd.DataFrame]],
    size: int,
) -> dict[str, pd.DataFrame]:
    """Return a result from this run's memory, from disk, or computed."""
    about = {name: study.configuration[name] for name in ("dtype", "device", "editor", "second_moment", "driftlens")}
    folder = cache_folder() / "measurements" / settings_hash([key, about, size])
    if key not in study.measured:
        if study.options.redo:
            shutil.rmtree(folder, ignore_errors=True)
        with study.shown(f"{shown}, prompts") as done:
            study.measured[key] = sharded(items, work, folder, size=size, on_items=done)
    return study.measured[key]
