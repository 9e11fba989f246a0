"""Editors and regularisers from outside the package, also the documented examples, run where the built-in ones do."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from driftlens import MEMIT, PMET, ROME, SADR, Edit, EditResult, clinic, load_records, register_editor
from driftlens.commands import cli
from driftlens.editors import Editor, register_regularizer
from driftlens.edits import AddedNorm, Dense, Gated, Site
from driftlens.errors import DriftlensError
from driftlens.explorer import Bench, exhibits, explorer_page
from driftlens.explorer.bench import checked_gammas, editors_by_gamma
from driftlens.models import LensModel
from driftlens.registry import EDITORS, REGULARIZERS, Registry
from driftlens.runs import benchmark, cached_edits
from tests.commands.test_trace_command import RECORDS, corpus  # noqa: F401 (a fixture)
from tests.support.documentation import blocks
from tests.support.places import ROOT
from tests.support.tiny import BRIDGE

pytestmark = pytest.mark.skipif(
    not BRIDGE, reason="commands load a checkpoint by name, which needs transformer-lens 4.3"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Remembered(Editor):
    """A side memory that answers for one prompt only: an edit that is no change of weights."""

    layer: int = 1

    @property
    def edited_layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def edit_many(
        self,
        model: LensModel,
        facts: Sequence[Any],
        *,
        batch_size: Any = None,
        on_step: Any = None,
        on_facts: Any = None,
    ) -> list[EditResult]:
        import pandas as pd

        results: list[EditResult] = []
        for number, fact in enumerate(facts):
            generator = torch.Generator().manual_seed(number)
            weight = 0.3 * torch.randn(model.d_mlp, model.d_model, generator=generator)
            change = Gated(change=Dense(site=Site(self.layer), weight=weight), router=AddedNorm(threshold=0.0))
            edit = Edit([change], facts=(fact,), provenance=self.provenance(model, fact))
            history = pd.DataFrame({"step": [0], "loss": [1.0], "probability": [0.5]})
            results.append(EditResult(fact=fact, edit=edit, history=history, keys={}, values={}))
            if on_facts is not None:
                on_facts(len(results), len(facts))
        return results


class MyROME(ROME):
    pass


class MyMEMIT(MEMIT):
    pass


class MyPMET(PMET):
    pass


def documented(page: str, *names: str) -> list[Any]:
    """Classes that a page defines, without running what it does with them."""
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(ROOT / "docs" / "howto" / page):
        if block.language != "python":
            continue
        lines = block.code.split("\n")
        starts = [at for at, line in enumerate(lines) if line.startswith("@dataclass")]
        imports = [line for line in lines if line.startswith(("from ", "import "))]
        exec("\n".join(imports), namespace)  # noqa: S102 (the documentation's own code)
        for start in starts:
            stop = next((at for at in range(start + 2, len(lines)) if lines[at][:1].strip()), len(lines))
            exec("\n".join(lines[start:stop]), namespace)  # noqa: S102
    return [namespace[name] for name in names]


ALL = ("along-the-key", "remembered", "my-rome", "my-memit", "my-pmet")
REGULARIZER = "no-more-than-before:weight=0.5"


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    (along,) = documented("editor.md", "AlongTheKey")
    no_more, keep = documented("regularizer.md", "NoMoreThanBefore", "KeepAnswers")
    for registry in (EDITORS, REGULARIZERS):
        monkeypatch.setattr(registry, "_homes", dict(registry._homes))
    for name, editor in zip(ALL, (along, Remembered, MyROME, MyMEMIT, MyPMET), strict=True):
        register_editor(name, editor)
    register_regularizer("no-more-than-before", no_more)
    register_regularizer("keep-answers", keep)


@pytest.fixture
def arguments(checkpoints: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: F811
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("records.json").write_text(json.dumps(RECORDS))
    usual = ["--model", str(checkpoints("gpt2")), "--device", "cpu"]
    return lambda *more: [*usual, *([] if "remembered" in more else ["--corpus", str(corpus)]), *more]


@pytest.fixture
def tiny(checkpoints: Any) -> LensModel:
    from tests.support.tiny import load_tiny

    return load_tiny(checkpoints("gpt2"))


@pytest.fixture
def given(corpus: Path) -> Any:  # noqa: F811
    """A function from an editor's name to its settings here."""
    return lambda name: {} if name == "remembered" else {"corpus": corpus, "steps": 2, "contexts": ("{}",)}


def options(name: str) -> list[str]:
    """The same on the command line."""
    quick = [] if name == "remembered" else ["--steps", "2", "--contexts", "2x1"]
    return ["--data", "records.json", "--editor", name, *quick]


@pytest.mark.parametrize("name", ALL)
def test_trace_and_explorer(name: str, arguments: Any, capsys: pytest.CaptureFixture[str]):
    more = [*options(name), "--no-png"]
    if name != "remembered":
        more += ["--regularizer", REGULARIZER, "--regularizer", "keep-answers"]
    explore = ["--explore", "--window", "1"] if name in ("along-the-key", "remembered") else []
    assert cli.main(["trace", *arguments(*more, *explore, "--max-prompts", "1", "--out", "out")]) == 0
    told = capsys.readouterr().out
    assert EDITORS.find(name).__name__ in told
    edit = Edit.load("out/edit.safetensors")
    assert edit.provenance["editor"] == EDITORS.find(name).__name__
    assert edit.facts[0].subject == "Eiffel Tower"
    assert edit.is_weights == (name != "remembered")
    if explore:
        assert EDITORS.find(name).__name__ in Path("out/explore.html").read_text()


@pytest.mark.parametrize("name", ["along-the-key", "my-memit", "remembered"])
def test_evaluate(name: str, arguments: Any):
    more = [*options(name), "--limit", "1"]
    assert cli.main(["evaluate", *arguments(*more, "--out", "run")]) == 0
    assert Path("run/scores.csv").is_file()
    assert cli.main(["evaluate", *arguments(*more, "--dry-run", "--out", "run")]) == 0


def test_profile(arguments: Any):
    editors = ["--editor", "along-the-key", "--editor", "my-memit+sadr"]
    more = [*editors, "--data", "records.json", "--records", "2", "--samples", "2", "--no-generation"]
    assert cli.main(["profile", *arguments()[:4], *more, "--json", "p.json"]) == 0
    told = Path("p.json").read_text()
    assert "along-the-key" in told
    assert "my-memit+sadr" in told


@pytest.mark.parametrize("name", ["along-the-key", "my-rome", "remembered"])
def test_the_clinic(name: str, tiny: LensModel, given: Any):
    fact = load_records("demo")[0].fact
    report = clinic(
        tiny, subject=fact.subject, prompt=fact.prompt, new=fact.target_new, true=fact.target_true,
        editor=EDITORS.find(name).for_model(tiny, **given(name)), gammas=(0.1,), force=True,
    )  # fmt: skip
    assert report.edit is not None
    assert report.edit.provenance["editor"] == EDITORS.find(name).__name__
    # By name and with the path of γ that nobody gave: presets are on the class.
    assert 1e-2 in checked_gammas(tiny, None, EDITORS.find(name).for_model(tiny, **given(name)))


@pytest.mark.parametrize("name", ALL)
def test_runs_and_caches(name: str, tiny: LensModel, given: Any, tmp_path: Path, arguments: Any):
    from driftlens.data import load_records as load

    records = load("records.json")[:2]
    editor = EDITORS.find(name).for_model(tiny, **given(name))
    result: Any = benchmark(tiny, records, editor, tmp_path / "run", tasks=("rewrite",), generate=False)
    assert result.records["record"].tolist() == [0, 1]
    assert (result.records["problem"] == "").all()
    facts = [record.fact for record in records]
    made = cached_edits(tiny, editor, facts, tmp_path / "cache")
    read = cached_edits(tiny, editor, facts, tmp_path / "cache")
    assert all(one.equals(other) for one, other in zip(made, read, strict=True))
    assert len(list((tmp_path / "cache").glob("edit-*"))) == 2


def test_the_explorers_page(tiny: LensModel, given: Any, arguments: Any):
    from driftlens.data import load_records as load

    editor = Remembered(**given("remembered"))
    bench = Bench(tiny, exhibits(load("records.json")[:1], most=1), editors_by_gamma(tiny, editor))
    page = explorer_page(bench, (None, 0.1), (1,), editor="Remembered")
    assert b"Remembered + SADR" in page


def test_what_a_command_line_says_of_names(arguments: Any, capsys: pytest.CaptureFixture[str]):
    from driftlens.options.program import run_command

    mistakes = {
        ("--editor", "along-the-kex"): "did you mean 'along-the-key'",
        ("--regularizer", "no-more:weight=1"): "unknown regularizer 'no-more'",
        ("--regularizer", "sadr:gama=1"): "unknown setting of sadr 'gama'",
        ("--regularizer", "sadr:gamma"): "does not set anything",
        ("--regularizer", "sadr:gamma=-1"): "gamma is -1",
        ("--editor", "my-rome", "--layers", "0-1"): "names 2 layers, but my-rome edits one",
        ("--editor", "along-the-key", "--second-moment-weight", "2"): "no setting of along-the-key",
    }
    for more, message in mistakes.items():
        assert run_command(cli.main, ["trace", *arguments("--data", "records.json", *more)]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1


def test_presets_are_inherited_and_ones_own_are_found(tiny: LensModel):
    assert MyMEMIT.for_model(tiny).second_moment_weight == MEMIT.for_model(tiny).second_moment_weight
    assert MyROME.presets is ROME.presets
    assert MyROME.for_model(tiny, regularizers=(SADR(),)).steps == 80


def test_a_registry_refuses_what_would_hide_another():
    registry: Registry[Any] = Registry("toy", "driftlens.no-such-group", {"set": "builtins:set"})
    assert registry.find("set") is set
    registry.register("set", set)
    registry.register("own", dict)
    assert registry.names == ("set", "own")
    assert registry.name_of(dict) == "own"
    with pytest.raises(DriftlensError, match="'set' is registered already, as builtins:set"):
        registry.register("set", dict)
    with pytest.raises(DriftlensError, match="'Two words' cannot name toy"):
        registry.register("Two words", dict)
    with pytest.raises(DriftlensError, match="unknown toy 'owm'; did you mean 'own'"):
        registry.find("owm")
