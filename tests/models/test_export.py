"""An exported folder is a Hugging Face checkpoint: the same tensors, the same tokens, and the edit where it belongs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from driftlens.edits import Site
from driftlens.errors import DriftlensError
from driftlens.models import Batch, LensModel, load_model
from tests.support.checkpoints import tiny_checkpoint
from tests.support.plain import PlainModel
from tests.support.tiny import BRIDGE, one_family

bridge_only = pytest.mark.skipif(not BRIDGE, reason="only a bridge has a Hugging Face model behind it")


def logits(model: LensModel) -> torch.Tensor:
    tokens = torch.arange(1, 9)[None]
    return model.unembed(model.run(Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))))


@bridge_only
def test_an_unedited_model_comes_back_bit_for_bit(lens_model: LensModel, checkpoint_folder: Path, tmp_path: Path):
    lens_model.export(tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint_folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    plain = PlainModel(tmp_path / "out")
    text = "The river Vltava in München"
    assert plain.tokenizer(text)["input_ids"] == lens_model.encode(text).ids
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"]
    again = load_model(tmp_path / "out", device="cpu")
    assert again.model_hash == lens_model.model_hash


@bridge_only
def test_an_edit_lands_in_the_right_matrix(lens_model: LensModel, tmp_path: Path):
    new = lens_model.W_out(1) + 0.1 * torch.randn(lens_model.d_mlp, lens_model.d_model)
    lens_model.export(tmp_path / "out", {Site(1): new})
    tokens = torch.arange(1, 9)[None]
    found = PlainModel(tmp_path / "out").run(tokens)[1]

    before, saved = logits(lens_model), lens_model.W_out(1).clone()
    with torch.no_grad():
        lens_model.W_out(1).copy_(new)
        expected = logits(lens_model)
        lens_model.W_out(1).copy_(saved)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5
    assert (found - before).abs().max() / expected.abs().max() > 1e-3
    assert torch.equal(logits(lens_model), before)


@bridge_only
def test_the_precision_is_kept(tmp_path: Path):
    model = load_model(tiny_checkpoint("gptj", tmp_path / "in", dtype=torch.bfloat16), device="cpu")
    model.export(tmp_path / "out", {Site(0): model.W_out(0).float() * 2})
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert torch.equal(tensors["transformer.h.0.mlp.fc_out.weight"].T, model.W_out(0) * 2)
    assert load_model(tmp_path / "out", device="cpu").dtype == torch.bfloat16


@one_family
@bridge_only
def test_mistakes_leave_nothing_behind(lens_model: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("keep me")
    mistakes: list[tuple[Any, Any, str]] = [
        (taken, {}, "exists and is not empty"),
        (taken / "notes.txt", {}, "exists and is not empty"),
        (taken / "notes.txt" / "below", {}, "cannot write"),
        (tmp_path / "out", {Site(9): torch.zeros(lens_model.d_mlp, lens_model.d_model)}, "layer 9 is out of range"),
        (tmp_path / "out", {Site(0): torch.zeros(3, 4)}, "has shape (3, 4)"),
    ]
    for folder, weights, message in mistakes:
        with pytest.raises(DriftlensError) as caught:
            lens_model.export(folder, weights)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def full_disk(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(lens_model.tokenizer), "save_pretrained", full_disk)
    with pytest.raises(DriftlensError, match="No space left on device"):
        lens_model.export(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]


@one_family
@bridge_only
def test_an_empty_folder_may_be_there(lens_model: LensModel, tmp_path: Path):
    (tmp_path / "out").mkdir()
    lens_model.export(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.skipif(BRIDGE, reason="HookedTransformer left transformer-lens with 4.0")
def test_a_hooked_transformer_has_nothing_to_export(lens_model: LensModel, tmp_path: Path):
    with pytest.raises(DriftlensError, match="no Hugging Face model behind it"):
        lens_model.export(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
