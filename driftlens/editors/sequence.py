"""Edit many facts into one model: one after another, or together.

1. :func:`edit_in_sequence` makes each edit on the model as the earlier ones left it. Each edit sees the effects of the
   earlier ones, and the order matters.
2. :func:`edit_together` makes all of them on the unedited model.  MEMIT, PMET, AlphaEdit, MEND and WISE solve for them
   jointly.  ROME has no joint solution, so its edits are summed; the order does not matter.

Contexts and second moments are those of the unedited model throughout, as in the published code of MEMIT and AlphaEdit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Protocol, runtime_checkable

import pandas as pd
import torch

from driftlens.data import Fact
from driftlens.editors.base import Editor
from driftlens.editors.failures import Failure
from driftlens.editors.histories import joint_history
from driftlens.editors.requests import asked_together, check_facts
from driftlens.edits import Edit, EditResult, EditSequence, JointEditResult
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.progress import OnDone

__all__ = ["edit_in_sequence", "edit_together"]


@runtime_checkable
class WritesTogether(Protocol):
    """An editor that solves for several facts jointly."""

    def edit_together(self, model: LensModel, facts: Sequence[Fact]) -> JointEditResult:
        """Write all of ``facts`` in one edit."""
        ...


@runtime_checkable
class WritesAfter(WritesTogether, Protocol):
    """An editor that preserves what it wrote earlier."""

    def edit_after(
        self, model: LensModel, earlier: EditResult | JointEditResult, facts: Sequence[Fact]
    ) -> JointEditResult:
        """Write ``earlier`` and ``facts`` as one edit of the unedited ``model``."""
        ...


def edit_together(model: LensModel, editor: Editor, facts: Sequence[Fact]) -> JointEditResult:
    """Write all of ``facts`` as one edit, each made on the unedited model.

    If the editor has no joint solution (ROME), the separate edits are summed.

    Args:
        model: the unedited model; it is not changed.
        editor: any editor.
        facts: the requests.

    Raises:
        DriftlensError: there is no fact, two facts contradict each other, or the editor refuses.
        EditError: some of the facts cannot be edited, as in :meth:`driftlens.ROME.edit_many`.
    """
    facts = asked_together(facts)
    if isinstance(editor, WritesTogether):
        return editor.edit_together(model, facts)
    results = editor.edit_many(model, facts)
    return JointEditResult(
        facts=facts,
        edit=Edit(
            [change for result in results for change in result.edit.changes],
            facts=facts,
            provenance=editor.provenance(model, *facts),
        ),
        history=joint_history([result.history for result in results]),
        keys={layer: torch.stack([result.keys[layer] for result in results]) for layer in results[0].keys},
        values={layer: torch.stack([result.values[layer] for result in results]) for layer in results[0].values},
    )


def edit_in_sequence(
    model: LensModel,
    editor: Editor,
    facts: Sequence[Fact],
    *,
    size: int = 1,
    earlier: EditSequence | None = None,
    on_facts: OnDone | None = None,
) -> EditSequence:
    """Edit ``size`` facts at a time, each time on the model as the earlier edits left it.

    A fact that contradicts an earlier one is still written; :attr:`EditSequence.overridden` lists both.  With ``size``
    1, a fact that cannot be edited is left out and listed in :attr:`EditSequence.failures`.

    Args:
        model: the unedited model; it is not changed.
        editor: any editor whose edits are changes of weights.  AlphaEdit preserves the earlier keys.
        facts: the requests, in the order in which they are written.
        size: facts per edit; they are written together (:func:`edit_together`).
        earlier: a sequence of the same editor to continue.
        on_facts: called with the number of facts done and the total.

    Raises:
        DriftlensError: ``size`` is below 1, an entry is not a fact, two facts of one edit contradict each other, a fact
            of an edit of several cannot be edited, or the editor's edits depend on the prompt (WISE, whose own
            ``edit_together`` writes sequences).
    """
    check_facts(facts)
    if size < 1:
        raise DriftlensError(f"size is {size}; expected a whole number of at least 1")
    fixed = editor.settled(model)
    sequence = earlier or EditSequence(
        facts=(), parts=(), sizes=(), history=pd.DataFrame(), failures={}, provenance=editor.provenance(model)
    )
    asked_before = len(sequence.facts) + len(sequence.failures)
    for begin in range(0, len(facts), size):
        some = tuple(facts[begin : begin + size])
        made = _next(model, fixed, sequence, some)
        if isinstance(made, Failure):
            sequence = replace(sequence, failures={**sequence.failures, asked_before + begin: made.reason})
        else:
            sequence = made
        if on_facts is not None:
            on_facts(begin + len(some), len(facts))
    return replace(sequence, provenance=editor.provenance(model, *sequence.facts))


def _next(model: LensModel, editor: Editor, sequence: EditSequence, facts: tuple[Fact, ...]) -> EditSequence | Failure:
    """Return the sequence with ``facts`` written as well, or the reason why a single fact cannot be written."""
    if isinstance(editor, WritesAfter):
        return _after(model, editor, sequence, facts)
    with ExitStack() as stack:
        if sequence.parts:
            stack.enter_context(sequence.edit.applied(model))
        if len(facts) == 1:
            (outcome,) = editor.try_many(model, facts)
            if isinstance(outcome, Failure):
                return outcome
            edit, history = outcome.edit, joint_history([outcome.history])
        else:
            result = edit_together(model, editor, facts)
            edit, history = result.edit, result.history
    if not edit.is_weights:
        raise DriftlensError(
            f"{type(editor).__name__}'s edits depend on the prompt, so none can be made on top of another; "
            "write the facts with its own edit_together, one after another"
        )
    return _extended(sequence, facts, edit, history)


def _after(
    model: LensModel, editor: WritesAfter, sequence: EditSequence, facts: tuple[Fact, ...]
) -> EditSequence | Failure:
    """Do the same with an editor that preserves earlier keys.

    Its result covers the whole sequence; the new part consists of the new columns.
    """
    before = sequence.state
    try:
        whole = editor.edit_together(model, facts) if before is None else editor.edit_after(model, before, facts)
    except DriftlensError as error:
        if len(facts) != 1:
            raise
        return Failure(fact=facts[0], reason=str(error).removesuffix("; or leave this fact out"))
    ranks: dict[int, int] = {}
    if before is not None:
        ranks = {layer: update.rank for layer, update in before.edit.updates.items()}
    new_columns = [update.columns_from(ranks.get(layer, 0)) for layer, update in whole.edit.updates.items()]
    part = Edit(new_columns, facts=facts, provenance=whole.edit.provenance)
    n_before = len(sequence.facts)
    new = whole.history[whole.history["fact"] >= n_before]
    history = new.assign(fact=new["fact"] - n_before)
    return replace(_extended(sequence, facts, part, history), state=whole)


def _extended(sequence: EditSequence, facts: tuple[Fact, ...], part: Edit, history: pd.DataFrame) -> EditSequence:
    counted = history.assign(fact=history["fact"] + len(sequence.facts))
    return replace(
        sequence,
        facts=(*sequence.facts, *facts),
        parts=(*sequence.parts, part),
        sizes=(*sequence.sizes, len(facts)),
        history=counted if sequence.history.empty else pd.concat([sequence.history, counted], ignore_index=True),
    )
