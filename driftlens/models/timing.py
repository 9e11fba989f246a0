"""What a piece of work takes on this machine: its seconds, its memory, and what a pass costs besides its tokens.

Memory is the most that CUDA's allocator held meanwhile; elsewhere the most the process grew to, sampled while the work
ran, where the system tells it.
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
"""The tokens of a row, and at most so many rows, in passes that tell what a pass costs."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase: its seconds, the most memory it held in bytes (None where nobody tells), and what they are for."""

    name: str
    seconds: float
    peak_bytes: int | None
    per: str


def measured(name: str, work: Callable[[], object], device: torch.device, *, per: str, share: int = 1) -> Phase:
    """One call of ``work`` as a phase; ``share`` divides its seconds, e.g. by the number of records in it."""
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
    """What a pass costs on this machine besides its tokens, in tokens: what ``model.pass_cost`` should be.

    A pass over one short row is timed beside passes over more and more of them, until one takes three times as long; on
    a line through the two, the cost is what stands at no token.  The quickest of five passes counts: what else the
    machine does can only add to it.
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
    """The cost of a pass in tokens, from the seconds of passes over ``few`` and ``many`` tokens; ``many`` at most."""
    per_token = (more - one) / (many - few)
    return min(many, max(0, round(one / per_token - few))) if per_token > 0 else many


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _peak_memory(device: torch.device) -> Generator[Callable[[], int | None]]:
    """A function that tells, after the body, the most memory that was held while it ran."""
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
    """What the process holds in memory now; None where the system does not say."""
    if not sys.platform.startswith("linux"):
        return None
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
