"""`load_model`: load a `LensModel` by name or from a folder, with one-line errors.

1. The configuration is read and its architecture checked before any weights are read.
2. The weights are read from safetensors, never from a pickle, and code in the checkpoint is never run.
3. Hugging Face's own forward computes reference logits before the model is bridged.
4. The model is bridged, and the self-check compares its logits with the reference.
"""

import copy
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.models.chat import RAW, chat_frame
from driftlens.models.checkpoint import Checkpoint, checkpoint, one_line_errors, read_config, read_model, read_tokenizer
from driftlens.models.families import Family, longest_row
from driftlens.models.lens_model import LensModel
from driftlens.models.names import resolve
from driftlens.models.placement import DeviceMap, check_device_map
from driftlens.models.progress import quiet_bars, quiet_reports
from driftlens.models.published import PUBLISHED, obtain
from driftlens.models.quantised import quantisation_of
from driftlens.models.self_check import WINDOW, check_rows, self_check

__all__ = ["computes_bfloat16", "depth", "load_model"]

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
    device_map: DeviceMap | None = None,
    check: bool = True,
    chat: bool = False,
    system: str | None = None,
    family: Family | None = None,
) -> LensModel:
    """Load a model by its name, from a Hugging Face folder, or from a GGUF file.

    Checkpoints with a quantisation other than GGUF are loaded as Hugging Face loads them. They can be traced and
    evaluated; edits act on them only as hooks.

    Args:
        name: `"demo"` is the bundled model. `"smollm2-135m"` is a real model, downloaded at first use (see
            :mod:`driftlens.models.published`). Other values are a name on the Hugging Face hub, a local Hugging Face
            folder, or a `.gguf` file, whose weights are dequantised.
        device: "cpu", "cuda", "cuda:1", "mps"; None is CUDA if available, else the CPU.
        dtype: "float32", "bf16", …; None is the checkpoint's own precision, with these exceptions: the bundled model,
            the published ones and GGUF files are float32, and so is an fp16 checkpoint on the CPU, where half
            precision is slow and inexact.
        device_map: How to place a model that is too large for one device, instead of `device`. "auto" fills all GPUs,
            then main memory, and reads the rest from the checkpoint's files in each pass. A mapping gives a device
            ("cuda:1", "cpu", "disk") for each module by its name in Hugging Face's model. Numbers do not depend on it.
        check: Whether to check on the loaded model that hooks take effect (a few tiny passes).
        chat: Whether the model reads prompts as a user's messages in its chat template (`LensModel.chat`).
        system: The chat's system prompt; None is the template's default, "" an empty prompt.
        family: The description of the checkpoint's architecture, if driftlens does not know it.

    Raises:
        DriftlensError: an unknown name; a model that cannot be downloaded, read, dequantised or edited; an unavailable
            device or precision.
    """
    _require_bridge()
    name = fspath(name)
    if system is not None and not chat:
        raise DriftlensError(f"the system prompt {system!r} belongs to a chat; give chat=True as well, or leave it out")
    if device_map is not None:
        check_device_map(device_map)
        if device is not None:
            raise DriftlensError(f"device {str(device)!r} and a device_map say different things; give one of them")
    target = _device(device)
    place, source = _place(name)
    if device_map is not None and place.gguf is not None:
        raise DriftlensError(
            f"{name} is dequantised in memory as a whole; leave device_map out, or give a model folder"
        )
    with one_line_errors(name, place, placed=device_map is not None), quiet_bars(quiet=place.local), quiet_reports():
        config, family = read_config(place, family)
        tokenizer = read_tokenizer(place)
        frame = chat_frame(tokenizer, system) if chat else RAW  # before the weights: it may be impossible
        exact = name == "demo" or name in PUBLISHED or place.gguf is not None
        quantised = quantisation_of(config)
        if quantised is not None and device_map is None:
            device_map = {"": target}  # not every library's tensors can be moved
        model = read_model(place, config, _dtype(dtype, config, target, exact=exact), device_map)
        if device_map is None:
            model.to(target)
        reference = _reference_logits(model, family) if check else None
    if quantised is not None:
        source = f"{source}, quantised ({quantised})"
    bridge = _bridge(model, tokenizer, name, family)
    lens = LensModel(bridge, name=name, source=source, check=False, tokenizer=tokenizer, family=family)
    if reference is not None:
        with lens._backend.narrowed(WINDOW):  # pyright: ignore[reportPrivateUsage]
            lens.checked = self_check(lens, reference)
    lens.frame = frame
    return lens


def depth(name: str | PathLike[str]) -> int:
    """The number of layers of a model, read from its configuration alone.

    Raises:
        DriftlensError: as :func:`load_model`.
    """
    place, _ = _place(fspath(name))
    with one_line_errors(fspath(name), place), quiet_bars(quiet=place.local):
        return int(read_config(place)[0].num_hidden_layers)


def _place(name: str) -> tuple[Checkpoint, str]:
    """The place of the model's files, and a text that says where its weights come from."""
    if name in PUBLISHED:
        found = obtain(PUBLISHED[name])
        return Checkpoint(source=str(found.folder), local=True), found.source
    place = checkpoint(*resolve(name))
    if name == "demo":
        return place, "bundled with driftlens"
    if not place.local:
        return place, f"{name} on the Hugging Face hub"
    return place, f"{place}, dequantised" if place.gguf is not None else str(place)


@torch.no_grad()
def _reference_logits(model: Any, family: Family) -> list[Tensor]:
    d_vocab = model.get_output_embeddings().weight.shape[0]
    rows = check_rows(d_vocab, longest_row(model.config, model.config.max_position_embeddings))
    with family.narrowed(model, WINDOW):
        # Where the parts of a model compute, accelerate knows.
        device = "cpu" if hasattr(model, "hf_device_map") else model.device
        return [model(input_ids=row.to(device), use_cache=False).logits for row in rows]


def _bridge(model: Any, tokenizer: Any, name: str, family: Family) -> Any:
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources import build_bridge_from_module, detect_tokenizer_bos_eos

    if family.adapter is not None:
        ArchitectureAdapterFactory.register_adapter(type(model).__name__, family.adapter)
    # Without its tokenizer: given one, the bridge reads it a second time with a BOS that the model may not
    # know, and for a model of the hub asks the network for it.
    try:
        bridge: Any = build_bridge_from_module(
            model, type(model).__name__, hf_config=model.config, tokenizer=None, model_name=name
        )
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DriftlensError(
            f"transformer-lens cannot wrap {name}, a {type(model).__name__}: {reason.rstrip('. ')}; "
            f"use another checkpoint, or a family with an adapter of your own"
        ) from error
    # A copy, since transformer-lens's text methods need a padding token, and an export must not have one more.
    bridge.tokenizer = copy.deepcopy(tokenizer)
    if bridge.tokenizer.pad_token is None:
        bridge.tokenizer.pad_token = bridge.tokenizer.eos_token
    bridge.cfg.tokenizer_prepends_bos, bridge.cfg.tokenizer_appends_eos = detect_tokenizer_bos_eos(tokenizer)
    bridge.cfg.default_prepend_bos = bridge.cfg.tokenizer_prepends_bos
    return bridge


def _require_bridge() -> None:
    try:
        found = version("transformer-lens")
    except PackageNotFoundError:
        raise DriftlensError("transformer-lens is not installed; install version 4.3 or later") from None
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
            raise DriftlensError(f"device {str(device)!r} is absent: found {count} CUDA devices; try 'cpu'")
    elif target.type == "mps" and not torch.backends.mps.is_available():
        raise DriftlensError("device 'mps' is absent: this machine has no Apple GPU; try 'cpu'")
    elif target.type not in ("cpu", "mps"):
        raise DriftlensError(f"unsupported device {str(device)!r}; expected cpu, cuda, cuda:1 or mps")
    return target


def computes_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware, so that bfloat16 is faster than float32."""
    told = getattr(torch.cpu, "get_capabilities", None)  # not in every torch that is supported
    found: Mapping[str, Any] = told() if told is not None else {}
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def _dtype(dtype: str | torch.dtype | None, config: Any, device: torch.device, *, exact: bool) -> torch.dtype | str:
    if dtype is None:
        if exact or (device.type == "cpu" and config.dtype == torch.float16):
            return torch.float32
        return config.dtype or "auto"
    chosen = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in _DTYPES.values():
        raise DriftlensError(f"unknown dtype {str(dtype)!r}; expected one of {', '.join(_DTYPES)}")
    return chosen
