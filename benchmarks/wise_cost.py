"""What an edit by WISE costs beside one by ROME: time, floating-point operations and memory, of one fact.

    python -m benchmarks.wise_cost [--model demo] [--dtype bfloat16] [--rounds 2]

Each editor has the model's own preset and runs all of its steps; ROME's second moment is given.  Peak memory is what
the storages of all tensors at hand add up to, over three steps, which are like all others.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.measuring import in_turn, machine, median, operations, peak_bytes, ratio, write
from driftlens import ROME, SADR, WISE, load_model, load_records


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    fact = load_records("demo" if options.model == "demo" else "real")[0].fact
    given: dict[str, Any] = {"second_moment": torch.eye(model.d_mlp)}
    sides: dict[str, Any] = {
        "ROME": ROME.for_model(model, **given),
        "WISE": WISE.for_model(model),
        "WISE + SADR": WISE.for_model(model, regularizers=(SADR(),)),
    }
    sides = {name: replace(editor, early_stop_loss=-math.inf) for name, editor in sides.items()}
    short = {name: replace(editor, steps=3) for name, editor in sides.items()}
    sizes: dict[str, int] = {}
    for name, editor in short.items():  # contexts and first-call costs, too
        with TemporaryDirectory() as folder:
            path = Path(folder) / "edit.safetensors"
            editor.edit(model, fact).edit.save(path)
            sizes[name] = path.stat().st_size
    memory = {name: peak_bytes(lambda each=each: each.edit(model, fact), model.device) for name, each in short.items()}
    counted = {name: operations(lambda each=each: each.edit(model, fact)) for name, each in short.items()}
    times = in_turn(
        {name: lambda each=each: each.edit(model, fact) for name, each in sides.items()}, options.rounds, model.device
    )
    result = {
        "model": model.name,
        "dtype": str(model.dtype),
        **machine(model.device),
        "rounds": options.rounds,
        "steps": {name: editor.steps for name, editor in sides.items()},
        "layer": {name: editor.layer for name, editor in sides.items()},
        "contexts": {name: len(editor.contexts_for(model)) for name, editor in sides.items()},
        "seconds_per_edit": {name: median(times, name) for name in sides},
        "wise_over_rome": ratio(times, "WISE", "ROME"),
        "sadr_over_wise": ratio(times, "WISE + SADR", "WISE"),
        "operations_of_three_steps": counted,
        "peak_megabytes": {name: round(size / 1e6, 2) for name, size in memory.items()},
        "file_kilobytes": {name: round(size / 1e3, 1) for name, size in sizes.items()},
    }
    write(f"wise-cost-{model.title.lower()}-{model.device.type}", result)


if __name__ == "__main__":
    main()
