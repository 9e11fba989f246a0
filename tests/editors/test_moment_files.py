"""Published second moments: the files of ROME and EasyEdit, checked against the model and named in the provenance."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from driftlens.data import Fact
from driftlens.editors import MEMIT, ROME, stream_second_moments
from driftlens.editors.moment_files import read_moment, read_moments
from driftlens.editors.second_moment import write_second_moment
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.options.editing import make_editor
from driftlens.options.editor import EditorOptions
from driftlens.options.moments import choose_corpus, with_second_moments
from tests.support.tiny import BRIDGE, load_tiny

pytestmark = pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")


@pytest.fixture(scope="module")
def model(checkpoints: Any) -> LensModel:
    return load_tiny(checkpoints("llama"))


def keys(model: LensModel, tokens: int = 500, seed: int = 0) -> Tensor:
    return torch.randn(tokens, model.d_mlp, generator=torch.Generator().manual_seed(seed))


def published(path: Path, keys: Tensor) -> Path:
    """As `util/runningstats.py` of ROME, MEMIT and EasyEdit writes them."""
    arrays = {
        "mom2.constructor": "util.runningstats.SecondMoment()",
        "mom2.count": len(keys),
        "mom2.mom2": (keys.T @ keys).numpy(),
        "sample_size": 100,
    }
    np.savez(path, **arrays)
    return path


def test_a_published_file_holds_the_mean_over_tokens(model: LensModel, tmp_path: Path):
    own = keys(model)
    found = read_moment(published(tmp_path / "layer.npz", own), model)
    assert torch.allclose(found.matrix, own.T @ own / len(own), atol=1e-5)
    assert found.source.startswith("layer.npz (sha256 ")
    assert found.source.endswith(", 500 tokens)")


def test_driftlens_own_files_are_read(model: LensModel, tmp_path: Path):
    texts = ["Toko Yasuda plays the guitar in Leiden.", "The river Vltava ends in Mělník, where it meets the Elbe."]
    matrix = stream_second_moments(model, [1], texts)[1]
    write_second_moment(tmp_path / "own.safetensors", matrix, "own")
    assert torch.equal(read_moment(tmp_path / "own.safetensors", model).matrix, matrix)


def test_a_file_for_each_layer(model: LensModel, tmp_path: Path):
    for layer in (0, 1):
        published(tmp_path / f"transformer.h.{layer}.mlp_float32_mom2_100000.npz", keys(model, seed=layer))
    pattern = tmp_path / "transformer.h.{}.mlp_float32_mom2_100000.npz"
    found = read_moments(pattern, model, (0, 1))
    assert not torch.equal(found[0].matrix, found[1].matrix)
    with pytest.raises(DriftlensError, match="is one file, but 2 layers are edited"):
        read_moments(tmp_path / "transformer.h.0.mlp_float32_mom2_100000.npz", model, (0, 1))


def test_an_edit_names_the_file_it_was_made_with(model: LensModel, checkpoints: Any, tmp_path: Path):
    path = published(tmp_path / "layer.npz", keys(model))
    fact = Fact(subject="Toko Yasuda", prompt="{} plays the", target_true="guitar", target_new="metal")
    options = EditorOptions(second_moment=str(path), layers=(1,), steps=2)
    editor = with_second_moments(model, make_editor(model, options))
    assert isinstance(editor, ROME)
    edit = replace(editor, contexts=("{}",)).edit(model, fact).edit
    assert edit.provenance["second_moment"].startswith("layer.npz (sha256 ")
    memit = make_editor(
        model, EditorOptions(editor="memit", second_moment=str(tmp_path / "layer.npz"), layers=(1,), steps=2)
    )
    assert isinstance(memit, MEMIT)
    assert memit.second_moment is not None
    # A local model needs no corpus then.
    assert choose_corpus(str(checkpoints("llama")), None, [], given=str(path)) is None
    with pytest.raises(DriftlensError, match="leave --corpus out"):
        EditorOptions(second_moment=str(path), corpus="wikitext")


def write_text(path: Path, model: LensModel) -> None:
    path.write_text("not a file of numpy")


def write_pickle(path: Path, model: LensModel) -> None:
    np.savez(path, **{"mom2.mom2": np.array([{"a": 1}], dtype=object), "mom2.count": 3})


def write_other(path: Path, model: LensModel) -> None:
    np.savez(path, weights=np.eye(3))


def write_wide(path: Path, model: LensModel) -> None:
    published(path, torch.randn(50, model.d_mlp + 1))


def write_nan(path: Path, model: LensModel) -> None:
    published(path, keys(model) * float("nan"))


def write_skew(path: Path, model: LensModel) -> None:
    np.savez(path, **{"mom2.mom2": torch.randn(model.d_mlp, model.d_mlp).abs().numpy(), "mom2.count": 1})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_text, "is no second moment"),
        (write_pickle, "is no second moment"),
        (write_other, "is no second moment"),
        (write_wide, "down-projections of"),
        (write_nan, "numbers that no second moment has"),
        (write_skew, "not symmetric"),
    ],
)
def test_what_is_no_second_moment_is_one_line(model: LensModel, tmp_path: Path, write: Any, message: str):
    write(tmp_path / "odd.npz", model)
    with pytest.raises(DriftlensError, match=message) as caught:
        read_moment(tmp_path / "odd.npz", model)
    assert "\n" not in str(caught.value)


def test_a_missing_file(model: LensModel, tmp_path: Path):
    with pytest.raises(DriftlensError, match="No such file"):
        read_moment(tmp_path / "none.npz", model)
