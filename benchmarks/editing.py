"""What SADR costs: the same edits with and without it, at equal steps, in time and in memory.

    python -m benchmarks.editing [--model demo] [--facts 16] [--steps 20] [--rounds 5]

The paper reports 9.65 s with SADR after 7.80 s without (1.24×).  Peak memory is CUDA's allocator's, or
on a CPU what the storages of all tensors at hand add up to, which no run changes.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import in_turn, machine, median, operations, peak_bytes, ratio, write
from driftlens import ROME, SADR, load_model, load_records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--facts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layer", type=int)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    options = parser.parse_args()
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    facts = [record.fact for record in load_records(options.data, limit=options.facts)]

    def editor(*regularizers: SADR) -> ROME:
        # Never stopping early: both sides do the same number of steps.
        changes: dict[str, Any] = {"steps": options.steps, "early_stop_loss": -math.inf, "regularizers": regularizers}
        if options.layer is not None:
            changes["layer"] = options.layer
        if options.model != "demo":
            changes["second_moment"] = torch.eye(model.d_mlp)
        return ROME.for_model(model, **changes)

    sides = {"without": editor(), "with": editor(SADR())}
    for each in sides.values():  # second moments, contexts, first-call costs
        each.edit(model, facts[0])
    works = {
        name: lambda each=each: each.edit_many(model, facts, batch_size=len(facts)) for name, each in sides.items()
    }
    times = in_turn(works, options.rounds, model.device)
    # Every step is like the first two: forward, backward, and what is kept of the vanilla model.
    short = {name: replace(each, steps=3) for name, each in sides.items()}
    few = {name: lambda each=each: each.edit_many(model, facts, batch_size=len(facts)) for name, each in short.items()}
    memory = {name: peak_bytes(work, model.device) for name, work in few.items()}
    counted = {name: operations(work) for name, work in few.items()}
    result = {
        "model": Path(options.model).name,
        "dtype": str(model.dtype),
        **machine(model.device),
        "facts": len(facts),
        "steps": options.steps,
        "rounds": options.rounds,
        "seconds_per_edit": {name: median(times, name)["wall"] / len(facts) for name in sides},
        "sadr_over_plain": ratio(times, "with", "without"),
        "sadr_over_plain_operations": counted["with"] / counted["without"],
        "peak_megabytes": {name: round(size / 1e6, 2) for name, size in memory.items()},
        "sadr_over_plain_peak_memory": memory["with"] / memory["without"],
    }
    write(f"editing-{Path(options.model).name}-{model.device.type}", result)


if __name__ == "__main__":
    main()
