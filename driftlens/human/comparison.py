"""A blinded study that compares texts of two systems, with the key to unblind it.

Annotators must not be able to find out which system wrote a text, not even from the page's source.

1. Every pair of texts becomes an :class:`Item` with a random identifier and its texts in random order.
2. A few *attention checks* with a known answer look like other items.  Two identical texts should be a tie; a text is
   better than the same text with its words shuffled.
3. The browser receives only :meth:`Comparison.blinded`; settings, systems and checks stay in the key.

The key is one JSON file.  Answers cannot be read without it, so it is stored with the answers and never sent to
annotators.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from driftlens.data import Fact
from driftlens.errors import DriftlensError
from driftlens.files import atomic_path, reason_of

__all__ = ["CHECKS", "CRITERIA", "KEY", "Comparison", "Criterion", "Item", "Systems", "TextPair"]

KEY = "key.json"
FORMAT = "driftlens-comparison-1"
CHECKS = ("identical", "shuffled")
"""Kinds of attention checks, in the order in which a study uses them."""

Kind = Literal["pair", "identical", "shuffled"]


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A question about every pair; its hint may contain ``{fact}`` and ``{new}`` of the edit request."""

    name: str
    title: str
    question: str
    hint: str


CRITERIA = (
    Criterion(
        name="success",
        title="Edit success",
        question="Which text states the new fact better?",
        hint="It should say, or clearly imply, that {fact}.",
    ),
    Criterion(
        name="specificity",
        title="Specificity",
        question="Which text is less disturbed by the edit?",
        hint="Only the edited fact should change. “{new}” should not turn up where it does not belong.",
    ),
    Criterion(
        name="fluency",
        title="Fluency",
        question="Which text reads better?",
        hint="Grammatical, coherent, without needless repetition – whether or not it is true.",
    ),
)
"""The paper's three criteria (E.4), in our words, because the paper does not quote its own."""


@dataclass(frozen=True, kw_only=True)
class Systems:
    """Two names: ``baseline`` and ``challenger``.  A *win* is a win of the challenger."""

    baseline: str
    challenger: str


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """Two systems' texts for one edit request.

    Attributes:
        setting: the comparison of the study, such as "ROME"; a row of the table.
        fact: the edit request.
        prompt: the prompt that both texts continue.
        baseline: the baseline's continuation, without the prompt.
        challenger: the challenger's continuation.
    """

    setting: str
    fact: Fact
    prompt: str
    baseline: str
    challenger: str


@dataclass(frozen=True, kw_only=True)
class Item:
    """Two texts to be judged, in random order.

    Attributes:
        id: a random identifier.
        kind: "pair", or the kind of attention check.
        setting: the setting of a pair; "" for a check.
        fact: the edit request that is shown.
        prompt: the prompt that both texts continue.
        texts: the two continuations.
        challenger: the index of the challenger's text; −1 for a check.
        expected: the right answer to each criterion of a check that has one: the index of a text, or "tie".
    """

    id: str
    kind: Kind
    setting: str
    fact: Fact
    prompt: str
    texts: tuple[str, str]
    challenger: int
    expected: Mapping[str, int | str] = field(default_factory=dict[str, "int | str"])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A study: its items with their key.

    Attributes:
        title: the title that annotators see above the instructions.
        systems: the compared systems by setting.
        items: pairs and attention checks, in the order of their random identifiers.
        seed: the seed of identifiers, sides and checks.
        about: how the texts were made, for documentation.
    """

    title: str
    systems: Mapping[str, Systems]
    items: tuple[Item, ...]
    seed: int
    about: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        pairs: Sequence[TextPair],
        systems: Mapping[str, Systems],
        *,
        spares: Sequence[TextPair] = (),
        checks: int = 2,
        seed: int = 0,
        title: str = "Comparing texts",
        about: Mapping[str, Any] | None = None,
    ) -> Comparison:
        """Blind ``pairs`` and insert ``checks`` attention checks.

        Args:
            pairs: the pairs to compare.
            systems: the systems of each setting's pairs.
            spares: pairs from which attention checks are made, so that no text appears twice; if empty, ``pairs``.
            checks: the number of attention checks.
            seed: the seed of identifiers, sides and checks.
            title: the title that annotators see above the instructions.
            about: how the texts were made, for documentation.

        Raises:
            DriftlensError: no pairs, or a pair of an unknown setting.
        """
        if not pairs:
            raise DriftlensError("there is no pair of texts to compare; give at least one record")
        unknown = next((pair.setting for pair in pairs if pair.setting not in systems), None)
        if unknown is not None:
            raise DriftlensError(f"no systems are named for the setting {unknown!r}; known: {', '.join(systems)}")
        draw = random.Random(f"{seed} {len(pairs)} {checks}")
        names = _identifiers(draw)
        items = [_blind(pair, next(names), flipped=draw.random() < 0.5) for pair in pairs]
        bases = spares or draw.sample(list(pairs), len(pairs))
        for at in range(checks):
            kind = CHECKS[at % len(CHECKS)]
            items.append(_check(bases[at % len(bases)], kind, next(names), draw))
        return cls(
            title=title,
            systems=dict(systems),
            items=tuple(sorted(items, key=lambda item: item.id)),
            seed=seed,
            about=dict(about or {}),
        )

    @property
    def id(self) -> str:
        """A hash of the title and of all requests and texts; answers carry it."""
        seen = [self.title, self._seen_items()]
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def pairs(self) -> tuple[Item, ...]:
        """The items without the attention checks."""
        return tuple(item for item in self.items if item.kind == "pair")

    def blinded(self) -> dict[str, Any]:
        """The data that an annotator's browser receives."""
        return {
            "study": self.id,
            "title": self.title,
            "criteria": [asdict(criterion) for criterion in CRITERIA],
            "items": self._seen_items(),
        }

    def _seen_items(self) -> list[dict[str, Any]]:
        return [
            {
                "id": item.id,
                "request": {
                    "prompt": item.fact.text,
                    "subject": item.fact.subject,
                    "true": item.fact.target_true,
                    "new": item.fact.target_new,
                },
                "prompt": item.prompt,
                "texts": list(item.texts),
            }
            for item in self.items
        ]

    def save(self, path: str | PathLike[str]) -> None:
        """Write the key, atomically."""
        told = {"format": FORMAT, "id": self.id, **asdict(self)}
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Comparison:
        """Read a key that :meth:`save` wrote.

        Raises:
            DriftlensError: the file is missing, damaged, or not a key.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise DriftlensError(
                f"cannot read the key {path}: {reason_of(error)}; name a {KEY} that driftlens compare wrote"
            ) from error
        except UnicodeDecodeError as error:
            raise DriftlensError(f"{path} is not the key of a comparison (no text); expected a {KEY}") from error
        try:
            told: dict[str, Any] = json.loads(text)
            found = cls(
                title=told["title"],
                systems={name: Systems(**of) for name, of in told["systems"].items()},
                items=tuple(map(_item, told["items"])),
                seed=told["seed"],
                about=told["about"],
            )
            if told["format"] != FORMAT or told["id"] != found.id:
                raise ValueError("it was changed, or another driftlens wrote it")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DriftlensError(f"{path} is not the key of a comparison ({error}); expected a {KEY}") from error
        return found


def _item(told: Mapping[str, Any]) -> Item:
    parts: dict[str, Any] = {**told, "fact": Fact(**told["fact"]), "texts": tuple(told["texts"])}
    return Item(**parts)


def _identifiers(draw: random.Random) -> Iterator[str]:
    taken: set[str] = set()
    while True:
        name = f"{draw.getrandbits(32):08x}"
        if name not in taken:
            taken.add(name)
            yield name


def _blind(pair: TextPair, name: str, *, flipped: bool) -> Item:
    texts = (pair.challenger, pair.baseline) if flipped else (pair.baseline, pair.challenger)
    return Item(
        id=name,
        kind="pair",
        setting=pair.setting,
        fact=pair.fact,
        prompt=pair.prompt,
        texts=texts,
        challenger=0 if flipped else 1,
    )


def _check(pair: TextPair, kind: str, name: str, draw: random.Random) -> Item:
    """Make an attention check from a pair's texts, so that it looks like an ordinary item."""
    text = pair.challenger
    if kind == "identical":
        texts, expected = (text, text), {criterion.name: "tie" for criterion in CRITERIA}
    else:
        words = text.split()
        draw.shuffle(words)
        intact = draw.randrange(2)
        texts = (text, " " + " ".join(words)) if intact == 0 else (" " + " ".join(words), text)
        expected = {"fluency": intact}
    return Item(
        id=name,
        kind="identical" if kind == "identical" else "shuffled",
        setting="",
        fact=pair.fact,
        prompt=pair.prompt,
        texts=texts,
        challenger=-1,
        expected=expected,
    )
