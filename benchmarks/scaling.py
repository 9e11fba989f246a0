"""Cost against size: an edit's time and operations as facts, contexts and layers above the edit double.

    python -m benchmarks.scaling [--model demo] [--steps 6] [--rounds 3] [--most 16]

For each of the three the exponent b of cost ∝ size^b is fitted by least squares on logarithms: 1 is proportional, below
1 means that much is shared.  Layers are doubled by editing lower and lower ones, so what grows is what a step runs.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import in_turn, machine, median, operations, write
from driftlens import ROME, load_model, load_records


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b of the power law through the points."""
    return round(float(np.polyfit(np.log(sizes), np.log(costs), 1)[0]), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=16, help="facts and contexts at most")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    options = parser.parse_args()
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    facts = [record.fact for record in load_records(options.data, limit=options.most)]
    words = "a b c d e f g h i j k l m n o p q r s t u v w x y z".split()
    contexts = tuple(f"{word} text. {{}}" for word in words[: options.most])

    def edit(n_facts: int, n_contexts: int, layers: int) -> Callable[[], object]:
        editor = ROME.for_model(
            model,
            layer=model.n_layers - 1 - layers,
            steps=options.steps,
            contexts=contexts[:n_contexts],
            second_moment=torch.eye(model.d_mlp),
            early_stop_loss=-math.inf,
        )
        return lambda: editor.edit_many(model, facts[:n_facts], batch_size=n_facts)

    doubled = [2**k for k in range(int(math.log2(options.most)) + 1)]
    above = [2**k for k in range(int(math.log2(model.n_layers - 1)) + 1)]
    series = {
        "facts": {size: edit(size, 4, above[-1]) for size in doubled},
        "contexts": {size: edit(2, size, above[-1]) for size in doubled},
        "layers": {size: edit(2, 4, size) for size in above},
    }
    found: dict[str, Any] = {}
    for name, works in series.items():
        next(iter(works.values()))()  # first-call costs
        times = in_turn({str(size): work for size, work in works.items()}, options.rounds, model.device)
        sizes = list(works)
        cost = {kind: [median(times, str(size))[kind] for size in sizes] for kind in ("wall", "processor")} | {
            "operations": [operations(works[size]) for size in sizes]
        }
        found[name] = {
            "sizes": sizes,
            **cost,
            "exponents": {kind: exponent(sizes, values) for kind, values in cost.items()},
        }
    settings = {"model": Path(options.model).name, "steps": options.steps, "rounds": options.rounds}
    write(f"scaling-{settings['model']}-{model.device.type}", {**settings, **machine(model.device), "found": found})


if __name__ == "__main__":
    main()
