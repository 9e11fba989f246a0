"""Trained hypernetworks as files: one safetensors file with the weights, and in its metadata, as JSON, the rest.

The file says which model it is of, how it was trained, on which records, and how well it did on validation records.
Hypernetworks are looked for among files that are named, else among those that come with driftlens and those that
``driftlens train-mend`` has put into the cache folder.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from driftlens.editors.mend_network import Hypernetwork
from driftlens.editors.sadr import SADR
from driftlens.errors import DriftlensError
from driftlens.files import atomic_path, cache_folder, existing_file
from driftlens.models import LensModel
from driftlens.models.sites import LINEAR_MAPS, Site

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "About",
    "TrainedMEND",
    "cached_path",
    "known_files",
    "read_about",
    "train_command",
    "warn_of_another_model",
]

FORMAT = "driftlens-mend-1"
SHIPPED = Path(__file__).parent / "hypernetworks"
_WANTED = "a file that driftlens train-mend wrote"


@dataclass(frozen=True, kw_only=True)
class About:
    """What a file says of its hypernetwork.

    Attributes:
        model: the model's name.
        model_hash: its weights, configuration and tokenizer.
        sites: layer and map of every weight that is edited.
        shapes: ``[d_in, d_out]`` of each.
        rank: of the hypernetwork's layers.
        sign: whether updates are subtracted or added.
        sadr: the drift term of the training, or None.
        settings: everything else that was set for the training.
        data: the data's name, its digest, and the indices of training and validation records.
        curve: a row for each validation.
        step: the training step that the weights are of, the best of the curve.
    """

    model: str
    model_hash: str
    sites: Sequence[tuple[int, str]]
    shapes: Sequence[tuple[int, int]]
    rank: int
    sign: str
    sadr: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    curve: Sequence[Mapping[str, float]]
    step: int

    @property
    def gamma(self) -> float:
        """SADR's weight; 0 without it."""
        return 0.0 if self.sadr is None else float(self.sadr["gamma"])

    def is_of(self, model: LensModel) -> bool:
        """Whether it was trained for this model, as it is or as it was before edits that are applied to it."""
        return self.model_hash in {model.model_hash, *(entry.before for entry in model.written)}

    def fits(self, model: LensModel) -> bool:
        """Whether the model has such weights."""
        try:
            return all(
                tuple(model.linear(Site(layer, linear))[0].shape) == tuple(shape)  # pyright: ignore[reportArgumentType]
                for (layer, linear), shape in zip(self.sites, self.shapes, strict=True)
            )
        except DriftlensError:
            return False


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedMEND:
    """A trained hypernetwork, and what is known of it."""

    network: Hypernetwork
    about: About

    def __repr__(self) -> str:
        drift = f", SADR γ = {self.about.gamma:g}" if self.about.gamma else ""
        return f"TrainedMEND({self.about.model!r}, rank {self.about.rank}, step {self.about.step}{drift})"

    @property
    def sadr(self) -> SADR | None:
        """The drift term that it was trained with."""
        return None if self.about.sadr is None else SADR(**self.about.sadr)

    @property
    def curve(self) -> pd.DataFrame:
        """A row for each validation: ``step``, ``loss`` and its terms, and how often the new target wins."""
        import pandas as pd

        return pd.DataFrame([dict(row) for row in self.about.curve])

    def save(self, path: str | PathLike[str], *, dtype: torch.dtype = torch.float32) -> None:
        """Write it to one file, atomically.  ``dtype`` is that of the weights; statistics stay as they are."""
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.network.state_dict().items():
            kept = tensor if name.rsplit(".", 1)[-1] in ("count", "mean", "squares", "rates") else tensor.to(dtype)
            tensors[name] = kept.detach().cpu().clone(memory_format=torch.contiguous_format)
        metadata = {"format": FORMAT, "about": json.dumps(asdict(self.about))}
        with atomic_path(path) as temporary:
            temporary.write_bytes(serialize(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> TrainedMEND:
        """Read what :meth:`save` wrote.

        Raises:
            DriftlensError: the file is missing, damaged, or no hypernetwork.
        """
        about = read_about(path)
        shapes = {
            Site(layer, linear): (shape[0], shape[1])  # pyright: ignore[reportArgumentType]
            for (layer, linear), shape in zip(about.sites, about.shapes, strict=True)
        }
        network = Hypernetwork(shapes, rank=about.rank, rate=0.0, sign=about.sign)  # pyright: ignore[reportArgumentType]
        try:
            with safe_open(str(path), framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
                handle: Any = file
                stored = {name: handle.get_tensor(name).float() for name in handle.keys()}  # noqa: SIM118
            network.load_state_dict(stored)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise DriftlensError(f"the hypernetwork {path} is damaged ({_first(error)}); train it again") from error
        if not all(bool(tensor.isfinite().all()) for tensor in stored.values()):
            raise DriftlensError(f"the hypernetwork {path} holds NaN or infinity; train it again with a lower lr")
        return cls(network=network.requires_grad_(requires_grad=False), about=about)


def read_about(path: str | PathLike[str]) -> About:
    """What a file says of its hypernetwork, without its weights.

    Raises:
        DriftlensError: the file is missing, damaged, or no hypernetwork.
    """
    source = existing_file(path, _WANTED)
    try:
        with safe_open(str(source), framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            handle: Any = file
            metadata: dict[str, str] = handle.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise DriftlensError(f"{path} is no MEND hypernetwork; give {_WANTED}")
        about = About(**json.loads(metadata["about"]))
        if not about.sites or any(linear not in LINEAR_MAPS for _, linear in about.sites):
            raise ValueError(f"{about.sites!r} are no sites")
    except DriftlensError:
        raise
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DriftlensError(f"cannot read {path} ({_first(error)}); give {_WANTED}") from error
    return about


def cached_path(model: LensModel, sadr: SADR | None) -> Path:
    """Where a hypernetwork of a model is put where nobody says where."""
    name = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in model.title.lower())
    drift = f"-sadr-{sadr.gamma:g}" + ("-all" if sadr.heads == "all" else "") if sadr is not None else ""
    return cache_folder() / "hypernetworks" / f"{name}-{model.model_hash[:8]}{drift}.safetensors"


def known_files(model: LensModel, files: Sequence[str | PathLike[str]] = ()) -> dict[Path, About]:
    """The hypernetworks of a model among ``files``; without any, among those shipped and cached.

    Of those that are not named, only those for exactly this model count, if there are any; else those for weights of
    its name and shape.

    Raises:
        DriftlensError: a named file cannot be read, or is for a model of another shape.
    """
    if files:
        named = {Path(file): read_about(file) for file in files}
        for path, about in named.items():
            if not about.fits(model):
                raise DriftlensError(
                    f"{path} is for {about.model}, whose MLPs have another shape than those of {model.name}; give a "
                    "hypernetwork that was trained for this model"
                )
        return named
    found: dict[Path, About] = {}
    for folder in (SHIPPED, cache_folder() / "hypernetworks"):
        for path in sorted(folder.glob("*.safetensors")):
            try:
                about = read_about(path)
            except DriftlensError as error:
                warnings.warn(f"{error}", RuntimeWarning, stacklevel=2)
                continue
            found[path] = about
    with model.unchanged():
        exact = {path: about for path, about in found.items() if about.is_of(model)}
        alike = {path: about for path, about in found.items() if about.model == model.name and about.fits(model)}
    return exact or alike


def train_command(model: LensModel, sadr: SADR | None = None) -> str:
    """Which command trains a hypernetwork of a model."""
    drift = "" if sadr is None else f" --gamma {sadr.gamma:g}" + (" --sadr-heads all" if sadr.heads == "all" else "")
    data = "demo" if model.name == "demo" else "merged_counterfact"
    dtype = str(model.dtype).removeprefix("torch.")
    precision = "" if dtype == "float32" else f" --dtype {dtype}"
    return f"driftlens train-mend --model {model.name}{precision} --data {data}{drift} trains one"


def warn_of_another_model(about: About, model: LensModel) -> None:
    """Warn where a hypernetwork was trained for other weights than the model's."""
    if not model.foreign_hooks and not about.is_of(model):
        warnings.warn(
            f"the hypernetwork was trained on {about.model} with the hash {about.model_hash}, but {model.name} has "
            f"{model.model_hash}: its weights, precision or tokenizer are others, so edits may not do what it was "
            "trained for",
            RuntimeWarning,
            stacklevel=3,
        )


def _first(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:120]
