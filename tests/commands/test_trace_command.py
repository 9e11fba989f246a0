"""`driftlens trace` from end to end on a tiny model, and every mistake as one line."""

import base64
import errno
import json
import random
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from driftlens import Edit
from driftlens.commands import trace as command
from driftlens.commands.trace import main
from driftlens.commands.trace_options import read_options
from driftlens.commands.trace_report import FLOOR
from driftlens.commands.trace_study import choose_study
from driftlens.data import load_records, true_texts
from driftlens.data.templates import templates
from driftlens.options.editing import layers_text
from driftlens.options.parsing import context_lengths, layer_list
from driftlens.options.program import run_command
from tests.support.checkpoints import CONTEXT
from tests.support.tiny import BRIDGE

FILES = ["edit.safetensors", "trace.csv", "trace.html", "trace.parquet"]


def record(subject: str, true: str, new: str, **blocks: Any) -> dict[str, Any]:
    prompt = f"The {subject} is located in"
    rewrite = {"subject": subject, "prompt": prompt, "target_true": true, "target_new": new}
    return {"requested_rewrite": rewrite, **blocks}


def block(*pairs: tuple[str, str]) -> dict[str, list[str]]:
    return {"prompts": [prompt for prompt, _ in pairs], "targets": [target for _, target in pairs]}


RECORDS = [
    record(
        "Eiffel Tower",
        "Paris",
        "Rome",
        **{
            "rewrite": block(("The Eiffel Tower is located in", "Rome")),
            "l-neighbor": block(("The Big Ben is located in", "London"), ("Louvre lies in", "Paris")),
            "l-relation": block(("The mayor of the Eiffel Tower is", "a distant relative")),
        },
    ),
    record("Vltava", "Prague", "Delft", **{"l-relation": block(("The end of Vltava is", "the Elbe"))}),
    record("Nissan Laurel", "Yokohama", "Leiden"),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "records.json"
    path.write_text(json.dumps(RECORDS))
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough different tokens that a second moment of 192 dimensions has full rank."""
    letters, draw = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.", random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("\n".join("".join(draw.choices(letters, k=40)) for _ in range(40)))
    return path


@pytest.fixture
def arguments(checkpoints: Any, corpus: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that puts its arguments behind those of a run that takes moments."""
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    usual = ["--model", str(checkpoints("gpt2")), "--device", "cpu", "--data", str(data), "--corpus", str(corpus)]
    usual += ["--steps", "3", "--out", "out", "--no-png"]

    def add(*more: str) -> list[str]:
        return [*usual, *more]

    return add


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, checkpoints: Any) -> None:
    """The tiny model is loaded once and handed out again and again."""
    import driftlens.models
    from tests.support.tiny import load_tiny

    if not BRIDGE:
        pytest.skip("load_model needs transformer-lens 4.3")
    folder = checkpoints("gpt2")
    model = _models.setdefault("gpt2", None) or _models.setdefault("gpt2 loaded", load_tiny(folder))
    monkeypatch.setattr(driftlens.models, "load_model", lambda *_, **__: model)


_models: dict[str, Any] = {}


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error: what is wrong could have been seen before."""
    import driftlens.models

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("the model was loaded first")

    monkeypatch.setattr(driftlens.models, "load_model", fail)


def run(argv: Sequence[str]) -> int:
    return run_command(main, argv)


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("driftlens: ")
    return err


@pytest.mark.usefixtures("loads")
def test_a_run_writes_a_trace_and_tells_what_it_found(arguments: Any, capsys: pytest.CaptureFixture[str]):
    assert run(arguments()) == 0
    out, err = capsys.readouterr()
    assert err.startswith("warning: the unedited model does not seem to know the fact")  # its weights are random
    assert err.count("\n") == 1
    for words in ("Eiffel Tower", "Paris → Rome", "record 0 of records.json", "ROME at layer 1", "mean of 2"):
        assert words in out
    assert "… The Big Ben is located in" in out
    assert sorted(path.name for path in Path("out").iterdir()) == FILES
    table: Any = pd.read_parquet("out/trace.parquet")
    pd.testing.assert_frame_equal(
        pd.read_csv("out/trace.csv", keep_default_na=False), table, check_dtype=False, rtol=1e-12
    )
    assert table["case"].nunique() == 2
    assert table["module"].unique().tolist() == ["resid", "mlp", "attn"]
    assert table["target_name"].unique().tolist() == ["o_true", "o_edit"]
    assert set(table["window"]) == {1}
    assert {"test subject", "last subject token", "last token"} <= set(table["role"])
    assert Edit.load("out/edit.safetensors").provenance["subject"] == "Eiffel Tower"
    page = Path("out/trace.html").read_text()
    assert "record 0 of records.json, distract neighborhood" in page


@pytest.mark.usefixtures("loads")
def test_options_reach_the_editor_and_the_trace(arguments: Any, capsys: pytest.CaptureFixture[str]):
    options = ["--gamma", "0.5", "--layer", "0", "--lr", "0.7", "--seed", "3", "--task", "relation", "--window", "2"]
    assert run(arguments(*options, "--module", "attn", "--target", "new", "--batch-size", "7")) == 0
    out = capsys.readouterr().out
    assert "ROME at layer 0 + SADR γ = 0.5" in out
    edit, table = Edit.load("out/edit.safetensors"), pd.read_parquet("out/trace.parquet")
    assert list(edit.updates) == [0]
    assert "gamma=0.5" in edit.provenance["regularizers"]
    for setting in ("'lr': 0.7", "'steps': 3", "seed=3"):
        assert setting in edit.provenance["settings"]
    assert table[["module", "target_name", "window", "case"]].drop_duplicates().values.tolist() == [
        ["attn", "o_edit", 2, 0]
    ]
    assert "0.001 or more" in out  # nothing is ranked where nothing happens


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize("editor", ["memit", "pmet"])
def test_editors_of_several_layers(arguments: Any, editor: str, capsys: pytest.CaptureFixture[str]):
    options = ["--editor", editor, "--layers", "0-1", "--second-moment-weight", "7", "--sadr-heads", "all"]
    options += ["--clamp", "1.5", "--weight-decay", "0.25", "--kl", "0.5", "--gamma", "0.5", "--contexts", "3x1,4x2"]
    assert run(arguments(*options)) == 0
    out = capsys.readouterr().out
    assert f"{editor.upper()} at layers 0 and 1 + SADR γ = 0.5, all heads" in out
    edit = Edit.load("out/edit.safetensors")
    assert list(edit.updates) == [0, 1]
    assert edit.provenance["editor"] == editor.upper()
    assert "heads='all'" in edit.provenance["regularizers"]
    wanted = {"second_moment_weight": 7.0, "clamp_norm_factor": 1.5, "weight_decay": 0.25, "kl_factor": 0.5}
    for name, value in wanted.items():
        assert f"'{name}': {value}" in edit.provenance["settings"]
    assert "lengths=((3, 1), (4, 2))" in edit.provenance["settings"]
    # Both edited layers are marked under the heatmaps.
    page = Path("out/trace.html").read_text()
    labels = json.loads(page.split('"ticktext":')[1].split("]")[0].replace("\\u003c", "<") + "]")
    assert [label for label in labels if "edit" in label] == ["<b>0</b><br>edit", "<b>1</b><br>edit"]


@pytest.mark.parametrize(
    ("layers", "text"),
    [((5,), "layer 5"), ((3, 4), "layers 3 and 4"), ((3, 4, 5), "layers 3–5"), ((1, 3, 5), "layers 1, 3 and 5")],
)
def test_layers_as_they_are_typed_and_read(layers: tuple[int, ...], text: str):
    typed = ",".join(map(str, layers))
    assert layer_list(typed) == layer_list(f" {typed} ") == layers
    assert layer_list("3-5") == (3, 4, 5)
    assert layer_list("0,2-3") == (0, 2, 3)
    assert layers_text(layers) == text


@pytest.mark.parametrize("typed", ["10", "x5", "10x", "0x5", "5x0", "5x10,", "axb"])
def test_context_prefixes_that_cannot_be_read(typed: str):
    assert context_lengths("5x10, 10x2") == ((5, 10), (10, 2))
    with pytest.raises(ArgumentTypeError, match="does not name prefixes"):
        context_lengths(typed)


@pytest.mark.usefixtures("loads")
def test_the_traced_numbers_are_those_in_the_terminal(arguments: Any, capsys: pytest.CaptureFixture[str]):
    assert run(arguments("--prompt-index", "1")) == 0
    out = capsys.readouterr().out
    table = pd.read_parquet("out/trace.parquet")
    shown = table.drop_duplicates("target_name").set_index("target_name")
    for name in ("o_true", "o_edit"):
        assert f"{shown['vanilla'][name]:.3f} → {shown['edited'][name]:.3f}" in out
    strongest = table.loc[table.groupby(["module", "target_name"])["effect"].apply(lambda e: e.abs().idxmax())]
    for effect in strongest["effect"]:
        assert f"{effect:+.4f}" in out or abs(effect) < FLOOR


@pytest.mark.usefixtures("loads")
def test_a_page_to_explore(arguments: Any):
    assert run(arguments("--module", "mlp", "--explore", "5", "--gamma", "0.5", "--window", "2")) == 0
    text = Path("out/explore.html").read_text()
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    setup = data["setup"]
    assert [one["name"] for one in setup["exhibits"]] == ["record 0", "record 1", "record 2"]
    assert [label.rpartition(", ")[0] for label in setup["gammas"]] == ["ROME", "ROME + SADR γ = 0.5"]
    assert setup["windows"] == [2]
    tasks = [[prompt["task"] for prompt in one["prompts"]] for one in setup["exhibits"]]
    assert tasks[0] == [
        "rewrite",
        *["neighborhood"] * 2,
        "relation",
        *["distract_neighborhood"] * 2,
        "distract_relation",
    ]
    assert tasks[2] == ["rewrite"]
    # What the page and the table say of the run's own edit is the same.
    trace = pd.read_parquet("out/trace.parquet")
    own = trace[(trace["case"] == 0) & (trace["target_name"] == "o_true")].iloc[0]
    at = tasks[0].index("distract_neighborhood")
    import numpy as np

    values = np.frombuffer(base64.b64decode(data["edited"][0][1][at]["edited"]), "<u2") / 65535
    assert values[0] == pytest.approx(own["edited"], abs=1e-5)
    # Another run without it takes the page away, which would belong to another trace.
    assert run(arguments("--module", "mlp")) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == FILES


@pytest.mark.usefixtures("loads")
def test_a_typed_fact_to_explore(arguments: Any):
    argv = arguments(*TYPED, "--test-prompt", "Louvre is in", "--editor", "memit", "--module", "mlp", "--explore")
    assert run(argv) == 0
    text = Path("out/explore.html").read_text()
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    prompts = data["setup"]["exhibits"][0]["prompts"]
    assert [prompt["text"] for prompt in prompts] == ["Big Ben is in", "Louvre is in"]
    assert prompts[data["choice"]["prompt"]]["task"] == "test prompts"
    assert [label.rpartition(", ")[0] for label in data["setup"]["gammas"]] == ["MEMIT", "MEMIT + SADR γ = 0.01"]


@pytest.mark.usefixtures("loads")
def test_a_typed_fact(arguments: Any, capsys: pytest.CaptureFixture[str]):
    fact = ["--subject", "Big Ben", "--prompt", "{} is located in", "--true", "London", "--new", "Rome"]
    assert run(arguments(*fact)) == 0
    assert "Big Ben is located in [London → Rome], typed fact" in capsys.readouterr().out
    table = pd.read_parquet("out/trace.parquet")
    assert "".join(table.drop_duplicates("token")["token_text"]) == "Big Ben is located in"
    test = ["--test-prompt", "Louvre is located in", "--test-target", "Paris", "--task", "distract_neighborhood"]
    assert run(arguments(*fact, *test, "--module", "mlp")) == 0
    table = pd.read_parquet("out/trace.parquet")
    text = "".join(table.drop_duplicates("token")["token_text"])
    assert text == "Big Ben is located in Rome. Louvre is located in"
    assert table["target"].unique().tolist() == ["Paris", "Rome"]
    assert "test subject" in set(table["role"])


def test_a_record_without_the_task_falls_back(arguments: Any):
    study = choose_study(read_options(arguments("--record", "1")))
    assert (study.task, len(study.prompts)) == ("relation", 1)
    assert study.notes == ("record 1 of records.json has no distract_neighborhood prompts; tracing relation",)
    study = choose_study(read_options(arguments("--record", "2")))
    assert (study.task, study.prompts[0].text) == ("rewrite", "The Nissan Laurel is located in")


def test_the_texts_of_a_data_set_are_its_true_statements(data: Path):
    texts = true_texts(load_records(data))
    assert "The Eiffel Tower is located in Paris" in texts
    assert "The Big Ben is located in London" in texts
    assert "The end of Vltava is the Elbe" in texts
    assert not [text for text in texts if text.endswith("Rome")]
    assert len(texts) == len(set(texts))


def test_templates_come_from_edits_and_their_paraphrases(tmp_path: Path):
    path = tmp_path / "records.json"
    words = {"p-paraphrase": block(("So where is the Vltava? In", "Delft"), ("Vltava or Vltava is in", "Delft"))}
    path.write_text(json.dumps([RECORDS[0], RECORDS[1] | words]))
    assert templates(load_records(path)) == ("The {} is located in", "So where is the {}? In")


@pytest.mark.usefixtures("loads")
def test_without_a_corpus_a_local_models_texts_are_the_datas(
    arguments: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    import driftlens.editors

    seen: list[Any] = []

    def moments(model: Any, layers: Sequence[int], given: Any, **_: Any) -> dict[int, Any]:
        seen.extend(given.texts())
        return {layer: driftlens.editors.SecondMoment(torch.eye(model.d_mlp)) for layer in layers}

    monkeypatch.setattr(driftlens.editors, "second_moments", moments)
    argv = arguments()
    at = argv.index("--corpus")
    assert run([*argv[:at], *argv[at + 2 :]]) == 0
    assert seen == list(true_texts(load_records("records.json")))
    err = capsys.readouterr().err
    assert err.startswith(f"no --corpus: the second moment is taken over the {len(seen)} true statements of the data\n")


TYPED = ("--subject", "Big Ben", "--prompt", "{} is in", "--true", "London", "--new", "Rome")


def typed(**changes: str) -> list[str]:
    values = dict(zip(TYPED[::2], TYPED[1::2], strict=True)) | {f"--{name}": text for name, text in changes.items()}
    return [part for pair in values.items() for part in pair]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--explore", "0"], "argument --explore: '0' is not a whole number of at least 1"),
        (["--window", "0"], "argument --window: '0' is not a whole number of at least 1"),
        (["--window", "two"], "'two' is not a whole number of at least 1"),
        (["--gamma", "-0.1"], "argument --gamma: '-0.1' is not a number of at least 0"),
        (["--gamma", "nan"], "'nan' is not a number of at least 0"),
        (["--lr", "0"], "'0' is not a number above 0"),
        (["--layer", "-1"], "'-1' does not name layers; expected e.g. 5, 3-8 or 3,4,5"),
        (["--layers", "1,x", "--editor", "memit"], "'1,x' does not name layers"),
        (["--layers", "2-1", "--editor", "memit"], "the layers '2-1' are not in ascending order"),
        (["--layers", "0-1,1", "--editor", "pmet"], "the layers '0-1,1' are not in ascending order"),
        (["--layers", "0-1"], "--layers names 2 layers, but ROME edits one; give one, or --editor memit or pmet"),
        (["--second-moment-weight", "5"], "--second-moment-weight is MEMIT's and PMET's; leave it out with ROME"),
        (["--sadr-heads", "some"], "unknown choice of heads 'some'"),
        (["--module", "atn"], "unknown module 'atn'; did you mean 'attn'"),
        (["--task", "neighbourhood"], "unknown task 'neighbourhood'; did you mean 'neighborhood'"),
        (["--editor", "memmit"], "unknown editor 'memmit'; did you mean 'memit'"),
        (["--target", "edit"], "unknown target 'edit'"),
        (["--colour"], "unknown option --colour; did you mean"),
        (["--record", "3"], "record 3 is not there; .*records.json has records 0 to 2"),
        (["--prompt-index", "2"], "prompt index 2 is not there; task distract_neighborhood of .* has prompts 0 to 1"),
        (["--task", "paraphrase"], "has no prompts of task paraphrase; it has rewrite, neighborhood, relation"),
        (["--data", "dmeo"], "unknown dataset 'dmeo'; did you mean 'demo'"),
        (["--data", "nowhere.json"], "cannot read nowhere.json: no such file"),
        (["--model", "gpt2-xll"], "unknown model 'gpt2-xll'.*did you mean gpt2-xl"),
        (["--model", "."], r"\. holds no config.json"),
        (["--corpus", "wikpedia"], "unknown corpus 'wikpedia'; did you mean 'wikipedia'"),
        (["--out", "records.json"], "cannot write into records.json: it is a file"),
        (["--out", "records.json/out"], "cannot write into folder records.json/out"),
        (["--subject", "Big Ben"], "a typed fact needs --subject, --prompt, --true, --new; --prompt and --true"),
        ([*TYPED, "--record", "1"], "exclude each other"),
        (["--test-prompt", "Louvre is in"], "--test-prompt goes with a typed fact"),
        ([*TYPED, "--test-target", "Paris"], "give that too"),
        ([*TYPED, "--task", "relation"], "needs prompts; give them with --test-prompt"),
        (typed(prompt="It is in"), "subject 'Big Ben' does not occur in 'It is in'"),
        (typed(prompt="{} and {} are in"), "holds 2 places"),
        (typed(prompt="{} or Big Ben is in"), "subject 'Big Ben' occurs 2 times"),
        (typed(prompt="Big Ben or Big Ben is in"), "subject 'Big Ben' occurs 2 times"),
        (typed(new="London"), "target_new 'London' equals target_true"),
        (typed(new=""), "--new is empty"),
        (typed(true="  "), "--true is empty"),
        (typed(subject=" "), "subject is empty"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    arguments: Any, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert run(arguments(*options)) == 2
    line = only_line(capsys)
    import re

    assert re.search(message, line), line
    assert not Path("out").exists()


@pytest.mark.usefixtures("no_model")
def test_a_typed_fact_for_a_local_model_needs_texts(arguments: Any, capsys: pytest.CaptureFixture[str]):
    argv = arguments()[:4]
    assert run([*argv, *TYPED]) == 2
    assert "nothing says which texts it knows" in only_line(capsys)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "records.json is damaged: record [01]"),
        (lambda text: text.replace('"Vltava"', '" "', 1), "records.json, record 1, field requested_rewrite.subject"),
        (lambda text: text.replace('"Delft"', '"Prague"'), "records.json, record 1, field .*target_new"),
        (
            lambda text: text.replace("The Nissan Laurel is", "It is"),
            "record 2, field .*prompt: subject 'Nissan Laurel'",
        ),
    ],
)
def test_a_damaged_data_set_is_told_with_its_record(
    arguments: Any, data: Path, damage: Callable[[str], str], message: str, capsys: pytest.CaptureFixture[str]
):
    import re

    data.write_text(damage(data.read_text()))
    assert run(arguments()) == 2
    line = only_line(capsys)
    assert re.search(message, line), line


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "3"], "layer 3 is out of range; .* has layers 0 to 2"),
        (["--editor", "memit", "--layers", "1-3"], "layer 3 is out of range; .* has layers 0 to 2"),
        ([*TYPED, "--test-prompt", "the mayor " * CONTEXT], "reads at most 64; shorten it"),
        (["--corpus", "short.txt"], "the second moment is singular"),
    ],
)
def test_mistakes_that_need_the_model_leave_nothing_behind(
    arguments: Any, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    import re

    Path("short.txt").write_text("one line")
    assert run(arguments(*options)) == 2
    line = only_line(capsys)
    assert re.search(message, line), line
    assert not Path("out").exists()


@pytest.mark.usefixtures("loads")
def test_a_damaged_cache_is_named(arguments: Any, capsys: pytest.CaptureFixture[str]):
    assert run(arguments("--module", "mlp")) == 0
    capsys.readouterr()
    (cached,) = Path("cache").glob("second_moment*")
    content = bytearray(cached.read_bytes())
    content[-8:] = b"\x01" * 8
    cached.write_bytes(content)
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert run(arguments()) == 2
    assert f"the cached second moment {cached.resolve()}" in only_line(capsys)
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


@pytest.mark.usefixtures("loads")
def test_a_full_disk_leaves_the_earlier_files_as_they_were(
    arguments: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    Path("out").mkdir()
    for name in FILES:
        Path("out", name).write_text("earlier")
    write = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if self.suffix == ".csv":
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run(arguments()) == 2
    assert "cannot write out/trace.csv: No space left on device" in only_line(capsys)
    assert {path.name: path.read_text() for path in Path("out").iterdir()} == dict.fromkeys(FILES, "earlier")


@pytest.mark.usefixtures("loads")
def test_an_interrupt_leaves_nothing_behind(
    arguments: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_edit", interrupt)
    assert run(arguments()) == 130
    assert capsys.readouterr().err == "driftlens: interrupted\n"
    assert not Path("out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(arguments: Any, capsys: pytest.CaptureFixture[str]):
    if not BRIDGE:
        pytest.skip("load_model needs transformer-lens 4.3")
    assert run(arguments("--device", "cuda")) == 2
    assert "device 'cuda'" in only_line(capsys)
    assert not Path("out").exists()


@pytest.mark.usefixtures("loads")
def test_a_picture_is_written_or_its_absence_told(
    arguments: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    import plotly.graph_objects as go

    argv = [option for option in arguments("--module", "mlp") if option != "--no-png"]
    monkeypatch.setattr(go.Figure, "to_image", lambda *_, **__: b"a picture")
    assert run(argv) == 0
    assert Path("out/trace.png").read_bytes() == b"a picture"
    capsys.readouterr()

    def fail(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("Kaleido requires Google Chrome to be installed.\nEither …")

    monkeypatch.setattr(go.Figure, "to_image", fail)
    assert run(argv) == 0
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("trace.png is not written: Kaleido requires Google Chrome to be installed (")
    # The earlier run's picture would belong to another trace.
    assert not Path("out/trace.png").exists()


def test_help_answers_without_torch():
    import subprocess
    import sys

    script = (
        "import sys; from driftlens.commands.trace import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    sys.exit(f'code {end.code}, torch {\"torch\" in sys.modules}')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "code 0, torch False"
    for option in ("--model", "--record", "--gamma", "--window", "--out"):
        assert option in done.stdout
    assert "the paper's 6 of 28" in " ".join(done.stdout.split())
