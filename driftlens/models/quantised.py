"""Quantised checkpoints, which can be traced and evaluated but not written to.

Their linear maps store integers and scales in the layout of some library, and Hugging Face computes with them.
driftlens uses such a map only as a function: the images of the unit vectors are its matrix. An edit acts on it as hooks
that add to its output, because there is no weight to write to.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driftlens.errors import DriftlensError

__all__ = ["matrix_of", "parts_of", "quantisation_of", "refuse_writing"]

_ROWS = 1024


def quantisation_of(config: Any) -> str | None:
    """The method by which a checkpoint of this configuration is quantised, as "torchao" or "bitsandbytes"; or None."""
    stated: Any = getattr(config, "quantization_config", None)
    if not stated:
        return None
    method: Any = stated.get("quant_method") if isinstance(stated, dict) else stated.quant_method
    return str(getattr(method, "value", method) or "unknown method")


@torch.no_grad()
def matrix_of(linear: nn.Module, dtype: torch.dtype) -> Float[Tensor, "d_in d_out"]:
    """The matrix that a quantised linear map multiplies by: a copy in `dtype`, on the map's device."""
    some: Tensor = next(iter(linear.parameters()))
    d_in = int(linear.in_features)  # pyright: ignore[reportArgumentType]
    rows: list[Tensor] = []
    for begin in range(0, d_in, _ROWS):
        units = torch.zeros(min(_ROWS, d_in - begin), d_in, dtype=dtype, device=some.device)
        units[:, begin:].fill_diagonal_(1)
        rows.append(linear(units))
    bias: Any = getattr(linear, "bias", None)
    matrix = torch.cat(rows)
    return matrix if bias is None else matrix - bias


def parts_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every plain tensor of a quantised model: integers, scales, and weights that are not quantised."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield from _plain(f"{module_name}.{name}", tensor)


def _plain(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors inside a library's tensor class, by PyTorch's protocol for such classes."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for inner in tensor.__tensor_flatten__()[0]:
        yield from _plain(f"{name}.{inner}", getattr(tensor, inner))


def refuse_writing(model: str, method: str, wanted: str) -> DriftlensError:
    """Raise the error for changing or exporting a quantised model's weights."""
    return DriftlensError(
        f"{model} is quantised ({method}), so {wanted}; give edits to evaluate, generate and the analyses, where they "
        "act as hooks, or load the full-precision checkpoint"
    )
