"""Paths that people give, and writing files so that a reader never sees half of one.

1. `path_of` turns what was typed into a path, or says in one line why it is none. Every path that comes from outside
   goes through it; `existing_file` is for those that are read.
2. Every file that is written goes to a temporary sibling first and takes its name in one step (`os.replace`), so a
   crash, a full disk or a second process leaves either the old file or the whole new one.
3. `write_together` does so for several files, and `output_folder` removes the folders that it made, where nothing
   came of them.
"""

import os
import secrets
import stat
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import cast

from driftlens.errors import DriftlensError

__all__ = [
    "atomic_path",
    "cache_folder",
    "existing_file",
    "output_file",
    "output_folder",
    "path_of",
    "read_file",
    "reason_of",
    "require_apart",
    "require_empty",
    "writable_folder",
    "write_together",
]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def path_of(given: str | os.PathLike[str]) -> Path:
    """What was typed as a path, with `~` expanded; whether something is there is not asked.

    Raises:
        DriftlensError: it is empty, no text that a file can be named by, too long, a circle of links, or the home of
            a user that there is not.
    """
    text = cast("object", os.fspath(given) if isinstance(given, os.PathLike) else given)
    if not isinstance(text, str):
        raise DriftlensError(f"the path {text!r} is no text; name a file or folder")
    if not text.strip():
        raise DriftlensError(f"the path {text!r} is empty; name a file or folder")
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.lstat()
            path.resolve()  # a circle of links
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a null character; RuntimeError: no such home
        raise DriftlensError(f"cannot use the path {text!r}: {reason_of(error)}; choose another") from error
    return path


def existing_file(given: str | os.PathLike[str], wanted: str) -> Path:
    """The path of a regular file that is there: a pipe or a device would be waited for without an end.

    Args:
        given: the path.
        wanted: what it should be, such as "a JSON file of records", for the message.

    Raises:
        DriftlensError: there is no such file, or it is something else than a file.
    """
    path = path_of(given)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else reason_of(error)
        raise DriftlensError(f"cannot read {path}: {reason}; give {wanted}") from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise DriftlensError(f"cannot read {path}: it is {kind}; give {wanted}")
    return path


def read_file(given: str | os.PathLike[str], wanted: str) -> bytes:
    """The content of `existing_file`."""
    path = existing_file(given, wanted)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DriftlensError(f"cannot read {path}: {reason_of(error)}; give {wanted}") from error


def cache_folder() -> Path:
    """Where downloads and long computations are cached: `$DRIFTLENS_CACHE`, else `driftlens` in the user's cache.

    Raises:
        DriftlensError: neither names a place, because there is no such user or nobody's home is known.
    """
    given = os.environ.get("DRIFTLENS_CACHE")
    try:
        if given:
            return Path(given).expanduser()
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return Path(base) / "driftlens"
    except RuntimeError as error:
        raise DriftlensError(
            f"cannot find the cache folder {given or '~/.cache'}: {reason_of(error)}; set DRIFTLENS_CACHE to a folder"
        ) from error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary path beside `path`; what is written there becomes `path` when the body ends well.

    The temporary name keeps the suffix, since many writers choose a format (or append one) by it. Nothing is
    left behind when the body raises. An `OSError` of the body or of the replacement becomes a
    `DriftlensError`; a library that reports a full disk by an exception of its own should hand its bytes over
    and let `write_bytes` write them.
    """
    target = path_of(path)
    temporary = target.with_name(f".driftlens-{secrets.token_hex(6)}{target.suffix}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(target)
        _flush_folder(target.parent)
    except OSError as error:
        advice = "choose another place or free space"
        raise DriftlensError(f"cannot write {target}: {reason_of(error)}; {advice}") from error
    finally:
        # After a successful replace there is nothing left under this name.
        _remove_quietly(temporary)


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder `path`, prove that a file can be written in it, and return it.

    A permission bit says little (root, read-only mounts, quotas), so a small file is really written and
    removed.
    """
    folder = path_of(path)
    probe = folder / f".driftlens-{secrets.token_hex(6)}"
    made = _missing(folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise DriftlensError(f"cannot write into {folder}: it is a file; choose a folder")
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"driftlens")
    except OSError as error:
        _remove_quietly(probe)
        _remove_empty(made)
        advice = "choose another folder"
        raise DriftlensError(f"cannot write into folder {folder}: {reason_of(error)}; {advice}") from error
    finally:
        _remove_quietly(probe)
    return folder


def write_together(
    folder: Path, files: Mapping[str, bytes | Callable[[Path], None]], *, stale: Sequence[str] = ()
) -> list[Path]:
    """Write all files under temporary names; only when every one is whole do they take their own, the first one last.

    Args:
        folder: where to.
        files: each file's content by its name, or a function that writes it to a path.
        stale: names that an earlier run may have left; where this run has no such file, that one goes.
    """
    _require_no_folders(folder, files)
    with ExitStack() as stack:
        for name, content in files.items():
            temporary = stack.enter_context(atomic_path(folder / name))
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                content(temporary)
    for name in stale:
        if name not in files:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in files]


@contextmanager
def output_folder(path: str | os.PathLike[str], names: Iterable[str] = ()) -> Generator[Path]:
    """The folder, proved writable; those that were made for nothing, it and folders above it, go away again.

    `names` are the files that are going to be written there: a folder of that name is told now, not after the work.
    """
    made = _missing(path_of(path))
    folder = writable_folder(path)
    try:
        _require_no_folders(folder, names)
        yield folder
    finally:
        _remove_empty(made)


@contextmanager
def output_file(path: str | os.PathLike[str]) -> Generator[Path]:
    """As `output_folder`, for a file that is going to be written."""
    target = path_of(path)
    with output_folder(target.parent, [target.name]):
        yield target


def require_empty(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder that is not there yet, or holds nothing.

    Raises:
        DriftlensError: something is there.
    """
    target = path_of(folder)
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise DriftlensError(f"cannot export to {target}: {reason_of(error)}; choose another folder") from error
    if taken:
        raise DriftlensError(f"cannot export to {target}: it exists and is not empty; choose another folder")
    return target


def require_apart(
    written: Mapping[str, str | os.PathLike[str] | None], read: Mapping[str, str | os.PathLike[str] | None]
) -> None:
    """Refuse to write onto what else is written or read, into what else is written, or beside a model's weights.

    Args:
        written: what is going to be written, files and folders, each under the name of its option; None is none.
        read: files and folders that are read; a name, such as "demo", is no path.

    Raises:
        DriftlensError: two of them are in one another's way.
    """
    places = {name: path_of(path).resolve() for name, path in written.items() if path is not None}
    sources = {name: path_of(path).resolve() for name, path in read.items() if path is not None}
    for name, place in places.items():
        over = [other for other, there in places.items() if other != name and there in (place, *place.parents)]
        over += [
            other
            for other, there in sources.items()
            if there.exists() and (there == place or (there.is_dir() and there == place.parent))
        ]
        if over:
            raise DriftlensError(f"{name} would be written over {over[0]}, at {place}; choose another place")


def reason_of(error: BaseException) -> str:
    """Why the system refused, in its own words."""
    told = error.strerror if isinstance(error, OSError) else None
    return (told or str(error) or type(error).__name__).rstrip(". ")


def _require_no_folders(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if (folder / name).is_dir():
            raise DriftlensError(f"cannot write {folder / name}: it is a folder; move it, or choose another place")


def _missing(folder: Path) -> list[Path]:
    """The folder and those above it that are not there yet, the deepest first."""
    missing: list[Path] = []
    for place in (folder, *folder.parents):
        with suppress(OSError):
            if place.exists():
                break
        missing.append(place)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # the first that is not empty ends it
        for folder in folders:
            if folder.exists():
                folder.rmdir()


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
