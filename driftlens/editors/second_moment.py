"""Second moments C = E[k kᵀ] of a down-projection's input over a text corpus (paper, Eq. 3 and 5).

1. Texts are streamed, tokenised, cut to the model's context and run in batches of similar length, through the
   layers up to the highest one asked for and no further; one pass over the corpus serves all layers.
2. ``Kᵀ K`` of each batch is accumulated in float64 (float32 where a device has no float64); C is the mean
   over tokens.
3. The result is cached on disk by a hash of model, layer, corpus and number of texts; written atomically and
   verified when read.
4. ``C⁻¹ k`` comes from one Cholesky factor in float64, computed when first needed and kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from driftlens.editors.shipped import is_shipped, shipped_moment
from driftlens.errors import DriftlensError
from driftlens.files import atomic_path, cache_folder, writable_folder
from driftlens.hooks import record
from driftlens.models import LensModel
from driftlens.models.grouping import passes
from driftlens.models.memory import in_batches
from driftlens.models.prompts import pad_rows
from driftlens.progress import OnDone

if TYPE_CHECKING:
    from driftlens.editors.corpora import Corpus

FORMAT = "driftlens-second-moment-1"
SAMPLES = 100_000
"""The number of texts behind the published statistics."""


class SecondMoment:
    """The uncentred second moment of one layer's keys, with a solver.

    ``source`` names the text and ``model_hash`` the model of the keys; None if unknown.
    """

    def __init__(
        self, matrix: Float[Tensor, "d_mlp d_mlp"], *, source: str = "given", model_hash: str | None = None
    ) -> None:
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise DriftlensError(f"a second moment has shape [d_mlp, d_mlp]; this one has {tuple(matrix.shape)}")
        self.matrix = matrix
        self.source = source
        self.model_hash = model_hash

    def __repr__(self) -> str:
        return f"SecondMoment({list(self.matrix.shape)}, {self.source!r})"

    @cached_property
    def cholesky(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """The lower factor in float64.

        Computed on the matrix's device, or on the CPU if the device has no float64.
        """
        matrix = self.matrix.cpu() if self.matrix.device.type == "mps" else self.matrix
        matrix = matrix.double()
        factor, info = torch.linalg.cholesky_ex((matrix + matrix.T) / 2)
        if int(info):
            raise DriftlensError(
                f"the second moment is singular (leading minor {int(info)} of {matrix.shape[0]} is not "
                "positive): take it over more text than it has dimensions"
            )
        return factor

    @cached_property
    def eigen(self) -> tuple[Float[Tensor, "d_mlp"], Float[Tensor, "d_mlp d_mlp"]]:
        """Eigenvalues, ascending, and eigenvectors (columns) in float64; on the CPU if the device has no float64."""
        matrix = (self.matrix.cpu() if self.matrix.device.type == "mps" else self.matrix).double()
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        return values, vectors

    def in_null_space(self, keys: Float[Tensor, "n d_mlp"], threshold: float) -> Float[Tensor, "n d_mlp"]:
        """Return P k for each row of ``keys``, in float64: its projection onto eigenvectors below ``threshold``.

        Raises:
            DriftlensError: there is no such eigenvector.
        """
        values, vectors = self.eigen
        free = vectors[:, values < threshold]
        if not free.shape[1]:
            raise DriftlensError(
                f"no eigenvalue of the second moment is below null_space_threshold = {threshold}: the smallest is "
                f"{float(values[0]):.3g}, their median {float(values.median()):.3g}; give a larger threshold"
            )
        return (keys.to(device=free.device, dtype=free.dtype) @ free) @ free.T

    def solve(self, keys: Float[Tensor, "n d_mlp"]) -> Float[Tensor, "n d_mlp"]:
        """Return C⁻¹ k for each row of ``keys``, in float64 on the factor's device."""
        rhs = keys.to(device=self.cholesky.device, dtype=torch.float64).T
        return torch.cholesky_solve(rhs, self.cholesky).T


def second_moments(
    model: LensModel,
    layers: Sequence[int],
    corpus: Corpus,
    *,
    samples: int = SAMPLES,
    folder: Path | None = None,
    on_texts: OnDone | None = None,
) -> dict[int, SecondMoment]:
    """Return the second moments of ``layers``, from the cache if possible, or else computed and cached.

    Args:
        model: the vanilla model.
        layers: the layers of the down-projections.
        corpus: the texts; see :func:`driftlens.editors.corpora.open_corpus`.
        samples: the largest number of texts.
        folder: the cache; default :func:`driftlens.files.cache_folder`.
        on_texts: called with the number of texts done and the largest possible number.

    Raises:
        DriftlensError: a cached file is damaged, or the corpus has no text.
    """
    folder = cache_folder() if folder is None else folder
    with model.unchanged():
        model_hash = model.model_hash
        names = {layer: cache_name(model, layer, corpus, samples) for layer in layers}
    source = text_source(corpus, samples)

    def taken(matrix: Tensor) -> SecondMoment:
        return SecondMoment(matrix, source=source, model_hash=model_hash)

    found: dict[int, SecondMoment] = {}
    for layer, name in names.items():
        path = _kept(model, name, folder)
        matrix = read_second_moment(path, name) if path is not None else shipped_moment(model.name, layer, corpus)
        if path is None and matrix is not None and model.written:
            raise DriftlensError(
                f"the second moments that come with driftlens are of {model.name} unedited, but an edit is applied; "
                "give a corpus to take them over, or leave the edit first"
            )
        if matrix is not None:
            found[layer] = taken(matrix.to(model.device))
    missing = [layer for layer in layers if layer not in found]
    if missing:
        writable_folder(folder)
        streamed = stream_second_moments(model, missing, corpus.texts(), corpus.count(samples), on_texts)
        for layer, matrix in streamed.items():
            write_second_moment(folder / names[layer], matrix, names[layer])
            found[layer] = taken(matrix)
    return found


def are_cached(model: LensModel, layers: Sequence[int], corpus: Corpus, *, samples: int = SAMPLES) -> bool:
    """Whether :func:`second_moments` would find all of them, cached or shipped."""
    folder = cache_folder()
    with model.unchanged():
        return all(
            _kept(model, cache_name(model, layer, corpus, samples), folder) is not None
            or is_shipped(model.name, layer, corpus)
            for layer in layers
        )


def _kept(model: LensModel, name: str, folder: Path) -> Path | None:
    return next((place / name for place in (folder, *_shipped(model)) if (place / name).exists()), None)


def text_source(corpus: Corpus, samples: int) -> str:
    """What second moments over ``corpus`` say about where they come from."""
    return f"{corpus.name} ({corpus.digest}), at most {samples} texts"


@torch.no_grad()
def stream_second_moments(
    model: LensModel,
    layers: Sequence[int],
    texts: Iterable[str],
    samples: int = SAMPLES,
    on_texts: OnDone | None = None,
    *,
    batch_tokens: int = 4096,
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """E[k kᵀ] over all tokens of at most ``samples`` texts, one pass for all ``layers``; float32, on the
    model's device.
    """
    precision = torch.float32 if model.device.type == "mps" else torch.float64
    sums = {n: torch.zeros(model.d_mlp, model.d_mlp, device=model.device, dtype=precision) for n in layers}
    product = torch.empty(model.d_mlp, model.d_mlp, device=model.device, dtype=torch.float32)

    def accumulate(rows: Sequence[list[int]]) -> list[int]:
        batch, _ = pad_rows(model, rows)
        store: dict[int, Tensor] = {}
        hooks = [(model.hook_name("mlp_post", n), record(store, n)) for n in layers]
        model.run(batch, hooks=hooks, stop=max(layers) + 1)
        keys = {n: post[batch.mask].float() for n, post in store.items()}
        # No memory is asked for from here on: rows tried again after running out of it are not counted twice.
        for n in layers:
            sums[n] += torch.mm(keys[n].T, keys[n], out=product)
        return [len(row) for row in rows]

    tokens = 0
    for done, rows in _batches(model, islice(texts, samples), batch_tokens):
        tokens += sum(in_batches(rows, len(rows), accumulate))
        if on_texts is not None:
            on_texts(done, samples)
    if not tokens:
        raise DriftlensError("the corpus holds no text; a second moment needs some")
    return {n: (total / tokens).float() for n, total in sums.items()}


def _batches(model: LensModel, texts: Iterable[str], batch_tokens: int) -> Iterator[tuple[int, list[list[int]]]]:
    """Token rows of similar length, taken from a stretch of texts, in batches of at most about ``batch_tokens``."""
    stretch: list[list[int]] = []
    done = held = 0

    def grouped() -> Iterator[list[list[int]]]:
        for group in passes([len(row) for row in stretch], model.pass_cost, most=len(stretch)):
            size = max(1, batch_tokens // max(len(stretch[i]) for i in group))
            for begin in range(0, len(group), size):
                yield [stretch[i] for i in group[begin : begin + size]]

    for text in texts:
        ids = list(model.encode(text).ids)[: model.n_ctx]
        if ids:
            stretch.append(ids)
        done, held = done + 1, held + len(ids)
        if held > 16 * batch_tokens:
            for group in grouped():
                yield done, group
            stretch, held = [], 0
    for group in grouped():
        yield done, group


def cache_name(model: LensModel, layer: int, corpus: Corpus, samples: int) -> str:
    """The cache's file name: readable, and different whenever model, layer, corpus or sample size differ."""
    key = f"{model.model_hash}\0{layer}\0{corpus.digest}\0{samples}"
    return f"second_moment-layer{layer}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"


def write_second_moment(path: Path, matrix: Float[Tensor, "d_mlp d_mlp"], name: str) -> None:
    """Write a second moment with its checksum, atomically."""
    stored = matrix.detach().float().cpu().contiguous()
    metadata = {"format": FORMAT, "name": name, "sha256": _digest(stored)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(serialize({"second_moment": stored}, metadata=metadata))


def read_second_moment(path: Path, name: str) -> Float[Tensor, "d_mlp d_mlp"]:
    """Read and verify a cached second moment.

    Raises:
        DriftlensError: the file is truncated, altered, or another one under this name.
    """
    try:
        with safe_open(str(path), framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            handle: Any = file
            metadata: dict[str, str] = handle.metadata() or {}
            matrix: Tensor = handle.get_tensor("second_moment")
    except (OSError, SafetensorError) as error:
        raise DriftlensError(f"the cached second moment {path} is damaged ({error}); delete the file") from error
    if metadata.get("format") != FORMAT or metadata.get("name") != name or metadata.get("sha256") != _digest(matrix):
        raise DriftlensError(f"the cached second moment {path} is not what was written there; delete the file")
    return matrix


def _digest(matrix: Tensor) -> str:
    return hashlib.sha256(matrix.numpy().tobytes()).hexdigest()


def _shipped(model: LensModel) -> list[Path]:
    """The bundled model's second moments come with it."""
    if model.name != "demo":
        return []
    from driftlens.demo import SECOND_MOMENTS

    return [SECOND_MOMENTS]
