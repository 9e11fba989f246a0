"""Benchmark runs: the numbers are those of the parts, whatever interrupts, damages or splits the run."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from driftlens import ROME, SADR, DriftlensError, Fact, evaluate
from driftlens.data import TASKS, Record, TaskPrompt
from driftlens.edits import EditResult
from driftlens.evaluation import continuations, fluency_scores, perplexities, reference_scores
from driftlens.evaluation.reference import TfIdf
from driftlens.runs import BenchmarkResult, benchmark
from tests.support.places import ROOT
from tests.support.tiny import BRIDGE, load_tiny

TEXTS = ("The Eiffel Tower is in Paris.", "Where does the river end? In the sea.")
SNIPPETS = {("P1", "Q1"): ("he plays the guitar and metal", "a metal band"), ("P1", "Q2"): ("born in Leiden",)}


def record(index: int, subject: str, template: str, true: str, new: str, *, long: str = "") -> Record:
    fact = Fact(subject=subject, prompt=template, target_true=true, target_new=new)
    behind = f"{fact.text} {new}. "
    tasks = {
        "rewrite": (TaskPrompt(text=fact.text, target_true=true, target_new=new),),
        "neighborhood": (
            TaskPrompt(text=f"{long}Apple A5 is produced by", target_true="Apple", target_new=new),
            TaskPrompt(text="The mayor of Paris lives in", target_true="Paris", target_new=new, group="same"),
        ),
        "distract_neighborhood": (
            TaskPrompt(text=f"{behind}Apple A5 is", target_true="new", target_new="old", distractor=behind),
        ),
    }
    return Record(
        index=index,
        fact=fact,
        tasks={**dict.fromkeys(TASKS, ()), **tasks},
        generation=(fact.text, f"{subject} lives in"),
        relation_id="P1",
        target_new_id=f"Q{1 + index % 2}",
    )


RECORDS = [
    record(3, "Toko Yasuda", "{} plays the", "guitar", "metal"),
    record(4, "Eiffel Tower", "The {} is in", "Paris", "Rome"),
    record(5, "Vltava", "Where does the {} end? In", "Mělník", "Delft"),
    record(8, "Apple A5", "{} is produced by", "Apple", "Nissan"),
    record(9, "Paris", "The mayor of {} is", "French", "Leiden"),
]


@pytest.fixture(scope="module")
def model(checkpoints: Any) -> Any:
    return load_tiny(checkpoints("gpt2"))


@pytest.fixture(scope="module")
def editor(model: Any) -> ROME:
    return ROME(
        layer=1,
        steps=4,
        contexts=("{}", "The guitar. {}"),
        second_moment=torch.eye(model.d_mlp, dtype=torch.float64),
        early_stop_loss=-math.inf,
    )


def run(model: Any, editor: ROME | None, folder: Path, records: Sequence[Record] = RECORDS, **options: Any) -> Any:
    settings: dict[str, Any] = {"perplexity_texts": TEXTS, "snippets": SNIPPETS, "shard_size": 2} | options
    return benchmark(model, records, editor, folder, **settings)


@pytest.fixture(scope="module")
def result(model: Any, editor: ROME, tmp_path_factory: pytest.TempPathFactory) -> BenchmarkResult:
    return run(model, editor, tmp_path_factory.mktemp("undisturbed"))


def assert_same(found: BenchmarkResult, expected: BenchmarkResult, *, tolerance: float = 0.0) -> None:
    """Row for row, but for the seconds."""
    for name in ("nlls", "records", "generations", "problems"):
        one, other = (getattr(of, name).drop(columns="seconds", errors="ignore") for of in (found, expected))
        pd.testing.assert_frame_equal(one, other, check_exact=not tolerance, rtol=tolerance, atol=tolerance)


class Counting:
    """Which facts are really edited; after `fail_after` of them the run is broken off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_after: int = 10**9) -> None:
        self.subjects: list[str] = []
        real = ROME.edit_many

        def edit_many(editor: ROME, model: Any, facts: Sequence[Fact], **options: Any) -> list[EditResult]:
            if len(self.subjects) + len(facts) > fail_after:
                raise KeyboardInterrupt
            self.subjects += [fact.subject for fact in facts]
            return real(editor, model, facts, **options)

        monkeypatch.setattr(ROME, "edit_many", edit_many)


def test_a_run_is_the_sum_of_its_parts(model: Any, editor: ROME, result: BenchmarkResult):
    results = editor.edit_many(model, [one.fact for one in RECORDS])
    edits = [one.edit for one in results]
    nlls = evaluate(model, RECORDS, edits)
    key = ["record", "task", "prompt_index", "group"]
    assert (
        result.nlls[key]
        .astype(object)
        .where(lambda t: t.notna(), None)
        .equals(nlls[key].astype(object).where(lambda t: t.notna(), None))
    )
    for column in ("nll_true", "nll_new"):
        np.testing.assert_allclose(result.nlls[column], nlls[column], rtol=1e-4, atol=1e-4)
    texts = continuations(model, RECORDS, edits)
    assert result.generations["text"].tolist() == texts["text"].tolist()
    table: Any = result.records
    assert table["record"].tolist() == [3, 4, 5, 8, 9]
    assert table["subject"].tolist() == [one.fact.subject for one in RECORDS]
    assert table["steps"].tolist() == [4.0] * 5
    np.testing.assert_allclose(table["fluency"], fluency_scores(texts)["fluency"])
    weights = TfIdf.fit(text for of in SNIPPETS.values() for text in of)
    np.testing.assert_allclose(table["reference"], reference_scores(texts, RECORDS, SNIPPETS, weights)["reference"])
    expected = perplexities(model, edits, texts=TEXTS)["perplexity"]
    np.testing.assert_allclose(table["perplexity"], expected, rtol=1e-4)
    last = [one.history.iloc[-1] for one in results]
    np.testing.assert_allclose(table["loss"], [row["loss"] for row in last], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(table["probability"], [row["probability"] for row in last], rtol=1e-3, atol=1e-5)
    assert (table["seconds"] > 0).all()
    assert (table["problem"] == "").all()
    assert not len(result.problems)
    assert {"ES", "Avg.S", "FL", "REF", "PPL"} <= set(result.scores.index)
    assert result.scores.loc["FL", "value"] == pytest.approx(table["fluency"].mean())


def test_the_vanilla_model_is_measured_like_an_edited_one(model: Any, tmp_path: Path):
    found = run(model, None, tmp_path)
    nlls = evaluate(model, RECORDS)
    np.testing.assert_allclose(found.nlls["nll_true"], nlls["nll_true"], rtol=1e-5, atol=1e-5)
    assert found.records["perplexity"].nunique() == 1
    assert found.records[["steps", "loss", "probability"]].isna().all(axis=None)
    assert found.manifest["configuration"]["editor"] is None


def test_what_an_interruption_leaves_is_not_done_again(
    model: Any, editor: ROME, result: BenchmarkResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        Counting(patch, fail_after=3)
        with pytest.raises(KeyboardInterrupt):
            run(model, editor, tmp_path)
    calls, shards, stages = Counting(monkeypatch), list[tuple[int, bool]](), list[tuple[str, int, int]]()
    # Another size of shards is told now; the folder keeps its own.
    found = run(
        model, editor, tmp_path, shard_size=3, on_progress=lambda *now: stages.append(now),
        on_shard=lambda done, _, found: shards.append((done, found)),
    )  # fmt: skip
    assert calls.subjects == [one.fact.subject for one in RECORDS[2:]]
    assert_same(found, result)
    assert shards == [(2, True), (4, False), (5, False)]
    assert [now for now in stages if now[0] == "records"] == [("records", done, 5) for done in (2, 4, 5)]
    assert {stage for stage, *_ in stages} >= {"edit", "evaluate", "generate", "perplexity"}
    assert all(0 <= done <= total for _, done, total in stages)
    assert [session["records"] for session in found.manifest["sessions"]] == [2, 3]
    assert found.manifest["finished"]
    # And whoever asks once more finds all of it.
    before = (tmp_path / "manifest.json").read_bytes()
    assert_same(run(model, editor, tmp_path), result)
    assert len(calls.subjects) == 3
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_parts_of_a_run_put_together_are_the_run(
    model: Any, editor: ROME, result: BenchmarkResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Five records in shards of two are three shards: 3, 4 and 9 are the first part's, 5 and 8 the second's."""
    second = run(model, editor, tmp_path, part=(2, 2))
    assert second.records["record"].tolist() == [5, 8]
    with monkeypatch.context() as patch:
        counted = Counting(patch)
        told: list[tuple[str, int, int]] = []
        first = run(model, editor, tmp_path, part=(1, 2), on_progress=lambda *now: told.append(now))
        assert counted.subjects == ["Toko Yasuda", "Eiffel Tower", "Paris"]
        assert told[-1] == ("records", 3, 3)
        counted.subjects.clear()
        assert_same(run(model, editor, tmp_path, part=(1, 2)), first)  # read, not computed
        # Another size of shards is that of the parts, or they would be of no use.
        assert_same(run(model, editor, tmp_path, shard_size=4), result)
        assert not counted.subjects
        assert_same(run(model, editor, tmp_path), result)
    assert json.loads((tmp_path / "manifest.json").read_text())["finished"]


def test_what_parts_lack_is_computed(
    model: Any, editor: ROME, result: BenchmarkResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(model, editor, tmp_path, part=(1, 3))
    run(model, None, tmp_path / "part-2-of-3")  # another run's shards are not taken for this one's
    counted = Counting(monkeypatch)
    assert_same(run(model, editor, tmp_path), result)
    assert counted.subjects == ["Vltava", "Apple A5", "Paris"]


@pytest.mark.parametrize(("part", "message"), [((4, 4), "5 records make 3 shards of 2"), ((0, 2), "expected a part")])
def test_a_part_of_nothing_is_refused(model: Any, editor: ROME, tmp_path: Path, part: tuple[int, int], message: str):
    with pytest.raises(DriftlensError, match=message):
        run(model, editor, tmp_path, part=part)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_truncated_or_altered_shard_is_done_again(
    model: Any, editor: ROME, result: BenchmarkResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(model, editor, tmp_path)
    shards = tmp_path / "shards"
    truncated, altered = shards / "000000-000002.nlls.parquet", shards / "000004-000005.records.parquet"
    truncated.write_bytes(truncated.read_bytes()[:-9])
    # Whole and readable, but not what was written.
    table = pd.read_parquet(altered)
    table.assign(loss=0.0).to_parquet(altered, index=False)
    (shards / ".driftlens-0123456789ab.parquet").write_bytes(b"begun")
    calls = Counting(monkeypatch)
    with pytest.warns(RuntimeWarning, match="2 damaged shards"):
        found = run(model, editor, tmp_path)
    assert calls.subjects == [RECORDS[at].fact.subject for at in (0, 1, 4)]
    assert_same(found, result)
    assert not list(shards.glob(".driftlens-*"))


def test_another_configuration_is_refused_by_name(model: Any, editor: ROME, tmp_path: Path, checkpoints: Any):
    run(model, editor, tmp_path, generate=False, snippets=None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    others: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, {"lr": 0.25}, r"editor.lr is 0.5 there and 0.25 here;"),
        ({}, {"regularizers": (SADR(),)}, r"editor.regularizers is none there and SADR\(gamma=0.01"),
        ({}, {"second_moment": 2 * torch.eye(model.d_mlp)}, "editor.second_moment is "),
        ({"generate": True}, {}, "generate is False there and True here"),
        ({"tasks": ["rewrite"]}, {}, r"tasks is all there and \['rewrite'\] here"),
        ({"seed": 1}, {}, "seed is 0 there and 1 here"),
        ({"records": RECORDS[:4]}, {}, "records is 5 there and 4 here"),
        ({"records": RECORDS[::-1]}, {}, "records_hash is"),
        ({"perplexity_texts": None}, {}, "perplexity_texts is"),
    ]
    for options, change, said in others:
        with pytest.raises(DriftlensError, match=f"holds another run: {said}"):
            run(model, replace(editor, **change), tmp_path, **({"generate": False, "snippets": None} | options))
    with pytest.raises(DriftlensError, match=r"editor\.name is ROME there and none here"):
        run(model, None, tmp_path, generate=False, snippets=None)
    other = load_tiny(checkpoints("gptj"))
    with pytest.raises(DriftlensError, match="model_hash is"):
        run(other, replace(editor, second_moment=torch.eye(other.d_mlp)), tmp_path, generate=False, snippets=None)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_shards_without_a_manifest_are_nobody_elses(model: Any, editor: ROME, tmp_path: Path):
    """Of the same configuration they go on being used; of another they are not overwritten."""
    first = run(model, editor, tmp_path, generate=False, snippets=None)
    shards = {path: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(DriftlensError, match=r"holds shards of another run \(000000-000002\.json\), and no manifest"):
        run(model, replace(editor, lr=0.25), tmp_path, generate=False, snippets=None)
    assert {path: path.read_bytes() for path in (tmp_path / "shards").iterdir()} == shards
    assert not (tmp_path / "manifest.json").exists()
    seen: list[bool] = []
    again = run(
        model, editor, tmp_path, generate=False, snippets=None, on_shard=lambda *shard: seen.append(shard[-1])
    )  # fmt: skip
    assert seen
    assert all(seen)
    pd.testing.assert_frame_equal(again.nlls, first.nlls)
    # Nor is a manifest that was changed to fit believed against them.
    manifest = json.loads((tmp_path / "manifest.json").read_text()) if (tmp_path / "manifest.json").exists() else None
    if manifest is not None:
        manifest["configuration"]["editor"]["lr"] = 0.25
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(DriftlensError, match="holds shards of another run"):
            run(model, replace(editor, lr=0.25), tmp_path, generate=False, snippets=None)
    assert {path: path.read_bytes() for path in (tmp_path / "shards").iterdir()} == shards


def test_the_sizes_of_batches_and_shards_change_nothing(
    model: Any, editor: ROME, result: BenchmarkResult, tmp_path: Path
):
    various: list[dict[str, Any]] = [{"edit_batch": 1, "batch_size": 3}, {"shard_size": 1}, {"shard_size": 100}]
    for number, sizes in enumerate(various):
        assert_same(run(model, editor, tmp_path / str(number), **sizes), result, tolerance=2e-4)


def test_what_cannot_be_done_is_told_and_stops_nothing(
    model: Any, editor: ROME, result: BenchmarkResult, tmp_path: Path
):
    unreadable = record(6, "Zwolle", "{} " + "is known to be a national library and " * 9, "old", "Leiden")
    partly = record(7, "Delft", "The mayor of {} is", "old", "Leiden", long="where the river meets the Elbe, " * 6)
    records = [*RECORDS[:2], unreadable, partly, *RECORDS[2:]]
    with pytest.warns(
        RuntimeWarning, match=r"1 of 7 records could not be edited and \d+ prompts could not be measured"
    ):
        found = run(model, editor, tmp_path, records, shard_size=3)
    problems = found.problems.set_index(["record", "stage", "prompt_index"])["reason"]
    assert "reads at most 64" in problems[6, "edit", -1]
    assert set(problems.index) == {(6, "edit", -1), (7, "neighborhood", 0)}
    assert "reads at most 64" in problems[7, "neighborhood", 0]
    table = found.records.set_index("record")
    assert table.loc[6, ["fluency", "loss", "perplexity"]].isna().all()
    assert "reads at most 64" in table.loc[6, "problem"]
    assert 6 not in set(found.nlls["record"])
    # The prompt that is too long has no NLL, and no other loses its own.
    seventh = found.nlls[found.nlls["record"] == 7]
    assert seventh[["task", "prompt_index"]].to_numpy().tolist() == [
        ["rewrite", 0], ["neighborhood", 0], ["neighborhood", 1], ["distract_neighborhood", 0],
    ]  # fmt: skip
    assert seventh["nll_true"].isna().tolist() == [False, True, False, False]
    assert found.scores.loc["NS", "n"] == result.scores.loc["NS", "n"] + 1
    # The others are what they are without these two.
    others = found.nlls[~found.nlls["record"].isin([6, 7])].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, result.nlls, check_dtype=False, rtol=2e-4, atol=2e-4)
    assert found.manifest["problems"] == {"edit": 1, "neighborhood": 1}


def test_losses_that_are_not_finite_are_told(model: Any, editor: ROME, tmp_path: Path):
    with pytest.warns(RuntimeWarning, match="5 of 5 records could not be edited"):
        found = run(model, replace(editor, lr=1e30, clamp_norm_factor=1e38), tmp_path)
    assert found.problems["reason"].str.contains("is not finite").all()
    assert not len(found.nlls)
    assert found.scores["n"].eq(0).all()


def test_what_is_wrong_for_all_records_stops_the_run_at_once(model: Any, editor: ROME, tmp_path: Path):
    for change, said in (
        ({"layer": 7}, "layer 7 is out of range"),
        ({"second_moment": torch.zeros(model.d_mlp, model.d_mlp)}, "singular"),
        ({"second_moment": torch.eye(3)}, "d_mlp = 3"),
    ):
        with pytest.raises(DriftlensError, match=said):
            run(model, replace(editor, **change), tmp_path / said[:3])
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"tasks": ["rewrit"]}, "unknown task 'rewrit'"),
        ({"records": []}, "0 records"),
        ({"records": [RECORDS[0], RECORDS[0]]}, "two records have the index 3"),
        ({"shard_size": 0}, "shards of 0"),
        ({"edit_batch": 0}, "edit_batch is 0"),
        ({"perplexity_texts": [""]}, "perplexity have fewer than 2 tokens"),
        ({"generate": False}, "nothing is generated"),
    ]
    for options, said in mistakes:
        with pytest.raises(DriftlensError, match=said):
            run(model, editor, tmp_path / "options", **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(DriftlensError, match="it is a file"):
        run(model, editor, tmp_path / "file")


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that works in the folder."""
    hold = "import filelock, sys\nlock = filelock.FileLock(sys.argv[1])\nlock.acquire()\nprint(1, flush=True)\ninput()"
    arguments = [sys.executable, "-c", hold, str(folder / ".lock")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        yield other
        other.kill()


def test_a_folder_is_one_process_s_at_a_time(model: Any, editor: ROME, tmp_path: Path):
    with held(tmp_path) as other:
        with pytest.raises(DriftlensError, match="another process is working in"):
            run(model, editor, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        # However that process ends, the folder is free then.
        other.kill()
    run(model, editor, tmp_path, generate=False, snippets=None)


def test_a_finished_run_is_read_whoever_holds_it(
    model: Any, editor: ROME, result: BenchmarkResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(model, editor, tmp_path)
    calls, before = Counting(monkeypatch), {path.name: path.read_bytes() for path in tmp_path.rglob("*.*")}
    seen: list[tuple[int, bool]] = []
    with held(tmp_path):
        again = run(model, editor, tmp_path, on_shard=lambda done, _, found: seen.append((done, found)))
        assert_same(again, result)
        assert seen == [(2, True), (4, True), (5, True)]
        assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
        # Nobody mends a shard behind the back of whoever may be doing that.
        shard = tmp_path / "shards" / "000002-000004.nlls.parquet"
        shard.write_bytes(b"")
        with pytest.raises(DriftlensError, match="another process is working in"):
            run(model, editor, tmp_path)
    assert calls.subjects == []


def test_whoever_wants_to_waits_for_the_run_of_another_process(
    model: Any, editor: ROME, result: BenchmarkResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(model, editor, tmp_path / "theirs")
    calls, waited = Counting(monkeypatch), list[int]()
    (tmp_path / "run").mkdir()
    with held(tmp_path / "run") as other:

        def end() -> None:
            """Meanwhile the other process comes to its end."""
            waited.append(1)
            for name in ("shards", "manifest.json"):
                (tmp_path / "theirs" / name).rename(tmp_path / "run" / name)
            other.kill()

        assert_same(run(model, editor, tmp_path / "run", on_wait=end), result)
    assert waited == [1]
    assert calls.subjects == []


def test_a_manifest_is_readable_and_a_broken_one_is_refused(model: Any, editor: ROME, tmp_path: Path):
    from driftlens.version import __version__

    run(model, editor, tmp_path, generate=False, snippets=None)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["configuration"]["driftlens"] == __version__
    assert manifest["configuration"]["editor"]["lr"] == 0.5
    assert manifest["sessions"][0]["device"] == "cpu"
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DriftlensError, match=r"cannot read .*manifest\.json"):
        run(model, editor, tmp_path, generate=False, snippets=None)


@pytest.mark.skipif(not BRIDGE, reason="loads the checkpoint by name, which needs transformer-lens 4.3")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("name", "kills"), [("gpt2", 3), pytest.param("demo", 20, marks=pytest.mark.slow)], ids=["3 kills", "20 kills"]
)
def test_killed_at_any_moment_a_run_ends_with_the_same_tables(name: str, kills: int, checkpoints: Any, tmp_path: Path):
    model = "demo" if name == "demo" else str(checkpoints(name))
    command = [sys.executable, "-m", "tests.runs.kill_and_resume", model, str(kills), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] == kills
