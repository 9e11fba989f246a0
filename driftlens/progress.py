"""How a long piece of work tells how far it is.

A loop over things of one kind takes ``on_THINGS`` (``on_cells``, ``on_facts``, ``on_rows``, ``on_step`` …), an
:data:`OnDone`.  Work in several stages takes ``on_progress``, an :data:`OnProgress`: the same with the stage's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["OnDone", "OnProgress", "of_stage", "unseen"]

OnDone: TypeAlias = Callable[[int, int], None]
"""Called with how many are done, and how many there are (0 where nobody knows)."""

OnProgress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0 where nobody knows)."""


def of_stage(on_progress: OnProgress | None, stage: str) -> OnDone | None:
    """What to hand to a loop so that it counts as this stage."""
    return None if on_progress is None else lambda done, total: on_progress(stage, done, total)


def unseen(*_: object) -> None:
    """Where nobody watches."""
