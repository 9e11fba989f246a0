"""Export a model, edited or not, as a Hugging Face folder.

The bridge's own `save_pretrained` fails, because its components replace Hugging Face's modules. Therefore an empty twin
of the model (same class, no storage) provides the names of the checkpoint's tensors. Each tensor is read from the live
model under this name, and the twin writes all of them.
"""

import secrets
import shutil
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.files import reason_of, require_empty, writable_folder
from driftlens.models.backend import Backend
from driftlens.models.progress import quiet_bars
from driftlens.models.sites import Site
from driftlens.models.wrapped import WrappedModel

__all__ = ["export"]


def export(
    model: WrappedModel,
    backend: Backend,
    folder: str | PathLike[str],
    replacements: Mapping[Site, Tensor],
    *,
    tokenizer: Any,
) -> None:
    """Write `model` to `folder`, completely or not at all, with the weights `[d_in, d_out]` of some maps replaced."""
    if backend.name != "bridge":
        raise DriftlensError(
            f"cannot export {model.name}: a HookedTransformer has no Hugging Face model behind it; "
            f"load the checkpoint with load_model and export from there"
        )
    target = require_empty(folder)
    tensors = {name: tensor.detach() for name, tensor in backend.named_tensors()}
    for site, weight in replacements.items():
        name, value = _as_stored(model, site, weight)
        tensors[name] = value.to(tensors[name])

    temporary = writable_folder(target.with_name(f".{target.name}.{secrets.token_hex(4)}.part"))
    try:
        _write(backend.model.original_model, model.dtype, tensors, temporary)
        tokenizer.save_pretrained(temporary)
        if target.exists():
            target.rmdir()
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        raise DriftlensError(f"cannot export to {target}: {reason_of(error)}; free space or choose another") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(huggingface: Any, dtype: torch.dtype, tensors: dict[str, Tensor], folder: Path) -> None:
    from driftlens.models.bridge import empty_twin

    twin = empty_twin(huggingface).to(dtype)  # what its config.json will say
    twin.generation_config = huggingface.generation_config
    with quiet_bars(quiet=True):
        twin.save_pretrained(folder, state_dict=tensors)


def _as_stored(model: WrappedModel, site: Site, weight: Tensor) -> tuple[str, Tensor]:
    """The checkpoint's name for a linear map's weight, and the weight in the checkpoint's orientation."""
    own = model.linear(site)[0]
    if weight.shape != own.shape:
        raise DriftlensError(f"the {site} given has shape {tuple(weight.shape)}; expected {tuple(own.shape)}")
    name = model.stored_name(site)
    if name is None:
        raise DriftlensError(f"{model.name}'s checkpoint has no tensor for {site} alone, so it cannot be exported")
    stored = weight.detach() if own.is_contiguous() else weight.detach().T
    return name, stored.contiguous()
