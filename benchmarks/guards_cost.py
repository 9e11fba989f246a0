"""What guards cost beside SADR: time and floating-point operations of an edit, at equal steps.

    python -m benchmarks.guards_cost [--model demo] [--dtype bfloat16] [--steps 10] [--rounds 3]

ROME with the model's preset, its second moment given, on one fact; every editor runs all of its steps.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.measuring import in_turn, machine, median, operations, ratio, write
from driftlens import ROME, SADR, GuardedSADR, load_model, load_records

SUBJECTS = ("Zorblax", "Quillmere")
"""Of guards behind the edited statement; any two names cost the same."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    fact = load_records(options.data)[0].fact
    fixed: dict[str, Any] = {
        "second_moment": torch.eye(model.d_mlp),
        "steps": options.steps,
        "early_stop_loss": -math.inf,
    }
    restraints = {"ROME": (), "ROME + SADR": (SADR(),), "ROME + guards": (GuardedSADR(subjects=SUBJECTS),)}
    sides = {name: ROME.for_model(model, regularizers=own, **fixed) for name, own in restraints.items()}
    for editor in sides.values():  # contexts, guards and first-call costs, too
        editor.edit(model, fact)
    counted = {name: operations(lambda each=each: each.edit(model, fact)) for name, each in sides.items()}
    times = in_turn(
        {name: lambda each=each: each.edit(model, fact) for name, each in sides.items()}, options.rounds, model.device
    )
    result = {
        "model": model.name,
        "dtype": str(model.dtype),
        **machine(model.device),
        "rounds": options.rounds,
        "steps": options.steps,
        "contexts": len(sides["ROME"].contexts_for(model)),
        "guards": len(GuardedSADR(subjects=SUBJECTS).prompts(model, [fact])[0]),
        "seconds_per_edit": {name: median(times, name) for name in sides},
        "sadr_over_rome": ratio(times, "ROME + SADR", "ROME"),
        "guards_over_sadr": ratio(times, "ROME + guards", "ROME + SADR"),
        "operations": counted,
        "guards_over_sadr_operations": round(counted["ROME + guards"] / counted["ROME + SADR"], 3),
    }
    write(f"guards-cost-{model.title.lower()}-{model.device.type}", result)


if __name__ == "__main__":
    main()
