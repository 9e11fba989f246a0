"""A fact that cannot be edited takes no other with it: not in a batch, not in a cache, not in a run.

The checkpoint is a real one with damage: the embedding of one token is infinite, so a fact that names it has no finite
loss and every other fact is as it was.  In float64, so that what shares a pass and what does not agree to 1e-5 after
Adam's steps (measured: 1e-9).
"""

import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from driftlens import MEMIT, PMET, ROME, DriftlensError, Fact
from driftlens.editors import EditError, Failure, LastTokenAttention
from driftlens.edits import Edit, EditResult, LowRankUpdate
from driftlens.runs import benchmark, cached_edits
from tests.runs.test_benchmark import RECORDS, assert_same, record
from tests.support.checkpoints import tiny_checkpoint
from tests.support.tiny import load_tiny

DAMAGED = "Łódź"


def fact(subject: str, prompt: str, new: str) -> Fact:
    return Fact(subject=subject, prompt=prompt, target_true="French", target_new=new)


GOOD = (
    fact("Toko Yasuda", "{} plays the", "metal"),
    fact("Eiffel Tower", "The {} is in", "Rome"),
    fact("Vltava", "Where does the {} end? In", "Delft"),
)
NOT_FINITE = fact(DAMAGED, "The mayor of {} is", "Leiden")
TOO_LONG = fact("Paris", "the " * 80 + "{} is", "Delft")
MIXED = (GOOD[0], NOT_FINITE, GOOD[1], TOO_LONG, GOOD[2])
REASONS = {1: "'The mayor of Łódź is' → 'Leiden' is not finite at step 0; lower lr", 3: "reads at most 64; shorten it"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_checkpoint("gptj", tmp_path_factory.mktemp("damaged") / "gptj")
    whole = load_tiny(folder)
    needed = {i for one in GOOD for i in whole.encode(f"{one.text} {one.target_new}").ids}
    needed |= {
        i for one in RECORDS for prompts in one.tasks.values() for p in prompts for i in whole.encode(p.text).ids
    }
    token = next(i for i in whole.encode(f" {DAMAGED}").ids if i not in needed)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"][token] = math.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return load_tiny(folder, exact=True)


def make(name: str, model: Any, **settings: Any) -> Any:
    moment = torch.eye(model.d_mlp, dtype=torch.float64)
    defaults: dict[str, Any] = {"steps": 4, "contexts": ("{}", "The. {}"), "early_stop_loss": -math.inf}
    if name == "ROME":
        return ROME(**{"layer": 1, "second_moment": moment, **defaults} | settings)
    kind = {"MEMIT": MEMIT, "PMET": PMET}[name]
    moments = {0: moment, 1: moment}
    return kind(**{"layers": (0, 1), "second_moment": moments, "second_moment_weight": 1.0, **defaults} | settings)


def assert_edited_alike(found: EditResult, expected: EditResult) -> None:
    assert found.fact is expected.fact
    pd.testing.assert_frame_equal(found.history, expected.history, rtol=1e-5, atol=1e-5)
    for layer, update in expected.edit.updates.items():
        for side in ("left", "right"):
            one, other = (getattr(of, side) for of in (found.edit.updates[layer], update))
            assert float(other.norm()) > 0
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ROME", "MEMIT", "PMET"])
def test_the_others_are_edited_as_if_it_had_never_been_there(name: str, model: Any):
    editor = make(name, model)
    seen: list[tuple[int, int]] = []
    with pytest.raises(EditError) as caught:
        editor.edit_many(model, MIXED, batch_size=3, on_facts=lambda *now: seen.append(now))
    error = caught.value
    assert seen == [(3, 5), (5, 5)]
    assert list(error.failures) == [1, 3]
    for place, reason in REASONS.items():
        assert error.failures[place].fact is MIXED[place]
        assert reason in error.failures[place].reason
    assert str(error) == (
        f"{error.failures[1].reason} (2 of 5 facts cannot be edited: 'Łódź' → 'Leiden', 'Paris' → 'Delft')"
    )
    others = [result for result in error.results if result is not None]
    assert [error.results.index(result) for result in others] == [0, 2, 4]
    for found, expected in zip(others, editor.edit_many(model, GOOD), strict=True):
        assert_edited_alike(found, expected)
    # Whoever asks for outcomes gets them without an exception.
    tried = editor.try_many(model, MIXED)
    assert [isinstance(outcome, Failure) for outcome in tried] == [False, True, False, True, False]
    assert_edited_alike(tried[4], others[2])
    # And what a process of its own raises comes back whole.
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert [outcome is None for outcome in again.results] == [False, True, False, True, False]


class WrongFor:
    """A regulariser that has no number for one row of the batch at one of its calls."""

    def __init__(self, row: int, call: int) -> None:
        self.row, self.call, self.calls = row, call, 0

    def penalty(self, attention: LastTokenAttention) -> Tensor:
        penalty = 0.5 * (attention.edited - attention.vanilla).square().sum(dim=(0, 2, 3))
        self.calls += 1
        if self.calls == self.call:
            penalty = penalty + torch.full_like(penalty, math.nan).where(
                torch.arange(len(penalty)) == self.row, torch.zeros_like(penalty)
            )
        return penalty


def test_in_the_middle_of_the_optimisation_too(model: Any):
    """The other facts of its pass go on with their own gradients and Adam's own moments."""
    facts = [replace(GOOD[0], subject=subject) for subject in ("Toko Yasuda", "Thomas Joannes", "Eiffel Tower")]
    for call in (1, 2, 4):
        editor = make("ROME", model, regularizers=(WrongFor(row=2, call=call),), contexts=("{}", "The. {}"))
        outcomes = editor.try_many(model, facts)
        assert [isinstance(outcome, Failure) for outcome in outcomes] == [False, True, False]
        assert f"is not finite at step {call - 1}" in outcomes[1].reason
        free = make("ROME", model, regularizers=(WrongFor(row=0, call=0),), contexts=("{}", "The. {}"))
        for found, expected in zip((outcomes[0], outcomes[2]), free.edit_many(model, facts[::2]), strict=True):
            assert_edited_alike(found, expected)


def test_one_fact_alone_and_several_in_one_update(model: Any):
    with pytest.raises(EditError, match=r"^the loss of 'The mayor of Łódź is' .*float32$"):
        make("ROME", model).edit(model, NOT_FINITE)
    # No fact is left, and still nothing else goes wrong.
    assert all(isinstance(outcome, Failure) for outcome in make("PMET", model).try_many(model, [TOO_LONG, NOT_FINITE]))
    for wrong, reason in ((NOT_FINITE, "is not finite at step 0"), (TOO_LONG, "reads at most 64")):
        with pytest.raises(DriftlensError, match=f"{reason}.*; or leave this fact out"):
            make("MEMIT", model).edit_together(model, [GOOD[0], wrong, GOOD[1]])


@pytest.mark.parametrize("name", ["ROME", "MEMIT"])
def test_an_update_that_is_not_finite_is_no_result(name: str, model: Any, monkeypatch: pytest.MonkeyPatch):
    """A loss can be finite and what is written still too large: here by the keys of one fact."""
    editor = make(name, model)
    moment = editor.second_moment if name == "ROME" else editor.second_moment[0]
    real, calls = type(moment).solve, list[int]()

    def solve(self: Any, keys: Tensor) -> Tensor:
        solved = real(self, keys).clone()
        if name == "ROME":
            calls.append(1)
            return solved * (math.inf if len(calls) == 2 else 1)
        solved[1] = math.inf
        return solved

    expected = editor.edit_many(model, [GOOD[0], GOOD[2]])
    monkeypatch.setattr(type(moment), "solve", solve)
    outcomes = editor.try_many(model, GOOD)
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [False, True, False]
    assert "the update for 'The Eiffel Tower is in' → 'Rome' is not finite" in outcomes[1].reason
    for found, other in zip((outcomes[0], outcomes[2]), expected, strict=True):
        assert_edited_alike(found, other)


def test_many_failures_are_one_line():
    result = EditResult(
        fact=GOOD[0],
        edit=Edit(updates={0: LowRankUpdate(left=torch.ones(2, 1), right=torch.ones(1, 2))}),
        history=pd.DataFrame(),
        keys={},
        values={},
    )
    failures = [Failure(fact=fact(f"Paris {n}", "{} is", "Delft"), reason=f"reason {n}") for n in range(7)]
    told = str(EditError([result, *failures]))
    assert told.startswith("reason 0 (7 of 8 facts cannot be edited: 'Paris 0' → 'Delft', 'Paris 1'")
    assert told.endswith("'Paris 4' → 'Delft', 2 more)")


class Counting:
    """How many facts an editor is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.subjects: list[str] = []
        real = ROME.edit_many

        def edit_many(editor: ROME, model: Any, facts: Sequence[Fact], **options: Any) -> list[EditResult]:
            self.subjects += [one.subject for one in facts]
            return real(editor, model, facts, **options)

        monkeypatch.setattr(ROME, "edit_many", edit_many)


def test_a_cache_keeps_what_could_be_edited(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls, editor = Counting(monkeypatch), make("ROME", model)
    with pytest.raises(EditError, match="2 of 5 facts cannot be edited"):
        cached_edits(model, editor, MIXED, tmp_path, batch_size=2)
    assert len(list(tmp_path.glob("edit-*.safetensors"))) == len(GOOD)
    calls.subjects.clear()
    assert len(cached_edits(model, editor, GOOD, tmp_path)) == 3
    assert calls.subjects == []


def test_a_run_has_all_other_rows_and_tries_nothing_twice(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    editor, options = make("ROME", model), {"generate": False, "shard_size": 4}
    bad = [
        record(6, DAMAGED, "The mayor of {} is", "old", "Leiden"),
        record(7, "Paris", "the " * 80 + "{} is", "a", "b"),
    ]
    records = [*RECORDS[:2], bad[0], RECORDS[2], bad[1], *RECORDS[3:]]
    whole = benchmark(model, RECORDS, editor, tmp_path / "whole", **options)
    calls = Counting(monkeypatch)
    with pytest.warns(RuntimeWarning, match="2 of 7 records could not be edited"):
        found = benchmark(model, records, editor, tmp_path / "run", **options)
    # Once each, whether it failed or was beside one that did.
    assert calls.subjects == [one.fact.subject for one in records]
    problems = found.problems[found.problems["stage"] == "edit"].set_index("record")["reason"]
    assert list(problems.index) == [6, 7]
    assert REASONS[1].split(";")[0] in problems[6]
    assert REASONS[3] in problems[7]
    rows = {
        name: getattr(found, name).loc[lambda t: ~t["record"].isin([6, 7])].reset_index(drop=True)
        for name in ("nlls", "records", "generations")
    }
    assert set(found.problems["record"]) == {6, 7}
    assert_same(replace(found, problems=whole.problems, **rows), whole, tolerance=1e-5)
    # The same again: nothing is tried again, and the table still says why.
    before = json.loads((tmp_path / "run" / "manifest.json").read_text())
    with pytest.warns(RuntimeWarning, match="2 of 7 records could not be edited"):
        again = benchmark(model, records, editor, tmp_path / "run", **options)
    assert len(calls.subjects) == len(records)
    assert_same(again, found)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text()) == before
    assert before["problems"]["edit"] == 2


def test_a_prompt_without_a_finite_nll_spoils_no_mean(model: Any, tmp_path: Path):
    bad = record(6, DAMAGED, "The mayor of {} is", "old", "Leiden")
    options: dict[str, Any] = {"generate": False, "perplexity_texts": ["The Eiffel Tower is in Paris."]}
    with pytest.warns(RuntimeWarning, match=r"^2 prompts could not be measured .*is not finite under the edit"):
        found: Any = benchmark(model, [*RECORDS, bad], None, tmp_path / "run", **options)
    assert found.problems[["record", "stage", "prompt_index"]].to_numpy().tolist() == [
        [6, "rewrite", 0], [6, "distract_neighborhood", 0],
    ]  # fmt: skip
    sixth = found.nlls[found.nlls["record"] == 6].set_index("task")["nll_true"]
    assert sixth.isna().to_dict() == {"rewrite": True, "neighborhood": False, "distract_neighborhood": True}
    whole = benchmark(model, RECORDS, None, tmp_path / "whole", **options)
    for score in ("ES", "EM", "DNM", "PPL"):
        one, other = (of.scores.loc[score, ["value", "low", "high"]] for of in (found, whole))
        pd.testing.assert_series_equal(one, other, rtol=1e-5)
    options["perplexity_texts"] = [f"The mayor of {DAMAGED} is old."]
    with pytest.warns(RuntimeWarning, match=r"5 prompts could not be measured \(perplexity\)"):
        found = benchmark(model, RECORDS, None, tmp_path / "texts", **options)
    assert found.records["perplexity"].isna().all()
