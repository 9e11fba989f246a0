"""Callbacks for the progress of long work.

A loop over items of one kind has a parameter ``on_ITEMS`` (``on_cells``, ``on_facts``, ``on_rows``, ``on_step`` …) of
the type :data:`OnDone`.  Work in several stages has a parameter ``on_progress`` of the type :data:`OnProgress`, which
is also given the stage's name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["OnDone", "OnProgress", "Pace", "of_stage", "unseen"]

OnDone: TypeAlias = Callable[[int, int], None]
"""Called with the number of finished items and the number of all (0 if unknown)."""

OnProgress: TypeAlias = Callable[[str, int, int], None]
"""Called with the stage, the amount done and the total (0 if unknown)."""


def of_stage(on_progress: OnProgress | None, stage: str) -> OnDone | None:
    """Make the callback of a loop that is one stage of the work."""
    return None if on_progress is None else lambda done, total: on_progress(stage, done, total)


def unseen(*_: object) -> None:
    """A callback that ignores all progress."""


class Pace:
    """How long what is left takes, at the pace since this was made or begun again."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def begin(self) -> None:
        """What was done until now costs nothing."""
        self._start = time.monotonic()

    def left(self, done: int, remaining: int) -> float:
        """Seconds, from how many were done since then and how many remain."""
        return (time.monotonic() - self._start) / max(1, done) * remaining
