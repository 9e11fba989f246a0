"""What the figures cost at GPT-J's size: every measurement behind them, in seconds per record, on a GPU.

    python -m benchmarks.experiments_gptj_shape [--records 8] [--device cuda] [--dtype bfloat16] [--folder DIR]

The model is GPT-J-6B with random weights and the bundled model's tokenizer, made on the spot (12 GB on disk): what a
pass costs does not ask what a model knows. The figures are written as well, to see that they come out. `--layers` and
`--width` make it smaller, to try the script without a GPU.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from driftlens.models.names import DEMO_WEIGHTS
from experiments import measurements
from experiments.all import ARTIFACTS
from experiments.command import ArtifactRecipe, make_one
from experiments.correlations import TASKS
from experiments.figure11 import TASKS as AWD_TASKS
from experiments.figure11 import awd_records
from experiments.options import Options
from experiments.study import open_study

RESULTS = Path(__file__).parent / "results"


def gptj_shape(folder: Path, device: str, dtype: torch.dtype, layers: int, width: int) -> None:
    """GPT-J's configuration is the class's default one; drawn on the device, where it takes moments."""
    from transformers import GPTJConfig, GPTJForCausalLM

    config = GPTJConfig(n_layer=layers, n_embd=width, n_head=max(1, width // 256), dtype=dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = GPTJForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_WEIGHTS / name, folder)


def measure(options: Options, folder: Path) -> dict[str, Any]:
    errors = Console(stderr=True)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any], per: int = 1) -> Any:
        start = time.perf_counter()
        result = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds[name] = (time.perf_counter() - start) / per
        errors.print(f"{name}: {seconds[name]:.2f} s", markup=False)
        return result

    with open_study(options, errors) as study:
        model = timed("load and check", lambda: study.model)
        timed("second moment", lambda: study.editor)
        records = study.records_of(TASKS[0])
        n = len(records)
        timed("edit, per record", lambda: study.edits(records), n)
        for task in TASKS:
            timed(f"trace {task}, per record", lambda task=task: measurements.trace(study, task), n)
            timed(f"patch attention {task}, per record", lambda task=task: measurements.attention_patch(study, task), n)
            timed(f"patch scores {task}, per record", lambda task=task: measurements.score_patch(study, task), n)
            timed(f"drift {task}, per record", lambda task=task: measurements.drift(study, task), n)
        facts = awd_records(study)
        timed("edit with ROME-AWD, per record", lambda: study.edits(facts, detached=True), len(facts))
        timed("evaluate, per record", lambda: measurements.evaluations(study, facts, AWD_TASKS), len(facts))
        # Not the benchmark's tables: those are long runs, which the benchmarks of editing and evaluation time.
        figures = {name: make for name, make in ARTIFACTS.items() if not isinstance(make, ArtifactRecipe)}
        for name, make in figures.items():
            timed(f"the rest of {name}", lambda name=name, make=make: make_one(study, name, make, errors, errors))
        on_gpu = model.device.type == "cuda"
        return {
            "model": f"GPT-J shape, {model.n_layers} layers, width {model.d_model}, random weights",
            "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "records": n,
            "options": {key: value for key, value in asdict(options).items() if key not in ("model", "out")},
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "figures": sorted(path.name for path in folder.glob("*.html")),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=3000, help="texts for the second moment")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--folder", help="for the checkpoint, the cache and the figures; default: a temporary one")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as place:
        folder = Path(place)
        os.environ["DRIFTLENS_CACHE"] = str(folder / "cache")  # nothing may be there already
        checkpoint = folder / "gpt-j-6b"  # by its name it gets GPT-J's preset
        gptj_shape(checkpoint, chosen.device, getattr(torch, chosen.dtype), chosen.layers, chosen.width)
        options = Options(
            model=str(checkpoint),
            data="demo",
            corpus="demo",
            samples=chosen.samples,
            records=chosen.records,
            device=chosen.device,
            dtype=chosen.dtype,
            batch_size=chosen.batch_size,
            layers=None if chosen.layers > 8 else (1,),
            out=str(folder / "figures"),
            png=False,
        )
        result = measure(options, folder / "figures")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"experiments-gptj-shape-{chosen.device.split(':')[0]}.json"
    if chosen.layers == 28 and chosen.width == 4096:
        path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
