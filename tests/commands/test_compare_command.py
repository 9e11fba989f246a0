"""`driftlens compare` and `driftlens agree` from end to end on a tiny model, and every mistake as one line."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from driftlens import Edit
from driftlens.commands import cli
from driftlens.data import load_records
from driftlens.human import Comparison
from driftlens.options.program import run_command
from tests.commands.test_trace_command import RECORDS, corpus  # noqa: F401 (a fixture)
from tests.support.comparisons import SECRETS, careful, sheet
from tests.support.tiny import BRIDGE

FILES = {"agreement.csv", "agreement.tex", "agreement.html", "annotators.csv", "judgements.csv"}

needs_names = pytest.mark.skipif(not BRIDGE, reason="loads the checkpoint by name, which needs transformer-lens 4.3")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "records.json"
    told = [one | {"generation": {"prompts": [f"The {one['requested_rewrite']['subject']} has"]}} for one in RECORDS]
    path.write_text(json.dumps(told))
    return path


@pytest.fixture
def arguments(checkpoints: Any, corpus: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: F811
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    usual = ["compare", "--model", str(checkpoints("gpt2")), "--device", "cpu", "--data", str(data)]
    usual += ["--corpus", str(corpus), "--steps", "3", "--max-tokens", "24", "--records", "2", "--checks", "1"]
    return lambda *more: [*usual, *more]


@needs_names
def test_pairs_are_made_answered_and_counted(arguments: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(arguments("--gamma", "0.5", "--out", "study")) == 0
    told = capsys.readouterr().out
    assert "2 pairs and 1 attention check\n" in told
    assert "ROME + SADR against ROME" in told
    study = Comparison.load("study/key.json")
    assert "γ = 0.5" in study.about["ROME + SADR"]
    records = {record.fact.subject: record for record in load_records(str(tmp_path / "records.json"))}
    for item in study.pairs:
        record = records[item.fact.subject]
        assert item.prompt == record.fact.text  # (s, r)
        # The baseline's text is what its edit writes with the same seed.
    page = Path("study/compare.html").read_text()
    data = page[page.index('id="data">') :].split("</script>", 1)[0]
    assert study.id in data
    assert not any(secret in data for secret in SECRETS)

    # The same command changes nothing; another study does not overwrite a key that answers may need.
    before = Path("study/key.json").read_bytes()
    assert cli.main(arguments("--gamma", "0.5", "--out", "study")) == 0
    assert Path("study/key.json").read_bytes() == before
    capsys.readouterr()
    assert run_command(cli.main, arguments("--gamma", "0.25", "--out", "study")) == 2
    assert "holds another study" in capsys.readouterr().err

    Path("study/answers").mkdir()
    for person in range(3):
        answers = sheet(study, f"p{person}", lambda item, criterion, shown: careful(item, criterion, shown, pair=1))
        Path(f"study/answers/{person}.json").write_text(json.dumps(answers.told()))
    hasty = sheet(study, "hasty", lambda *_: "A")
    Path("study/answers/hasty.json").write_text(json.dumps(hasty.told()))
    files = sorted(map(str, Path("study/answers").glob("*.json")))
    assert cli.main(["agree", *files, "--exclude-failed", "--no-png", "--resamples", "100", "--out", "found"]) == 0
    told = capsys.readouterr().out
    assert "2 pairs, 3 annotators" in told
    assert "hasty passed 0 of 1 attention checks (left out)" in told
    assert {path.name for path in Path("found").iterdir()} == FILES
    table: Any = pd.read_csv("found/agreement.csv")
    assert (table["win"] == 1).all()


@needs_names
def test_runs_and_saved_edits_are_compared(arguments: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    usual = arguments()[1:]
    evaluate = [each for each in usual if each not in ("--max-tokens", "24", "--records", "2", "--checks", "1")]
    for name, more in (("plain", []), ("restrained", ["--gamma", "0.5"])):
        run = ["evaluate", *evaluate, "--tasks", "rewrite", *more, "--out", name]
        assert cli.main(run) == 0
    capsys.readouterr()
    assert cli.main(arguments("--editor", "plain", "--against", "restrained", "--out", "of-runs")) == 0
    study = Comparison.load("of-runs/key.json")
    tables = {name: pd.read_parquet(f"{name}/generations.parquet") for name in ("plain", "restrained")}
    for item in study.pairs:
        for name, at in (("plain", 1 - item.challenger), ("restrained", item.challenger)):
            assert item.prompt + item.texts[at] in set(tables[name]["text"])

    # Edits that were saved give the pairs that making them gives.
    assert cli.main(arguments("--out", "made")) == 0
    for folder, restrained in (("edits", False), ("edits-sadr", True)):
        Path(folder).mkdir()
        for path in (tmp_path / "cache" / "edits").glob("*.safetensors"):
            edit = Edit.load(path)
            if ("SADR" in edit.provenance["regularizers"]) == restrained:
                edit.save(Path(folder) / path.name)
    assert cli.main(arguments("--editor", "edits", "--against", "edits-sadr", "--out", "of-edits")) == 0
    made, found = (Comparison.load(f"{name}/key.json") for name in ("made", "of-edits"))
    assert {item.texts for item in found.pairs} == {item.texts for item in made.pairs}


@needs_names
def test_a_study_is_served(arguments: Any, tmp_path: Path):
    assert cli.main(arguments("--out", "study")) == 0
    command = [
        sys.executable,
        "-m",
        "driftlens",
        "compare",
        "--serve",
        "--out",
        "study",
        "--port",
        "0",
        "--annotators",
        "2",
    ]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        told: list[str] = []
        for line in process.stdout:
            told.append(line)
            if "Ctrl-C" in line:
                break
        links = [line.split()[-1] for line in told if "http://" in line]
        assert len(links) == 3
        assert all(link.startswith("http://127.0.0.1:") for link in links)
        with urllib.request.urlopen(links[1]) as answer:
            assert Comparison.load("study/key.json").id in answer.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait() in (0, 130)
    assert any("only this machine" in line for line in told)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--editor", "rom"], "did you mean 'rome'"),
        (["--against", "rome+sad"], "unknown editor 'rome+sad'"),
        (["--editor", "memit", "--against", "memit"], "are both 'memit'"),
        (["--sadr"], "write e.g. --against rome+sadr"),
        (["--against", "memit", "--gamma", "0.1"], "need a side with SADR"),
        (["--editor", "empty"], "neither a run's generations.parquet nor edits"),
        (["--records", "0"], "not a whole number of at least 1"),
        (["--split", "nowhere"], "has no split 'nowhere'"),
        (["--data", "nowhere.json"], "nowhere.json"),
    ],
)
def test_mistakes_are_one_line(
    given: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert run_command(cli.main, ["compare", *given]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not Path("driftlens-compare").exists()


def test_agree_tells_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from tests.support.comparisons import comparison

    monkeypatch.chdir(tmp_path)
    study = comparison(3)
    Path("a.json").write_text(json.dumps(sheet(study, "p", lambda *_: "A").told()))
    for given, message in (
        (["a.json"], "no key.json of these answers' study"),
        (["b.json"], "cannot read the answers b.json"),
        (["a.json", "--key", "a.json"], "is not the key of a comparison"),
        ([], "the following arguments are required: ANSWERS"),
    ):
        assert run_command(cli.main, ["agree", *given]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert message in said.err
        assert not Path("driftlens-agree").exists()
