"""Check the facts that editors are asked to write."""

from __future__ import annotations

from collections.abc import Sequence

from driftlens.data import Fact, Record
from driftlens.errors import DriftlensError

__all__ = ["asked_together", "check_facts"]


def check_facts(facts: Sequence[object]) -> None:
    """Check that these are facts.

    Raises:
        DriftlensError: an entry is not a fact; the message suggests what to pass.
    """
    for given in facts:
        if isinstance(given, Record):
            raise DriftlensError(f"{given!r} is a record; its edit request is record.fact")
        if not isinstance(given, Fact):
            raise DriftlensError(
                f"{str(given)[:60]!r} is no fact; give Fact(subject=..., prompt='{{}} is in', target_true=..., "
                "target_new=...), or a record's .fact"
            )


def asked_together(facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """Return the facts of one edit.

    Raises:
        DriftlensError: there are none, an entry is not a fact, or two contradict each other.
    """
    if not facts:
        raise DriftlensError("there are no facts to edit; give at least one")
    check_facts(facts)
    _check_no_contradiction(facts)
    return tuple(facts)


def _check_no_contradiction(facts: Sequence[Fact]) -> None:
    """One key cannot have two values: the least-squares fit would lie between them and give neither answer."""
    first: dict[str, int] = {}
    for number, fact in enumerate(facts):
        other = first.setdefault(fact.text, number)
        if facts[other].target_new != fact.target_new:
            raise DriftlensError(
                f"facts {other} and {number} contradict each other: {fact.text!r} cannot be followed by both "
                f"{facts[other].target_new!r} and {fact.target_new!r}; leave one of them out"
            )
