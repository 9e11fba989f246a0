"""A model in pieces (on disk, in main memory) gives the numbers of the same model in one piece."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from driftlens import contaminating_substitution, patch_attention
from driftlens.editors import SADR
from driftlens.errors import DriftlensError
from driftlens.models import Batch, LensModel, load_model
from driftlens.models.families import family_for
from tests.editors.test_rome import FACT, random_moment, rome
from tests.support.checkpoints import FAMILIES, MORE_FAMILIES, tiny_checkpoint
from tests.support.tiny import BRIDGE, shared

pytestmark = pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")


def offloaded(folder: Path) -> dict[str, str]:
    """Everything on disk, but the second block."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        names = [name for name, _ in AutoModelForCausalLM.from_config(config).named_parameters(remove_duplicate=False)]
    family = family_for(json.loads((folder / "config.json").read_text())["architectures"][0])
    assert family is not None
    devices: dict[str, str] = {}
    for name in names:
        module = name.rpartition(".")[0]
        if name.startswith(family.blocks):
            module = ".".join(name.split(".")[: family.blocks.count(".") + 2])
        devices[module] = "cpu" if module == f"{family.blocks}.1" else "disk"
    return devices


@pytest.fixture(scope="module", params=[*FAMILIES, *MORE_FAMILIES])
def folder(request: pytest.FixtureRequest, checkpoints: Any) -> Path:
    return checkpoints(request.param)


@pytest.fixture(scope="module")
def whole(folder: Path) -> LensModel:
    return shared(folder)


@pytest.fixture(scope="module")
def placed(folder: Path) -> LensModel:
    return load_model(folder, device_map=offloaded(folder))


def tokens(model: LensModel) -> Batch:
    ids = torch.randint(2, model.d_vocab, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :5] = False
    return Batch(ids, mask)


def weights_in_memory(model: LensModel) -> list[str]:
    return [name for name, weight in model.model.original_model.named_parameters() if weight.device.type != "meta"]


def test_logits(placed: LensModel, whole: LensModel):
    assert placed.checked is not None
    assert str(placed.device) == "cpu"
    real = tokens(whole).mask
    found, expected = (model.unembed(model.run(tokens(model)))[real] for model in (placed, whole))
    assert torch.equal(found, expected)
    assert placed.model_hash == whole.model_hash


# --- what edits do, on one family with separate projections and one with joint ones ---


@pytest.fixture(scope="module", params=["gemma3", "phi3"])
def pair(request: pytest.FixtureRequest, checkpoints: Any) -> tuple[LensModel, LensModel]:
    folder = checkpoints(request.param)
    return load_model(folder, device_map=offloaded(folder)), shared(folder)


def test_an_edit_is_made_applied_taken_back_traced_and_exported(pair: tuple[LensModel, LensModel], tmp_path: Path):
    placed, whole = pair
    before = placed.model_hash
    result = rome(placed, layer=0, regularizers=(SADR(gamma=0.1),)).edit(placed, FACT)
    expected = rome(whole, layer=0, regularizers=(SADR(gamma=0.1),)).edit(whole, FACT)
    assert result.edit.equals(expected.edit)  # the same operations in the same order
    edit = result.edit
    assert all(".layers.1." in name for name in weights_in_memory(placed) if "o_proj" in name or "down_proj" in name)

    hooked = placed.unembed(placed.run(tokens(placed), hooks=edit.hooks(placed)))
    with edit.applied(placed):
        applied = placed.unembed(placed.run(tokens(placed)))
        assert placed.model_hash != before
        with edit.applied(whole):
            assert placed.model_hash == whole.model_hash
            assert torch.equal(applied, whole.unembed(whole.run(tokens(whole))))
    assert torch.allclose(hooked, applied, atol=1e-4)
    assert placed.model_hash == before

    grids: Any = [
        contaminating_substitution(model, edit, FACT.text, FACT.target_new, ("resid", "mlp", "attn"), 2).table
        for model in pair
    ]
    assert (grids[0]["probability"] == grids[1]["probability"]).all()
    scores: Any = [patch_attention(model, edit, FACT.text, FACT.target_new, 2).table for model in pair]
    assert (scores[0]["probability"] == scores[1]["probability"]).all()

    edit.export(placed, tmp_path / "placed")
    edit.export(whole, tmp_path / "whole")
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("placed", "whole"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_change_in_place_of_a_weight_on_disk_is_one_of_the_model(pair: tuple[LensModel, LensModel]):
    placed, _ = pair
    before = placed.unembed(placed.run(tokens(placed)))
    with torch.no_grad():
        placed.W_out(2).mul_(1.5)
        changed = placed.unembed(placed.run(tokens(placed)))
        placed.W_out(2).div_(1.5)
    assert not torch.allclose(before, changed)
    assert torch.allclose(before, placed.unembed(placed.run(tokens(placed))), atol=1e-4)


def test_bf16_weights_and_an_edit_in_fp32(tmp_path: Path):
    folder = tiny_checkpoint("qwen2", tmp_path / "model", dtype=torch.bfloat16)
    model = load_model(folder, device_map=offloaded(folder))
    result = rome(model, layer=0, residual_key="mean").edit(model, FACT)
    update, key = result.edit.updates[0], result.keys[0]
    assert {update.left.dtype, update.right.dtype, key.dtype, result.values[0].dtype} == {torch.float32}
    # C left is along the key; a solution rounded to bfloat16 would stray by 4e-3.
    along = random_moment(model.d_mlp) @ update.left[:, 0].double()
    assert torch.nn.functional.cosine_similarity(along, key.double(), dim=0) > 1 - 1e-9
    weight = model.W_out(0).clone()
    assert weight.dtype == torch.bfloat16
    with result.edit.applied(model):
        # One rounding, of the sum.
        assert torch.equal(model.W_out(0), (weight.float() + update.left @ update.right).bfloat16())
    assert torch.equal(model.W_out(0), weight)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which auto fills first")
def test_auto_on_a_machine_without_gpus_is_the_plain_model(checkpoints: Any):
    folder = checkpoints("gpt2")
    model, whole = load_model(folder, device_map="auto"), shared(folder)
    assert torch.equal(model.run(tokens(model)), whole.run(tokens(whole)))
    assert model.device.type == "cpu"


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "autos"}, "unknown device map 'autos'; did you mean 'auto'"),
        ({"device_map": {}}, "device_map is empty"),
        ({"device_map": 3}, "device_map is 3; expected 'auto'"),
        ({"device_map": "auto", "device": "cpu"}, "give one of them"),
        ({"device_map": {"model.layers": "disk"}}, "device_map names every module"),
        ({"device_map": {"": "cuda:77"}}, "devices that are there"),
    ],
)
def test_device_maps_that_cannot_be(checkpoints: Any, options: dict[str, Any], message: str):
    with pytest.raises(DriftlensError) as caught:
        load_model(checkpoints("llama"), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
