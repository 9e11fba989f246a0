"""Handle paths that users give, and write files so that a reader never sees half of one.

1. `path_of` turns the user's text into a path, or explains in one line why it is not one. Every path from outside goes
   through it; `existing_file` is for files that are read.
2. Every file is first written to a temporary sibling and then renamed in one step (`os.replace`), so a crash, a full
   disk or a second process leaves either the old file or the whole new one.
3. `write_together` does this for several files. `output_folder` removes the folders it created if nothing was written.
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
    """Turn the user's text into a path, with `~` expanded; the path need not exist.

    Raises:
        DriftlensError: the text is empty, cannot name a file, is too long, contains a circle of links, or names the
            home of an unknown user.
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
    """Return the path of an existing regular file.

    Pipes and devices are refused, because reading them could block forever.

    Args:
        given: the path.
        wanted: what it should be, such as "a JSON file of records", for the message.

    Raises:
        DriftlensError: the file does not exist, or is not a regular file.
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
    """Read the content of an `existing_file`."""
    path = existing_file(given, wanted)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DriftlensError(f"cannot read {path}: {reason_of(error)}; give {wanted}") from error


def cache_folder() -> Path:
    """The folder for downloads and cached results: `$DRIFTLENS_CACHE`, or else `driftlens` in the user's cache.

    Raises:
        DriftlensError: neither exists, because the user or the home folder is unknown.
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
    """Yield a temporary path beside `path`, which is renamed to `path` when the body ends without an error.

    The temporary name has the same suffix, since many writers choose a format (or append one) by it. No file is left
    behind if the body raises. An `OSError` of the body or of the replacement becomes a `DriftlensError`. A library that
    reports a full disk by its own exception should return its bytes for `write_bytes` to write.
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
        # After a successful replace, no file has this name any more.
        _remove_quietly(temporary)


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Create the folder `path`, verify that a file can be written in it, and return it.

    Permission bits are not conclusive (root, read-only mounts, quotas), so a small file is actually written and
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
    """Write all files under temporary names, and rename them only once all are complete, the first one last.

    Args:
        folder: the target folder.
        files: each file's content by its name, or a function that writes it to a path.
        stale: names that an earlier run may have left; those that this run does not write are removed.
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
    """Yield the folder, verified as writable; folders created for it are removed again if they stay empty.

    `names` are the files that will be written there: a folder with such a name is reported now, not after the work.
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
    """As `output_folder`, for a single file."""
    target = path_of(path)
    with output_folder(target.parent, [target.name]):
        yield target


def require_empty(folder: str | os.PathLike[str]) -> Path:
    """Return the path of a folder that does not exist yet or is empty.

    Raises:
        DriftlensError: the folder is not empty.
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
    """Refuse outputs that would overwrite an input or one another, or that lie in one another or beside model weights.

    Args:
        written: files and folders to be written, each under the name of its option; None means none.
        read: files and folders that are read; a name, such as "demo", is not a path.

    Raises:
        DriftlensError: two of them conflict.
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
    """The system's own explanation of an error."""
    told = error.strerror if isinstance(error, OSError) else None
    return (told or str(error) or type(error).__name__).rstrip(". ")


def _require_no_folders(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if (folder / name).is_dir():
            raise DriftlensError(f"cannot write {folder / name}: it is a folder; move it, or choose another place")


def _missing(folder: Path) -> list[Path]:
    """The folder and its parents that do not exist yet, the deepest first."""
    missing: list[Path] = []
    for place in (folder, *folder.parents):
        with suppress(OSError):
            if place.exists():
                break
        missing.append(place)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # stop at the first that is not empty
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
    """Make the new name survive a power cut, if the system can sync folders."""
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
