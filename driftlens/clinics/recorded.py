"""The relations of a data set: their wordings, the subjects they are asked of, and the kind that these are of.

Data sets give no kinds.  A relation has that of the general English relation that it is, by Wikidata's property or by
one of its wordings, and where it is none of them, that of the relations that the data ask of the same subjects:
:data:`VOTES` of them must say so, and :data:`AGREED` of all that say anything.
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
"""Words before the subject, at most: more are an unrelated sentence rather than a wording."""


def joined_relations(records: Sequence[Record]) -> tuple[Relation, ...]:
    """The data set's relations, then the English ones that it does not have; no wording of one stands in another
    under a second name.
    """
    templates: dict[str, dict[str, None]] = defaultdict(dict)
    subjects: dict[str, dict[str, None]] = defaultdict(dict)
    for record in records:
        for name, template in _worded(record):
            templates[name][template] = None
            subjects[name][record.fact.subject] = None
    english = {one.id: one for one in ENGLISH}
    found = [_joined(english.get(name), name, tuple(own), tuple(subjects[name])) for name, own in templates.items()]
    # The order of the English ones decides which relation a wording of two belongs to.
    order = list(english)
    found.sort(key=lambda one: order.index(one.id) if one.id in english else len(order))
    return (*_with_kinds(found), *(one for one in ENGLISH if one.id not in templates))


def kind_of(relations: Iterable[Relation], subject: str) -> str | None:
    """The kind of subject that most of the relations which are known to be asked of ``subject`` are asked of."""
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
    # Paraphrases of CounterFact stand behind unrelated sentences, lines and names; such a one is no template.
    if "{}" in text or text.count(subject) != 1 or any(mark in text.replace(subject, "") for mark in '.?!:"\n()[]'):
        return None
    # "{}, the" asks for nothing in particular.
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
    """Kinds for those that have none, by the subjects that they share with those that have one."""
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
