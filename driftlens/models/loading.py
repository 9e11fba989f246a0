"""`load_model`: a name or a folder becomes a `LensModel`; whatever stands in the way becomes one line.

1. The name is resolved: the bundled model, a local folder, or a name on the Hugging Face hub. For the first two nothing
   reaches the network.
2. The configuration is read and its architecture checked, before any weight is.
3. The weights are read from safetensors (never from a pickle, never with code from the checkpoint).
4. Hugging Face's own forward gives reference logits, the bridge is put around the model, and the self-check compares.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.models.families import FAMILIES
from driftlens.models.lens_model import LensModel
from driftlens.models.self_check import check_tokens, self_check

__all__ = ["DEMO_WEIGHTS", "KNOWN_MODELS", "load_model"]

DEMO_WEIGHTS = Path(__file__).resolve().parent.parent / "demo" / "weights"

# Names to suggest when one is not found. Any checkpoint of the supported families loads, listed here or not.
KNOWN_MODELS = (
    "demo",
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
    "distilgpt2",
    "EleutherAI/gpt-j-6b",
    "EleutherAI/gpt-neox-20b",
    "EleutherAI/pythia-70m",
    "EleutherAI/pythia-160m",
    "EleutherAI/pythia-410m",
    "EleutherAI/pythia-1.4b",
    "EleutherAI/pythia-2.8b",
    "EleutherAI/pythia-6.9b",
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-2-13b-hf",
    "meta-llama/Meta-Llama-3-8B",
)

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
}


def load_model(
    name: str | PathLike[str] = "demo",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    check: bool = True,
) -> LensModel:
    """Load `"demo"`, a model of the Hugging Face hub, or a local Hugging Face folder.

    `device` None is CUDA where there is one, else the CPU. `dtype` None is the checkpoint's own on a GPU; on the CPU,
    where half precision is slow and inexact, an fp16 checkpoint becomes float32, and the bundled model is float32
    everywhere. `check=False` skips the self-check.
    """
    _require_transformer_lens_4()
    target = _device(device)
    source, local = _resolve(fspath(name))
    config = _read_config(source, local)
    with _hub_errors(source), _quiet(local):
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=_dtype(dtype, config, target, demo=fspath(name) == "demo"),
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=local,
            trust_remote_code=False,
        )
        tokenizer = _read_tokenizer(source, local)
    model = model.to(target).eval().requires_grad_(False)
    # Before the bridge takes the model apart, so that the comparison is with Hugging Face alone.
    reference = _reference_logits(model) if check else None
    lens = LensModel(_bridge(model, tokenizer, fspath(name)), name=fspath(name), check=False, tokenizer=tokenizer)
    if reference is not None:
        lens.checked = self_check(lens, reference)
    return lens


@torch.no_grad()
def _reference_logits(model: Any) -> Tensor:
    tokens = check_tokens(model.get_output_embeddings().weight.shape[0], model.config.max_position_embeddings)
    return model(input_ids=tokens.to(model.device), use_cache=False).logits


def _bridge(model: Any, tokenizer: Any, name: str) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module, detect_tokenizer_bos_eos

    import driftlens.models.gptj  # noqa: F401 (registers the adapter for GPT-J)

    # Without its tokenizer: given one, the bridge loads it a second time with a BOS that the model may not know, and
    # for a model of the hub asks the network for it.
    bridge: Any = build_bridge_from_module(
        model, type(model).__name__, hf_config=model.config, tokenizer=None, model_name=name
    )
    bridge.tokenizer = tokenizer
    bridge.cfg.tokenizer_prepends_bos, bridge.cfg.tokenizer_appends_eos = detect_tokenizer_bos_eos(tokenizer)
    bridge.cfg.default_prepend_bos = bridge.cfg.tokenizer_prepends_bos
    return bridge


def _require_transformer_lens_4() -> None:
    try:
        found = version("transformer-lens")
    except PackageNotFoundError:
        raise DriftlensError("transformer-lens is not installed; install transformer-lens 4.3 or later") from None
    if tuple(int(part) for part in found.split(".")[:2]) < (4, 3):
        raise DriftlensError(
            f"load_model needs transformer-lens 4.3 or later, found {found}; upgrade it, or hand over a "
            f"HookedTransformer loaded without processing: LensModel(model)"
        )


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError:
        raise DriftlensError(f"unknown device {str(device)!r}; expected cpu, cuda, cuda:1 or mps") from None
    if target.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (target.index or 0) >= count:
            raise DriftlensError(f"device {str(device)!r} is not there: found {count} CUDA devices; use --device cpu")
    elif target.type == "mps" and not torch.backends.mps.is_available():
        raise DriftlensError("device 'mps' is not there: this machine has no Apple GPU; use --device cpu")
    return target


def _dtype(dtype: str | torch.dtype | None, config: Any, device: torch.device, *, demo: bool) -> torch.dtype | str:
    if isinstance(dtype, torch.dtype):
        if dtype not in _DTYPES.values():
            raise DriftlensError(f"unusable dtype {dtype}; expected one of {', '.join(_DTYPES)}")
        return dtype
    if dtype is not None:
        if dtype not in _DTYPES:
            raise DriftlensError(f"unknown dtype {dtype!r}; expected one of {', '.join(_DTYPES)}")
        return _DTYPES[dtype]
    own = config.dtype
    if demo or (device.type == "cpu" and own == torch.float16):
        return torch.float32
    return own if isinstance(own, torch.dtype) else "auto"


def _resolve(name: str) -> tuple[str, bool]:
    """Where to load from, and whether that is a local folder."""
    if name == "demo":
        if not (DEMO_WEIGHTS / "config.json").is_file():
            raise DriftlensError(f"the bundled model's weights are missing at {DEMO_WEIGHTS}; reinstall driftlens")
        return str(DEMO_WEIGHTS), True
    folder = Path(name).expanduser()
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise DriftlensError(f"{name} holds no config.json; expected a Hugging Face model folder")
        return str(folder), True
    if name in KNOWN_MODELS:
        return name, False
    # Names without an owner on the hub are the few old ones listed above.
    if name.count("/") != 1 or name[0] in "./~\\" or name[-1] == "/":
        raise DriftlensError(f"unknown model {name!r}: no such folder, and no such name on the hub{_near(name)}")
    return name, False


def _near(name: str) -> str:
    lower = {known.lower(): known for known in KNOWN_MODELS} | {
        known.lower().split("/")[-1]: known for known in KNOWN_MODELS
    }
    near = dict.fromkeys(lower[match] for match in get_close_matches(name.lower(), lower, n=3, cutoff=0.6))
    suggestions = ", ".join(near) if near else "demo, a hub name such as gpt2-xl, or a folder"
    return f"; did you mean {suggestions}?" if near else f"; expected {suggestions}"


def _read_config(source: str, local: bool) -> Any:
    from transformers import AutoConfig

    with _hub_errors(source):
        try:
            config: Any = AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
        except (KeyError, ValueError) as error:
            raise DriftlensError(f"cannot read the config.json of {source}: {error}") from error
    architectures: list[str] = list(config.architectures or [])
    if not any(architecture in FAMILIES for architecture in architectures):
        raise DriftlensError(
            f"unsupported architecture {', '.join(architectures) or config.model_type!r} in {source}; "
            f"expected one of {', '.join(FAMILIES)}"
        )
    return config


def _read_tokenizer(source: str, local: bool) -> Any:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        source, use_fast=True, local_files_only=local, trust_remote_code=False
    )
    if not tokenizer.is_fast:
        raise DriftlensError(f"{source} has no fast tokenizer; save one with a tokenizer.json beside the weights")
    return tokenizer


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """No progress bar for local files, which are read in moments; one for a download, which may take an hour."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if quiet:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet and shown:
            logging.enable_progress_bar()


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    """Whatever Hugging Face raises on the way, as one line."""
    try:
        yield
    except DriftlensError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DriftlensError(f"cannot load {source}: {first}{_near(source)}") from error
