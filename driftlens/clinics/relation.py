"""A relation: a family of templates with its kind of subject and its kind of answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

__all__ = ["WRAPPED", "Relation", "find_relation", "normal", "with_article_of"]


WRAPPED = ("I know that {}", "I have read that {}", "The news is that {}", "It is true that {}")
"""Wordings for a prompt whose relation has no others."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One relation.

    Attributes:
        id: its name.
        templates: wordings with one ``{}`` for the subject, which end right before the answer.
        subject_kind: the kind of subject it applies to; None if unknown.
        object_kind: the kind of its answers; an edit leaks most into relations with the same kind of answer.
        subjects: names that it can be asked of.
    """

    id: str
    templates: tuple[str, ...]
    subject_kind: str | None = None
    object_kind: str | None = None
    subjects: tuple[str, ...] = ()


def find_relation(relations: Iterable[Relation], prompt: str) -> Relation | None:
    """Find the relation with ``prompt`` as a template, or else one with a template that ``prompt`` extends.

    "{} is located in the city of" extends "{} is located in"; the longest such template decides. The other wordings of
    the relation are extended in the same way, because "{} can be found in" asks for less.
    """
    wanted = normal(prompt).replace("the {}", "{}", 1)
    longest: tuple[int, Relation | None] = (0, None)
    for one in relations:
        for template in (normal(each).replace("the {}", "{}", 1) for each in one.templates):
            if template == wanted:
                return one
            if wanted.startswith(f"{template} ") and not template.endswith("{}") and len(template) > longest[0]:
                longest = (len(template), _going_on(one, template, wanted.removeprefix(template).strip()))
    return longest[1]


def _going_on(one: Relation, beginning: str, rest: str) -> Relation:
    """Extend by ``rest`` those wordings of the relation that end in the word before it."""
    word = beginning.rpartition(" ")[2]
    return replace(
        one, templates=tuple(f"{each} {rest}" for each in one.templates if normal(each).rpartition(" ")[2] == word)
    )


def with_article_of(prompt: str, template: str) -> str:
    """Add "the" before the subject, if the prompt has it there and the template has no article."""
    if "the {}" not in prompt.lower() or "the {}" in template.lower():
        return template
    return f"The {template}" if template.startswith("{}") else template.replace("{}", "the {}", 1)


def normal(text: str) -> str:
    """Normalise a wording for comparison: lower case, single blanks."""
    return " ".join(text.lower().split())
