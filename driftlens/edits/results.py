"""What an editor gives back: the edit, and how it was found."""

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
    """What an editor gives back for one fact.

    Attributes:
        fact: the request.
        edit: the low-rank update.
        history: one row per optimisation step: ``step, loss, nll, kl, weight_decay``, a column for each regulariser
            (``sadr``), ``probability``; the columns between ``loss`` and ``probability`` are the terms of the loss,
            with their factors, and sum to it.
        keys: by layer, the key the update was solved for, ``[d_mlp]``.
        values: by layer, the value that key is to give, ``[d_model]``.
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
    """What an editor gives back for several facts written in one update.

    Attributes:
        facts: the requests.
        edit: the low-rank update, of rank ``len(facts)`` in each layer.
        history: as in :class:`EditResult`, with a first column ``fact`` that counts the requests from 0.
        keys: by layer, the keys the update was solved for, ``[facts, d_mlp]``.
        values: by layer, the values those keys are to give, ``[facts, d_model]``.
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


def _asked(fact: Fact) -> str:
    return f"{fact.text!r}: {fact.target_true!r} → {fact.target_new!r}"


def _reached(history: pd.DataFrame) -> str:
    steps = f"{len(history)} {'step' if len(history) == 1 else 'steps'}"
    return steps + (f", P(new) {float(history['probability'].iloc[-1]):.3f}" if len(history) else "")


Edited: TypeAlias = Edit | EditResult | JointEditResult
"""Where an edit is asked for, an editor's result is as good."""


def one_edit(given: Edited) -> Edit:
    """The edit itself.

    Raises:
        DriftlensError: neither an edit nor an editor's result.
    """
    edit: Any = given.edit if isinstance(given, EditResult | JointEditResult) else given
    if not isinstance(edit, Edit):
        raise DriftlensError(
            f"{str(given)[:60]!r} is no edit; expected an Edit or an EditResult, such as "
            "ROME.for_model(model).edit(model, fact)"
        )
    return edit


def edits_of(given: Edited | Sequence[Edited], count: int) -> list[Edit]:
    """A list of edits as it is; a single one ``count`` times."""
    several: Any = given
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [one_edit(one) for one in several]
    return [one_edit(several)] * count


def edits_or_none(given: Edited | Sequence[Edited | None] | None, count: int) -> list[Edit | None]:
    """As :func:`edits_of`, where None stands for the unedited model."""
    several: Any = given
    if given is None:
        return [None] * count
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [None if one is None else one_edit(one) for one in several]
    return [one_edit(several) for _ in range(count)]
