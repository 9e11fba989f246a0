"""GGUF files: dequantised weights run and export like any others, and what cannot be read is one line."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from driftlens.errors import DriftlensError
from driftlens.models import Batch, LensModel, load_model
from driftlens.models.sites import Site
from tests.support.checkpoints import write_tokenizer
from tests.support.plain import PlainModel
from tests.support.tiny import BRIDGE

gguf = pytest.importorskip("gguf")
from tests.support.gguf_files import write_gguf  # noqa: E402

pytestmark = pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")

Q8_0, Q4_1 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1


def logits(model: LensModel) -> torch.Tensor:
    tokens = torch.arange(1, 40)[None]
    return model.unembed(model.run(Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))))


@pytest.fixture(scope="module")
def folder(checkpoints: Any) -> Path:
    return checkpoints("llama-gqa")


@pytest.fixture(scope="module")
def in_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose rows all fit into blocks of 32, so that every matrix is quantised."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("in_blocks")
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=400, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder, bos=True)
    return folder


def test_full_precision_gives_the_checkpoints_own_weights_tokens_and_logits(folder: Path, tmp_path: Path):
    model = load_model(write_gguf(folder, tmp_path / "tiny.gguf"), device="cpu")
    plain = PlainModel(folder)
    for layer in range(model.n_layers):
        assert torch.equal(model.W_out(layer), load_model(folder, device="cpu", check=False).W_out(layer))
    text = "The river Vltava in München, 1984"
    found = [
        token for token in model.encode(text).ids if not (model.adds_bos and token == model.tokenizer.bos_token_id)
    ]
    assert found == plain.tokenizer(text, add_special_tokens=False)["input_ids"]
    # The same float32 weights through the same code of Hugging Face's.
    torch.testing.assert_close(logits(model), plain.run(torch.arange(1, 40)[None])[1], rtol=1e-5, atol=1e-5)
    assert model.source.endswith("tiny.gguf, dequantised")


def dequantised_by_hand(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Blocks of 32 numbers with a scale in fp16: symmetric in 8 bits, with a minimum (fp16) in 4 bits."""
    blocks = weight.double().numpy().reshape(-1, 32)
    if bits == 8:
        scale = np.abs(blocks).max(1, keepdims=True) / 127
        numbers = np.rint(blocks / scale)
        return torch.tensor(numbers * scale.astype(np.float16)).reshape(weight.shape)
    low, high = blocks.min(1, keepdims=True), blocks.max(1, keepdims=True)
    scale = (high - low) / 15
    numbers = np.clip(np.floor((blocks - low) / scale + 0.5), 0, 15)
    return torch.tensor(numbers * scale.astype(np.float16) + low.astype(np.float16)).reshape(weight.shape)


@pytest.mark.parametrize(("kind", "bits"), [(Q8_0, 8), (Q4_1, 4)])
def test_quantised_weights_are_what_their_blocks_say(in_blocks: Path, tmp_path: Path, kind: Any, bits: int):
    original = load_file(in_blocks / "model.safetensors")
    model = load_model(write_gguf(in_blocks, tmp_path / "tiny.gguf", kind), device="cpu")
    assert model.dtype == torch.float32
    for layer in range(2):
        stored = original[f"model.layers.{layer}.mlp.down_proj.weight"]
        expected = dequantised_by_hand(stored, bits)
        found = model.W_out(layer).T.double()
        # An element on the border of two quantisation steps may fall to either side; everything else agrees.
        step = float(stored.max() - stored.min()) / (2**bits - 1)
        assert ((found - expected).abs() < 1e-5).float().mean() > 0.99
        assert float((found - expected).abs().max()) < 1.1 * step


def test_an_export_is_a_full_precision_folder_of_hugging_faces(in_blocks: Path, tmp_path: Path):
    model = load_model(write_gguf(in_blocks, tmp_path / "tiny.gguf", Q8_0), device="cpu")
    new = model.W_out(1) + 0.1
    model.export(tmp_path / "out", {Site(1, "mlp.out"): new})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert torch.equal(stored["model.layers.1.mlp.down_proj.weight"].T, new)
    again = load_model(tmp_path / "out", device="cpu")
    with torch.no_grad():
        model.W_out(1).copy_(new)
    torch.testing.assert_close(logits(again), logits(model))


@pytest.mark.parametrize("damage", ["cut short", "not a GGUF file", "unknown family", "no such file", "empty"])
def test_what_cannot_be_read_is_one_line(folder: Path, tmp_path: Path, damage: str):
    path = write_gguf(folder, tmp_path / "tiny.gguf")
    content = path.read_bytes()
    if damage == "cut short":
        path.write_bytes(content[: math.floor(0.7 * len(content))])
    elif damage == "not a GGUF file":
        path.write_bytes(b"PK" + content[2:])
    elif damage == "unknown family":
        path.write_bytes(content.replace(b"llama", b"xxama"))
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(DriftlensError) as caught:
        load_model(path, device="cpu")
    assert "\n" not in str(caught.value)
    assert "tiny.gguf" in str(caught.value)


def test_a_quantisation_that_cannot_be_undone_is_one_line(in_blocks: Path, tmp_path: Path):
    # Q8_K holds intermediate results of llama.cpp; no library dequantises it.
    with pytest.raises(DriftlensError, match=r"cannot load .*tiny\.gguf.*full-precision checkpoint") as caught:
        load_model(write_gguf(in_blocks, tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.Q8_K), device="cpu")
    assert "\n" not in str(caught.value)
