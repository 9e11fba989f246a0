"""Process many items in batches that fit into memory.

The given batch size is used until memory runs out.  Then it is halved for the rest of the call, and the failed batch is
repeated.  One warning says so.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

from driftlens.errors import DriftlensError
from driftlens.progress import OnDone

_OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "MPS backend out of memory")


class OutOfMemoryError(DriftlensError):
    """A single item does not fit into memory, although the item itself is valid."""


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_batches(
    items: Sequence[Item],
    batch_size: int,
    work: Callable[[Sequence[Item]], Sequence[Result]],
    *,
    on_done: OnDone | None = None,
) -> list[Result]:
    """``work`` on slices of at most ``batch_size`` items; its results in order.

    Raises:
        DriftlensError: ``batch_size`` is below 1.
        OutOfMemoryError: one single item does not fit into memory.
    """
    return in_groups(items, [range(len(items))], batch_size, work, on_done=on_done)


def in_groups(
    items: Sequence[Item],
    groups: Iterable[Sequence[int]],
    batch_size: int,
    work: Callable[[Sequence[Item]], Sequence[Result]],
    *,
    on_done: OnDone | None = None,
) -> list[Result]:
    """Apply ``work`` to each of ``groups`` of item indices, in batches of at most ``batch_size``.

    The results are in the order of the items.

    Raises:
        DriftlensError: ``batch_size`` is below 1.
        OutOfMemoryError: one single item does not fit into memory.
    """
    if batch_size < 1:
        raise DriftlensError(f"batch_size is {batch_size}; expected at least 1")
    results: dict[int, Result] = {}
    warned = False
    for group in groups:
        begin = 0
        while begin < len(group):
            batch = group[begin : begin + batch_size]
            done = _attempt(work, [items[i] for i in batch])
            if done is not None:
                results.update(zip(batch, done, strict=True))
                begin += len(batch)
                if on_done is not None:
                    on_done(len(results), len(items))
                continue
            if len(batch) == 1:
                raise OutOfMemoryError(
                    "out of memory with a single item in the batch; use a smaller dtype or another device"
                )
            batch_size = len(batch) // 2
            if not warned:
                warnings.warn(f"out of memory: going on with batches of {batch_size}", RuntimeWarning, stacklevel=3)
                warned = True
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return [results[i] for i in range(len(items))]


def _attempt(work: Callable[[Sequence[Item]], Sequence[Result]], batch: Sequence[Item]) -> Sequence[Result] | None:
    """Return the results, or ``None`` if memory ran out.

    It returns only when the tensors of the failed attempt can be freed.
    """
    try:
        return work(batch)
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except RuntimeError as error:
        # The CPU allocator and MPS raise a plain RuntimeError.
        if any(words in str(error) for words in _OUT_OF_MEMORY):
            return None
        raise
