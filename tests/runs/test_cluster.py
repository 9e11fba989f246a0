"""Runs spread over Ray workers give the tables of one process, also when a worker is killed."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from driftlens import ROME, DriftlensError
from driftlens.data import Fact
from driftlens.edits import EditResult
from driftlens.runs import BenchmarkResult, Measures, Recipe, benchmark, cluster_benchmark
from tests.runs.test_benchmark import RECORDS, TEXTS, assert_same
from tests.support.places import ROOT
from tests.support.tiny import BRIDGE, load_tiny

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(not BRIDGE, reason="workers load their model by name, which needs transformer-lens 4.3")

MEASURES = Measures(perplexity_texts=TEXTS, seed=3)


class Slow(ROME):
    """Slow enough that there is a middle of a shard."""

    def edit_many(self, model: Any, facts: Sequence[Fact], **options: Any) -> list[EditResult]:
        time.sleep(2 if facts else 0)
        return super().edit_many(model, facts, **options)


def settings(model: Any) -> dict[str, Any]:
    moment = torch.eye(model.d_mlp, dtype=torch.float64)
    return {"layer": 1, "steps": 3, "contexts": ("{}",), "second_moment": moment, "early_stop_loss": -math.inf}


@pytest.fixture(scope="module")
def folder(checkpoints: Any) -> Path:
    return checkpoints("gpt2")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_tiny(folder)


@pytest.fixture(scope="module")
def result(model: Any, tmp_path_factory: pytest.TempPathFactory) -> BenchmarkResult:
    place = tmp_path_factory.mktemp("one process")
    editor = ROME(**settings(model))
    return benchmark(model, RECORDS, editor, place, perplexity_texts=TEXTS, seed=3, shard_size=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One that runs already, as on a lab's machines; each test joins it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # The workers find the classes of this file as the tests do.
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield ray
    ray.shutdown()


def recipe(folder: Path, editor: ROME | None, **changes: Any) -> Recipe:
    return Recipe(**{"model": str(folder), "editor": editor, "measures": MEASURES, "device": "cpu"} | changes)


def test_two_workers_give_the_table_of_one_process_also_when_one_is_killed(
    cluster: Any, folder: Path, model: Any, result: BenchmarkResult, tmp_path: Path
):
    psutil = pytest.importorskip("psutil")
    killed: list[int] = []
    seen: list[int] = []

    def kill_one() -> None:
        """The first worker that is found in the middle of a shard."""
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                try:
                    busy = "ray::Worker.shard" in " ".join(process.cmdline())
                except psutil.Error:
                    continue
                if busy:
                    time.sleep(0.5)
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
                    return
            time.sleep(0.1)

    watcher = threading.Thread(target=kill_one)
    watcher.start()
    # ROME by another name: the manifest names the class, so this run is not mixed with the other.
    found = cluster_benchmark(
        recipe(folder, Slow(**settings(model))),
        RECORDS,
        tmp_path,
        workers=2,
        shard_size=1,
        on_progress=lambda _, done, __: seen.append(done),
    )
    watcher.join()
    assert killed
    assert seen == [1, 2, 3, 4, 5]
    assert_same(found, result, tolerance=1e-5)
    assert found.manifest["sessions"][0]["workers"] == 2


def test_a_run_is_begun_by_one_process_and_ended_by_workers(
    cluster: Any, folder: Path, model: Any, result: BenchmarkResult, tmp_path: Path
):
    editor = ROME(**settings(model))

    def stop(done: int, *_: object) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark(model, RECORDS, editor, tmp_path, perplexity_texts=TEXTS, seed=3, shard_size=1, on_shard=stop)
    seen: list[bool] = []
    found = cluster_benchmark(
        recipe(folder, editor), RECORDS, tmp_path, workers=1, on_shard=lambda *shard: seen.append(shard[-1])
    )
    assert seen == [True, True, True, False, False]
    assert_same(found, result, tolerance=1e-5)
    # What is wrong is told as it is without workers.
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"edit_batch": 2, "editor": replace(editor, layer=9)}, "^layer 9 is out of range"),
        ({"editor": replace(editor, lr=0.4)}, "holds another run: editor.lr is 0.5 there and 0.4 here"),
        ({"device": "cuda"}, "^device is 'cuda', but the cluster has no GPU"),
        ({"device": "cuda:1"}, "^device is 'cuda:1', but Ray gives"),
    ]
    for changes, said in mistakes:
        with pytest.raises(DriftlensError, match=said):
            cluster_benchmark(recipe(folder, changes.pop("editor", editor), **changes), RECORDS, tmp_path, workers=1)
    with pytest.raises(DriftlensError, match="3 workers but the cluster has 2 cores"):
        cluster_benchmark(recipe(folder, editor), RECORDS, tmp_path, workers=3)


def test_without_ray_the_way_to_get_it_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DriftlensError, match=r"pip install 'driftlens\[cluster\]'"):
        cluster_benchmark(recipe(folder, None), RECORDS, tmp_path / "run", workers=2)
    assert not (tmp_path / "run").exists()
