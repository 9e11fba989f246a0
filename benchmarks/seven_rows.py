"""Where the seven rows of Table 3 spend their time, and what one process for all of them saves:

    python -m benchmarks.seven_rows [--model smollm2-135m] [--dtype bfloat16] [--records 4]

Each row edits (but the first, which is the unedited model), evaluates, continues and takes the perplexity of the same
records.  Times are processor seconds of one thread.  A process for each row would import and load seven times.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import machine, write
from driftlens import MEMIT, PMET, ROME, SADR, load_model, load_records
from driftlens.data import load_texts
from driftlens.runs.work import Measures, Work


def row(model: Any, editor: Any, records: list[Any], texts: tuple[str, ...]) -> dict[str, float]:
    """Seconds by stage."""
    spent: dict[str, float] = defaultdict(float)
    last = time.process_time()

    def told(stage: str, *_: int) -> None:
        nonlocal last
        now = time.process_time()
        spent[stage] += now - last
        last = now

    work = Work(
        model=model,
        editor=editor,
        measures=Measures(perplexity_texts=texts),
        edit_batch=len(records),
        on_progress=told,
    )
    work.prepare()
    told("second moments and contexts")
    work(records)
    told("tables")
    return {stage: round(seconds, 2) for stage, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--data", default="merged_counterfact")
    parser.add_argument("--records", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model, device="cpu", dtype=options.dtype)
    beginning = time.process_time()  # of the process: imports and loading
    records, texts = load_records(options.data, limit=options.records), tuple(load_texts())
    rows = {"None": row(model, None, records, texts)}
    for method in (ROME, MEMIT, PMET):
        rows[method.__name__] = row(model, method.for_model(model), records, texts)
        rows[f"{method.__name__}+SADR"] = row(model, method.for_model(model, regularizers=(SADR(),)), records, texts)
    work = sum(sum(stages.values()) for stages in rows.values())
    stages = {
        stage: round(sum(each.get(stage, 0.0) for each in rows.values()), 2) for each in rows.values() for stage in each
    }

    def saved(count: int) -> float:
        own = work / len(records) * count
        return round((beginning + own) / (len(rows) * beginning + own), 3)

    result = {
        "model": options.model,
        "dtype": options.dtype,
        **machine(model.device),
        "records": len(records),
        "imports_and_loading": round(beginning, 2),
        "rows": rows,
        "stages": stages,
        "one_process_over_seven": {str(count): saved(count) for count in (len(records), 8, 50, 200)},
    }
    write(f"seven-rows-{Path(options.model).name}-cpu", result)


if __name__ == "__main__":
    main()
