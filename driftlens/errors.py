"""The one exception for mistakes that the person at the keyboard can put right.

Its text is always a single line that holds the bad value, what was expected and what to do, so that the
command line can print it as it is. It is a `ValueError`, so code that uses the library needs no
driftlens-specific `except`.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["DriftlensError", "unknown_name"]


class DriftlensError(ValueError):
    """A mistake in what the user gave: a bad value, a missing file, an impossible combination."""

    def __init__(self, message: str) -> None:
        # Values quoted in a message may hold line breaks; the promise of one line is kept here, once.
        super().__init__(" ".join(message.split()))


def unknown_name(kind: str, name: str, known: Iterable[str], *, instead: str = "") -> DriftlensError:
    """The error for a name that is none of the `known` ones: near names first, else all of them.

    `instead` says what else would be taken in this place, e.g. "or the path of a JSON file".
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(names)}"
    return DriftlensError(" ".join(filter(None, (f"unknown {kind} {name!r};", advice, instead))))
