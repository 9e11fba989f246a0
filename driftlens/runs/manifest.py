"""The ``manifest.json`` of a folder of results, which ties the folder to one configuration.

1. The *configuration* is everything that the numbers depend on: weights, precision, editor, second moment, records,
   measures, seed and driftlens's version.  A folder with another configuration is refused with a list of differences.
2. Settings that affect only speed (batch sizes, device, number of workers) are stored per session and may change.
3. One process at a time works in a folder.  The operating system releases the lock when its process ends, so there are
   no stale locks.  Reading a finished run needs no lock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock, Timeout

from driftlens.editors.identity import identity
from driftlens.errors import DriftlensError
from driftlens.files import atomic_path, writable_folder
from driftlens.runs.edit_cache import editor_identity
from driftlens.runs.shards import settings_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from driftlens.data import Record
    from driftlens.editors.base import Editor
    from driftlens.models import LensModel
    from driftlens.runs.work import Measures

__all__ = ["MANIFEST", "claimed", "configuration", "now", "open_manifest", "write_manifest"]

MANIFEST = "manifest.json"
LOCK = ".lock"
FORMAT = "driftlens-benchmark-1"
_POLL_SECONDS = 0.5


def configuration(
    model: LensModel, editor: Editor | None, records: Sequence[Record], measures: Measures
) -> dict[str, Any]:
    """Return everything that the numbers depend on, as JSON values.

    Raises:
        UnidentifiedError: a part of the editor has no identity, so that runs of it could be confused.
    """
    from driftlens.version import __version__

    texts, snippets, tfidf = measures.perplexity_texts, measures.snippets, measures.tfidf
    told: dict[str, Any] = {
        "model_hash": model.model_hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "editor": None if editor is None else _settings(model, editor),
        "records": len(records),
        "records_hash": settings_hash([record.described() for record in records]),
        "tasks": "all" if measures.tasks is None else sorted(measures.tasks),
        "generate": measures.generate,
        "perplexity_texts": None if texts is None else settings_hash(texts),
        "references": None if snippets is None else settings_hash(sorted((*key, *of) for key, of in snippets.items())),
        "tfidf": None if tfidf is None else settings_hash(dict(tfidf.idf)),
        "seed": measures.seed,
        "driftlens": __version__,
        **({"chat": model.frame.around("{}")} if model.frame else {}),
    }
    return json.loads(json.dumps(told))


def _settings(model: LensModel, editor: Editor) -> dict[str, Any]:
    plain = {
        item.name: getattr(editor, item.name)
        for item in fields(editor)
        if item.init and item.name not in ("corpus", "second_moment", "regularizers", "samples", "files")
    }
    return {
        "name": identity(type(editor)),
        **{
            name: value if isinstance(value, int | float | str | None) else identity(value)
            for name, value in plain.items()
        },
        "regularizers": " + ".join(map(identity, editor.regularizers)),
        "second_moment": editor_identity(model, editor),
    }


@contextmanager
def claimed(folder: Path, on_wait: Callable[[], None] | None = None) -> Generator[None]:
    """Lock ``folder`` for this process.

    Args:
        folder: the folder, created if necessary.
        on_wait: called once if another process works in the folder; the call then waits for it.  ``None`` does not
            wait.

    Raises:
        DriftlensError: another process works in it, or it cannot be written.
    """
    writable_folder(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if on_wait is None:
            raise DriftlensError(
                f"another process is working in {folder}; wait until it has ended, or choose another folder"
            ) from None
        on_wait()
        lock.acquire(poll_interval=_POLL_SECONDS)
    try:
        # What a process that was killed had begun to write.
        for left in folder.rglob(".driftlens-*"):
            if not any(above.name.startswith("part-") for above in left.relative_to(folder).parents):
                left.unlink(missing_ok=True)  # parts of the run have processes of their own
        yield
    finally:
        _leave_nothing_empty(folder)
        lock.release()


def _leave_nothing_empty(folder: Path) -> None:
    """Remove the folder of a run that wrote nothing."""
    with suppress(OSError):
        (folder / "shards").rmdir()  # only an empty one goes
    if [path.name for path in folder.iterdir()] == [LOCK]:
        (folder / LOCK).unlink(missing_ok=True)


def open_manifest(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Read the manifest in ``folder``, or make a new one.

    Raises:
        DriftlensError: the manifest is unreadable, or its configuration is not ``wanted``.
    """
    path = folder / MANIFEST
    # Without a shard there is nothing to mix, so a failed first attempt may be replaced.
    if not path.exists() or not any(folder.glob("shards/*.json")):
        return {"format": FORMAT, "configuration": dict(wanted), "sessions": []}
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found: dict[str, Any] = manifest["configuration"]
        known = manifest["format"] == FORMAT and _is_whole(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DriftlensError(
            f"cannot read {path} ({type(error).__name__}); choose another folder, or delete this one to start anew"
        ) from error
    if not known:
        raise DriftlensError(f"{path} is not the manifest of a benchmark run; choose another folder")
    there, here = _flat(found), _flat(wanted)
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if differing:
        first = "; ".join(
            f"{name} is {_short(there.get(name))} there and {_short(here.get(name))} here" for name in differing[:3]
        )
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise DriftlensError(
            f"{folder} holds another run: {first}{more}; choose another folder, or delete that one to start anew"
        )
    return manifest


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    """Whether all fields of a manifest have the types that were written."""
    size: object = manifest.get("shard_size", 1)
    return (
        isinstance(manifest["configuration"], dict)
        and isinstance(manifest["sessions"], list)
        and isinstance(size, int)
        and not isinstance(size, bool)
        and size >= 1
    )


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest atomically, indented for people."""
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def now() -> str:
    """The time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _short(value: object) -> str:
    text = "none" if value in (None, "") else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
