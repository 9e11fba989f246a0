"""Working through many items in batches that fit into memory.

The batch size a user gives is honoured until memory runs out; then it is halved, once and for all of that
call, and the batch that failed is done again.  One warning says so.
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
    """One single item does not fit: nothing is wrong with the item itself."""


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
    """``work`` on each of ``groups``, which hold the items' indices, in batches of at most ``batch_size``; the
    results in the items' order.

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
    """The results, or ``None`` when memory ran out.  Returns only after the failed attempt's tensors can be
    freed.
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
