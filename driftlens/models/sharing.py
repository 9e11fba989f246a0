"""What threads, and edits inside one another, share of one model: a lock, and the edits that are in its weights.

Hooks and weights belong to the model, so a pass of one thread would see another's. Each pass therefore holds the
model's lock while its hooks are on, and an edit that is written into the weights holds it until they are restored:
another thread waits, and then sees the model as it was. The same thread may take the lock again.

All of it belongs to the wrapped TransformerLens model, since two `LensModel`s may wrap the same one.
"""

import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from driftlens.models.sites import Site

__all__ = ["Shared", "Written", "shared"]

PATIENCE = 60.0
"""Seconds that a thread waits for another before it says so."""


@dataclass(kw_only=True, eq=False)
class Written:
    """Something that is written into a model's weights until its context ends."""

    what: object
    before: str
    """The model's hash before it was written."""
    saved: dict[Site, Tensor] = field(default_factory=dict[Site, Tensor])
    """By site, the weights that were there."""
    ended: bool = False
    """Whether its context was left."""


@dataclass(kw_only=True, eq=False)
class Shared:
    """One model's lock, and what is written into its weights, in the order in which it was."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    written: list[Written] = field(default_factory=list[Written])
    writes: int = 0
    """How often something was written or taken back."""

    @contextmanager
    def exclusive(self) -> Generator[None]:
        """The model for this thread alone."""
        if not self.lock.acquire(timeout=PATIENCE):
            warnings.warn(
                f"another thread has held the model for {PATIENCE:.0f} seconds, in a pass or with an edit applied; "
                "this one waits until it is done",
                RuntimeWarning,
                stacklevel=4,
            )
            self.lock.acquire()
        try:
            yield
        finally:
            self.lock.release()


_shared: WeakKeyDictionary[Any, Shared] = WeakKeyDictionary()
_creating = threading.Lock()


def shared(model: Any) -> Shared:
    """What is shared of this TransformerLens model; a copy of the model has its own."""
    with _creating:
        return _shared.setdefault(model, Shared())
