"""A relation: a family of templates, what they can be asked of, and what answers them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Relation", "find_relation", "normal"]


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One relation.

    Attributes:
        id: its name.
        templates: wordings with one ``{}`` for the subject, which end right before the answer.
        subject_kind: what it is asked of; None where nobody knows.
        object_kind: what answers it; an edit leaks most into relations of its own kind of answer.
        subjects: names that it can be asked of.
    """

    id: str
    templates: tuple[str, ...]
    subject_kind: str | None = None
    object_kind: str | None = None
    subjects: tuple[str, ...] = ()


def find_relation(relations: Iterable[Relation], prompt: str) -> Relation | None:
    """The relation that ``prompt`` is a template of."""
    wanted = normal(prompt)
    return next((one for one in relations if any(normal(template) == wanted for template in one.templates)), None)


def normal(text: str) -> str:
    """For comparing wordings: lower case, single blanks."""
    return " ".join(text.lower().split())
