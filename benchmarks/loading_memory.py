"""Memory that `load_model` takes, over the size of the weights: `python -m benchmarks.loading_memory MODEL...`

Each model is loaded in a process of its own, with everything imported before.  Two figures are read from Linux: the
peak of what the process holds, which includes pages of the checkpoint's file that the system may drop at any time; and
the peak of what belongs to no file (`RssAnon`), where a converted copy of the weights counts 1 and a second one 2.
"""

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import write


def held(line: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(each.split()[1]) for each in status if each.startswith(line))


def growth(work: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """What `work` returns, and how far each figure rose above where it was, at its peak."""
    lines = ("VmRSS", "RssAnon")
    before = {line: held(line) for line in lines}
    peak, done = dict(before), threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak.update({line: max(peak[line], held(line)) for line in lines})

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        result = work()
    finally:
        done.set()
        watcher.join()
    return result, {line: max(peak[line], held(line)) - before[line] for line in lines}


def one(name: str, dtype: str, *, check: bool) -> dict[str, Any]:
    import torch
    import transformer_lens  # noqa: F401 (imports are no part of loading)
    from transformers import GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401

    import driftlens.models.bridge  # noqa: F401
    from driftlens import load_model

    torch.set_num_threads(1)
    model, grown = growth(lambda: load_model(name, dtype=dtype, device="cpu", check=check))
    weights = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for _, tensor in model.named_weights()}
    size = sum(weights.values())
    return {
        "model": Path(name).name,
        "dtype": dtype,
        "self_check": check,
        "weights_mb": round(size / 1e6, 1),
        "peak_over_weights": round(grown["VmRSS"] / size, 2),
        "peak_of_no_file_over_weights": round(grown["RssAnon"] / size, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--no-check", dest="check", action="store_false", help="without the self-check's passes")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.models[0], options.dtypes[0], check=options.check)))
        return
    found: list[Any] = []
    for name in options.models:
        for dtype in options.dtypes:
            more = [] if options.check else ["--no-check"]
            command = [sys.executable, "-m", "benchmarks.loading_memory", name, "--dtypes", dtype, "--one", *more]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(told.splitlines()[-1]))
    write("loading-memory-cpu", {"found": found})


if __name__ == "__main__":
    main()
