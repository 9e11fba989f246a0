"""Measure seconds, peak memory, and the fixed cost of a pass on this machine.

On CUDA, memory is the peak of the allocator.  Elsewhere it is the greatest size of the process, sampled during the
work, if the system reports it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from driftlens.models.lens_model import LensModel
from driftlens.models.prompts import pad_rows

__all__ = ["Phase", "intercept", "measured", "measured_pass_cost", "most_bytes", "resident_bytes", "timed"]

_SHORT, _MANY = 8, 1024
"""Tokens in a row, and the most rows, in the passes that measure the cost of a pass."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase: its seconds, its peak memory in bytes (None if unknown), and what they refer to."""

    name: str
    seconds: float
    peak_bytes: int | None
    per: str


def measured(name: str, work: Callable[[], object], device: torch.device, *, per: str, share: int = 1) -> Phase:
    """Measure one call of ``work`` as a phase; its seconds are divided by ``share``, e.g. the number of records."""
    with _peak_memory(device) as peak:
        seconds = timed(work, device)
    return Phase(name=name, seconds=seconds / share, peak_bytes=peak(), per=per)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """The seconds of one call of ``work``, all that it leaves to the device included."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def measured_pass_cost(model: LensModel) -> int:
    """Measure the fixed cost of a pass on this machine, in tokens: the right value of ``model.pass_cost``.

    A pass over one short row is timed, and passes over more and more rows until one takes three times as long.  The
    fixed cost is the intercept of the line through the two.  The fastest of five passes counts, because other work on
    the machine can only add time.
    """

    def seconds(rows: int) -> float:
        batch, _ = pad_rows(model, [[0] * _SHORT] * rows)
        with torch.no_grad():
            model.run(batch)
            return min(measured("", lambda: model.run(batch), model.device, per="").seconds for _ in range(5))

    one, rows = seconds(1), 2
    while (more := seconds(rows)) < 3 * one and rows < _MANY:
        rows *= 2
    return intercept(one, more, _SHORT, rows * _SHORT)


def intercept(one: float, more: float, few: int, many: int) -> int:
    """The fixed cost in tokens, from the seconds of passes over ``few`` and ``many`` tokens; at most ``many``."""
    per_token = (more - one) / (many - few)
    return min(many, max(0, round(one / per_token - few))) if per_token > 0 else many


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _peak_memory(device: torch.device) -> Generator[Callable[[], int | None]]:
    """Yield a function that returns, after the body, its peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    largest = resident_bytes()
    if largest is None:
        yield lambda: None
        return
    done = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.005):
            largest = max(largest or 0, resident_bytes() or 0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: max(largest or 0, resident_bytes() or 0)
    finally:
        done.set()
        watcher.join()


def most_bytes(device: torch.device) -> float:
    """The most memory in use so far (on CUDA since the last :func:`measured`); 0 where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def resident_bytes() -> int | None:
    """The current memory of the process in bytes; None if the system does not report it."""
    if not sys.platform.startswith("linux"):
        return None
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
