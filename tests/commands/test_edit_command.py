"""`driftlens edit` from end to end, and every mistake as one line."""

import io
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from driftlens import Edit, load_records
from driftlens.commands.edit import main
from driftlens.commands.edit_options import read_options
from driftlens.options.program import run_command
from tests.support.tiny import BRIDGE

FACT = ["--subject", "Eiffel Tower", "--prompt", "{} is located in", "--new", "Rome"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough different tokens that a second moment of 192 dimensions has full rank."""
    letters, draw = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.", random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("\n".join("".join(draw.choices(letters, k=40)) for _ in range(40)))
    return path


@pytest.fixture
def arguments(checkpoints: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a run on a tiny random model."""
    if not BRIDGE:
        pytest.skip("load_model needs transformer-lens 4.3")
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(checkpoints("gpt2")), "--device", "cpu", "--corpus", str(corpus), "--steps", "2"]
    return [*model, *FACT, "--out", "out"]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error: what is wrong could have been seen before."""
    import driftlens.models

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("the model was loaded first")

    monkeypatch.setattr(driftlens.models, "load_model", fail)


def run(argv: Sequence[str]) -> int:
    return run_command(main, argv)


def test_the_edited_model_answers_in_plain_transformers(
    demo_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import driftlens.models

    monkeypatch.setattr(driftlens.models, "load_model", lambda *_, **__: demo_model)
    monkeypatch.chdir(tmp_path)
    fact = next(record.fact for record in load_records("demo") if record.split == "test")
    request = ["--subject", fact.subject, "--prompt", fact.prompt, "--new", fact.target_new]
    options = ["--gamma", "0.001", "--steps", "20", "--probe", "{} is led by", "--force"]
    code = run([*request, *options, "--export", "model", "--save", "edit.safetensors"])
    seen = capsys.readouterr()
    document = json.loads(Path("driftlens-edit/clinic.json").read_text())
    assert code == {"ship": 0, "ship with care": 0, "do not ship": 3, "cannot judge": 4}[document["verdict"]["name"]]
    assert document["fact"]["target_true"] == fact.target_true  # the model's own answer
    assert document["verdict"]["name"] in seen.out
    assert "taken for what holds" in seen.out
    assert [row["gamma"] for row in document["path"]] == [0.0, 0.001]
    assert "<!DOCTYPE html>" in Path("driftlens-edit/clinic.html").read_text()

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("model")
    edited: Any = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32).eval()
    ids = tokenizer(fact.text, return_tensors="pt")
    grown = edited.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(grown[0, ids.input_ids.shape[1] :]).strip().startswith(fact.target_new)

    saved = Edit.load("edit.safetensors")
    (layer,) = saved.updates
    written = saved.written(demo_model, layer, demo_model.W_out(layer))
    assert torch.equal(edited.state_dict()[f"transformer.h.{layer}.mlp.c_proj.weight"], written)


def test_nothing_is_shipped_of_what_cannot_be_judged(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    code = run([*arguments, "--true", "Paris", "--export", "model", "--save", "edit.safetensors"])
    seen = capsys.readouterr()
    assert code == 4
    assert "does not elicit 'Paris'" in seen.out
    assert "nothing is written for --save and --export: nothing was edited" in seen.err
    assert sorted(path.name for path in Path().iterdir()) == ["out"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["clinic.html", "clinic.json"]


@pytest.mark.parametrize("editor", ["rome", "memit"])
def test_force_edits_and_ships_all_the_same(arguments: list[str], capsys: pytest.CaptureFixture[str], editor: str):
    own = ["--editor", editor, "--layers", "1", "--gammas", "0.2,0.1", "--probe", "A <b>", "--force"]
    code = run([*arguments, *own, "--true", "Paris", "--export", "model", "--save", "edit.safetensors"])
    seen = capsys.readouterr()
    assert code == 4
    assert "saved the edit to edit.safetensors" in seen.out
    assert list(Edit.load("edit.safetensors").updates) == [1]
    assert (Path("model") / "config.json").is_file()
    document = json.loads(Path("out/clinic.json").read_text())
    names = ["plain", "SADR γ = 0.1", "SADR γ = 0.2", "guards μ = ν = 1"]
    assert [row["restraint"] for row in document["path"]] == names
    assert document["editor"] == f"{editor.upper()} at layer 1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the following arguments are required: --subject, --prompt, --new"),
        (["--subject", " ", "--prompt", "{} is", "--new", "x"], "--subject is empty"),
        (["--subject", "A", "--prompt", "B is", "--new", "x"], "holds 0 places '{}'"),
        (["--subject", "A", "--prompt", "{} is A", "--new", "x"], "occurs 2 times"),
        (["--subject", "A", "--prompt", "{} is", "--new", "x", "--true", "x"], "target_new 'x' equals target_true"),
        ([*FACT, "--answer", "Paris"], "has no --probe before it"),
        ([*FACT, "--probe", "B", "--answer", "x", "--answer", "y"], "has no --probe before it"),
        ([*FACT, "--probe", " "], "--probe is empty"),
        ([*FACT, "--gamma", "1", "--gammas", "1,2"], "give one of the two"),
        ([*FACT, "--gammas", "1,x"], "'x' is not a number above 0"),
        ([*FACT, "--editor", "roma"], "did you mean 'rome'"),
        ([*FACT, "--layers", "1,2"], "ROME edits one"),
        ([*FACT, "--data", "nowhere.json"], "nowhere.json"),
        ([*FACT, "--model", "nowhere"], "unknown model 'nowhere'"),
        ([*FACT, "--export", "full"], "cannot export to full: it exists and is not empty"),
        ([*FACT, "--export", "driftlens-edit"], "choose another place"),
        ([*FACT, "--save", "full"], "it is a folder"),
        ([*FACT, "--save", "same", "--export", "same"], "choose another place"),
        ([*FACT, "--export", "new", "--save", "new/edit.safetensors"], "choose another place"),
        ([*FACT, "--out", "new/report", "--export", "new"], "choose another place"),
        ([*FACT, "--save", "driftlens-edit/clinic.json"], "choose another place"),
        ([*FACT, "--data", "full/file", "--save", "full/file"], "choose another place"),
        ([*FACT, "--out", "full/file"], "it is a file; choose a folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    options: list[str],
    message: str,
    no_model: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").write_text("x")
    assert run(options) == 2
    seen = capsys.readouterr()
    assert message in seen.err
    assert seen.err.count("\n") == 1
    assert seen.out == ""
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]


def test_a_disk_that_takes_nothing_leaves_nothing(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    probe = Path.write_bytes

    def write(self: Path, data: bytes) -> int:
        return probe(self, data) if data == b"driftlens" else full(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    assert run([*arguments, "--true", "Paris"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir() if path.name != "cache"] == []


@pytest.mark.parametrize("stream", ["full", "ascii"])
def test_what_was_made_is_written_whatever_becomes_of_the_terminal(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, stream: str
):
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    taken = Full() if stream == "full" else io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", taken)
    request = ["--layers", "1", "--gammas", "0.1", "--new", "[/]", "--probe", "[bold] is", "--true", "Paris", "--force"]
    code = run([*arguments, *request, "--export", "model", "--save", "edit.safetensors"])
    assert code == (2 if stream == "full" else 4)
    assert list(Edit.load("edit.safetensors").updates) == [1]
    assert (Path("model") / "model.safetensors").is_file()
    assert json.loads(Path("out/clinic.json").read_text())["fact"]["target_new"] == "[/]"


def test_an_answer_belongs_to_the_probe_before_it():
    options = read_options([*FACT, "--probe", "A", "--probe", "B", "--answer", "x", "--probe", "C"])
    assert options.probes == (("A", None), ("B", "x"), ("C", None))
    assert read_options(FACT).probes == ()


def test_help_has_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "driftlens edit --subject Gloxorp" in text
    assert "3  do not ship" in text
