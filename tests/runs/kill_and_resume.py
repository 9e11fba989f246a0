"""A run that is killed again and again, in a family of processes that imports and loads once.

    python -m tests.runs.kill_and_resume MODEL KILLS FOLDER

The first process loads the model and makes an undisturbed run.  Then it forks: every child runs the benchmark, in a
folder that the ones before it have begun, and is killed with SIGKILL at a random moment, until a child comes to the
end.  If that was before so many kills, it goes on in another folder.  Prints what happened as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from driftlens import ROME, load_model, load_records
from driftlens.runs import benchmark
from tests.runs.test_benchmark import RECORDS, TEXTS

TABLES = ("nlls", "records", "generations", "problems")


def main(name: str, kills: int, place: Path) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    model = load_model(name, device="cpu")
    records = load_records("demo", limit=6) if name == "demo" else RECORDS
    editor = ROME(layer=1, steps=3, contexts=("{}",), second_moment=torch.eye(model.d_mlp))

    def run(folder: Path) -> Any:
        return benchmark(model, records, editor, folder, perplexity_texts=TEXTS, shard_size=1, batch_size=16)

    start = time.perf_counter()
    expected = run(place / "undisturbed")
    each = (time.perf_counter() - start) / len(records)

    draw, killed, folders, left_over = random.Random(0), 0, 0, 0
    shards_at_kill: list[int] = []
    while killed < kills:
        folders += 1
        folder = place / str(folders)
        while True:
            child = os.fork()
            if not child:
                run(folder)
                os._exit(0)
            if killed < kills:
                time.sleep(draw.uniform(0, 1.6 * each))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if os.WIFSIGNALED(status):
                killed += 1
                shards_at_kill.append(len(list(folder.glob("shards/*.json"))))
                left_over += len(list(folder.glob("**/.driftlens-*")))
            elif os.WEXITSTATUS(status):
                raise SystemExit(f"a resumed run failed with {os.WEXITSTATUS(status)}")
            else:
                break
        before = (folder / "manifest.json").read_bytes()
        found = run(folder)
        assert (folder / "manifest.json").read_bytes() == before, "a finished run computes nothing"
        for table in TABLES:
            one, other = (getattr(of, table).drop(columns="seconds", errors="ignore") for of in (found, expected))
            pd.testing.assert_frame_equal(one, other, check_exact=True)
        assert sum(session["records"] for session in found.manifest["sessions"]) <= len(records)
    told = {"kills": killed, "folders": folders, "shards_at_kill": shards_at_kill, "begun_files": left_over}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
