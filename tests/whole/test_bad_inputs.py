"""Every bad input is answered in one line, with exit code 2, and leaves nothing behind: the rule, tried in bulk."""

# Wrong types are what is tried.
# pyright: reportArgumentType=false

import json
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from driftlens import (
    MEMIT,
    ROME,
    SADR,
    DriftlensError,
    Edit,
    Fact,
    LensModel,
    attention_drift,
    contaminating_substitution,
    evaluate,
    load_model,
    load_records,
    patch_attention,
    patch_scores,
)
from driftlens.commands import cli
from driftlens.data import load_known_facts, load_snippets, load_texts
from driftlens.editors import open_corpus
from driftlens.options.program import run_command
from driftlens.runs.manifest import open_manifest
from tests.support.tiny import BRIDGE
from tests.whole.bad_inputs import (
    LONG,
    NAMES_OF_MODELS,
    PLACES,
    SPOILT,
    TYPED_WRONG,
    command_cases,
    furnish,
    model_cases,
)

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="pipes and devices as files"),
    pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3"),
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="session")
def model_folder(checkpoints: Any) -> Path:
    return checkpoints("gpt2")


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("bad inputs")
    furnish(folder, model_folder)
    return folder


@pytest.fixture
def place(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, shared by all, since a case that is answered well changes nothing in it."""
    monkeypatch.chdir(furnished)
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    return furnished


def seen(folder: Path) -> dict[str, tuple[int, int]]:
    """Every folder, and every file with its size and when it was last written."""
    found: dict[str, tuple[int, int]] = {}
    for at, folders, files in os.walk(folder):
        found |= {f"{at}/{name}": (0, 0) for name in folders}
        for name in files:
            stat = os.lstat(f"{at}/{name}")
            found[f"{at}/{name}"] = stat.st_size, stat.st_mtime_ns
    return found


def tried(name: str, argv: Sequence[str]) -> int:
    if name.startswith("experiments."):
        return run_command(import_module(name).main, argv)
    return run_command(cli.main, [name, *argv] if name else list(argv))


def named(case: tuple[str, list[str]]) -> str:
    return f"{case[0]} {' '.join(case[1])}".strip().encode("ascii", "backslashreplace").decode()[:70]


def check(case: tuple[str, list[str]], place: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, argv = case
    before = seen(place), seen(model)
    code = tried(name, [part.replace("{model}", str(model)) for part in argv])
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("driftlens: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert (seen(place), seen(model)) == before


@pytest.mark.parametrize("case", command_cases(), ids=named)
def test_a_command_answers_in_one_line(
    case: tuple[str, list[str]], place: Path, model_folder: Path, capfd: pytest.CaptureFixture[str]
):
    check(case, place, model_folder, capfd)


@pytest.mark.parametrize("case", model_cases(), ids=named)
def test_a_model_that_cannot_be_used_is_one_line(
    case: tuple[str, list[str]], place: Path, model_folder: Path, capfd: pytest.CaptureFixture[str]
):
    check(case, place, model_folder, capfd)


# --- the Python API ---


@pytest.fixture(scope="session")
def whole(model_folder: Path) -> LensModel:
    return load_model(model_folder, device="cpu")


FACT = {"subject": "Big Ben", "prompt": "{} is located in", "target_true": "London", "target_new": "Paris"}
PROMPT = "Big Ben is located in"

Call = Callable[[Any, Edit], object]

WITH: dict[str, tuple[Callable[[Any, Edit, Any], object], Sequence[Any]]] = {
    "load_records": (lambda _, __, one: load_records(one), [*(f for f in SPOILT if f != "empty.json"), *PLACES, ""]),
    "load_texts": (lambda _, __, one: load_texts(one), ["numbers.json", *PLACES]),
    "load_snippets": (lambda _, __, one: load_snippets(one), ["numbers.json", "fifo"]),
    "load_known_facts": (lambda _, __, one: load_known_facts(one), ["numbers.json", "fifo", "good.json"]),
    "load_model": (lambda _, __, one: load_model(one), NAMES_OF_MODELS),
    "open_corpus": (lambda _, __, one: open_corpus(one), ["blank.txt", *PLACES]),
    "Edit.load": (lambda _, __, one: Edit.load(one), ["edit.safetensors", "good.json", *PLACES]),
    "edit.save": (lambda _, edit, one: edit.save(one), ["", "folder", LONG, "no/x"]),
    "edit.export": (lambda model, edit, one: edit.export(model, one), ["", "folder", LONG, "good.json"]),
    "Fact": (
        lambda _, __, one: Fact(**dict(zip(FACT, one, strict=True))),
        [(s, p, t, n) for s, p, n, t in TYPED_WRONG],
    ),
}
"""Calls, and the values of one argument that each must refuse."""

CALLS: dict[str, Call] = {
    **{
        f"{name} {str(one)[:40]!a}": lambda model, edit, call=call, one=one: call(model, edit, one)
        for name, (call, values) in WITH.items()
        for one in values
    },
    "load_model(device)": lambda _, __: load_model("demo", device="gpu"),
    "load_model(dtype)": lambda _, __: load_model("demo", dtype="int8"),
    "load_records(limit)": lambda _, __: load_records("demo", limit=-1),
    "LensModel(5)": lambda _, __: LensModel(5),
    "SADR(gamma)": lambda _, __: SADR(gamma=-1),
    "SADR(heads)": lambda _, __: SADR(heads="none"),
    "ROME(layer)": lambda model, _: ROME(layer=99, second_moment=None, corpus="text.txt").edit(model, Fact(**FACT)),
    "ROME(steps)": lambda _, __: ROME(layer=1, steps=0),
    "ROME(lr)": lambda _, __: ROME(layer=1, lr=-1.0),
    "MEMIT(layers)": lambda _, __: MEMIT(layers=()),
    "MEMIT(order)": lambda _, __: MEMIT(layers=(2, 1)),
    "substitution(module)": lambda model, edit: contaminating_substitution(model, edit, PROMPT, "London", module="nlp"),
    "substitution(window)": lambda model, edit: contaminating_substitution(model, edit, PROMPT, "London", window=0),
    "substitution(target)": lambda model, edit: contaminating_substitution(model, edit, PROMPT, ""),
    "substitution(prompts)": lambda model, edit: contaminating_substitution(model, edit, [PROMPT] * 2, ["a"] * 3),
    "substitution(long)": lambda model, edit: contaminating_substitution(model, edit, "a b " * 99, "London"),
    "patch_attention(window)": lambda model, edit: patch_attention(model, edit, PROMPT, "London", window=0),
    "patch_scores(target)": lambda model, edit: patch_scores(model, edit, PROMPT, " "),
    "drift(subject)": lambda model, edit: attention_drift(model, edit, PROMPT, "Louvre"),
    "drift(layers)": lambda model, edit: attention_drift(model, edit, PROMPT, "Big Ben", layers=[99]),
    "evaluate(tasks)": lambda model, edit: evaluate(model, load_records("good.json"), edit, tasks=["nonsense"]),
    "evaluate(edits)": lambda model, edit: evaluate(model, load_records("good.json"), [edit] * 3),
}


@pytest.fixture(scope="session")
def edit(whole: LensModel) -> Edit:
    import torch

    from driftlens.edits import LowRankUpdate

    left, right = torch.ones(whole.d_mlp, 1), torch.ones(1, whole.d_model)
    return Edit(updates={1: LowRankUpdate(left=left, right=right)})


@pytest.mark.parametrize("name", CALLS)
def test_a_call_raises_one_line(
    name: str, place: Path, whole: LensModel, edit: Edit, capfd: pytest.CaptureFixture[str]
):
    before = seen(place)
    with pytest.raises(DriftlensError) as caught:
        CALLS[name](whole, edit)
    assert str(caught.value).isprintable()
    assert capfd.readouterr() == ("", "")
    assert seen(place) == before


MANIFEST = {"format": "driftlens-benchmark-1", "configuration": {"seed": 0}, "sessions": [], "shard_size": 4}


@pytest.mark.parametrize(
    "content",
    [
        *(json.dumps({**MANIFEST, "shard_size": size}) for size in (0, -1, 1.5, "4", None, [4], True)),
        *(json.dumps({**MANIFEST, "configuration": part}) for part in (None, [], "x", 5, {"seed": 1})),
        *(json.dumps({**MANIFEST, "sessions": part}) for part in (None, {}, "x")),
        *(json.dumps({key: part for key, part in MANIFEST.items() if key != gone}) for gone in list(MANIFEST)[:3]),
        json.dumps([MANIFEST]),
        json.dumps({**MANIFEST, "format": "driftlens-benchmark-9"}),
        *("", "null", "5", '"x"', "{", "[" * 100_000, "\0"),
    ],
)
def test_an_odd_manifest_is_one_line(content: str, tmp_path: Path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "000000-000004.json").write_text("{}")
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DriftlensError) as caught:
        open_manifest(tmp_path, {"seed": 0})
    assert str(caught.value).isprintable()
