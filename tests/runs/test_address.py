"""`driftlens evaluate --address`: a real cluster of two nodes that runs already is joined, and outlived."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from driftlens import DriftlensError
from driftlens.commands.evaluate import main
from driftlens.editors import open_corpus
from driftlens.models.names import everywhere
from driftlens.options.program import run_command
from driftlens.runs import Measures, Recipe
from driftlens.runs.cluster import Worker
from driftlens.runs.connection import share
from tests.runs.test_benchmark import RECORDS
from tests.support.tiny import BRIDGE

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(not BRIDGE, reason="workers load their model by name, which needs transformer-lens 4.3")


class Nodes:
    """What `share` asks of Ray."""

    def __init__(self, *machines: dict[str, float]) -> None:
        self.machines = machines

    def nodes(self) -> list[dict[str, Any]]:
        dead = {"Alive": False, "Resources": {}}
        return [*({"Alive": True, "Resources": machine} for machine in self.machines), dead]


@pytest.mark.parametrize(
    ("machines", "workers", "count", "cores"),
    [
        ([{"CPU": 16}, {"CPU": 16}], None, 2, 16),
        ([{"CPU": 16}, {"CPU": 16}], 4, 4, 8),
        ([{"CPU": 2}, {"CPU": 64}], 2, 2, 32),  # never 33, for which there is one place only
        ([{"CPU": 2}, {"CPU": 64}], None, 2, 32),
        ([{"CPU": 0}, {"CPU": 6}, {"CPU": 6}], None, 2, 6),  # a head that only conducts
        ([{"CPU": 3}], 3, 3, 1),
    ],
)
def test_every_worker_finds_a_place(machines: list[dict[str, float]], workers: int | None, count: int, cores: int):
    assert share(Nodes(*machines), None, workers) == (count, {"num_gpus": 0, "num_cpus": cores}, "cpu")
    assert sum(machine["CPU"] // cores for machine in machines) >= count


def test_a_gpu_for_each_worker():
    machines = Nodes({"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1})
    assert share(machines, None, None) == (3, {"num_gpus": 1, "num_cpus": 1}, "cuda")
    with pytest.raises(DriftlensError, match="4 workers but 3 GPUs"):
        share(machines, "cuda", 4)


def silent() -> Iterator[str]:
    """A port where something listens and says nothing of Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_wrong_address_is_one_line_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Ray itself tries for minutes and then ends the process."""
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"127.0.0.1:{server.getsockname()[1]}"
    other: Any = silent()
    for address, said in (
        (nobody, "Connection refused"),
        (next(other), "what listens there is not Ray"),
        ("no-such-machine.invalid:6379", "ray start --head"),
        ("http://127.0.0.1:8265", "ray start --head"),
    ):
        start = time.monotonic()
        status = run_command(main, ["--editor", "none", "--limit", "1", "--address", address, "--out", "out"])
        assert time.monotonic() - start < 15
        assert status == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line
        assert f"a Ray cluster at {address}:" in line
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_machine_lacks_names_the_machine(checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each worker loads its model where it runs."""
    monkeypatch.setattr("driftlens.runs.cluster.ray_module", lambda: type("", (), {"get": staticmethod(list)}))
    machine = socket.gethostname()
    missing = Recipe(model=str(tmp_path / "model"), editor=None, measures=Measures(generate=False), device="cpu")
    with pytest.raises(DriftlensError, match=rf"there is no such folder.* \(on {machine}\)$"):
        Worker().begin([missing], RECORDS)
    there = Recipe(model=str(checkpoints("gpt2")), editor=None, measures=Measures(generate=False), device="cpu")
    one = Worker()
    one.begin([there], RECORDS)
    version, expected, editor = one.made([there])
    with pytest.raises(DriftlensError, match=r"is another model than on the first worker's machine"):
        Worker().prepared([there, (version, "another", editor)])
    with pytest.raises(DriftlensError, match=rf"{machine} has driftlens .* the first worker's machine 0\.0"):
        Worker().prepared([there, ("0.0", expected, editor)])
    assert Worker().prepared([there, (version, expected, editor)])


@pytest.mark.slow
def test_a_running_cluster_is_joined_and_a_lost_node_changes_nothing(
    checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(main.__code__.co_filename).parents[2])]))
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-m", "driftlens.evaluate", "--model", str(checkpoints("gpt2")), "--device", "cpu"]
    command += ["--steps", "150", "--limit", "8", "--shard-size", "1", "--tasks", "rewrite,neighborhood"]

    def run(name: str, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*command, "--no-generate", "--out", str(tmp_path / name), *more], text=True)

    assert run("one process").wait(300) == 0
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        assert run("two nodes", "--address", cluster.address).wait(300) == 0
        begun = run("one is lost", "--address", cluster.address)
        shards = tmp_path / "one is lost" / "shards"
        while begun.poll() is None and len(list(shards.glob("*.json"))) < 2:
            time.sleep(0.05)
        assert len(list(shards.glob("*.json"))) < 8
        cluster.remove_node(node, allow_graceful=False)
        # The other has no room for a second worker, so it does the rest alone.
        assert begun.wait(300) == 0
    finally:
        cluster.shutdown()
    for table in ("nlls", "records"):
        expected, *found = (
            pd.read_parquet(tmp_path / name / f"{table}.parquet").drop(columns="seconds", errors="ignore")
            for name in ("one process", "two nodes", "one is lost")
        )
        assert len(expected) >= 8
        for one in found:
            pd.testing.assert_frame_equal(one, expected, rtol=1e-5, atol=1e-5)


def test_relative_paths_lead_to_the_same_place_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "texts.txt").write_text("Paris\n\n Rome \n")
    monkeypatch.chdir(tmp_path)
    corpus = open_corpus("texts.txt")
    assert everywhere("model") == str(tmp_path / "model")
    assert [everywhere(name) for name in ("demo", "gpt2-xl", "me/my-model")] == ["demo", "gpt2-xl", "me/my-model"]
    monkeypatch.chdir(tmp_path / "model")
    assert [*corpus.texts()] == ["Paris", "Rome"]


ALONE = """
import psutil
from driftlens.runs.connection import connected

with connected(None, 1):
    processes = psutil.Process().children(recursive=True)
    listening = {
        place.laddr.ip
        for process in processes
        for place in process.net_connections("tcp")
        if place.status == psutil.CONN_LISTEN
    }
    print(len(processes), *sorted(listening))
"""


def test_a_cluster_on_this_machine_alone_is_heard_by_no_other():
    """In a process of its own, since Ray reads its settings once."""
    pytest.importorskip("psutil")
    found = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True, timeout=300)
    number, *places = found.stdout.split()
    assert int(number) >= 2
    assert places
    assert set(places) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}  # the last is the first, written as IPv6
