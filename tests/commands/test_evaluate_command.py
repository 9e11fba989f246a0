"""`driftlens evaluate` from end to end on a tiny model, and every mistake as one line."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from driftlens import ROME, Fact, evaluate, load_model
from driftlens.commands import cli
from driftlens.commands.evaluate import main
from driftlens.commands.evaluate_options import choose_records, read_options
from driftlens.commands.evaluate_report import scores_beside
from driftlens.data import load_records
from driftlens.display.durations import duration
from driftlens.options.program import run_command
from driftlens.runs import BenchmarkResult
from tests.commands.test_trace_command import RECORDS, corpus  # noqa: F401 (a fixture)
from tests.support.tiny import BRIDGE

FILES = {"scores.csv", "scores.parquet", "nlls.parquet", "records.parquet", "generations.parquet", "problems.parquet"}

needs_names = pytest.mark.skipif(not BRIDGE, reason="loads the checkpoint by name, which needs transformer-lens 4.3")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "records.json"
    splits = ("validation", "test", "test")
    path.write_text(json.dumps([one | {"split": split} for one, split in zip(RECORDS, splits, strict=True)]))
    return path


@pytest.fixture
def arguments(checkpoints: Any, corpus: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: F811
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    usual = ["--model", str(checkpoints("gpt2")), "--device", "cpu", "--data", str(data), "--corpus", str(corpus)]
    usual += ["--steps", "3", "--out", "out", "--shard-size", "1"]
    return lambda *more: [*usual, *more]


@needs_names
def test_a_run_is_tried_interrupted_and_ended(
    arguments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # Tried: an estimate that says it is one, and nothing is written.
    before = set(tmp_path.rglob("*"))
    assert cli.main(["evaluate", *arguments("--dry-run")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for words in (
        "3 of ",
        "second moments",
        "about",
        "s per record",
        "GiB with 1 fact side by side",
        "An estimate, measured on 3",
    ):
        assert words in told
    assert set(tmp_path.rglob("*")) == before

    # Interrupted: what is done is kept, and the way to go on is told.
    with monkeypatch.context() as patch:
        real, edited = ROME.edit_many, list[str]()

        def edit_many(editor: ROME, model: Any, facts: Sequence[Fact], **options: Any) -> Any:
            edited.extend(fact.subject for fact in facts)
            if len(edited) == 3:
                raise KeyboardInterrupt
            return real(editor, model, facts, **options)

        patch.setattr(ROME, "edit_many", edit_many)
        assert main(arguments()) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "driftlens: interrupted; 2 of 3 records are kept in out: give the same command again to go on there\n"
    )
    assert {path.name for path in Path("out").iterdir()} == {".lock", "manifest.json", "shards"}

    # Ended, with the same command: only what is missing is done.
    monkeypatch.setenv("COLUMNS", "120")
    calls: list[str] = []

    def counting(editor: ROME, model: Any, facts: Sequence[Fact], **options: Any) -> Any:
        calls.extend(fact.subject for fact in facts)
        return real(editor, model, facts, **options)

    monkeypatch.setattr(ROME, "edit_many", counting)
    assert main(arguments()) == 0
    assert calls == ["Nissan Laurel"]
    told = capsys.readouterr().out
    assert "ROME, 3 records" in told
    # Each score has its name and says what it counts.
    assert re.search(r"^ES +Efficacy Score .* 1 +P\(new\) > P\(true\), % *$", told, re.MULTILINE)
    assert re.search(r"^EM +Efficacy Magnitude .* 1 +P\(new\), % *$", told, re.MULTILINE)
    assert "wrote out: scores.csv" in told
    assert {path.name for path in Path("out").iterdir()} == FILES | {".lock", "manifest.json", "shards", "unedited"}
    scores = pd.read_csv("out/scores.csv").set_index("score")
    nlls = pd.read_parquet("out/nlls.parquet")
    assert scores.loc["ES", "n"] == (nlls["task"] == "rewrite").sum() == 1
    assert pd.read_parquet("out/records.parquet")["record"].tolist() == [0, 1, 2]

    # Another configuration is refused, and the folder stays as it is.
    files = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert run_command(main, arguments("--lr", "0.125")) == 2
    said = capsys.readouterr()
    assert said.err.startswith("driftlens: out holds another run: editor.lr is ")
    assert said.err.count("\n") == 1
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == files


@needs_names
def test_the_vanilla_model_and_chosen_tasks(
    arguments: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoints: Any, data: Path
):
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(["The Eiffel Tower is in Paris.", "Where does the river end?"]))
    given = ["--model", str(checkpoints("gpt2")), "--device", "cpu", "--data", str(data), "--editor", "none"]
    given += ["--tasks", "rewrite,relation", "--no-generate", "--perplexity-texts", str(texts), "--split", "test"]
    assert main([*given, "--out", "vanilla"]) == 0
    told = capsys.readouterr()
    assert "no editor, 2 records" in told.out
    assert "PPL" in told.out
    assert set(pd.read_parquet("vanilla/nlls.parquet")["task"]) == {"relation"}


@needs_names
@pytest.mark.parametrize("width", [80, 120])
def test_scores_stand_beside_those_of_the_unedited_model(
    arguments: Any, width: int, checkpoints: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Against the unedited model's own NLLs, averaged by hand over the prompts of the same records."""
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(arguments("--no-generate", "--tasks", "rewrite,relation,neighborhood")) == 0
    told = capsys.readouterr().out
    assert re.search(r"^score +edited +95 % interval +unedited +n", told, re.MULTILINE)
    records = load_records("records.json")
    nlls = evaluate(load_model(str(checkpoints("gpt2")), device="cpu"), records, None)
    edited = pd.read_parquet("out/nlls.parquet")
    scores = pd.read_csv("out/scores.csv").set_index("score")
    for score, name, task, column in (
        ("EM", "Efficacy Magnitude", "rewrite", "nll_new"),
        ("NM", "Neighborhood Magnitude", "neighborhood", "nll_true"),
        ("RM", "Relation Magnitude", "relation", "nll_true"),
    ):
        before, after = (
            float(100 * np.exp(-table.loc[table["task"] == task, column]).mean()) for table in (nlls, edited)
        )
        line = next(line for line in told.splitlines() if line.startswith(f"{score} "))
        assert re.match(rf"{score} +{name} +{after:.2f} .* {before:.2f} ", line), line
        assert scores.loc[score, "unedited"] == pytest.approx(before, rel=1e-4)  # batches of other rows
    assert all(len(line) <= width for line in told.splitlines() if not line.startswith("wrote"))

    # The same command again measures nothing, and says the same.
    monkeypatch.setattr("driftlens.runs.work.Work.__call__", None)
    assert main(arguments("--no-generate", "--tasks", "rewrite,relation,neighborhood")) == 0
    assert capsys.readouterr().out == told


def test_the_unedited_model_is_scored_on_what_the_edited_one_is_scored_on():
    """A record that could not be edited, and a prompt that could not be measured, count for neither."""

    def result(rows: list[tuple[int, str, int, float, float]], problems: list[str]) -> BenchmarkResult:
        table = pd.DataFrame(rows, columns=["record", "task", "prompt_index", "nll_true", "nll_new"])
        records: Any = pd.DataFrame({"record": range(len(problems)), "problem": problems, "fluency": [500.0, 300.0]})
        records = records.assign(reference=math.nan, perplexity=math.nan)
        return BenchmarkResult(nlls=table, records=records, generations=records[[]], problems=records[[]], manifest={})

    nan = math.nan
    edited = result(
        [(0, "rewrite", 0, 3.0, 1.0), (0, "relation", 0, nan, 1.0), (0, "relation", 1, 1.0, 2.0)], ["", "no"]
    )
    before = [(0, "rewrite", 0, 1.0, 3.0), (0, "relation", 0, 1.0, 2.0), (0, "relation", 1, 2.0, 1.0)]
    unedited = result([*before, (1, "rewrite", 0, 3.0, 1.0)], ["", ""])
    scores = scores_beside(edited, unedited)
    assert scores.loc[["ES", "RS", "FL"], ["value", "unedited"]].to_numpy().tolist() == [
        [100.0, 0.0], [100.0, 0.0], [400.0, 500.0],
    ]  # fmt: skip


@needs_names
def test_an_edit_does_not_depend_on_how_many_records_are_asked_for(
    checkpoints: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second moments of a local model are taken over the true statements of all the data, not of the chosen."""
    asked: list[int] = []

    def stop(_model: str, _corpus: str | None, records: Sequence[Any], **_: Any) -> None:
        asked.append(len(records))
        raise KeyboardInterrupt

    monkeypatch.setattr("driftlens.commands.evaluate.choose_corpus", stop)
    for more in (["--limit", "1"], ["--split", "test"], []):
        with pytest.raises(KeyboardInterrupt):
            main(["--model", str(checkpoints("gpt2")), "--data", str(data), "--out", str(tmp_path / "out"), *more])
    assert asked == [3, 3, 3]


def test_records_are_chosen_by_split_seed_and_limit():
    def chosen(*more: str) -> list[int]:
        return [record.index for record in choose_records(read_options(more), load_records("demo"))]

    assert chosen("--split", "validation", "--limit", "3") == [0, 1, 2]
    shuffled = chosen("--split", "test", "--shuffle-seed", "5", "--limit", "50")
    assert shuffled == chosen("--split", "test", "--shuffle-seed", "5", "--limit", "50")
    assert len(set(shuffled)) == 50
    assert shuffled != sorted(shuffled)
    assert shuffled[:10] == chosen("--split", "test", "--shuffle-seed", "5", "--limit", "10")
    assert shuffled != chosen("--split", "test", "--shuffle-seed", "6", "--limit", "50")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--editor", "rom"], "did you mean 'rome'?"),
        (["--editor", "none", "--gamma", "0.1"], "--editor none edits nothing; leave --gamma out"),
        (["--split", "tset"], "has no split 'tset'; it has test, validation"),
        (["--tasks", "rewrite,relatoin"], "unknown task 'relatoin'; did you mean 'relation'"),
        (["--limit", "0"], "'0' is not a whole number of at least 1"),
        (["--workers", "two"], "'two' is not a whole number"),
        (["--references", "f.json", "--no-generate"], "--references needs generated texts"),
        (["--dry-run", "--workers", "2"], "--dry-run estimates one process"),
        (["--perplexity-texts", "nowhere.json"], "nowhere.json"),
        (["--data", "nowhere.json"], "nowhere.json"),
        (["--model", "nonsense"], "unknown model 'nonsense'"),
        (["--corpus", "nonsense"], "unknown corpus 'nonsense'"),
        (["--shuffle", "1", "--colour"], "--colour"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    more: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert run_command(main, ["--out", "new", *more]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert told.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_without_ray_workers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_command(main, ["--out", str(tmp_path / "new"), "--limit", "2", "--workers", "2"]) == 2
    assert capsys.readouterr().err.endswith("install it with pip install 'driftlens[cluster]'\n")
    assert not (tmp_path / "new").exists()


def test_durations_are_told_in_two_units():
    assert [duration(seconds) for seconds in (0.2, 89, 90, 5000, 6000, 200_000, 400_000)] == [
        "1 s", "89 s", "2 min", "83 min", "1 h 40 min", "2 d 7 h", "4 d 15 h",
    ]  # fmt: skip
