"""Texts about the invented world: the training data of the bundled model.

A document is of one of four kinds: facts about several subjects; one relation of several subjects (so that a model
learns not to copy the last object it saw); a short biography of one subject, partly with pronouns; and sentences that
state no fact or wrap one ("I know that …"), which begin like the context prefixes that editors sample. No document
states a fact with one of its held-out templates.
"""

import random
from collections.abc import Iterator, Sequence

from driftlens.demo.relations import RELATIONS
from driftlens.demo.world import Subject, World, WorldFact

MIX = {"assorted": 0.35, "relation": 0.27, "biography": 0.28, "generic": 0.10}
PRONOUNS = 0.25
"""Share of the later sentences of a biography that name their subject by a pronoun."""

NOUNS = {"person": "person", "organisation": "company", "place": "place", "city": "city"}
GENERIC = (
    "{name} is a {noun}.",
    "The {noun} {name} is well known.",
    "Therefore {name} is a {noun}.",
    "Because {name} is a {noun}, people talk about it.",
    "I know that {name} is a {noun}.",
    "You may have heard of the {noun} {name}.",
    "I have read about {name}.",
    "You may ask what {name} is.",
)
WRAPPED = (
    "I know that {fact}.",
    "You may have heard that {fact}.",
    "Therefore {fact}.",
    "Because {fact}, people talk about it.",
    "The news is that {fact}.",
    "I have read that {fact}.",
)
WRAPPED_SHARE = 0.4


class Writer:
    """Writes documents about the first `active` subjects of a world (by default all of them)."""

    def __init__(self, world: World, active: int | None = None) -> None:
        self.world = world
        self.subjects: Sequence[Subject] = [s for s in world.subjects[:active] if s.name in world.facts_of]
        known = {subject.name for subject in self.subjects}
        self._mates = {
            relation.id: mates
            for relation in RELATIONS
            if len(mates := [f for f in world.facts_with[relation.id] if f.subject.name in known]) >= 2
        }
        self._relations = [fact.relation.id for s in self.subjects for fact in world.facts_of[s.name]]

    def document(self, rng: random.Random) -> str:
        """Write a text of one or several sentences."""
        (sort,) = rng.choices(list(MIX), weights=list(MIX.values()))
        return " ".join(getattr(self, f"_{sort}")(rng))

    def _assorted(self, rng: random.Random) -> list[str]:
        subjects = rng.sample(self.subjects, min(rng.randint(1, 5), len(self.subjects)))
        return [tell(self._some_fact(subject, rng), rng) for subject in subjects]

    def _relation(self, rng: random.Random) -> list[str]:
        mates = self._mates.get(rng.choice(self._relations))
        if mates is None:
            return self._assorted(rng)
        return [tell(fact, rng) for fact in rng.sample(mates, min(rng.randint(2, 4), len(mates)))]

    def _biography(self, rng: random.Random) -> list[str]:
        facts = self.world.facts_of[rng.choice(self.subjects).name]
        chosen = rng.sample(facts, min(rng.randint(2, 5), len(facts)))
        return [tell(fact, rng, pronoun=i > 0 and rng.random() < PRONOUNS) for i, fact in enumerate(chosen)]

    def _generic(self, rng: random.Random) -> list[str]:
        return [self._generic_sentence(rng) for _ in range(rng.randint(1, 3))]

    def _generic_sentence(self, rng: random.Random) -> str:
        subject = rng.choice(self.subjects)
        if rng.random() >= WRAPPED_SHARE:
            return rng.choice(GENERIC).format(name=subject.name, noun=NOUNS[subject.kind])
        sentence = tell(self._some_fact(subject, rng), rng).removesuffix(".")
        if sentence.startswith("The "):
            sentence = "t" + sentence[1:]
        return rng.choice(WRAPPED).format(fact=sentence)

    def _some_fact(self, subject: Subject, rng: random.Random) -> WorldFact:
        return rng.choice(self.world.facts_of[subject.name])


def tell(fact: WorldFact, rng: random.Random, *, pronoun: bool = False) -> str:
    """State the fact in one sentence, by one of its trained templates."""
    template = rng.choice(fact.trained_templates)
    if pronoun and template.startswith("{}'s "):
        prompt = fact.subject.possessive + template.removeprefix("{}'s")
    elif pronoun and template.startswith("{} "):
        prompt = fact.subject.pronoun + template.removeprefix("{}")
    else:
        prompt = fact.prompt(template)
    return f"{prompt} {fact.object}."


def corpus(world: World, seed: int = 0) -> Iterator[str]:
    """Yield endlessly the documents that the model was trained on; the same seed gives the same documents."""
    rng = random.Random(f"driftlens corpus {world.seed} {seed}")
    writer = Writer(world)
    while True:
        yield writer.document(rng)
