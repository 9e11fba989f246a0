"""What people mean: an editor's result for its edit, a single regulariser; and near misses that are answered."""

# Wrong types are what is tried.
# pyright: reportArgumentType=false

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from driftlens import (
    MEMIT,
    ROME,
    SADR,
    DriftlensError,
    Fact,
    LensModel,
    Record,
    attention_drift,
    contaminating_substitution,
    evaluate,
    generate,
    patch_attention,
    patch_scores,
)
from driftlens.data import TASKS
from driftlens.data.tasks import Asked, all_tasks
from driftlens.editors.restrained import with_sadr
from driftlens.editors.second_moment import SecondMoment
from driftlens.edits import EditResult
from driftlens.models.loading import depth
from driftlens.models.names import suggestion
from driftlens.options.editing import make_editor
from driftlens.options.editor import EditorOptions
from driftlens.options.parsing import Parser
from tests.support.edited import random_edit
from tests.support.tiny import BRIDGE, load_tiny

FACT: Any = Fact(subject="Toko Yasuda", prompt="{} plays the", target_true="guitar", target_new="piano")
RECORD: Any = Record(
    index=0, fact=FACT, tasks=all_tasks(FACT, {"neighborhood": [Asked("Anaal Nathrakh plays", "metal")]})
)


@pytest.fixture(scope="module")
def model(checkpoints: Any) -> LensModel:
    return load_tiny(checkpoints("gpt2"))


def test_an_editors_result_is_as_good_as_its_edit(model: LensModel):
    edit = random_edit(model, 0, 1)
    result = EditResult(fact=FACT, edit=edit, history=pd.DataFrame(), keys={}, values={})
    for given in (result, [result]):
        nlls = evaluate(model, [RECORD], given)
        assert nlls.equals(evaluate(model, [RECORD], [edit]))
        assert generate(model, ["Toko"], given, seed=1) == generate(model, ["Toko"], edit, seed=1)
    for function in (contaminating_substitution, patch_attention, patch_scores):
        tables = [function(model, given, FACT.text, "guitar", window=1).table for given in (edit, result, [result])]
        assert all(table.equals(tables[0]) for table in tables)
    drifts = [attention_drift(model, given, FACT.text, FACT.subject).table for given in (edit, result)]
    assert drifts[0].equals(drifts[1])


def test_a_single_regulariser_needs_no_tuple(model: LensModel):
    assert ROME(layer=1, regularizers=SADR(gamma=0.5)).regularizers == (SADR(gamma=0.5),)
    editor = MEMIT.for_model(model, layers=(0,), regularizers=SADR())
    assert editor.regularizers == (SADR(),)
    assert editor.steps == 80


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda model: ROME.for_model("demo"), r"'demo' is a model's name; load it first: load_model\('demo'\)"),
        (lambda model: MEMIT.for_model(Path("folder")), "'folder' is a model's name"),
        (lambda model: evaluate("demo", RECORD), "'demo' is a model's name"),
        (lambda model: generate("demo", ["a"]), "'demo' is a model's name"),
        (lambda model: contaminating_substitution("demo", random_edit(model, 0, 1), "a", "b"), "load it first"),
        (lambda model: attention_drift(model.model, random_edit(model, 0, 1), "a", "a"), r"LensModel\(model\)"),
        (lambda model: ROME.for_model(model, layers=(1, 2)), "unknown setting of ROME 'layers'; did you mean 'layer'"),
        (lambda model: MEMIT.for_model(model, layer=1), "unknown setting of MEMIT 'layer'; did you mean 'layers'"),
        (lambda model: ROME(layer=1).edit(model, "text"), r"'text' is no fact; give Fact\("),
        (lambda model: ROME(layer=1).edit(model, RECORD), "is a record; its edit request is record.fact"),
        (lambda model: ROME(layer=1).edit_many(model, [FACT, "text"]), "'text' is no fact"),
        (lambda model: RECORD.tasks["neighbor"], "unknown task 'neighbor'; did you mean 'neighborhood'"),
        (lambda model: evaluate(model, RECORD, "edit.safetensors"), "'edit.safetensors' is no edit; expected an Edit"),
        (lambda model: patch_scores(model, FACT, "a", "b"), "is no edit; expected an Edit or an EditResult"),
    ],
)
def test_what_was_meant(model: LensModel, wrong: Any, message: str):
    with pytest.raises(DriftlensError, match=message) as raised:
        wrong(model)
    assert "\n" not in str(raised.value)


def test_tasks_are_a_mapping_all_the_same():
    assert tuple(RECORD.tasks) == TASKS
    assert RECORD.tasks.get("neighbor") is None
    assert "neighbor" not in RECORD.tasks


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--records", "unknown option --records; did you mean --record"),
        ("--tast=rewrite", "unknown option --tast; did you mean --task"),
        ("--zzz", "unrecognized arguments: --zzz 1; driftlens trace --help lists all options"),
    ],
)
def test_a_near_option_is_named(typed: str, message: str):
    parser = Parser(prog="driftlens trace")
    parser.add_argument("--record")
    parser.add_argument("--task")
    with pytest.raises(DriftlensError, match=message):
        parser.parse_args([typed, "1"])


def test_a_models_own_name_is_no_suggestion():
    assert "did you mean" not in suggestion("gpt2-xl")
    assert "the name is right" in suggestion("gpt2-xl")
    assert "did you mean gpt2-xl" in suggestion("gpt2-x")


@pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")
@pytest.mark.parametrize("command", ["trace", "edit", "evaluate"])
def test_layers_are_judged_before_weights_are_loaded(
    command: str, checkpoints: Any, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
):
    from driftlens.commands.cli import main
    from driftlens.options.program import run_command

    folder = checkpoints("gpt2")
    assert depth(folder) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("driftlens.models.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    typed = ["--subject", "A", "--prompt", "{} is", "--new", "b", "--corpus", "demo"] if command == "edit" else []
    for layers, message in (("12", "layer 12 is out of range"), ("2", "layer 2 is the last")):
        sadr = ["--gamma", "0.1"] if layers == "2" and command != "edit" else ["--sadr"]
        assert run_command(main, [command, "--model", str(folder), "--layers", layers, *sadr, *typed]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_steps_follow_gamma_unless_they_were_given(model: LensModel):
    without, restrained = (ROME.preset(model, regularized=one)["steps"] for one in (False, True))
    assert without != restrained
    usual = ROME.for_model(model)
    assert with_sadr(model, usual, 0.5).steps == restrained
    assert with_sadr(model, with_sadr(model, usual, 0.5), None).steps == without
    assert with_sadr(model, with_sadr(model, usual, 0.5), 0.25).regularizers == (SADR(gamma=0.25),)
    for steps in (7, without):  # also where it is the preset's number
        given = ROME.for_model(model, steps=steps)
        assert with_sadr(model, given, 0.5).steps == steps
    # What is filled in later does not make the number somebody's.
    moment = {usual.layer: SecondMoment(torch.eye(model.d_mlp))}
    changed: list[Any] = [
        usual.with_second_moments(moment),
        usual.with_second_moments(moment).settled(model),
        usual.changed(contexts=("{}",)),
        make_editor(model, EditorOptions(editor="rome", contexts=((2, 1),))),
    ]
    for later in changed:
        assert with_sadr(model, later, 0.5).steps == restrained
        assert with_sadr(model, later.changed(steps=7), 0.5).steps == 7
    heads = ROME.for_model(model, regularizers=SADR(heads="all"))
    assert with_sadr(model, heads, 0.5).regularizers == (SADR(gamma=0.5, heads="all"),)


def test_the_cases_hold_what_the_unedited_model_wrote():
    from experiments.cases import _told

    shown = pd.DataFrame({"request": "A is b → c", "writer": ["m", "ROME", "ROME + SADR"], "text": ["b", "c", "d"]})
    assert _told(shown) == ["\n**A is b → c**\n", "- *m*: b", "- *ROME*: c", "- *ROME + SADR*: d"]


def test_moments_of_the_editor_stay(model: LensModel):
    editor = ROME.for_model(model, second_moment=torch.eye(model.d_mlp))
    assert with_sadr(model, editor, 0.5).second_moment is editor.second_moment
