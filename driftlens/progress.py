"""How a long piece of work tells how far it is.

A loop over things of one kind takes ``on_THINGS`` (``on_cells``, ``on_facts``, ``on_rows``, ``on_step`` …), an
:data:`OnDone`.  Work in several stages takes ``on_progress``, an :data:`OnProgress`: the same with the stage's name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["OnDone", "OnProgress", "Pace", "of_stage", "unseen"]

OnDone: TypeAlias = Callable[[int, int], None]
"""Called with how many are done, and how many there are (0 where nobody knows)."""

OnProgress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0 where nobody knows)."""


def of_stage(on_progress: OnProgress | None, stage: str) -> OnDone | None:
    """What to hand to a loop so that it counts as this stage."""
    return None if on_progress is None else lambda done, total: on_progress(stage, done, total)


def unseen(*_: object) -> None:
    """Where nobody watches."""


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
