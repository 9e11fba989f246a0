"""Second moments that others have published, read from their files.

ROME, MEMIT and EasyEdit keep a layer's statistics as `.npz`: the sum of k kᵀ over all tokens as `mom2.mom2`, and the
number of tokens as `mom2.count`.  C is their quotient.  driftlens's own safetensors files are read, too.  Nothing in a
file can run code: pickled objects are refused.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from driftlens.editors.second_moment import SecondMoment
from driftlens.errors import DriftlensError
from driftlens.models import LensModel

__all__ = ["read_moment", "read_moments"]

LAYER = "{}"
"""Stands for the layer's number in the name of a file, where several layers are edited."""


def read_moments(path: str | PathLike[str], model: LensModel, layers: Sequence[int]) -> dict[int, SecondMoment]:
    """The second moments of ``layers`` of ``model``, from a file for each: ``{}`` in ``path`` is the layer's number.

    Raises:
        DriftlensError: several layers and no ``{}``; what :func:`read_moment` raises.
    """
    name = str(path)
    if LAYER not in name and len(layers) > 1:
        raise DriftlensError(
            f"{name} is one file, but {len(layers)} layers are edited; put {{}} where the layer's number stands in "
            "the files' names"
        )
    return {layer: read_moment(name.replace(LAYER, str(layer)), model) for layer in layers}


def read_moment(path: str | PathLike[str], model: LensModel) -> SecondMoment:
    """C = E[k kᵀ], ``[d_mlp, d_mlp]``, from a file of ROME's, EasyEdit's or driftlens's, on ``model``'s device.

    Its ``source`` names the file, the number of tokens where the file says it, and the beginning of its SHA-256.

    Raises:
        DriftlensError: no such file, another format, another width than the model's, numbers that are no second moment.
    """
    file = Path(path).expanduser()
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        matrix, count = _from_safetensors(file) if file.suffix == ".safetensors" else _from_npz(file)
    except OSError as error:
        raise DriftlensError(f"cannot read the second moment {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, zipfile.BadZipFile, SafetensorError) as error:
        raise DriftlensError(
            f"{path} is no second moment; expected a .npz with mom2.mom2 and mom2.count, as ROME and EasyEdit write, "
            "or driftlens's .safetensors"
        ) from error
    if tuple(matrix.shape) != (model.d_mlp, model.d_mlp):
        raise DriftlensError(
            f"the second moment {path} has shape {list(matrix.shape)}, but the down-projections of {model.name} take "
            f"{model.d_mlp} inputs; give the statistics of this model"
        )
    if not bool(matrix.isfinite().all()) or not bool((matrix.diagonal() >= 0).all()):
        raise DriftlensError(f"the second moment {path} holds numbers that no second moment has; get the file again")
    if not torch.allclose(matrix, matrix.T, rtol=1e-3, atol=1e-3 * float(matrix.diagonal().mean())):
        raise DriftlensError(f"the second moment {path} is not symmetric; give the statistics of one layer's inputs")
    tokens = "" if count is None else f", {count:,} tokens"
    return SecondMoment(matrix.float().to(model.device), source=f"{file.name} (sha256 {digest}{tokens})")


def _from_npz(file: Path) -> tuple[Float[Tensor, "d d"], int | None]:
    import numpy as np

    with np.load(file, allow_pickle=False) as arrays:
        total: Any = arrays["mom2.mom2"]
        count = int(arrays["mom2.count"])
    if count < 1 or total.ndim != 2:
        raise ValueError("no sum over tokens")
    return torch.from_numpy(total).double() / count, count


def _from_safetensors(file: Path) -> tuple[Float[Tensor, "d d"], int | None]:
    with safe_open(str(file), framework="pt") as opened:  # pyright: ignore[reportUnknownVariableType]
        handle: Any = opened
        return handle.get_tensor("second_moment").double(), None
