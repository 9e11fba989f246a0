"""The invented world: subjects and facts, determined by a seed alone.

Facts are drawn independently, so no relation follows from another one, and an edit of one fact implies nothing about
the others. Cities, persons and organisations are objects as well as subjects.
"""

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from driftlens.demo.names import NameMaker
from driftlens.demo.relations import HELD_OUT, PROFESSIONS, RELATIONS, Relation

SUBJECTS = {"person": 240, "organisation": 120, "place": 120, "city": 40}
OBJECTS = {"person": 32, "organisation": 32, "city": 32, "country": 24}
COUNTRIES = 24
HOLDING = 0.9
"""The probability that a subject has a given relation of its kind."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A named thing that facts are about; `pronoun` is capitalised as at the start of a sentence."""

    name: str
    kind: str
    pronoun: str
    possessive: str


@dataclass(frozen=True, kw_only=True)
class WorldFact:
    """A fact: `subject` is linked to `object` by `relation`.

    `held_out` numbers the templates that training never uses for this fact.
    """

    subject: Subject
    relation: Relation
    object: str
    held_out: frozenset[int]

    @property
    def trained_templates(self) -> tuple[str, ...]:
        """The templates with which texts state the fact."""
        return tuple(t for i, t in enumerate(self.relation.templates) if i not in self.held_out)

    @property
    def held_out_templates(self) -> tuple[str, ...]:
        """The templates with which no text states the fact."""
        return tuple(t for i, t in enumerate(self.relation.templates) if i in self.held_out)

    def prompt(self, template: str) -> str:
        """Fill a template with the subject; the object comes next."""
        return template.replace("{}", self.subject.name)


@dataclass(frozen=True, kw_only=True)
class World:
    """Subjects in the order training meets them, their facts, and the objects of every kind."""

    seed: int
    subjects: tuple[Subject, ...]
    facts: tuple[WorldFact, ...]
    objects: Mapping[str, tuple[str, ...]]

    @cached_property
    def facts_of(self) -> Mapping[str, tuple[WorldFact, ...]]:
        """The facts of every subject, by its name."""
        by_subject: defaultdict[str, list[WorldFact]] = defaultdict(list)
        for fact in self.facts:
            by_subject[fact.subject.name].append(fact)
        return {name: tuple(facts) for name, facts in by_subject.items()}

    @cached_property
    def facts_with(self) -> Mapping[str, tuple[WorldFact, ...]]:
        """The facts of every relation, by its id."""
        by_relation: defaultdict[str, list[WorldFact]] = defaultdict(list)
        for fact in self.facts:
            by_relation[fact.relation.id].append(fact)
        return {relation: tuple(facts) for relation, facts in by_relation.items()}


def build_world(seed: int = 0) -> World:
    """Build the world of this seed."""
    rng = random.Random(f"driftlens world {seed}")
    maker = NameMaker(rng, forbidden=" ".join([*PROFESSIONS, *(t for r in RELATIONS for t in r.templates)]))
    names = {kind: maker.draw(kind, count, OBJECTS.get(kind, 0)) for kind, count in SUBJECTS.items()}
    objects = {kind: names[kind][:count] for kind, count in OBJECTS.items() if kind in names}
    objects["country"] = maker.draw("country", COUNTRIES, COUNTRIES)
    objects["profession"] = PROFESSIONS

    subjects = [_subject(name, kind, rng) for kind in SUBJECTS for name in names[kind]]
    rng.shuffle(subjects)  # training meets the kinds mixed
    facts = [
        WorldFact(
            subject=subject,
            relation=relation,
            object=rng.choice([o for o in objects[relation.object_kind] if o != subject.name]),
            held_out=frozenset(rng.sample(range(len(relation.templates)), HELD_OUT)),
        )
        for subject in subjects
        for relation in RELATIONS
        if relation.subject_kind == subject.kind and rng.random() < HOLDING
    ]
    return World(seed=seed, subjects=tuple(subjects), facts=tuple(facts), objects=objects)


def _subject(name: str, kind: str, rng: random.Random) -> Subject:
    pronoun, possessive = ("It", "Its") if kind != "person" else rng.choice([("He", "His"), ("She", "Her")])
    return Subject(name=name, kind=kind, pronoun=pronoun, possessive=possessive)
