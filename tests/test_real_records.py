"""The real benchmark's records on a model that knows them: every kind of record is edited, evaluated and traced."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

SHARED = Path(__file__).parents[2] / "shared"
BENCHMARK = SHARED / "data" / "merged_counterfact.json"
MODEL = SHARED / "models" / "counterfact-gpt2"

pytestmark = pytest.mark.skipif(not (BENCHMARK.exists() and MODEL.exists()), reason="needs ../shared")


def one_of_each_kind(records):
    """The first record of every combination of tasks that have prompts, with two prompts of each at most."""
    kinds = {}
    for record in records:
        kinds.setdefault(tuple(task for task, prompts in record.tasks.items() if prompts), record)
    few = [{task: prompts[:2] for task, prompts in record.tasks.items()} for record in kinds.values()]
    return [replace(record, tasks=tasks) for record, tasks in zip(kinds.values(), few, strict=True)]


def test_every_kind_of_record_is_edited_and_evaluated():
    from driftlens import ROME, contaminating_substitution, evaluate, load_model, load_records
    from driftlens.data import TASKS

    model = load_model(MODEL, device="cpu")
    records = one_of_each_kind(load_records(BENCHMARK))
    # 328 + 325 + 101 + 75 + … records come in more than this many kinds; an empty list of prompts makes one of its own.
    assert len(records) >= 9
    # The identity as second moment: what is tested is that each record goes through, not how well the edit is placed.
    editor = ROME.for_model(model, contexts=("{}",), second_moment=torch.eye(model.d_mlp), steps=12, lr=3.0)
    edits = [result.edit for result in editor.edit_many(model, [record.fact for record in records])]
    # This model reads 128 tokens; some of the other task's answers are longer.
    tasks = [task for task in TASKS if "other_task" not in task]
    before, after = evaluate(model, records, tasks=tasks), evaluate(model, records, edits, tasks=tasks)
    assert len(after) == sum(len(record.tasks[task]) for record in records for task in tasks)
    assert np.isfinite(after[["nll_true", "nll_new"]].to_numpy()).all()
    rewritten = after["task"] == "rewrite"
    assert (after[rewritten]["nll_new"] < before[rewritten]["nll_new"]).all()
    for record, edit in list(zip(records, edits, strict=True))[:3]:
        task = next(name for name in ("distract_neighborhood", "relation", "rewrite") if record.tasks[name])
        prompt = record.tasks[task][0]
        trace = contaminating_substitution(model, edit, prompt, (prompt.target_true, prompt.target_new), window=2)
        assert np.isfinite(trace.table["effect"].to_numpy()).all()
