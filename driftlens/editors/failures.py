"""Failures: facts that could not be edited while the others of the same call were.

A fact can fail on its own: its prompt is too long for the model, or its loss is not finite.  It leaves the batch
without affecting the others. When all are done, :class:`EditError` is raised with the results of the others.  A long
run takes the results from the error and records the reasons; other callers get a one-line message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import override

from driftlens.data import Fact
from driftlens.edits import EditResult
from driftlens.errors import DriftlensError

_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A fact that could not be edited, and the reason in one line."""

    fact: Fact
    reason: str


class EditError(DriftlensError):
    """Some facts could not be edited; the results of the others are attached.

    Attributes:
        outcomes: in the order of the facts, the result of each, or its :class:`Failure`.
    """

    def __init__(self, outcomes: Sequence[EditResult | Failure]) -> None:
        self.outcomes = tuple(outcomes)
        failures = [*self.failures.values()]
        told = failures[0].reason
        if len(self.outcomes) > 1:
            names = [f"{failure.fact.subject!r} → {failure.fact.target_new!r}" for failure in failures[:_NAMED]]
            more = [f"{len(failures) - _NAMED} more"] if len(failures) > _NAMED else []
            count = f"{len(failures)} of {len(self.outcomes)} facts cannot be edited: {', '.join([*names, *more])}"
            told = f"{told} ({count})"
        super().__init__(told)

    @property
    def results(self) -> list[EditResult | None]:
        """In the order of the facts, the result of each, or ``None`` if it failed."""
        return [None if isinstance(outcome, Failure) else outcome for outcome in self.outcomes]

    @property
    def failures(self) -> Mapping[int, Failure]:
        """The facts that failed, by their places among the facts."""
        return {place: outcome for place, outcome in enumerate(self.outcomes) if isinstance(outcome, Failure)}

    @override
    def __reduce__(self) -> tuple[type[EditError], tuple[tuple[EditResult | Failure, ...]]]:
        # Exceptions are pickled by their message, which is not this one's constructor argument.
        return type(self), (self.outcomes,)


def finite(result: EditResult) -> EditResult | Failure:
    """Return ``result``, or a failure if its update contains an infinity or NaN."""
    if all(change.is_finite for change in result.edit.changes):
        return result
    reason = (
        f"the update for {result.fact.text!r} → {result.fact.target_new!r} is not finite; lower lr, or load the model "
        "in float32"
    )
    return Failure(fact=result.fact, reason=reason)


def delivered(outcomes: Sequence[EditResult | Failure]) -> list[EditResult]:
    """Return the results if every fact has one.

    Raises:
        EditError: a fact has none.
    """
    results = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
    if len(results) < len(outcomes):
        raise EditError(outcomes)
    return results
