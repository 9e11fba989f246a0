"""What editing costs: many facts at once against one by one, and SADR against plain ROME at equal steps.

    python benchmarks/editing.py [--model demo] [--facts 16] [--steps 20] [--rounds 3]

Every figure is a ratio of two timings taken in turn within one run, since machines are noisy; the median over rounds
is quoted. Peak memory is compared on CUDA only, whose allocator counts it.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from driftlens import ROME, SADR, load_model, load_records

RESULTS = Path(__file__).parent / "results"


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_bytes(work: Callable[[], object], device: torch.device) -> float:
    """Largest CUDA memory of one call; NaN elsewhere, where no allocator counts it."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--facts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    options = parser.parse_args()
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    facts = [record.fact for record in load_records(options.data, limit=options.facts)]

    def editor(*regularizers: SADR) -> ROME:
        # Never stopping early: both sides do the same number of steps. Clamped, so that equal steps stay comparable.
        settings = ROME.for_model(model, regularizers=regularizers)
        changes = {"steps": options.steps, "early_stop_loss": 0.0}
        return ROME.for_model(model, regularizers=regularizers, **changes, layer=settings.layer)

    plain, sadr = editor(), editor(SADR())
    plain.edit(model, facts[0])  # second moments, contexts, first-call costs
    sadr.edit(model, facts[0])
    together, alone, with_sadr = [], [], []
    for _ in range(options.rounds):
        together.append(timed(lambda: plain.edit_many(model, facts, batch_size=len(facts)), model.device))
        alone.append(timed(lambda: [plain.edit(model, fact) for fact in facts], model.device))
        with_sadr.append(timed(lambda: sadr.edit_many(model, facts, batch_size=len(facts)), model.device))
    memory = {
        name: peak_bytes(lambda one=one: one.edit_many(model, facts[:4], batch_size=4), model.device)
        for name, one in (("plain", plain), ("sadr", sadr))
    }
    result = {
        "model": options.model,
        "device": str(model.device),
        "dtype": str(model.dtype),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "facts": len(facts),
        "steps": options.steps,
        "rounds": options.rounds,
        "seconds_per_edit_together": statistics.median(together) / len(facts),
        "one_by_one_over_together": statistics.median(a / b for a, b in zip(alone, together, strict=True)),
        "sadr_over_plain": statistics.median(a / b for a, b in zip(with_sadr, together, strict=True)),
        "sadr_over_plain_peak_memory": memory["sadr"] / memory["plain"],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"editing-{Path(options.model).name}-{model.device.type}.json").write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
