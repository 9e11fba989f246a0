"""The real benchmark's records on a model that knows them: every kind of record is edited, evaluated and traced."""

import warnings
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import checkpoints
from tests.support.edited import random_edit
from tests.support.places import SHARED

BENCHMARK = SHARED / "data" / "merged_counterfact.json"
MODEL = SHARED / "models" / "counterfact-gpt2"

needs_benchmark = pytest.mark.skipif(not BENCHMARK.exists(), reason="needs ../shared/data")


def one_of_each_kind(records):
    """The first record of every combination of tasks that have prompts, with two prompts of each at most."""
    kinds = {}
    for record in records:
        kinds.setdefault(tuple(task for task, prompts in record.tasks.items() if prompts), record)
    few = [{task: prompts[:2] for task, prompts in record.tasks.items()} for record in kinds.values()]
    return [replace(record, tasks=tasks) for record, tasks in zip(kinds.values(), few, strict=True)]


@needs_benchmark
@pytest.mark.skipif(not MODEL.exists(), reason="needs ../shared/models")
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
    before: Any = evaluate(model, records, tasks=tasks)
    after: Any = evaluate(model, records, edits, tasks=tasks)
    assert len(after) == sum(len(record.tasks[task]) for record in records for task in tasks)
    assert np.isfinite(after[["nll_true", "nll_new"]].to_numpy()).all()
    rewritten = after["task"] == "rewrite"
    assert (after[rewritten]["nll_new"] < before[rewritten]["nll_new"]).all()
    for record, edit in list(zip(records, edits, strict=True))[:3]:
        task = next(name for name in ("distract_neighborhood", "relation", "rewrite") if record.tasks[name])
        prompt = record.tasks[task][0]
        trace = contaminating_substitution(model, edit, prompt, (prompt.target_true, prompt.target_new), window=2)
        assert np.isfinite(trace.table["effect"].to_numpy()).all()


@contextmanager
def columns_of_passes(monkeypatch):
    """Of all passes in the body: the columns computed, in every block, and how many of them hold a token."""
    from driftlens import LensModel

    counted = {"computed": 0, "real": 0}
    inner = LensModel._pass

    def counting(model, batch, **options):
        blocks = (model.n_layers if options["stop"] is None else options["stop"]) - options["start"]
        counted["computed"] += blocks * batch.tokens.numel()
        counted["real"] += blocks * int(batch.mask.sum())
        return inner(model, batch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LensModel, "_pass", counting)
        yield counted


@needs_benchmark
@pytest.mark.skipif(not MODEL.exists(), reason="needs ../shared/models")
def test_almost_no_column_of_an_evaluation_is_padding(monkeypatch):
    from driftlens import evaluate, load_model, load_records

    model, records = load_model(MODEL, device="cpu"), load_records(BENCHMARK, limit=12)
    # The prompts have 3 to 128 tokens, but for some of the other tasks', which have more than the model reads.
    problems = []
    with columns_of_passes(monkeypatch) as counted:
        found = evaluate(model, records, on_problem=lambda *problem: problems.append(problem))
    assert counted["computed"] / counted["real"] <= 1.15
    lost: Any = found[found[["nll_true", "nll_new"]].isna().any(axis=1)]
    assert [problem[:3] for problem in problems] == [
        tuple(row) for row in lost[["record", "task", "prompt_index"]].to_numpy().tolist()
    ]
    assert {"other_task", "distract_other_task"} == set(lost["task"])


@needs_benchmark
@pytest.mark.skipif(not MODEL.exists(), reason="needs ../shared/models")
@pytest.mark.parametrize("what", ["generate", "drift", "trace", "patterns", "scores", "moments"])
def test_almost_no_column_of_an_analysis_is_padding(monkeypatch, what):
    from driftlens import (
        attention_drift,
        contaminating_substitution,
        load_model,
        load_records,
        patch_attention,
        patch_scores,
    )
    from driftlens.editors.second_moment import stream_second_moments
    from driftlens.evaluation import continuations

    model, records = load_model(MODEL, device="cpu"), load_records(BENCHMARK, limit=60)
    edit = random_edit(model, 0, 5)
    asked = [(r.fact.subject, r.tasks[t][0]) for r in records for t in ("rewrite", "paraphrase") if r.tasks[t]]
    subjects, prompts = zip(*((s, p) for s, p in asked if s in p.text), strict=True)
    few, targets = list(prompts[:30]), [(p.target_true, p.target_new) for p in prompts[:30]]
    texts = [p.text for r in records for task in ("rewrite", "neighborhood", "paraphrase") for p in r.tasks[task]]
    calls = {
        "generate": lambda: continuations(model, records[:8], [edit] * 8, max_tokens=32),
        "drift": lambda: attention_drift(model, edit, list(prompts), list(subjects)),
        "trace": lambda: contaminating_substitution(model, edit, few, targets, window=2),
        "patterns": lambda: patch_attention(model, edit, few, targets, window=2, batch_size=256),
        "scores": lambda: patch_scores(model, edit, few, targets, window=2, batch_size=256),
        "moments": lambda: stream_second_moments(model, [0], texts),
    }
    with columns_of_passes(monkeypatch) as counted:
        calls[what]()
    assert counted["computed"] / counted["real"] <= 1.15


@needs_benchmark
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_records_go_through_a_benchmark_run(tmp_path, monkeypatch):
    from driftlens import ROME, load_records
    from driftlens.data import load_texts
    from driftlens.runs import benchmark
    from tests.support.tiny import load_tiny

    # Wide enough for the longest prompts in a vocabulary of 400 tokens.
    monkeypatch.setattr(checkpoints, "CONTEXT", 1024)
    model = load_tiny(checkpoints.tiny_checkpoint("gpt2", tmp_path / "model"))
    records = load_records(BENCHMARK)
    assert len(records) == 1678
    editor = ROME(layer=1, steps=3, contexts=("{}",), second_moment=torch.eye(model.d_mlp))
    texts = load_texts(SHARED / "data" / "me_ppl_50.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a record or a prompt that were left out would be told in one
        result: Any = benchmark(model, records, editor, tmp_path / "run", perplexity_texts=texts)
    assert result.records["record"].tolist() == [record.index for record in records]
    assert len(result.nlls) == sum(len(prompts) for record in records for prompts in record.tasks.values())
    assert np.isfinite(result.nlls[["nll_true", "nll_new"]].to_numpy()).all()
    assert np.isfinite(result.records[["steps", "loss", "probability", "perplexity"]].to_numpy()).all()
    assert len(result.generations) == sum(len(record.generation) for record in records)
    assert result.records["fluency"].notna().sum() == sum(bool(record.generation) for record in records)
    assert set(result.scores.index) >= {"ES", "PS", "NS", "RS", "RES", "OS", "AS", "FL", "PPL"}
