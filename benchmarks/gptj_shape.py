"""What edits, traces and evaluations cost at GPT-J's size, on a GPU, with one command:

    python -m benchmarks.gptj_shape [--device cuda] [--dtype bfloat16]

The model is GPT-J-6B with random weights and the bundled model's tokenizer, made on the device: what a pass costs does
not ask what a model knows.  Measured are seconds per ROME edit with and without SADR, at 20 and at 80 steps, for 1, 4
and 16 facts side by side; the trace grid, the evaluation and the generation of a record; peak memory; and, from at
least 32 records edited with ROME + SADR (80 steps), evaluated and continued, the time of Table 3's GPT-J row of 1,678
records.  The paper's figures for its own code on an A100: 7.80 s an edit, 9.65 s with SADR.

`--layers 2 --width 512 --records 2 --steps 2 3` tries the script out on a CPU; nothing is written then.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments_gptj_shape import gptj_shape
from benchmarks.measuring import machine, seconds, write
from driftlens import ROME, SADR, contaminating_substitution, evaluate, load_model, load_records
from driftlens.analyses.windows import default_window
from driftlens.data import Record
from driftlens.edits import Edit
from driftlens.evaluation import continuations
from driftlens.models import LensModel

TABLE = 1678
GOALS = {"seconds_per_edit": 2.0, "table_hours": 1.0}


def timed(work: Any, device: torch.device) -> tuple[float, float | None]:
    """Seconds, and peak memory in GB on CUDA."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    wall, _ = seconds(work, device)
    return round(wall, 3), torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def told(result: dict[str, Any]) -> None:
    """Print a result at once: the benchmark takes minutes, and an interrupted one would lose all of them."""
    sys.stderr.write(json.dumps(result) + "\n")
    sys.stderr.flush()


def measure(model: LensModel, records: list[Record], options: argparse.Namespace) -> dict[str, Any]:
    moment = torch.eye(model.d_mlp, device=model.device)

    def editor(steps: int, *, sadr: bool) -> ROME:
        # Random weights never converge: every edit makes all its steps, the most that an edit can cost.
        return ROME.for_model(
            model,
            layer=options.layer,
            steps=steps,
            second_moment=moment,
            early_stop_loss=-math.inf,
            regularizers=(SADR(),) if sadr else (),
        )

    facts = [record.fact for record in records]
    edits: list[Edit] = [r.edit for r in editor(2, sadr=True).edit_many(model, facts)]  # contexts, first-call costs
    found: dict[str, Any] = {"edits": []}
    for steps in options.steps:
        for sadr in (False, True):
            own = editor(steps, sadr=sadr)
            for count in (1, 4, 16):
                chosen = facts[:count]
                wall, peak = timed(lambda own=own, chosen=chosen: own.edit_many(model, chosen), model.device)
                each = wall / len(chosen)
                found["edits"].append(
                    {"steps": steps, "sadr": sadr, "facts": len(chosen), "seconds_per_edit": each, "peak_gb": peak}
                )
                told(found["edits"][-1])

    prompts = [record.tasks["distract_neighborhood"][0] for record in records[:2]]
    targets = [(prompt.target_true, prompt.target_new) for prompt in prompts]
    window = default_window(model.n_layers)

    def trace() -> None:
        contaminating_substitution(model, edits[:2], prompts, targets, ("resid", "mlp", "attn"), window, batch_size=512)

    for name, work, share in (
        ("trace", trace, len(prompts)),
        ("evaluation", lambda: evaluate(model, records, edits, batch_size=256), len(records)),
        ("generation", lambda: continuations(model, records, edits, batch_size=256), len(records)),
    ):
        wall, peak = timed(work, model.device)
        found[name] = {"seconds_per_record": wall / share, "peak_gb": peak}
        told({name: found[name]})

    own = editor(max(options.steps), sadr=True)

    def row() -> None:
        made = [result.edit for result in own.edit_many(model, facts)]
        evaluate(model, records, made, batch_size=256)
        continuations(model, records, made, batch_size=256)

    wall, peak = timed(row, model.device)
    found["table_row"] = {
        "measured_records": len(records),
        "seconds_per_record": wall / len(records),
        "hours_of_1678_records": wall / len(records) * TABLE / 3600,
        "peak_gb": peak,
    }
    with_sadr = [e for e in found["edits"] if e["sadr"] and e["steps"] == max(options.steps)]
    best = min(each["seconds_per_edit"] for each in with_sadr)
    found["goals"] = {
        "seconds_per_edit": {"goal": GOALS["seconds_per_edit"], "here": best},
        "table_hours": {"goal": GOALS["table_hours"], "here": found["table_row"]["hours_of_1678_records"]},
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 80])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--folder", help="for the checkpoint (12 GB); default: a temporary one")
    options = parser.parse_args()
    whole = options.layers == 28 and options.width == 4096
    options.layer = 5 if options.layers > 8 else 0
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        os.environ["DRIFTLENS_CACHE"] = str(Path(place) / "cache")
        checkpoint = Path(place) / "gpt-j-6b"  # by its name it gets GPT-J's preset
        gptj_shape(checkpoint, options.device, getattr(torch, options.dtype), options.layers, options.width)
        model = load_model(checkpoint, device=options.device, dtype=options.dtype)
        result = {
            "model": f"GPT-J's shape, {model.n_layers} layers, width {model.d_model}, random weights",
            "dtype": str(model.dtype).removeprefix("torch."),
            **machine(model.device),
            **measure(model, load_records("demo", limit=options.records), options),
        }
    write(f"gptj-shape-{model.device.type}", result, keep=whole)


if __name__ == "__main__":
    main()
