"""The relations of a data set: their wordings, their subjects and the kind of these subjects.

Data sets do not give kinds. A relation gets the kind of the general English relation that it matches, by Wikidata
property or by one of its wordings. If it matches none, it gets the kind of the relations that the data ask of the same
subjects: at least :data:`VOTES` subjects must agree, and at least the share :data:`AGREED` of those with a known kind.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from driftlens.clinics.answers import FUNCTION_WORDS
from driftlens.clinics.english import ENGLISH, PROPERTIES
from driftlens.clinics.relation import Relation, find_relation, normal
from driftlens.data import Record

__all__ = ["joined_relations", "kind_of"]

VOTES, AGREED = 3, 0.8
_ENOUGH_SUBJECTS = 12
_LONGEST_BEGINNING = 8
"""The largest number of words before the subject: a longer beginning is an unrelated sentence rather than a wording."""


def joined_relations(records: Sequence[Record]) -> tuple[Relation, ...]:
    """The data set's relations, then the English ones that it lacks; a relation that both have is listed once."""
    templates: dict[str, dict[str, None]] = defaultdict(dict)
    subjects: dict[str, dict[str, None]] = defaultdict(dict)
    for record in records:
        for name, template in _worded(record):
            templates[name][template] = None
            subjects[name][record.fact.subject] = None
    english = {one.id: one for one in ENGLISH}
    found = [_joined(english.get(name), name, tuple(own), tuple(subjects[name])) for name, own in templates.items()]
    # The order of the English relations decides which one a shared wording belongs to.
    order = list(english)
    found.sort(key=lambda one: order.index(one.id) if one.id in english else len(order))
    return (*_with_kinds(found), *(one for one in ENGLISH if one.id not in templates))


def kind_of(relations: Iterable[Relation], subject: str) -> str | None:
    """The most frequent subject kind among the relations that are asked of ``subject``."""
    return _most(Counter(one.subject_kind for one in relations if subject in one.subjects), least=1)


def _worded(record: Record) -> Iterator[tuple[str, str]]:
    """Each relation that the record asks of its subject, by name, with a wording."""
    fact = record.fact
    own = _name(fact.prompt, record.relation_id)
    yield own, fact.prompt
    for task in ("paraphrase", "relation"):
        for prompt in record.tasks[task]:
            template = _template(prompt.text, fact.subject)
            if template is not None:
                yield (own if task == "paraphrase" else _name(template, None)), template


def _template(text: str, subject: str) -> str | None:
    # Paraphrases in CounterFact follow unrelated sentences, lines and names; such a text is not a template.
    if "{}" in text or text.count(subject) != 1 or any(mark in text.replace(subject, "") for mark in '.?!:"\n()[]'):
        return None
    # "{}, the" does not ask for anything in particular.
    if not any(word.lower() not in FUNCTION_WORDS for word in re.findall(r"\w+", text.replace(subject, ""))):
        return None
    before, _ = text.split(subject)
    return text.replace(subject, "{}") if len(before.split()) <= _LONGEST_BEGINNING else None


def _name(template: str, property_id: str | None) -> str:
    if property_id is not None:
        return PROPERTIES.get(property_id, property_id)
    known = find_relation(ENGLISH, template)
    return known.id if known is not None else normal(template)


def _joined(english: Relation | None, name: str, templates: tuple[str, ...], subjects: tuple[str, ...]) -> Relation:
    if english is None:
        return Relation(id=name, templates=templates, object_kind=name, subjects=subjects)
    worded = {normal(template) for template in templates}
    others = english.subjects if len(subjects) < _ENOUGH_SUBJECTS else ()
    return replace(
        english,
        templates=(*templates, *(one for one in english.templates if normal(one) not in worded)),
        subjects=tuple(dict.fromkeys([*subjects, *others])),
    )


def _with_kinds(relations: Sequence[Relation]) -> list[Relation]:
    """Add kinds to relations without one, by the subjects that they share with the others."""
    kinds: dict[str, Counter[str | None]] = defaultdict(Counter)
    for one in relations:
        if one.subject_kind is not None:
            for subject in one.subjects:
                kinds[subject][one.subject_kind] += 1
    found: list[Relation] = []
    for one in relations:
        if one.subject_kind is None:
            votes = Counter(_most(kinds[subject], least=1) for subject in one.subjects if subject in kinds)
            one = replace(one, subject_kind=_most(votes, least=VOTES))  # noqa: PLW2901
        found.append(one)
    return found


def _most(votes: Counter[str | None], *, least: int) -> str | None:
    said = Counter({kind: n for kind, n in votes.items() if kind is not None})
    if not said:
        return None
    kind, n = said.most_common(1)[0]
    return kind if n >= least and n >= AGREED * said.total() else None
