"""What a trace costs: the grid of contaminating substitution against one forward pass for each cell.

    python benchmarks/trace_grid.py [--model demo | --shape gpt2] [--prompts 1] [--sample 60] [--rounds 3]

The other side of the comparison is what a plain loop does: a full pass with hooks for every cell, logits at every
position. Its time is measured on `--sample` cells, taken in turn with the grid since machines are noisy, and scaled to
all. Operations are counted by torch, for one cell's pass of the loop and for the whole grid. `--shape gpt2` is GPT-2
small with random weights, made on the spot: the cost of a pass does not ask what a model knows.
"""

import argparse
import json
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from driftlens import contaminating_substitution, load_model, load_records
from driftlens.analyses.substitution import MODULES
from driftlens.analyses.windows import default_window, window_layers
from driftlens.edits import Edit, LowRankUpdate
from driftlens.hooks import record, substitute
from driftlens.models import Batch, LensModel
from driftlens.models.names import DEMO_WEIGHTS

RESULTS = Path(__file__).parent / "results"
SITES = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}


def gpt2_shape(folder: Path) -> None:
    """A random GPT-2 small with the bundled model's tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_WEIGHTS / name, folder)


def random_edit(model: LensModel, layer: int) -> Edit:
    torch.manual_seed(0)
    left, right = torch.randn(model.d_mlp, 1) / model.d_mlp**0.5, torch.randn(1, model.d_model)
    return Edit(updates={layer: LowRankUpdate(left=left, right=right)})


class Loop:
    """One full pass for each cell of one prompt."""

    def __init__(self, model: LensModel, edit: Edit, prompt: str) -> None:
        self.model = model
        ids = torch.tensor([model.encode(prompt).ids], device=model.device)
        self.batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
        self.z: dict[tuple[str, int], Any] = {}
        keep = [
            (model.hook_name(site, layer), record(self.z, (module, layer)))
            for module, site in SITES.items()
            for layer in range(model.n_layers)
        ]
        with torch.no_grad():
            model.run(self.batch, hooks=[*edit.hooks(model), *keep])

    @torch.no_grad()
    def cell(self, module: str, token: int, layers: range) -> None:
        row, column = torch.tensor([0]), torch.tensor([token])
        hooks = [
            (self.model.hook_name(SITES[module], n), substitute(self.z[module, n][:, token], row, column))
            for n in layers
        ]
        self.model.unembed(self.model.run(self.batch, hooks=hooks))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def measure(model: LensModel, prompts: list[str], layer: int, options: argparse.Namespace) -> dict[str, Any]:
    window = 6 if model.n_layers >= 12 else default_window(model.n_layers)
    edit = random_edit(model, layer)
    loops = [Loop(model, edit, prompt) for prompt in prompts]
    cells = [
        (loop, module, token, window_layers(n, window, model.n_layers))
        for loop in loops
        for module in MODULES
        for token in range(loop.batch.shape[1])
        for n in range(model.n_layers)
    ]
    sample = random.Random(0).sample(cells, min(options.sample, len(cells)))
    # A target of one token: any token will do.
    target = model.tokenizer.decode([model.encode("a the").ids[-1]]).strip()

    def grid() -> None:
        contaminating_substitution(model, edit, prompts, target, MODULES, window, batch_size=options.batch_size)

    def loop() -> None:
        for own, *cell in sample:
            own.cell(*cell)

    loop()  # first-call costs
    grid()
    times = [(seconds(loop, model.device), seconds(grid, model.device)) for _ in range(options.rounds)]
    scale = len(cells) / len(sample)
    return {
        "edited_layer": layer,
        "window": window,
        "cells": len(cells),
        "tokens": [loop.batch.shape[1] for loop in loops],
        "grid_seconds": statistics.median(grid for _, grid in times),
        "loop_seconds": statistics.median(loop * scale for loop, _ in times),
        "loop_over_grid": statistics.median(loop * scale / grid for loop, grid in times),
        "grid_over_loop_operations": flops(grid) / (flops(loop) * scale),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--shape", choices=["gpt2"])
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--sample", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    options = parser.parse_args()
    prompts = [record.tasks["distract_neighborhood"][0].text for record in load_records(limit=options.prompts)]
    with tempfile.TemporaryDirectory() as folder:
        if options.shape:
            gpt2_shape(Path(folder))
        model = load_model(folder if options.shape else options.model, device=options.device, dtype=options.dtype)
    name = f"{options.shape}-shape" if options.shape else Path(options.model).name
    result = {
        "model": name,
        "device": str(model.device),
        "dtype": str(model.dtype),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        # The lowest layer saves nothing; an early-middle one is what editors edit.
        "grids": [measure(model, prompts, layer, options) for layer in (0, max(1, model.n_layers // 5))],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"trace_grid-{name}-{model.device.type}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
