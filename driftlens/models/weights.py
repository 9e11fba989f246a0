"""Check that the weights in a folder match its configuration.

Hugging Face loads whatever it can: it drops blocks beyond the configuration's number, casts integers to floats,
initialises missing tensors at random, and reports all this in a long message.  The numbers of such a model are
meaningless.  Therefore:

1. Before any weights are read, the headers of the folder's safetensors files give each tensor's name, shape and dtype.
   The number of blocks must match the configuration, so that no thousand million layers are built.  An empty twin of
   the model (without storage) gives the expected shapes.
2. After loading, Hugging Face's lists show missing and dropped tensors; they account for the names in old files.

The error names the first tensor that does not match.  Tensor names may or may not begin with the model's prefix
("transformer.h.0…" or "h.0…"); Hugging Face accepts both.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from driftlens.errors import DriftlensError

__all__ = ["check_numbers", "check_report", "check_weights"]

_FLOATS = ("F64", "F32", "F16", "BF16")

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings")

# Masks and frequencies that older checkpoints hold and that every program computes anew.
_BUFFERS = re.compile(r"(attn|attention)\.(bias|masked_bias)$|rotary_emb\.inv_freq$")

_BLOCK = re.compile(r"(?:^|\.)(?:h|layers)\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    shape: tuple[int, ...]
    kind: str


def check_numbers(source: str, config: Any) -> None:
    """Check the sizes in a configuration, from which all others are computed.

    Raises:
        DriftlensError: a size is not a whole number above 0.
    """
    for name in _SIZES:
        value: object = getattr(config, name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise DriftlensError(
                f"{name} is {value!r} in the config.json of {source}; expected a whole number above 0; get it again"
            )
    if getattr(config, "head_dim", None) is None and config.hidden_size % config.num_attention_heads:
        raise DriftlensError(
            f"hidden_size {config.hidden_size} is no multiple of num_attention_heads {config.num_attention_heads} in "
            f"the config.json of {source}; get it again"
        )


def check_weights(folder: str, config: Any) -> None:
    """Compare the headers of a local folder's weights with its configuration, before the weights are read.

    Args:
        folder: a Hugging Face folder.
        config: its configuration, as Hugging Face has read it.

    Raises:
        DriftlensError: the number of blocks differs, or a named tensor has another shape or holds integers.
    """
    found = _headers(Path(folder))
    if found is None:
        return
    _check_blocks(folder, found, int(config.num_hidden_layers))
    wanted, prefix = _wanted(config)
    for name, tensor in found.items():
        place = next((one for one in (name, f"{prefix}.{name}") if one in wanted), None)
        if place is None:
            continue
        if tensor.shape != wanted[place]:
            raise DriftlensError(
                f"{name} in {folder} has the shape {list(tensor.shape)}, but its config.json says "
                f"{list(wanted[place])}; the two do not belong together: get it again"
            )
        if tensor.kind not in _FLOATS:
            raise DriftlensError(
                f"{name} in {folder} holds numbers of the kind {tensor.kind}; expected one of {', '.join(_FLOATS)}: "
                "use the full-precision checkpoint"
            )


def check_report(source: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Check the tensors that Hugging Face could not assign after loading.

    Args:
        source: the place of the weights.
        missing: tensors of the model that the files lack; Hugging Face initialises them at random.
        unexpected: tensors of the files that the model lacks; Hugging Face drops them.

    Raises:
        DriftlensError: a tensor is missing, or a tensor of a block is dropped. Heads of other tasks may be dropped.
    """
    lost = sorted(missing)
    if lost:
        raise DriftlensError(f"{source} lacks {len(lost)} of the model's weights, among them {lost[0]}; get it again")
    for name in sorted(unexpected):
        if _BLOCK.search(name) and not _BUFFERS.search(name):
            raise DriftlensError(
                f"the weights in {source} hold {name}, which a model of its config.json does not have; "
                "the two do not belong together: get it again"
            )


def _check_blocks(folder: str, found: Mapping[str, _Tensor], n_layers: int) -> None:
    blocks = {int(match[1]): name for name in found if (match := _BLOCK.search(name)) is not None}
    if not blocks:
        return
    last = max(blocks)
    if last + 1 != n_layers:
        raise DriftlensError(
            f"the config.json of {folder} says {n_layers} layers, but its weights have {last + 1}, the last with "
            f"{blocks[last]}; the two do not belong together: get it again"
        )


def _headers(folder: Path) -> dict[str, _Tensor] | None:
    """The tensors in the files that Hugging Face reads; None if Hugging Face itself should report missing files."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        return None
    found: dict[str, _Tensor] = {}
    for file in files:
        with safe_open(str(file), framework="pt") as opened:  # pyright: ignore[reportUnknownVariableType]
            handle: Any = opened
            for name in handle.keys():  # noqa: SIM118
                part = handle.get_slice(name)
                found[name] = _Tensor(shape=tuple(part.get_shape()), kind=str(part.get_dtype()))
    return found


def _wanted(config: Any) -> tuple[dict[str, tuple[int, ...]], str]:
    """The shapes of the tensors of a model with this configuration, and the optional prefix of their names."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        twin: Any = AutoModelForCausalLM.from_config(config)
    every = twin.named_parameters(remove_duplicate=False)  # embeddings and head may be one tensor of two names
    return {name: tuple(parameter.shape) for name, parameter in every}, str(twin.base_model_prefix)
