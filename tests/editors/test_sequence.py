"""Many facts in one model: in sequence and together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from driftlens import (
    MEMIT,
    PMET,
    ROME,
    SADR,
    WISE,
    AlphaEdit,
    DriftlensError,
    Edit,
    EditSequence,
    Fact,
    GuardedSADR,
    LensModel,
    edit_in_sequence,
    edit_together,
    evaluate,
    load_model,
    load_records,
)

RECORDS = load_records("demo")[:4]
FACTS = [record.fact for record in RECORDS]
EDITORS = (ROME, MEMIT, PMET, AlphaEdit)
ROUNDING = 5e-6
"""Of the largest entry: float32 sums over up to 512 products in another order."""


@pytest.fixture(scope="module")
def model() -> LensModel:
    return load_model("demo", device="cpu")


def weights(model: LensModel, edit: Edit) -> dict[int, torch.Tensor]:
    """What the edit adds to each layer's down-projection."""
    return {layer: update.left.double() @ update.right.double() for layer, update in edit.updates.items()}


def assert_same(model: LensModel, one: Edit, other: Edit) -> None:
    mine, theirs = weights(model, one), weights(model, other)
    assert mine.keys() == theirs.keys()
    for layer, matrix in mine.items():
        largest = float(matrix.abs().max())
        torch.testing.assert_close(matrix, theirs[layer], rtol=0, atol=ROUNDING * largest)


@pytest.mark.parametrize("kind", [ROME, MEMIT, PMET])
@pytest.mark.parametrize("regularizers", [(), (SADR(),)], ids=["alone", "sadr"])
def test_a_sequence_is_one_by_one_through_applied(model: LensModel, kind: Any, regularizers: Any):
    editor = kind.for_model(model, steps=3, regularizers=regularizers)
    sequence = edit_in_sequence(model, editor, FACTS[:3])
    fixed, total = editor.settled(model), Edit()
    for fact in FACTS[:3]:
        with total.applied(model):
            made = fixed.edit(model, fact).edit
        total = Edit([*total.changes, *made.changes])
    assert sequence.edit.equals(total)
    assert sequence.sizes == (1, 1, 1)
    assert [len(part.facts) for part in sequence.parts] == [1, 1, 1]


def test_a_sequence_of_alphaedit_is_its_own_edit_after(model: LensModel):
    editor = AlphaEdit.for_model(model, steps=3)
    whole = editor.edit_after(model, editor.edit_after(model, editor.edit(model, FACTS[0]), [FACTS[1]]), [FACTS[2]])
    sequence = edit_in_sequence(model, editor, FACTS[:3])
    assert_same(model, sequence.edit, whole.edit)
    assert sequence.state is not None
    assert sequence.state.facts == tuple(FACTS[:3])


@pytest.mark.parametrize("kind", EDITORS)
def test_applied_one_inside_the_other_the_parts_are_the_whole(model: LensModel, kind: Any):
    sequence = edit_in_sequence(model, kind.for_model(model, steps=2), FACTS[:3], size=2)
    assert sequence.sizes == (2, 1)
    with sequence.edit.applied(model):
        at_once = {site: model.linear(site)[0].clone() for site in sequence.edit.sites}
    with sequence.parts[0].applied(model), sequence.parts[1].applied(model):
        nested = {site: model.linear(site)[0].clone() for site in sequence.edit.sites}
    for site, weight in at_once.items():
        # A weight is rounded to float32 after each part.
        torch.testing.assert_close(weight, nested[site], rtol=0, atol=ROUNDING * float(weight.abs().max()))


@pytest.mark.parametrize("kind", EDITORS)
def test_together_the_order_does_not_matter(model: LensModel, kind: Any):
    editor = kind.for_model(model, steps=3)
    there, back = edit_together(model, editor, FACTS), edit_together(model, editor, FACTS[::-1])
    assert_same(model, there.edit, back.edit)
    assert there.facts == tuple(FACTS)
    for layer, keys in there.keys.items():
        torch.testing.assert_close(keys, back.keys[layer].flip(0), rtol=0, atol=1e-5 * float(keys.abs().max()))


def test_rome_together_is_the_sum_of_its_edits(model: LensModel):
    editor = ROME.for_model(model, steps=3)
    together = edit_together(model, editor, FACTS)
    # In one batch: alone, a fact's gradients are rounded otherwise, which Adam makes visible.
    separate = [result.edit for result in editor.edit_many(model, FACTS)]
    assert_same(model, together.edit, Edit([change for edit in separate for change in edit.changes]))
    assert sorted(together.history["fact"].unique()) == [0, 1, 2, 3]


def test_in_sequence_the_order_matters(model: LensModel):
    editor = ROME.for_model(model, steps=10)
    there, back = (edit_in_sequence(model, editor, facts).edit for facts in (FACTS, FACTS[::-1]))
    ((one,), (other,)) = (weights(model, edit).values() for edit in (there, back))
    assert float((one - other).abs().max()) > 100 * ROUNDING * float(one.abs().max())


@pytest.mark.parametrize("kind", [ROME, AlphaEdit])
def test_a_sequence_goes_on_where_it_stopped(model: LensModel, kind: Any):
    editor = kind.for_model(model, steps=3)
    begun = edit_in_sequence(model, editor, FACTS[:2])
    whole, resumed = edit_in_sequence(model, editor, FACTS), edit_in_sequence(model, editor, FACTS[2:], earlier=begun)
    assert whole.edit.equals(resumed.edit)
    assert whole.history.equals(resumed.history)
    assert whole.facts == resumed.facts
    assert whole.after(2).equals(begun.edit)


def test_the_history_counts_the_facts(model: LensModel):
    for kind in (ROME, AlphaEdit):
        sequence = edit_in_sequence(model, kind.for_model(model, steps=2), FACTS[:3], size=2)
        assert sequence.history["fact"].drop_duplicates().tolist() == [0, 1, 2]


def test_contradictions_are_told(model: LensModel):
    fact = FACTS[0]
    back = replace(fact, target_true=fact.target_new, target_new=FACTS[1].target_new)
    editor = ROME.for_model(model, steps=2)
    sequence = edit_in_sequence(model, editor, [fact, FACTS[1], back])
    ((earlier, later),) = [(one.earlier, one.later) for one in sequence.overridden]
    assert (earlier, later) == (0, 2)
    told = sequence.overridden[0].told(sequence.facts)
    assert fact.target_new in told
    assert back.target_new in told
    assert "1 overridden" in repr(sequence)
    with pytest.raises(DriftlensError, match="facts 0 and 1 contradict each other"):
        edit_together(model, editor, [fact, back])
    with pytest.raises(DriftlensError, match="contradict"):
        edit_in_sequence(model, editor, [fact, back], size=2)


@pytest.mark.parametrize("kind", [ROME, AlphaEdit])
def test_a_fact_too_long_costs_itself(model: LensModel, kind: Any):
    long = Fact(subject="Ada", prompt="{} " + "and " * model.n_ctx, target_true="a", target_new="b")
    sequence = edit_in_sequence(model, kind.for_model(model, steps=2), [FACTS[0], long, FACTS[1]])
    assert sequence.facts == (FACTS[0], FACTS[1])
    assert list(sequence.failures) == [1]
    assert "1 failed" in repr(sequence)


def test_what_is_asked_wrongly_is_refused(model: LensModel):
    editor = ROME.for_model(model, steps=2)
    sequence = edit_in_sequence(model, editor, FACTS[:2], size=2)
    with pytest.raises(DriftlensError, match="no edit of the sequence ends after 1 facts; they end after 2"):
        sequence.after(1)
    with pytest.raises(DriftlensError, match="size is 0"):
        edit_in_sequence(model, editor, FACTS, size=0)
    with pytest.raises(DriftlensError, match=r"record\.fact"):
        edit_in_sequence(model, editor, RECORDS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DriftlensError, match="WISE's edits depend on the prompt"):
        edit_in_sequence(model, WISE.for_model(model, steps=1), FACTS[:1])


def test_an_empty_sequence_edits_nothing(model: LensModel):
    sequence = edit_in_sequence(model, ROME.for_model(model, steps=2), [])
    assert isinstance(sequence, EditSequence)
    assert not sequence.edit.changes


def test_a_sequence_is_as_good_as_its_edit(model: LensModel):
    sequence = edit_in_sequence(model, ROME.for_model(model, steps=2), FACTS[:2])
    table = evaluate(model, RECORDS[:2], [sequence, sequence])
    assert table.equals(evaluate(model, RECORDS[:2], [sequence.edit, sequence.edit]))


def test_guards_see_the_model_as_it_stands(model: LensModel):
    guards = GuardedSADR(gamma_guards=0, mu=1.0, asked=2, own_words=0, distracted=1, tokens=4)
    editor = ROME.for_model(model, steps=2, regularizers=guards)
    first = edit_in_sequence(model, editor, FACTS[:2])
    again = edit_in_sequence(model, editor, FACTS[:2])
    assert first.edit.equals(again.edit)
    assert (first.history.loc[first.history["step"] == 0, "guard_answers"].abs() < 1e-6).all()
