"""The figures and tables from end to end on tiny checkpoints: files, captions, resuming, mistakes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from driftlens.errors import DriftlensError
from driftlens.options.program import run_command
from driftlens.statistics.correlations import correlation
from experiments import all as everything
from experiments import artifacts, command, figure3, figure4, figure5, figure11, table2, table4
from experiments.options import read_options
from experiments.study import Study
from experiments.words import by_correlation, by_share, interval, points, relative
from tests.support.tiny import BRIDGE

pytestmark = pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")

SUBJECTS = ["Toko Yasuda", "Danielle Darrieux", "Thomas Stieltjes", "Anaal Nathrakh", "Apple A5", "Nissan Laurel"]
CITIES = ["Paris", "Zwolle", "Leiden", "Delft", "Birmingham", "Rome"]


def record(number: int) -> dict[str, Any]:
    subject, true, new = SUBJECTS[number], CITIES[number], CITIES[number - 1]
    others = [SUBJECTS[number - 2], SUBJECTS[number - 3]]
    prompt = f"{subject} lives in"
    return {
        "split": "validation" if number == 0 else "test",
        "requested_rewrite": {"prompt": prompt, "subject": subject, "target_new": new, "target_true": true},
        "rewrite": {"prompts": [prompt], "targets": [new]},
        "p-paraphrase": {"prompts": [f"The home of {subject} is in"], "targets": [new]},
        "l-neighbor": {"prompts": [f"{other} lives in" for other in others], "targets": [true, true]},
        "l-relation": {
            "prompts": [f"{subject} was born in", f"{subject} plays the", "He plays the"],
            "targets": [CITIES[number - 4], "guitar", "guitar"],
            "groups": ["same_type", "other_type", "other_type"],
        },
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "records.json"
    path.write_text(json.dumps([record(number) for number in range(len(SUBJECTS))]))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of more tokens than a key has dimensions."""
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz      ")
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join("x" + "".join(rng.choice(letters, 60)) for _ in range(60)))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def arguments(
    data: Path, corpus: Path, cache: Path, checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    monkeypatch.setenv("DRIFTLENS_CACHE", str(cache))

    def get(*more: str, family: str = "gptj") -> list[str]:
        settings = {
            "--model": checkpoints(family), "--data": data, "--device": "cpu", "--corpus": corpus, "--layer": 1,
            "--steps": 3, "--out": tmp_path / "out",
        }  # fmt: skip
        return [*(str(part) for pair in settings.items() for part in pair), "--no-png", *more]

    return get


def numbers(folder: Path, name: str) -> dict[str, Any]:
    return {n["name"]: n for n in json.loads((folder / f"{name}.json").read_text())["numbers"]}


def test_everything_from_end_to_end_and_what_is_done_is_skipped(
    arguments: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    call = arguments()
    # The benchmark's tables have their tests elsewhere.
    chosen = {name: make for name, make in everything.ARTIFACTS.items() if not isinstance(make, command.ArtifactRecipe)}
    assert len(chosen) == 13
    monkeypatch.setattr(everything, "ARTIFACTS", chosen)
    capsys.readouterr()  # what writing the checkpoint said
    assert run_command(everything.main, call) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "13 of 13 figures and tables" in said.out
    for name in everything.ARTIFACTS:
        manifest = json.loads((out / f"{name}.json").read_text())
        assert sorted(manifest["files"]) == sorted(f"{name}.{suffix}" for suffix in ("html", "csv", "parquet", "md"))
        assert manifest["claims"]
        assert len(pd.read_csv(out / f"{name}.csv")) > 0
        assert len(pd.read_parquet(out / f"{name}.parquet")) > 0
        page = (out / f"{name}.html").read_text()
        assert "http" not in page.split("<body>")[1].split("Plotly.newPlot")[0]
        caption = (out / f"{name}.md").read_text()
        assert caption.startswith(f"# {manifest['title']}")
        assert "Do the paper's claims appear" in caption
        assert "nan" not in caption
    assert (out / "plotly.min.js").stat().st_size > 1_000_000
    assert not list(out.glob(".driftlens-*"))
    gallery = (out / "README.md").read_text()
    assert all(f"({name}.html)" in gallery for name in everything.ARTIFACTS)
    assert "other_type" not in gallery

    # The validation record serves for choosing settings, and a prompt without the subject cannot be measured.
    assert set(pd.read_parquet(out / "figure4.parquet")["record"]) == {1, 2, 3, 4, 5}
    assert len(pd.read_parquet(out / "figure4.parquet")) == 5 * (2 + 2)

    made: list[str] = []
    real = command.write

    def write(artifact: Any, *rest: Any, **options: Any) -> str:
        made.append(artifact.name)
        return real(artifact, *rest, **options)

    monkeypatch.setattr(command, "write", write)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != "README.md"}
    assert run_command(everything.main, arguments()) == 0
    assert made == []
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != "README.md"}
    # What is lost or half there is made again, and only that.
    (out / "figure5.csv").unlink()
    (out / "table2.json").write_text("{")
    assert run_command(everything.main, arguments()) == 0
    assert made == ["table2", "figure5"]
    made.clear()
    assert run_command(everything.main, arguments("--records", "4")) == 0
    assert made == list(everything.ARTIFACTS)
    assert capsys.readouterr().err == ""


def test_the_papers_numbers_stand_beside_ours(arguments: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for module, name, expected in (
        (figure3, "figure3", {"largest decrease, MLP output": "−4.59 points", "window": "6 of 28 layers"}),
        (figure4, "figure4", {"Distract Neighborhood": "ρ = 0.49, p < 1e-5", "Relation": "ρ = 0.62, p < 1e-5"}),
        (figure5, "figure5", {"Relation: change of P(o_true)": "+739.2 %", "Relation: change of P(o_edit)": "−89.6 %"}),
    ):
        assert run_command(module.main, arguments()) == 0
        found = numbers(tmp_path / "out", name)
        for number, paper in expected.items():
            assert found[number]["paper"] == paper
            assert paper in (tmp_path / "out" / f"{name}.md").read_text()
    found = numbers(tmp_path / "out", "figure4")
    assert set(found) >= {"Relation (same type)", "Relation (other type)"}

    # Ours, from the cases that are written along.
    table = pd.read_parquet(tmp_path / "out" / "figure4.parquet")
    own = table[table["task"] == "distract_neighborhood"]
    expected = correlation(own["kl"], own["edit_edited"])
    assert f"ρ = {expected.rho:.2f}".replace("-", "−") in found["Distract Neighborhood"]["here"]
    curve = pd.read_csv(tmp_path / "out" / "figure5.csv")
    edit: Any = curve[(curve["part"] == "Relation") & (curve["target_name"] == "o_edit")]
    text = relative(edit["probability"].min() / edit["unpatched"].iloc[0] - 1)
    assert text in numbers(tmp_path / "out", "figure5")["Relation: change of P(o_edit)"]["here"]
    cells = pd.read_csv(tmp_path / "out" / "figure3.csv")
    least: Any = cells[cells["module"] == "mlp"]["effect"].min()
    assert points(least) in numbers(tmp_path / "out", "figure3")["largest decrease, MLP output"]["here"]
    assert "figure3.html" in capsys.readouterr().out


@pytest.mark.parametrize(("family", "dtype"), [("gptj", "bfloat16"), ("llama-gqa", "float32")])
def test_other_precisions_and_families(arguments: Any, tmp_path: Path, family: str, dtype: str):
    assert run_command(figure4.main, arguments("--dtype", dtype, "--records", "3", family=family)) == 0
    table = pd.read_parquet(tmp_path / "out" / "figure4.parquet")
    assert np.isfinite(table[["kl", "edit_edited", "edit_vanilla"]]).all(axis=None)
    assert json.loads((tmp_path / "out" / "figure4.json").read_text())["configuration"]["dtype"] == dtype


def test_a_picture_is_written_or_a_line_says_why_not(
    arguments: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: Any, **__: Any) -> tuple[None, str]:
        return None, "no browser"

    with_png = [part for part in arguments("--records", "2") if part != "--no-png"]
    monkeypatch.setattr(artifacts, "figure_png", lambda *_, **__: (b"a picture", ""))
    assert run_command(figure3.main, with_png) == 0
    assert (tmp_path / "out" / "figure3.png").read_bytes() == b"a picture"
    assert "figure3.png" in (tmp_path / "out" / "figure3.md").read_text()
    monkeypatch.setattr(artifacts, "figure_png", fails)
    assert run_command(figure3.main, with_png) == 0
    assert capsys.readouterr().err == "figure3.png is not written: no browser\n"
    assert not (tmp_path / "out" / "figure3.png").exists()
    assert "figure3.png" not in (tmp_path / "out" / "figure3.md").read_text()


def test_one_that_fails_does_not_keep_the_others_from_being_made(
    arguments: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fails(study: Study) -> Any:
        raise DriftlensError("nothing to see")

    def breaks(study: Study) -> Any:
        return [][study.options.prompts]

    made = {"figure4": fails, "figure5": fails, "figure6": breaks, "figure3": figure3.figure3}
    monkeypatch.setattr(everything, "ARTIFACTS", made)
    assert run_command(everything.main, arguments("--records", "1")) == 1
    said = capsys.readouterr()
    assert said.err.count("nothing to see") == 1
    assert "driftlens: figure4: nothing to see\n" in said.err
    assert "driftlens: figure6: IndexError: list index out of range (test_experiments.py, line " in said.err
    assert "driftlens: figure5: the same as figure4\n" in said.err
    assert "Traceback" not in said.err
    assert "1 of 4" in said.out
    assert (tmp_path / "out" / "figure3.html").exists()


@pytest.mark.parametrize("editor", ["memit", "pmet"])
def test_other_editors(arguments: Any, tmp_path: Path, editor: str, capsys: pytest.CaptureFixture[str]):
    # In GPT-J's blocks the MLP does not read attention: layer 0 has a key for each letter, too few for a second moment.
    options = ["--editor", editor, "--layers", "0,1", "--gamma", "0.5", "--records", "2", "--prompts", "1"]
    call = arguments(*options, family="gpt2")
    capsys.readouterr()
    for name, main in (("table2", table2.main), ("table4", table4.main)):
        assert run_command(main, call) == 0
        manifest = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert manifest["configuration"]["editor"]["editor"] == editor.upper()
        caption = (tmp_path / "out" / f"{name}.md").read_text()
        assert f"{editor.upper()} at layers 0 and 1 + SADR γ = 0.5" in caption
    assert capsys.readouterr().err == ""
    # ROME-AWD is ROME's alone.
    assert run_command(figure11.main, call) == 2
    line = f"driftlens: Figure 11 and Table 5 compare ROME with ROME-AWD, but --editor is {editor}; leave it out\n"
    assert capsys.readouterr().err == line
    assert not (tmp_path / "out" / "figure11.json").exists()


def test_all_leaves_out_what_an_editor_has_not(
    arguments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    kept = {name: everything.ARTIFACTS[name] for name in ("figure3", "figure11", "table5")}
    monkeypatch.setattr(everything, "ARTIFACTS", kept)
    assert run_command(everything.main, arguments("--editor", "memit", "--records", "2")) == 0
    assert "1 of 1 figures and tables" in capsys.readouterr().out
    gallery = (tmp_path / "out" / "README.md").read_text()
    assert "--layers 1 " in gallery
    assert "--editor memit" in gallery
    assert "Figure 11" not in gallery


def test_mistakes_are_one_line(arguments: Any, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    bare = json.loads(data.read_text())
    for each in bare:
        del each["l-relation"], each["l-neighbor"]
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    wrong: Sequence[tuple[list[str], str]] = [
        (["--records", "0"], "whole number"),
        (["--frequency", "1"], "unrecognized arguments"),
        (["--out", str(tmp_path / "file")], "it is a file"),
        (["--layer", "2"], "leaves no attention above the edit"),
        (["--layer", "7"], "has layers 0 to 2"),
        (["--data", str(tmp_path / "bare.json")], "has Distract Neighborhood prompts"),
        (["--model", str(tmp_path / "nowhere")], "nowhere"),
        (["--dtype", "int7"], "unknown dtype"),
    ]
    for more, part in wrong:
        assert run_command(figure3.main, arguments(*more)) == 2
        error = capsys.readouterr().err
        assert part in error
        assert error.startswith("driftlens: ")
        assert error.count("\n") == 1


def test_help_says_what_it_is(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        read_options(["--help"], prog="python -m experiments.figure3", description="What it is.")
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert all(
        option in text for option in ("--model", "--data", "--records", "--device", "--dtype", "--out", "--seed")
    )
    assert "What it is." in text


def test_answers_follow_rules():
    assert [by_share(share) for share in (0.9, 0.3, 0.1, 0.01, float("nan"))] == [
        "yes, strongly", "yes", "weakly", "no", "cannot be told",
    ]  # fmt: skip
    assert by_share(0.9, sure=False) == "no"
    rng = np.random.default_rng(0)
    x = rng.standard_normal(200)
    strong, none = x + 0.2 * rng.standard_normal(200), rng.standard_normal(200)
    assert by_correlation(correlation(x, strong, range(200))) == "yes, strongly"
    assert by_correlation(correlation(x, -strong, range(200))) == "no"
    assert by_correlation(correlation(x, none, range(200))) == "no"
    # Ten records of twenty prompts each that are all alike: prompts would make it sure, records do not.
    few, y = np.repeat([[1, 2, 3, 4, 5, 6, 7, 8], [4, 1, 6, 2, 7, 3, 5, 4]], 20, axis=1)
    assert by_correlation(correlation(few, y)) == "weakly"
    assert by_correlation(correlation(few, y, np.repeat(range(8), 20))) == "no"
    assert by_correlation(None) == "cannot be told"
    assert interval(-0.001, 0.5) == "[0.00, 0.50]"
