"""The settings for a model that nobody has tuned, on the one model here whose facts are known: it is not recognised."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from driftlens.data import Record, load_records
from driftlens.editors import MEMIT, PMET, ROME, SADR, ContextSampling, SecondMoment, open_corpus, second_moments
from driftlens.editors.presets import DEMO
from driftlens.evaluation import evaluate, summarize
from driftlens.models import LensModel, load_model
from driftlens.models.names import DEMO_WEIGHTS

LAYERS = (1, 2)
CONTEXTS = ContextSampling(lengths=((10, 5),))


@pytest.fixture(scope="module")
def stranger(demo_model: LensModel, tmp_path_factory: pytest.TempPathFactory) -> LensModel:
    """The bundled model under a name that no preset is for."""
    folder = tmp_path_factory.mktemp("models") / "a-model-of-mine"
    shutil.copytree(DEMO_WEIGHTS, folder)
    model = load_model(folder, device="cpu")
    assert model.model_hash == demo_model.model_hash
    return model


@pytest.fixture(scope="module")
def moments(demo_model: LensModel) -> dict[int, SecondMoment]:
    """Those that come with the bundled model."""
    return second_moments(demo_model, LAYERS, open_corpus("demo"))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """On these the bundled model's own settings were chosen, and these defaults."""
    return [record for record in load_records("demo") if record.split == "validation"][:6]


@pytest.mark.parametrize("kind", [ROME, MEMIT, PMET])
def test_nearly_every_edit_takes(
    stranger: LensModel, moments: dict[int, SecondMoment], records: list[Record], kind: Any
):
    settings = kind.preset(stranger)
    assert settings["lr"] != DEMO[kind.__name__].settings["lr"]  # not recognised
    given = moments[settings["layer"]] if kind is ROME else moments
    editor = kind.for_model(stranger, second_moment=given, sampling=CONTEXTS)
    edits = [result.edit for result in editor.edit_many(stranger, [record.fact for record in records])]
    scores: Any = summarize(evaluate(stranger, records, edits, tasks=("rewrite", "neighborhood")), resamples=0)["value"]
    assert scores["ES"] >= 80  # five of six
    assert scores["NS"] >= 60  # and most neighbours stay: the model is still whole


def test_with_sadr_there_are_more_steps(stranger: LensModel):
    assert [kind.preset(stranger, regularized=on)["steps"] for kind in (ROME, PMET) for on in (False, True)] == [
        20, 80, 20, 80,
    ]  # fmt: skip
    assert MEMIT.for_model(stranger, regularizers=(SADR(),)).edited_layers == LAYERS


def test_the_bundled_models_own_settings_are_found_by_name(demo_model: LensModel):
    assert Path(demo_model.name).name == "demo"
    for kind in (ROME, MEMIT, PMET):
        own = DEMO[kind.__name__]
        assert kind.preset(demo_model) == {**own.settings, "steps": own.steps}
