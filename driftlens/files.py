"""Writing files so that a reader never sees half of one.

Every file goes to a temporary sibling first and takes its name in one step (`os.replace`), so a crash, a full
disk or a second process leaves either the old file or the whole new one.
"""

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from driftlens.errors import DriftlensError

__all__ = ["atomic_path", "cache_folder", "writable_folder"]


def cache_folder() -> Path:
    """Where downloads and long computations are kept: `$DRIFTLENS_CACHE`, else `driftlens` in the user's cache."""
    given = os.environ.get("DRIFTLENS_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(given).expanduser() if given else Path(base) / "driftlens"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary path beside `path`; what is written there becomes `path` when the body ends well.

    The temporary name keeps the suffix, since many writers choose a format (or append one) by it. Nothing is
    left behind when the body raises. An `OSError` of the body or of the replacement becomes a
    `DriftlensError`; a library that reports a full disk by an exception of its own should hand its bytes over
    and let `write_bytes` write them.
    """
    target = Path(path)
    temporary = target.with_name(f".driftlens-{secrets.token_hex(6)}{target.suffix}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(target)
        _flush_folder(target.parent)
    except OSError as error:
        advice = "choose another place or free space"
        raise DriftlensError(f"cannot write {target}: {_reason(error)}; {advice}") from error
    finally:
        # After a successful replace there is nothing left under this name.
        _remove_quietly(temporary)


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder `path`, prove that a file can be written in it, and return it.

    A permission bit says little (root, read-only mounts, quotas), so a small file is really written and
    removed.
    """
    folder = Path(path)
    probe = folder / f".driftlens-{secrets.token_hex(6)}"
    if folder.exists() and not folder.is_dir():
        raise DriftlensError(f"cannot write into {folder}: it is a file; choose a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"driftlens")
    except OSError as error:
        advice = "choose another folder"
        raise DriftlensError(f"cannot write into folder {folder}: {_reason(error)}; {advice}") from error
    finally:
        _remove_quietly(probe)
    return folder


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system lets a folder be synced at all."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _remove_quietly(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
