"""The one exception for mistakes that the person at the keyboard can put right.

Its text is always a single line that holds the bad value, what was expected and what to do, so that the command line
can print it as it is. It is a `ValueError`, so code that uses the library needs no driftlens-specific `except`.
"""

__all__ = ["DriftlensError"]


class DriftlensError(ValueError):
    """A mistake in what the user gave: a bad value, a missing file, an impossible combination."""

    def __init__(self, message: str) -> None:
        # Values quoted in a message may hold line breaks; the promise of one line is kept here, once.
        super().__init__(" ".join(message.split()))
