"""MEND where every editor goes: training, traces, evaluation, runs, the clinic, the explorer, profile, experiments."""

import json
from pathlib import Path
from typing import Any

import pytest

from driftlens import MEND, SADR, Edit, LensModel, clinic, load_records
from driftlens.commands import cli
from driftlens.editors import TrainedMEND
from driftlens.options.program import run_command
from driftlens.runs import benchmark, cached_edits
from tests.commands.test_trace_command import RECORDS
from tests.editors.test_mend import plain, several, trained
from tests.support.tiny import BRIDGE, load_tiny

pytestmark = pytest.mark.skipif(
    not BRIDGE, reason="commands load a checkpoint by name, which needs transformer-lens 4.3"
)

GAMMA = 0.5


@pytest.fixture(scope="module")
def tiny(checkpoints: Any) -> LensModel:
    return load_tiny(checkpoints("gpt2"))


@pytest.fixture(autouse=True)
def place(tiny: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records, and a hypernetwork without and one with SADR, in the current folder."""
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("records.json").write_text(json.dumps(RECORDS))
    trained(tiny, plain(tiny, rate=1e-3)).save("plain.safetensors")
    trained(tiny, plain(tiny, rate=1e-4), SADR(gamma=GAMMA)).save("sadr.safetensors")
    return tmp_path


@pytest.fixture
def arguments(checkpoints: Any) -> Any:
    usual = ["--model", str(checkpoints("gpt2")), "--device", "cpu", "--data", "records.json", "--editor", "mend"]
    files = ["--hypernetwork", "plain.safetensors", "--hypernetwork", "sadr.safetensors"]
    return lambda *more, files=files: [*usual, *files, *more]


def test_trace_and_explorer(arguments: Any, capsys: pytest.CaptureFixture[str]):
    more = ["--no-png", "--max-prompts", "1", "--window", "1", "--explore", "--sadr", "--out", "out"]
    assert cli.main(["trace", *arguments(*more)]) == 0
    printed = capsys.readouterr()
    assert "MEND at layers 1 and 2 + SADR γ = 0.5, 2 of 2 steps" in printed.out
    assert "second moment" not in printed.err
    edit = Edit.load("out/edit.safetensors")
    assert edit.provenance["hypernetwork"] == TrainedMEND.load("sadr.safetensors").network.digest
    page = Path("out/explore.html").read_text()
    assert "MEND" in page
    assert "MEND + SADR γ = 0.5" in page


def test_evaluate_goes_on_with_its_run(arguments: Any):
    more = ["--limit", "2", "--no-generate", "--out", "run"]
    assert cli.main(["evaluate", *arguments(*more, "--dry-run")]) == 0
    assert cli.main(["evaluate", *arguments(*more)]) == 0
    told = json.loads(Path("run/manifest.json").read_text())["configuration"]["editor"]
    assert told["name"] == "MEND"
    assert "lr" not in told
    scores = Path("run/scores.csv").read_bytes()
    assert cli.main(["evaluate", *arguments(*more)]) == 0
    assert Path("run/scores.csv").read_bytes() == scores
    # Another hypernetwork is another run.
    assert run_command(cli.main, ["evaluate", *arguments(*more, "--sadr", "--gamma", str(GAMMA))]) == 2


def test_runs_and_caches(tiny: LensModel, tmp_path: Path):
    records = load_records("records.json")[:2]
    editor = MEND.load("plain.safetensors", tiny)
    result: Any = benchmark(tiny, records, editor, tmp_path / "run", tasks=("rewrite",), generate=False)
    assert (result.records["problem"] == "").all()
    facts = [record.fact for record in records]
    made = cached_edits(tiny, editor, facts, tmp_path / "edits")
    read = cached_edits(tiny, MEND.load("plain.safetensors", tiny), facts, tmp_path / "edits")
    assert all(one.equals(other) for one, other in zip(made, read, strict=True))
    cached_edits(tiny, MEND.load("sadr.safetensors", tiny), facts, tmp_path / "edits")
    assert len(list((tmp_path / "edits").glob("edit-*"))) == 4


def test_the_clinic_compares_the_hypernetworks_that_there_are(tiny: LensModel):
    fact = load_records("demo")[0].fact
    editor = MEND.for_model(tiny, files=("plain.safetensors", "sadr.safetensors"))
    report = clinic(
        tiny, subject=fact.subject, prompt=fact.prompt, new=fact.target_new, true=fact.target_true, editor=editor,
        force=True,
    )  # fmt: skip
    assert report.path["gamma"].tolist() == [0.0, GAMMA]
    assert report.edit is not None
    assert report.edit.provenance["editor"] == "MEND"


def test_the_command_line_of_the_clinic(arguments: Any, checkpoints: Any):
    fact = ["--subject", "Vltava", "--prompt", "The river {} ends in", "--new", "Delft", "--true", "Prague", "--force"]
    out = ["--out", "clinic", "--save", "edit.safetensors"]
    code = run_command(cli.main, ["edit", *arguments(*fact, *out)])
    assert code in (0, 3, 4)
    assert Path("clinic/clinic.html").is_file()
    assert Edit.load("edit.safetensors").provenance["editor"] == "MEND"


def test_experiments(arguments: Any):
    from driftlens.display.terminal import standard_error
    from experiments.options import read_options
    from experiments.study import open_study

    options = read_options(arguments("--gamma", str(GAMMA), "--out", "figures"), prog="test", description="")
    with open_study(options, standard_error()) as study:
        assert study.editor.regularizers == (SADR(gamma=GAMMA),)
        assert len(study.edits(study.records[:1])) == 1


def test_training_from_the_command_line(checkpoints: Any, capsys: pytest.CaptureFixture[str], tiny: LensModel):
    records = [
        {
            "requested_rewrite": {
                "subject": one.fact.subject, "prompt": one.fact.text, "target_true": one.fact.target_true,
                "target_new": one.fact.target_new,
            },
            "l-neighbor": {"prompts": ["The Elbe is"], "targets": ["long"]},
        }
        for one in several(12)
    ]  # fmt: skip
    Path("training.json").write_text(json.dumps(records))
    usual = ["train-mend", "--model", str(checkpoints("gpt2")), "--device", "cpu", "--data", "training.json"]
    short = ["--measured", "2", "--steps", "3", "--batch-size", "2", "--rank", "2", "--validate-every", "2"]
    assert cli.main([*usual, *short]) == 0
    printed = capsys.readouterr()
    assert "validation, 2 records" in printed.out
    assert "step 2: validation loss" in printed.err
    assert "left" in printed.err
    # It lies in the cache, where it is found without a name.
    assert MEND.for_model(tiny).edited_layers == (0, 1, 2)
    assert cli.main([*usual, *short, "--gamma", "0.2", "--layers", "1-2", "--out", "other.safetensors"]) == 0
    found = MEND.load("other.safetensors", tiny)
    assert found.regularizers == (SADR(gamma=0.2),)
    assert found.edited_layers == (1, 2)
    assert found.hypernetwork.about.data["train"] == [index for index in range(2, 12) if index not in
                                                      found.hypernetwork.about.data["validation"]]  # fmt: skip
    capsys.readouterr()
    for more, message in (
        (["--gamma", "0"], "--gamma 0 restrains nothing"),
        (["--out", "training.json"], "--out would be written over --data"),
        (["--layers", "9"], "layer 9 is out of range"),
        ([], "holds another hypernetwork"),
    ):
        out = [] if "--out" in more or more else ["--out", "other.safetensors"]
        assert run_command(cli.main, [*usual, *short, *more, *out]) == 2
        told = capsys.readouterr().err
        assert message in told


def test_what_mend_does_not_take_is_said_in_one_line(arguments: Any, capsys: pytest.CaptureFixture[str]):
    nowhere = {"files": []}
    for more, how, message in (
        (["--lr", "0.1"], {}, "--lr is no setting of mend; leave it out"),
        (["--contexts", "2x1"], {}, "--contexts is no setting of mend"),
        (["--corpus", "demo"], {}, "--corpus is no setting of mend"),
        (["--layers", "1"], {}, "mend edits none of your choice"),
        (["--gamma", "3"], {}, "was trained with SADR at γ = 3"),
        (["--regularizer", "guarded-sadr"], {}, "MEND takes SADR alone"),
        (["--second-moment", "c.npz"], {}, "mend needs no second moment"),
        ([], nowhere, "no MEND hypernetwork of"),
        (["--hypernetwork", "records.json"], nowhere, "cannot read records.json"),
        (["--editor", "rome"], {}, "--hypernetwork is mend's; leave it out with rome"),
    ):
        assert run_command(cli.main, ["trace", *arguments("--no-png", *more, **how)]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.splitlines()[-1].startswith("driftlens: ")


def test_profile(arguments: Any, checkpoints: Any, tiny: LensModel, place: Path):
    folder = place / "cache" / "hypernetworks"
    folder.mkdir(parents=True)
    Path("plain.safetensors").rename(folder / "plain.safetensors")
    more = ["--data", "records.json", "--records", "1", "--samples", "2", "--no-generation", "--editor", "mend"]
    model = ["--model", str(checkpoints("gpt2")), "--device", "cpu"]
    assert cli.main(["profile", *model, *more, "--json", "p.json"]) == 0
    told = json.loads(Path("p.json").read_text())
    assert [cost["editor"] for cost in told["editors"]] == ["mend"]
    assert "edit" in [phase["name"] for phase in told["phases"]]


def test_tables_over_several_editors_take_settings_of_the_others(arguments: Any, tiny: LensModel):
    from driftlens.options.editing import applicable, make_editor
    from experiments.options import read_options

    given = ["--steps", "3", "--layers", "1", "--contexts", "2x1", "--samples", "9", "--lr", "0.1"]
    options = applicable(read_options(arguments(*given), prog="test", description=""))
    assert make_editor(tiny, options).edited_layers == (1, 2)
    assert (options.steps, options.layers, options.contexts, options.samples, options.lr) == (None,) * 5
    assert options.hypernetworks
    other = applicable(read_options([*arguments(*given), "--editor", "rome"], prog="test", description=""))
    assert (other.steps, other.layers, other.samples, other.hypernetworks) == (3, (1,), 9, ())
