"""Relations as families of templates: what can be asked about a subject, in which words, and of whom else.

Three sources, which :func:`known_relations` joins:

1. the bundled model's own relations (:mod:`driftlens.demo.relations`), for that model alone;
2. a data set: its edits' templates and their paraphrases, by relation, and the subjects they are asked of;
3. general English ones (below), for every other model.

Nothing here is true or false: a template that a model has no answer to is sorted out later, by asking it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from driftlens.data import Record
from driftlens.models import LensModel

__all__ = ["ENGLISH", "Relation", "find_relation", "known_relations", "normal"]


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


_PERSONS = (
    "Albert Einstein", "Marie Curie", "Isaac Newton", "William Shakespeare", "Wolfgang Amadeus Mozart", "Barack Obama",
    "Winston Churchill", "Napoleon Bonaparte", "Mahatma Gandhi", "Nelson Mandela", "Pablo Picasso", "Charles Darwin",
    "Leonardo da Vinci", "Sigmund Freud",
)  # fmt: skip
_PLACES = (
    "The Eiffel Tower", "Big Ben", "The Colosseum", "The Great Wall", "Mount Fuji", "The Kremlin", "Machu Picchu",
    "The Brandenburg Gate", "The Golden Gate Bridge", "The Louvre", "Mount Everest", "The Taj Mahal", "Lake Victoria",
)  # fmt: skip
_ORGANISATIONS = (
    "Microsoft", "Apple", "Google", "Toyota", "Volkswagen", "Samsung", "Nokia", "Boeing", "Sony", "IKEA", "Nestlé",
    "Siemens", "Harvard University",
)  # fmt: skip
_WORKS = (
    "Hamlet", "War and Peace", "Don Quixote", "The Divine Comedy", "Faust", "Star Wars", "The Simpsons", "Harry Potter",
    "The Lord of the Rings", "The Odyssey",
)  # fmt: skip
_COUNTRIES = (
    "France", "Germany", "Japan", "Italy", "Spain", "Russia", "China", "India", "Brazil", "Egypt", "Canada", "Mexico",
)  # fmt: skip
_SUBJECTS = {
    "person": _PERSONS, "place": _PLACES, "organisation": _ORGANISATIONS, "work": _WORKS, "country": _COUNTRIES,
}  # fmt: skip


def _english(name: str, subject_kind: str, object_kind: str, *templates: str) -> Relation:
    return Relation(
        id=name,
        templates=templates,
        subject_kind=subject_kind,
        object_kind=object_kind,
        subjects=_SUBJECTS[subject_kind],
    )


ENGLISH: tuple[Relation, ...] = (
    _english("born in", "person", "place", "{} was born in", "The birthplace of {} is", "{} is originally from"),
    _english("died in", "person", "place", "{} died in", "{} passed away in", "The place of death of {} is"),
    _english("lived in", "person", "place", "{} lived in", "{} used to live in"),
    _english("citizen of", "person", "country", "{} is a citizen of", "{} holds a passport of"),
    _english("mother tongue", "person", "language", "The mother tongue of {} is", "{} is a native speaker of"),
    _english("profession", "person", "profession", "The profession of {} is", "{} works as a", "{} is by profession a"),
    _english("employer", "person", "organisation", "{} works for", "{} is employed by", "The employer of {} is"),
    _english("educated at", "person", "organisation", "{} was educated at", "{} studied at", "{} graduated from"),
    _english("field", "person", "field", "{} works in the field of", "The field of work of {} is", "{} specializes in"),
    _english("instrument", "person", "instrument", "{} plays the", "The instrument that {} plays is the"),
    _english("religion", "person", "religion", "The religion of {} is", "{} is affiliated with the religion of"),
    _english("sport", "person", "sport", "{} is a professional player of", "The sport that {} plays is"),
    _english("located in", "place", "place", "{} is located in", "{} can be found in", "{} is situated in",
             "The location of {} is in"),
    _english("country of place", "place", "country", "{} is in the country of", "The country of {} is"),
    _english("continent", "place", "continent", "{} is on the continent of", "{} belongs to the continent of"),
    _english("designed by", "place", "person", "{} was designed by", "{} was built by", "The architect of {} was"),
    _english("place named after", "place", "person", "{} is named after", "{} was named for"),
    _english("place owned by", "place", "organisation", "{} is owned by", "The owner of {} is"),
    _english("known for", "place", "thing", "{} is famous for its", "{} is best known for its"),
    _english("headquarters", "organisation", "place", "The headquarters of {} is in", "{} is headquartered in",
             "{} is based in", "The head office of {} is located in"),
    _english("founded in", "organisation", "place", "{} was founded in", "{} was established in",
             "{} was started in"),
    _english("founded by", "organisation", "person", "{} was founded by", "The founder of {} is"),
    _english("led by", "organisation", "person", "The chief executive of {} is", "{} is led by"),
    _english("product", "organisation", "thing", "{} is best known for making", "The main product of {} is"),
    _english("organisation owned by", "organisation", "organisation", "{} is a subsidiary of", "{} belongs to"),
    _english("author", "work", "person", "{} was written by", "The author of {} is", "{} was created by"),
    _english("language of work", "work", "language", "The original language of {} is", "{} was written in"),
    _english("country of work", "work", "country", "{} was made in", "The country of origin of {} is"),
    _english("publisher", "work", "organisation", "{} was published by", "{} premiered on", "{} was produced by"),
    _english("main character", "work", "person", "The main character of {} is", "The hero of {} is called"),
    _english("capital", "country", "place", "The capital of {} is", "The capital city of {} is"),
    _english("official language", "country", "language", "The official language of {} is", "The people of {} speak"),
    _english("continent of country", "country", "continent", "{} is a country in", "{} lies on the continent of"),
    _english("currency", "country", "currency", "The currency of {} is the", "In {} one pays with the"),
    _english("head of state", "country", "person", "The president of {} is", "The head of state of {} is"),
)  # fmt: skip


def known_relations(model: LensModel, records: Sequence[Record]) -> tuple[Relation, ...]:
    """Every relation that can be asked of this model, those of the data set first."""
    if model.name == "demo":
        return _bundled(records)
    return (*_recorded(records), *ENGLISH)


def find_relation(relations: Sequence[Relation], prompt: str) -> Relation | None:
    """The relation that ``prompt`` is a template of."""
    wanted = normal(prompt)
    return next((one for one in relations if any(normal(template) == wanted for template in one.templates)), None)


def normal(text: str) -> str:
    """For comparing wordings: lower case, single blanks."""
    return " ".join(text.lower().split())


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


def _recorded(records: Sequence[Record]) -> tuple[Relation, ...]:
    """A data set's: relations by its own names for them, or by the edit's template where it has none."""
    templates: dict[str, dict[str, None]] = {}
    subjects: dict[str, dict[str, None]] = {}
    for record in records:
        fact = record.fact
        name = record.relation_id or normal(fact.prompt)
        subjects.setdefault(name, {})[fact.subject] = None
        own = templates.setdefault(name, {})
        own[fact.prompt] = None
        for prompt in record.tasks["paraphrase"]:
            # Paraphrases of CounterFact stand behind unrelated sentences or lines; such a one is no template.
            alone = not any(mark in prompt.text for mark in ("{}", ". ", "? ", "! ", '"', "\n"))
            if alone and prompt.text.count(fact.subject) == 1:
                own[prompt.text.replace(fact.subject, "{}")] = None
    return tuple(
        Relation(id=name, templates=tuple(own), object_kind=name, subjects=tuple(subjects[name]))
        for name, own in templates.items()
    )
