"""The one exception for mistakes that the user can correct.

Its text is always a single line with the bad value, what was expected and what to do, so the command line can print it
as it is. It is a `ValueError`, so code that uses the library needs no driftlens-specific `except`.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["DriftlensError", "unknown_name", "visible"]

# Control characters except tab and line feed, marks that reverse the direction of text, and halves of surrogate pairs.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LONG_WORD = re.compile(r"\S{301,}")


def visible(text: str) -> str:
    r"""Escape everything in a text that would move a terminal's cursor or change its colours, as `\x1b`.

    Prompts, targets and file names come from other people's files, and a terminal obeys control characters.
    """
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


class DriftlensError(ValueError):
    """A mistake in the user's input: a bad value, a missing file, an impossible combination."""

    def __init__(self, message: str) -> None:
        # Values quoted in a message may contain line breaks; this is the one place that turns them into a single line.
        line = _LONG_WORD.sub(lambda word: f"{word[0][:200]}…{word[0][-60:]}", " ".join(message.split()))
        super().__init__(visible(line))


def unknown_name(kind: str, name: str, known: Iterable[str], *, instead: str = "") -> DriftlensError:
    """Make the error for a name that is not `known`; it lists similar names, or else all of them.

    `instead` says what else is accepted here, e.g. "or the path of a JSON file".
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(names)}"
    return DriftlensError(" ".join(filter(None, (f"unknown {kind} {name!r};", advice, instead))))
