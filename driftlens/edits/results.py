"""The results of editors: the edit, and how it was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

from driftlens.edits.edit import Edit
from driftlens.errors import DriftlensError

if TYPE_CHECKING:
    import pandas as pd

    from driftlens.data import Fact


@dataclass(frozen=True, kw_only=True)
class EditResult:
    """An editor's result for one fact.

    Attributes:
        fact: the request.
        edit: the low-rank update.
        history: one row per optimisation step: ``step, loss, nll, kl, weight_decay``, a column for each regulariser
            (``sadr``), ``probability``; the columns between ``loss`` and ``probability`` are the terms of the loss,
            with their factors, and sum to it.
        keys: by layer, the key the update was solved for, ``[d_mlp]``.
        values: by layer, the value that the key should give, ``[d_model]``.
    """

    fact: Fact
    edit: Edit
    history: pd.DataFrame
    keys: Mapping[int, Float[Tensor, "d_mlp"]]
    values: Mapping[int, Float[Tensor, "d_model"]]

    def __repr__(self) -> str:
        return f"EditResult({_asked(self.fact)}, {self.edit!r}, {_reached(self.history)})"

    def _repr_html_(self) -> str:
        from driftlens.display.cards import edit_result

        return edit_result(self)


@dataclass(frozen=True, kw_only=True)
class JointEditResult:
    """An editor's result for several facts written in one update.

    Attributes:
        facts: the requests.
        edit: the low-rank update, of rank ``len(facts)`` in each layer.
        history: as in :class:`EditResult`, with a first column ``fact`` that counts the requests from 0.
        keys: by layer, the keys the update was solved for, ``[facts, d_mlp]``.
        values: by layer, the values that those keys should give, ``[facts, d_model]``.
    """

    facts: tuple[Fact, ...]
    edit: Edit
    history: pd.DataFrame
    keys: Mapping[int, Float[Tensor, "facts d_mlp"]]
    values: Mapping[int, Float[Tensor, "facts d_model"]]

    def __repr__(self) -> str:
        first = f"{_asked(self.facts[0])}{', …' if len(self.facts) > 1 else ''}" if self.facts else ""
        return f"JointEditResult({len(self.facts)} facts: {first}; {self.edit!r})"

    def _repr_html_(self) -> str:
        from driftlens.display.cards import joint_edit_result

        return joint_edit_result(self)


@dataclass(frozen=True)
class Overridden:
    """Two facts of a sequence that contradict each other; the later one should win."""

    earlier: int
    later: int

    def told(self, facts: Sequence[Fact]) -> str:
        """Describe it in a sentence."""
        first, second = facts[self.earlier], facts[self.later]
        return (
            f"fact {self.later} contradicts fact {self.earlier}: {first.text!r} was to be followed by "
            f"{first.target_new!r} and is now to be followed by {second.target_new!r}"
        )


@dataclass(frozen=True, kw_only=True)
class EditSequence:
    """The result of :func:`driftlens.edit_in_sequence`.

    Attributes:
        facts: the requests that were written, in order.
        parts: the edits, in order; each was made on the model with all earlier ones applied, and holds what it adds.
        sizes: how many of ``facts`` each part writes.
        history: as in :class:`JointEditResult`, with a first column ``fact`` that counts ``facts`` from 0.
        failures: why a fact could not be written, by its place in the request; the sequence continues without it.
        provenance: of the whole.
        state: what AlphaEdit stores about the keys written so far.
    """

    facts: tuple[Fact, ...]
    parts: tuple[Edit, ...]
    sizes: tuple[int, ...]
    history: pd.DataFrame
    failures: Mapping[int, str]
    provenance: Mapping[str, str]
    state: JointEditResult | None = None

    def __repr__(self) -> str:
        notes = [f"{len(self.facts)} facts in {len(self.parts)} edits"]
        if self.failures:
            notes.append(f"{len(self.failures)} failed")
        if self.overridden:
            notes.append(f"{len(self.overridden)} overridden")
        return f"EditSequence({', '.join(notes)})"

    @property
    def edit(self) -> Edit:
        """All parts as one edit of the unedited model."""
        return self.after(len(self.facts))

    def after(self, facts: int) -> Edit:
        """The first ``facts`` facts as one edit of the unedited model.

        Raises:
            DriftlensError: no edit of the sequence ends there.
        """
        n_written, parts = 0, list[Edit]()
        for part, size in zip(self.parts, self.sizes, strict=True):
            if n_written >= facts:
                break
            parts.append(part)
            n_written += size
        if n_written != facts or facts < 0:
            ends = [sum(self.sizes[: at + 1]) for at in range(len(self.sizes))]
            shown = ", ".join(map(str, ends[:8])) + (", …" if len(ends) > 8 else "")
            raise DriftlensError(f"no edit of the sequence ends after {facts} facts; they end after {shown or 'none'}")
        return Edit(
            [change for part in parts for change in part.changes],
            facts=self.facts[:facts],
            provenance=self.provenance,
        )

    @property
    def overridden(self) -> tuple[Overridden, ...]:
        """The facts that a later fact contradicts."""
        latest: dict[str, int] = {}
        found: list[Overridden] = []
        for number, fact in enumerate(self.facts):
            before = latest.get(fact.text)
            if before is not None and self.facts[before].target_new != fact.target_new:
                found.append(Overridden(before, number))
            latest[fact.text] = number
        return tuple(found)


def _asked(fact: Fact) -> str:
    return f"{fact.text!r}: {fact.target_true!r} → {fact.target_new!r}"


def _reached(history: pd.DataFrame) -> str:
    steps = f"{len(history)} {'step' if len(history) == 1 else 'steps'}"
    return steps + (f", P(new) {float(history['probability'].iloc[-1]):.3f}" if len(history) else "")


Edited: TypeAlias = Edit | EditResult | JointEditResult | EditSequence
"""Every function that takes an edit also takes an editor's result."""


def one_edit(given: Edited) -> Edit:
    """Return the edit itself.

    Raises:
        DriftlensError: the argument is neither an edit nor an editor's result.
    """
    edit: Any = given.edit if isinstance(given, EditResult | JointEditResult | EditSequence) else given
    if not isinstance(edit, Edit):
        raise DriftlensError(
            f"{str(given)[:60]!r} is no edit; expected an Edit or an EditResult, such as "
            "ROME.for_model(model).edit(model, fact)"
        )
    return edit


def edits_of(given: Edited | Sequence[Edited], count: int) -> list[Edit]:
    """Return a list of edits unchanged, or a single edit ``count`` times."""
    several: Any = given
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [one_edit(one) for one in several]
    return [one_edit(several)] * count


def edits_or_none(given: Edited | Sequence[Edited | None] | None, count: int) -> list[Edit | None]:
    """As :func:`edits_of`; None stands for the unedited model."""
    several: Any = given
    if given is None:
        return [None] * count
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [None if one is None else one_edit(one) for one in several]
    return [one_edit(several) for _ in range(count)]
