"""Invented, pronounceable names: a closed syllable and an ending that hints at the kind of thing named.

No name is part of another one, so a subject can be found in a text unambiguously. The names of objects of one kind
differ within their first three letters, so their first tokens distinguish them.
"""

import random
from collections.abc import Iterator

ONSETS = (
    "b br d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sk sl st t tr v vl w y z zh".split()
)  # fmt: skip
VOWELS = "aeiou"
CODAS = "b d g k l lk ln lv m mb n nd nt p r rb rd rk rm rn rt s sk st t v x z".split()
ENDINGS = {
    "person": "ek an ov is ar en il us oth und ari elle ino ette",
    "city": "ora ath ium olm une ady esh ant ivo ux ombe ille",
    "country": "ia avia istan onia aland erra uay eria ados",
    "organisation": "ex ix aro ynd ite umo atec orp entis ux alia ora",
    "place": "ar el oon ith ur ael ock enna od ull",
}
LANDFORMS = ("Lake", "Mount", "Fort", "Castle", "Cape", "Isle")
GIVEN_NAMES = (
    "Ana Arno Bela Boro Cila Dario Dora Edo Elka Emil Fina Gero Hana Hugo Ida Ilja Ivo Jana Juna Karo Kira "
    "Lea Lino Lola Luka Maro Mila Nero Nila Odo Olga Pia Rafa Runa Sami Tara Timo Ulla Vera Yuri"
).split()
SYLLABLES = 300


def _syllables() -> list[str]:
    # The same in every world, so that a tokenizer learns syllables rather than names.
    every = [onset + vowel + coda for onset in ONSETS for vowel in VOWELS for coda in CODAS]
    return random.Random("driftlens syllables").sample(every, SYLLABLES)


class NameMaker:
    """Draws new names; no name may occur in the text `forbidden`."""

    def __init__(self, rng: random.Random, forbidden: str = "") -> None:
        self._rng = rng
        self._forbidden = forbidden.lower()
        self._taken: list[str] = []
        self._syllables = _syllables()

    def draw(self, kind: str, count: int, distinct_starts: int = 0) -> tuple[str, ...]:
        """Draw `count` new names, of which the first `distinct_starts` differ in their first three letters."""
        names: list[str] = []
        starts: set[str] = set()
        for name in self._candidates(kind):
            start = name[:3]
            if len(names) < distinct_starts and start in starts:
                continue
            if not self._is_new(name):
                continue
            starts.add(start)
            names.append(name)
            self._taken.append(name.lower())
            if len(names) == count:
                break
        return tuple(names)

    def _candidates(self, kind: str) -> Iterator[str]:
        while True:
            word = self._word(ENDINGS[kind].split())
            if kind == "person":
                yield f"{self._rng.choice(GIVEN_NAMES)} {word}"
            elif kind == "place":
                yield f"{self._rng.choice(LANDFORMS)} {word}"
            else:
                yield word

    def _word(self, endings: list[str]) -> str:
        return (self._rng.choice(self._syllables) + self._rng.choice(endings)).capitalize()

    def _is_new(self, name: str) -> bool:
        # The last word alone must be new as well, because it distinguishes two names of one kind.
        last = name.lower().rsplit(" ", 1)[-1]
        return last not in self._forbidden and not any(
            last in taken or taken.rsplit(" ", 1)[-1] in name.lower() for taken in self._taken
        )
