"""Relations as families of templates: what can be asked about a subject, in which words, and of which other subjects.

:func:`known_relations` joins three sources:

1. the bundled model's own relations (:mod:`driftlens.demo.relations`), only for that model;
2. a data set (:mod:`driftlens.clinics.recorded`): the templates of its edits and their paraphrases, by relation, and
   the subjects they are asked of;
3. general English ones (:mod:`driftlens.clinics.english`), for every other model.

Nothing here is true or false: templates that a model cannot answer are filtered out later, by asking it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from driftlens.clinics.english import FOLLOWS
from driftlens.clinics.recorded import joined_relations, kind_of
from driftlens.clinics.relation import Relation, find_relation
from driftlens.data import Record
from driftlens.errors import unknown_name
from driftlens.models import LensModel

__all__ = ["known_relations", "other_relations", "peers_of"]


def known_relations(model: LensModel, records: Sequence[Record]) -> tuple[Relation, ...]:
    """List every relation that can be asked of this model, those of the data set first."""
    return _bundled(records) if model.name == "demo" else joined_relations(records)


def other_relations(
    relations: Sequence[Relation], own: Relation | None, subject: str = "", kind: str | None = None
) -> tuple[list[Relation], str | None]:
    """List the other relations that the subject can be asked, and return the subject's kind.

    Relations that the data ask of this very subject come first, and among them those with the same kind of answer as
    the edit. The kind is ``kind`` if given, or else that of the edited relation's subjects, or else that of the
    relations that the data ask of this subject. If the kind is unknown, only the latter relations are listed: most
    others would make no sense, and a verdict could not rest on the answers.

    Raises:
        DriftlensError: no relation applies to the kind.
    """
    kinds = dict.fromkeys(one.subject_kind for one in relations if one.subject_kind is not None)
    if kind is not None and kind not in kinds:
        raise unknown_name("kind of subject", kind, kinds)
    follow = FOLLOWS.get(own.id, ()) if own is not None else ()
    others = [one for one in relations if own is None or (one.id != own.id and one.id not in follow)]
    kind = kind or (own.subject_kind if own is not None else None) or kind_of(relations, subject)
    mates = [one for one in others if (kind and one.subject_kind == kind) or subject in one.subjects]
    object_kind = own.object_kind if own is not None else None
    return sorted(mates, key=lambda one: (subject not in one.subjects, one.object_kind != object_kind)), kind


def peers_of(relations: Sequence[Relation], kind: str | None) -> tuple[str, ...]:
    """Subjects of a kind, from all relations; none if the kind is unknown."""
    if kind is None:
        return ()
    return tuple(dict.fromkeys(name for one in relations if one.subject_kind == kind for name in one.subjects))


def _bundled(records: Sequence[Record]) -> tuple[Relation, ...]:
    from driftlens.demo.relations import RELATIONS

    own = tuple(
        Relation(id=one.id, templates=one.templates, subject_kind=one.subject_kind, object_kind=one.object_kind)
        for one in RELATIONS
    )
    kinds = {one.id: one.subject_kind for one in own}
    of_kind: dict[str | None, dict[str, None]] = {}
    for record in records:
        relation = find_relation(own, record.fact.prompt)
        if relation is not None:
            of_kind.setdefault(kinds[relation.id], {})[record.fact.subject] = None
    return tuple(replace(one, subjects=tuple(of_kind.get(one.subject_kind, ()))) for one in own)
