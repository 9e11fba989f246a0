"""load_model and LensModel(model): what is taken, what is refused in one line, and that nothing is downloaded."""

import json
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from driftlens.errors import DriftlensError
from driftlens.models import Batch, LensModel, load_model
from driftlens.models.names import DEMO_WEIGHTS
from tests.support.checkpoints import FAMILIES, hooked_transformer, tiny_checkpoint, tiny_model
from tests.support.plain import PlainModel
from tests.support.tiny import BRIDGE, one_family

pytestmark = pytest.mark.backend

bridge_only = pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")
hooked_only = pytest.mark.skipif(BRIDGE, reason="HookedTransformer left transformer-lens with 4.0")


def refused(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(DriftlensError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def logits_error(model: LensModel, plain: PlainModel) -> float:
    tokens = torch.tensor([model.encode("Toko Yasuda plays the guitar").ids])
    found = model.unembed(model.run(Batch(tokens, torch.ones_like(tokens, dtype=torch.bool)))).float()
    expected = plain.run(tokens)[1].float()
    return float((found - expected).norm() / expected.norm())


@pytest.fixture
def copied(checkpoints: Any, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoints("gpt2"), tmp_path / "copy"))


def change(file: Path, **values: Any) -> None:
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, **values}))


# --- loading ---


@one_family
@bridge_only
def test_a_local_folder_needs_no_network(checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch):
    def connect(*args: Any) -> None:
        raise AssertionError("a local model reached for the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    model = load_model(str(checkpoint_folder))
    assert model.name == str(checkpoint_folder)
    assert model.tokenizer.name_or_path == str(checkpoint_folder)


def storages(tensors: Iterable[torch.Tensor]) -> int:
    """The bytes of all storages; a view has its whole's."""
    return sum({own.data_ptr(): own.nbytes() for own in (tensor.untyped_storage() for tensor in tensors)}.values())


@bridge_only
def test_no_weight_is_held_twice(checkpoint_folder: Path):
    """Neither by the bridge and Hugging Face's model each, nor whole and in parts, as joint QKV weights."""
    model = load_model(checkpoint_folder, device="cpu", check=False)
    twice = 0
    if model.family == "neox":  # the parts of its joint weights lie interleaved, and no view has a head of each
        twice = storages(weight for name, weight in model.named_weights() if "query_key_value" in name)
    assert storages(model.model.parameters()) == storages(weight for _, weight in model.named_weights()) + twice


@bridge_only
def test_the_tokenizer_is_the_checkpoints_own(checkpoint_folder: Path):
    model = load_model(checkpoint_folder, device="cpu", check=False)
    plain = PlainModel(checkpoint_folder)
    text = "The river Vltava"
    assert model.encode(text).ids == plain.tokenizer(text)["input_ids"]
    # transformer-lens's own methods agree, without a BOS of theirs.
    assert model.model.to_tokens(text)[0].tolist() == model.encode(text).ids
    assert model.adds_bos == checkpoint_folder.name.startswith("llama")


@bridge_only
@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.float16, None, torch.float32),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float32, "bf16", torch.bfloat16),
        (torch.float16, torch.float16, torch.float16),
        (torch.bfloat16, "float32", torch.float32),
    ],
)
def test_precision(tmp_path: Path, stored: torch.dtype, asked: Any, expected: torch.dtype):
    folder = tiny_checkpoint("llama-gqa", tmp_path, dtype=stored)
    model = load_model(folder, dtype=asked, device="cpu")
    assert model.dtype == expected
    assert model.W_out(0).dtype == expected
    assert logits_error(model, PlainModel(folder, dtype=torch.float32)) < (1e-5 if expected.itemsize == 4 else 0.05)


@bridge_only
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_close_to_hugging_faces(checkpoints: Any, family: str):
    model = load_model(checkpoints(family), dtype="bf16", device="cpu")
    resid = model.run(Batch(torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool)))
    assert resid.dtype == model.unembed(resid).dtype == torch.bfloat16
    assert logits_error(model, PlainModel(checkpoints(family), dtype=torch.bfloat16)) < 0.05


# --- a model that the user already has ---


@bridge_only
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_a_bridge_of_the_users_own(checkpoints: Any, family: str):
    from transformer_lens.model_bridge import TransformerBridge

    folder = checkpoints(family)
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    model = LensModel(bridge)
    assert model.checked is not None
    assert model.model is bridge
    assert model.adds_bos == (family == "llama")  # although transformer-lens gave the bridge's own one a BOS
    assert logits_error(model, PlainModel(folder)) < 1e-5
    loaded = load_model(folder, device="cpu")
    assert model.model_hash == loaded.model_hash


@bridge_only
def test_a_processed_bridge_is_refused(checkpoints: Any):
    model = load_model(checkpoints("gpt2"), check=False)
    model.model.enable_compatibility_mode()
    refused(lambda: LensModel(model.model), "not the checkpoint's", "no_processing=True")


@bridge_only
def test_a_bridge_without_a_tokenizer_says_so_when_it_is_needed(checkpoints: Any):
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    huggingface = tiny_model("llama")
    bridge = build_bridge_from_module(huggingface, "LlamaForCausalLM", hf_config=huggingface.config)
    model = LensModel(bridge)
    refused(lambda: model.encode("a"), "no tokenizer", "LensModel(model, tokenizer=...)")


@hooked_only
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("processing", "message"),
    [({"fold_ln": True}, "layer norms are folded"), ({"center_writing_weights": True}, "centred")],
)
def test_a_processed_hooked_transformer_is_refused(checkpoints: Any, processing: Any, message: str):
    hooked = hooked_transformer(checkpoints("gpt2"), **processing)
    refused(lambda: LensModel(hooked), "not the checkpoint's", message)


@hooked_only
def test_with_transformer_lens_3_load_model_names_the_way_out(checkpoints: Any):
    refused(lambda: load_model(checkpoints("gpt2")), "needs transformer-lens 4.3", "LensModel(model)")


@hooked_only
@pytest.mark.filterwarnings("ignore")
def test_the_bridge_of_transformer_lens_3_is_refused(checkpoints: Any):
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(checkpoints("gpt2")), device="cpu")
    refused(lambda: LensModel(bridge), "cannot use a TransformerBridge", "4.3")


@hooked_only
@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("positional_embedding_type", "alibi", "unsupported positional embedding 'alibi'"),
        ("use_local_attn", True, "unsupported attention"),
        ("n_devices", 2, "spread over 2 devices"),
        ("original_architecture", "BloomForCausalLM", "unsupported architecture BloomForCausalLM"),
    ],
)
def test_hooked_transformers_that_cannot_be_run(checkpoints: Any, setting: str, value: Any, message: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        hooked = hooked_transformer(checkpoints("gpt2"))
    setattr(hooked.cfg, setting, value)
    refused(lambda: LensModel(hooked), message)


@hooked_only
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hooked_transformer_made_by_hand_gets_its_family_from_its_blocks(checkpoint_folder: Path):
    hooked = hooked_transformer(checkpoint_folder)
    hooked.cfg.original_architecture = None
    assert LensModel(hooked).family == checkpoint_folder.name.split("-")[0]


# --- what is refused ---


@bridge_only
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("dmeo", ["unknown model 'dmeo'", "did you mean demo?"]),
        ("gpt2xl", ["unknown model 'gpt2xl'", "gpt2-xl"]),
        ("gpt-j-6b", ["EleutherAI/gpt-j-6b"]),
        ("./no/such/folder", ["unknown model './no/such/folder'", "no such folder"]),
        ("/no/folder", ["no such folder", "'demo'"]),
        ("zzzzzz", ["unknown model 'zzzzzz'", "expected 'demo'"]),
        ("", ["unknown model ''"]),
    ],
)
def test_unknown_names(name: str, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: load_model(name), *parts)


@bridge_only
@pytest.mark.parametrize(
    ("name", "advice"),
    [("gpt2-xl", "the name is right, so look at the network"), ("EleutherAI/gpt-j-6c", "did you mean")],
)
def test_no_network(name: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.HF_HUB_CACHE", str(tmp_path), raising=False)
    refused(lambda: load_model(name), f"cannot load {name}: ", advice)


@bridge_only
def test_devices_and_dtypes(checkpoints: Any):
    folder = checkpoints("gpt2")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    refused(lambda: load_model(folder, device=f"cuda:{count}"), f"'cuda:{count}' is absent")
    refused(lambda: load_model(folder, device="tpu9"), "unknown device 'tpu9'")
    refused(lambda: load_model(folder, device="meta"), "unsupported device 'meta'")
    refused(lambda: load_model(folder, dtype="int8"), "unknown dtype 'int8'", "float32")
    refused(lambda: load_model(folder, dtype=torch.int8), "unknown dtype")
    if not torch.backends.mps.is_available():
        refused(lambda: load_model(folder, device="mps"), "'mps' is absent")


@bridge_only
def test_folders_that_are_no_checkpoint(copied: Path, tmp_path: Path):
    refused(lambda: load_model(tmp_path), "holds no config.json")

    weights = copied / "model.safetensors"
    weights.rename(copied / "pytorch_model.bin")
    refused(lambda: load_model(copied), "no safetensors file", "pytorch_model.bin", "can run code")
    (copied / "pytorch_model.bin").unlink()
    refused(lambda: load_model(copied), "no safetensors file", "found no weights")

    weights.write_bytes(b"not a checkpoint")
    refused(lambda: load_model(copied), f"cannot load {copied}", "get it again")


@bridge_only
def test_damaged_checkpoints(copied: Path):
    from safetensors.torch import load_file, save_file

    config = copied / "config.json"
    original = config.read_text()
    change(config, architectures=["BertForMaskedLM"])
    refused(lambda: load_model(copied), "unsupported architecture BertForMaskedLM", "LlamaForCausalLM")
    change(config, architectures=["GPT2LMHeadModel"], quantization_config={"quant_method": "gptq", "bits": 4})
    refused(lambda: load_model(copied), "use the full-precision checkpoint")
    config.write_text(original[:50])
    refused(lambda: load_model(copied), "cannot load")
    config.write_text(original)
    change(config, n_embd=64)
    refused(lambda: load_model(copied), "do not belong together")
    config.write_text(original)

    tensors = load_file(copied / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_proj.weight"]
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    refused(lambda: load_model(copied), "lacks 1 of the model's weights", "transformer.h.1.mlp.c_proj.weight")


@bridge_only
def test_a_missing_tokenizer(copied: Path):
    (copied / "tokenizer.json").unlink()
    (copied / "tokenizer_config.json").unlink()
    refused(lambda: load_model(copied), "holds no tokenizer", "tokenizer.json")


@bridge_only
def test_loading_in_another_precision_makes_one_copy(tmp_path: Path):
    """GPT-2's weights are stored transposed; read, converted and bridged they are still there once."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("the system does not say what a process holds")
    config = GPT2Config.from_pretrained(DEMO_WEIGHTS)
    config.update({"n_embd": 640, "n_layer": 8, "n_head": 10, "n_inner": None})
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_WEIGHTS / name, tmp_path)
    # In a process of its own, since one that has run other tests holds memory that it can give.
    command = [sys.executable, "-m", "benchmarks.loading_memory", str(tmp_path), "--dtypes", "bfloat16", "--one"]
    told = subprocess.run([*command, "--no-check"], check=True, capture_output=True, text=True).stdout
    found = json.loads(told.splitlines()[-1])
    assert found["weights_mb"] > 75
    # Beside the converted copy, the tokenizer and the modules; a second copy would make it 2.
    assert 0.9 < found["peak_of_no_file_over_weights"] < 1.4
