"""Weights that are not those of their configuration: refused in one line that names the tensor."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from driftlens import DriftlensError, load_model
from tests.support.checkpoints import D_MODEL, HEADS, LAYERS, VOCAB
from tests.support.tiny import BRIDGE

pytestmark = pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")

FIRST = {  # of each family, the last of a block's tensors
    "gpt2": "transformer.h.0.mlp.c_proj.weight",
    "gptj": "transformer.h.0.mlp.fc_out.weight",
    "neox": "gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
    "llama": "model.layers.0.mlp.down_proj.weight",
}


@pytest.fixture(params=FIRST)
def folder(request: pytest.FixtureRequest, checkpoints: Any, tmp_path: Path) -> Path:
    """A copy of a tiny checkpoint, to be damaged; it is named by its family."""
    return shutil.copytree(checkpoints(request.param), tmp_path / request.param)


def change(folder: Path, tensors: Callable[[dict[str, Any]], None] | None = None, **settings: Any) -> None:
    if tensors is not None:
        held = load_file(folder / "model.safetensors")
        tensors(held)
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(DriftlensError) as caught:
        load_model(folder, device="cpu")
    assert capfd.readouterr() == ("", "")  # no report of Hugging Face's before it
    return str(caught.value)


def sizes(folder: Path) -> dict[str, str]:
    """How the family's configuration calls its sizes."""
    if folder.name in ("gpt2", "gptj"):
        return {"layers": "n_layer", "heads": "n_head", "width": "n_embd"}
    return {"layers": "num_hidden_layers", "heads": "num_attention_heads", "width": "hidden_size"}


def test_a_tensor_of_another_shape_is_named(folder: Path, capfd: pytest.CaptureFixture[str]):
    name = FIRST[folder.name]

    def shorter(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name][:-1].contiguous()

    change(folder, shorter)
    message = refused(folder, capfd)
    assert f"{name} in {folder} has the shape" in message
    assert "do not belong together" in message


def test_a_tensor_that_is_missing_is_named(folder: Path, capfd: pytest.CaptureFixture[str]):
    change(folder, lambda tensors: tensors.pop(FIRST[folder.name]))
    assert f"lacks 1 of the model's weights, among them {FIRST[folder.name]}" in refused(folder, capfd)


@pytest.mark.parametrize("layers", [LAYERS - 1, LAYERS + 1, 10**6])
def test_another_number_of_layers_is_told_before_a_model_is_built(
    folder: Path, layers: int, capfd: pytest.CaptureFixture[str]
):
    given: dict[str, Any] = {sizes(folder)["layers"]: layers}
    change(folder, **given)
    message = refused(folder, capfd)
    assert f"says {layers} layers, but its weights have {LAYERS}, the last with " in message
    assert f".{LAYERS - 1}." in message


def test_another_vocabulary_names_the_embedding(folder: Path, capfd: pytest.CaptureFixture[str]):
    change(folder, vocab_size=VOCAB + 100)
    message = refused(folder, capfd)
    assert f" has the shape [{VOCAB}" in message
    assert f"says [{VOCAB + 100}" in message


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_floats_are_refused(folder: Path, kind: torch.dtype, capfd: pytest.CaptureFixture[str]):
    name = FIRST[folder.name]

    def cast(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name].to(kind)

    change(folder, cast)
    assert f"{name} in {folder} holds numbers of the kind" in refused(folder, capfd)


def test_a_tensor_that_the_model_has_no_place_for_is_named(folder: Path, capfd: pytest.CaptureFixture[str]):
    extra = FIRST[folder.name].replace(".weight", ".gate")
    change(folder, lambda tensors: tensors.update({extra: torch.zeros(3)}))
    assert f"hold {extra}, which a model of its config.json does not have" in refused(folder, capfd)


def test_masks_of_old_checkpoints_and_heads_of_other_tasks_are_no_damage(folder: Path):
    block = FIRST[folder.name].split(".mlp")[0]
    old = {f"{block}.attn.bias": torch.ones(2, 2).bool(), f"{block}.attn.masked_bias": torch.tensor(-1e9)}
    old |= {f"{block}.self_attn.rotary_emb.inv_freq": torch.ones(4), "score.weight": torch.ones(2, D_MODEL)}
    before = load_model(folder, device="cpu")
    change(folder, lambda tensors: tensors.update(old))
    after = load_model(folder, device="cpu")
    assert after.model_hash == before.model_hash


def test_names_without_the_models_own_in_front_are_read(checkpoints: Any, tmp_path: Path):
    folder = shutil.copytree(checkpoints("gpt2"), tmp_path / "gpt2")  # as GPT-2 is on the hub
    before = load_model(folder, device="cpu")

    def strip(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    change(folder, strip)
    assert torch.equal(load_model(folder, device="cpu").W_out(1), before.W_out(1))


def test_shards_are_read_together_and_one_that_is_missing_is_told(
    checkpoints: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    folder = shutil.copytree(checkpoints("llama"), tmp_path / "llama")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load_model(folder, device="cpu").W_out(0).T, tensors["model.layers.0.mlp.down_proj.weight"])
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refused(folder, capfd)


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
@pytest.mark.parametrize(
    "setting", [{"layers": "three"}, {"layers": 0}, {"heads": 0}, {"heads": HEADS + 1}, {"width": -48}, {"heads": 2.5}]
)
def test_odd_sizes_in_a_configuration_are_one_line(
    folder: Path, setting: dict[str, Any], capfd: pytest.CaptureFixture[str]
):
    change(folder, **{sizes(folder)[name]: value for name, value in setting.items()})
    assert "\n" not in refused(folder, capfd)
