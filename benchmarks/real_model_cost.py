"""What a real model costs on this machine's processor: `python -m benchmarks.real_model_cost`.

Processor seconds with one thread, which neighbours on the machine disturb less than wall time: loading with the
self-check; then, cold (the first of its kind in the process, one-time work included) and warm (the mean of the others),
an edit, an evaluated record, a traced prompt (MLP and attention), each on facts of `load_records("real")`.
"""

import argparse
import json
import platform
from collections.abc import Callable
from typing import Any

import torch
from measuring import RESULTS, seconds

from driftlens import ROME, contaminating_substitution, evaluate, load_model, load_records

CPU = torch.device("cpu")
MODULES = ("mlp", "attn")


def timed(work: Callable[[], object]) -> float:
    return seconds(work, CPU)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--warm", type=int, default=2, help="how many more of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept: dict[str, Any] = {}
    loading = timed(lambda: kept.update(model=load_model(options.model, device="cpu")))
    model = kept["model"]
    records = load_records("real")[: 1 + options.warm]
    editor, edits = ROME.for_model(model), []
    edit = [timed(lambda record=record: edits.append(editor.edit(model, record.fact))) for record in records]
    evaluated = [
        timed(lambda record=record, made=made: evaluate(model, record, made))
        for record, made in zip(records, edits, strict=True)
    ]

    def trace(record: Any, made: Any) -> None:
        prompt = record.tasks["distract_neighborhood"][0]
        contaminating_substitution(model, made.edit, prompt, (prompt.target_true, prompt.target_new), MODULES)

    traced = [
        timed(lambda record=record, made=made: trace(record, made)) for record, made in zip(records, edits, strict=True)
    ]
    prompts = [sum(map(len, record.tasks.values())) for record in records]
    told = {
        "model": model.source,
        "processor": platform.processor() or platform.machine(),
        "unit": "processor seconds, one thread, float32",
        "loading": round(loading, 1),
        "edit": _both(edit) | {"steps": [len(made.history) for made in edits]},
        "evaluated record": _both(evaluated) | {"prompts": prompts},
        "traced prompt": _both(traced) | {"modules": list(MODULES)},
    }
    (RESULTS / f"real-model-cost-{options.model}-cpu.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


def _both(times: list[float]) -> dict[str, Any]:
    return {"cold": round(times[0], 1), "warm": round(sum(times[1:]) / max(1, len(times) - 1), 1)}


if __name__ == "__main__":
    main()
