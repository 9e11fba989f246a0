"""How the benchmarks measure: the sides of a comparison in turn within one run, wall and processor time side by side.

Machines are noisy and shared.  A ratio of two timings taken one after the other, the median over rounds, survives a
slow hour; processor time survives a neighbour; counted operations survive both.
"""

import json
import os
import platform
import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

RESULTS = Path(__file__).parent / "results"


def seconds(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, own = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - own


def in_turn(sides: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[Any]]:
    """(wall, processor) seconds of every side, `rounds` times in turn."""
    times: dict[str, list[Any]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            times[name].append(seconds(work, device))
    return times


def ratio(times: Mapping[str, list[Any]], slow: str, fast: str, scale: float = 1.0) -> dict[str, float]:
    """`slow` over `fast`, round by round, the median; `scale` where one side did only a part of the work."""
    pairs = list(zip(times[slow], times[fast], strict=True))
    return {
        "wall": round(scale * statistics.median(s[0] / f[0] for s, f in pairs), 4),
        "processor": round(scale * statistics.median(s[1] / f[1] for s, f in pairs), 4),
    }


def median(times: Mapping[str, list[Any]], name: str) -> dict[str, float]:
    return {
        kind: round(statistics.median(each[at] for each in times[name]), 4)
        for at, kind in enumerate(("wall", "processor"))
    }


def matrix_product_peak(dtype: torch.dtype, device: torch.device, size: int = 2048, rounds: int = 5) -> float:
    """Floating-point operations per processor second of large square matrix products, the median; of all threads."""
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(one, other)
    times = [seconds(lambda: torch.mm(one, other), device)[1] for _ in range(rounds)]
    return 2 * size**3 / statistics.median(times)


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most that tensors made by `work` hold at once: by CUDA's allocator; elsewhere storages of tensors that
    torch's operations return, from then until they are freed, which is the same at every count.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _Storages() as storages:
        work()
    return storages.peak


class _Storages(TorchDispatchMode):
    """Counts the bytes of storages that came to be under it, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):  # weights and what else was there before
            if isinstance(given, torch.Tensor):
                self._see(given.untyped_storage(), counted=False)
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor):
                self._see(made.untyped_storage(), counted=True)
        return result

    def _see(self, storage: Any, *, counted: bool) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        size = storage.nbytes() if counted else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, storage._cdata, size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def machine(device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


def write(name: str, result: Mapping[str, Any], *, keep: bool = True) -> None:
    """Print a result, and keep it among the results but for a trial."""
    text = json.dumps(result, indent=2) + "\n"
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(text)
    print(text, end="")
