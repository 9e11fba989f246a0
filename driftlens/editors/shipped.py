"""Second moments that come with driftlens, so that the first edit of a real model starts at once.

A second moment C of 1,536 dimensions takes 9 MB.  Shipped is a rounded Cholesky factor instead, of 1.2 MB:

1. The diagonal of C is split off, C = D R D with D = diag(C)^½, since keys' dimensions differ in size by far.
2. R = L Lᵀ.  The diagonal of L is kept in float32; the rest of each row in 8 bits, as shares of its largest element.
3. Read back, C = (D L) (D L)ᵀ: positive definite whatever was rounded, which a rounded C itself need not be.

How exact that is, in C⁻¹ k and in edits, is measured in `benchmarks/results/second-moments-smollm2-135m.md`: rounding
in this way costs less than the corpus's own sampling error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from driftlens.editors.corpora import Corpus
from driftlens.errors import DriftlensError
from driftlens.files import atomic_path
from driftlens.models import LensModel

__all__ = [
    "SHIPPED",
    "Shipped",
    "default_corpus",
    "is_shipped",
    "rounded",
    "shipped_corpus",
    "shipped_layers",
    "shipped_moment",
    "write_shipped",
]

FORMAT = "driftlens-shipped-moment-1"
FOLDER = Path(__file__).parent / "second_moments"
_STEPS = 127


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """The texts behind a model's shipped second moments: the first so many lines of a corpus."""

    text: str
    lines: int
    tokens: int


SHIPPED = {"smollm2-135m": Shipped(text="WikiText-2's validation part", lines=1000, tokens=103_048)}
"""By the name that `load_model` takes."""


def shipped_corpus(model: str) -> Corpus:
    """The corpus of a model's shipped second moments: a name without texts, which are not shipped."""

    def texts() -> Iterator[str]:
        layers = ", ".join(map(str, shipped_layers(model)))
        raise DriftlensError(
            f"the second moments of {model} come with driftlens for layers {layers} only; for others give a corpus: a "
            "text file, 'wikitext' or 'wikipedia'"
        )

    of = SHIPPED[model]
    return Corpus(name=f"{of.text}, shipped with driftlens", size=of.lines, digest=f"shipped-{model}", texts=texts)


def default_corpus(model: LensModel) -> str | Corpus:
    """The corpus to take when none is named: a local model must not send anybody to the network unasked."""
    if model.name == "demo":
        return "demo"
    if model.name in SHIPPED:
        return shipped_corpus(model.name)
    if Path(model.name).exists():
        raise DriftlensError(
            f"{model.name} is a local model and no corpus for its second moments is given; "
            "give one: a text file, a list of texts, 'wikipedia' or 'wikitext'"
        )
    return "wikipedia"


def shipped_layers(model: str) -> tuple[int, ...]:
    """The layers whose second moments are shipped."""
    return tuple(sorted(int(path.stem.rsplit("-layer", 1)[1]) for path in FOLDER.glob(f"{model}-layer*.safetensors")))


def is_shipped(model: str, layer: int, corpus: Corpus) -> bool:
    """Whether a layer's second moment is shipped, and `corpus` is the shipped one."""
    return corpus.digest == f"shipped-{model}" and _path(model, layer).exists()


def shipped_moment(model: str, layer: int, corpus: Corpus) -> Float[Tensor, "d_mlp d_mlp"] | None:
    """A layer's second moment, where it is shipped and `corpus` is the shipped one.

    Raises:
        DriftlensError: the file is damaged.
    """
    if not is_shipped(model, layer, corpus):
        return None
    path = _path(model, layer)
    try:
        with safe_open(str(path), framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            handle: Any = file
            metadata: dict[str, str] = handle.metadata() or {}
            stored = {name: handle.get_tensor(name) for name in ("scale", "diagonal", "largest", "factor")}
    except (OSError, SafetensorError) as error:
        raise DriftlensError(f"{path} is damaged ({error}); reinstall driftlens") from error
    if metadata.get("format") != FORMAT or metadata.get("sha256") != _digest(stored):
        raise DriftlensError(f"{path} is not what was shipped; reinstall driftlens")
    return _decoded(stored)


def rounded(matrix: Float[Tensor, "d_mlp d_mlp"]) -> Float[Tensor, "d_mlp d_mlp"]:
    """A second moment as it would come back after being shipped."""
    return _decoded(_encoded(matrix))


def write_shipped(
    matrix: Float[Tensor, "d_mlp d_mlp"], *, model: str, layer: int, text: str, tokens: int, folder: Path | None = None
) -> Path:
    """Write a layer's second moment in the shipped form, and return the file."""
    stored = _encoded(matrix)
    metadata = {
        "format": FORMAT,
        "model": model,
        "layer": str(layer),
        "text": text,
        "tokens": str(tokens),
        "sha256": _digest(stored),
    }
    path = _path(model, layer, folder)
    with atomic_path(path) as temporary:
        temporary.write_bytes(serialize(stored, metadata=metadata))
    return path


def _encoded(matrix: Float[Tensor, "d_mlp d_mlp"]) -> dict[str, Tensor]:
    matrix = matrix.detach().cpu().double()
    scale = matrix.diagonal().sqrt()
    factor = torch.linalg.cholesky(matrix / scale[:, None] / scale)
    below = torch.tril_indices(*matrix.shape, offset=-1)
    largest = factor.tril(-1).abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return {
        "scale": scale.float(),
        "diagonal": factor.diagonal().float().contiguous(),
        "largest": largest.float(),
        "factor": (factor[below[0], below[1]] / largest[below[0]] * _STEPS).round().to(torch.int8),
    }


def _decoded(stored: dict[str, Tensor]) -> Float[Tensor, "d_mlp d_mlp"]:
    d_mlp = len(stored["scale"])
    below = torch.tril_indices(d_mlp, d_mlp, offset=-1)
    factor = torch.diag(stored["diagonal"].double())
    factor[below[0], below[1]] = stored["factor"].double() / _STEPS * stored["largest"].double()[below[0]]
    factor *= stored["scale"].double()[:, None]
    return (factor @ factor.T).float()


def _path(model: str, layer: int, folder: Path | None = None) -> Path:
    return (folder or FOLDER) / f"{model}-layer{layer}.safetensors"


def _digest(stored: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(stored):
        digest.update(stored[name].numpy().tobytes())
    return digest.hexdigest()
