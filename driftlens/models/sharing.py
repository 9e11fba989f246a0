"""Share one model among threads and nested edits: a lock, and a list of the edits in its weights.

Hooks and weights belong to the model, so one thread's pass would see those of another. Each pass therefore holds the
model's lock while its hooks are on, and an applied edit holds it until the weights are restored. Other threads wait and
then see the unedited model. The same thread may acquire the lock repeatedly.

Lock and list belong to the wrapped TransformerLens model, because two `LensModel`s may wrap the same one.
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
"""Seconds after which a waiting thread reports that it waits."""


@dataclass(kw_only=True, eq=False)
class Written:
    """A change that is applied to a model's weights until its context ends."""

    what: object
    before: str
    """The model's hash before it was written."""
    saved: dict[Site, Tensor] = field(default_factory=dict[Site, Tensor])
    """The original weights by site."""
    ended: bool = False
    """Whether its context was left."""


@dataclass(kw_only=True, eq=False)
class Shared:
    """One model's lock, and what is written into its weights, in the order in which it was."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    written: list[Written] = field(default_factory=list[Written])
    writes: int = 0
    """The number of writes and restorations."""

    @contextmanager
    def exclusive(self) -> Generator[None]:
        """Hold the lock, so that only this thread uses the model."""
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
    """The shared state of this TransformerLens model; a copy of the model has its own."""
    with _creating:
        return _shared.setdefault(model, Shared())
