"""Compute tables a few items at a time, and store each piece on disk as soon as it is done.

A shard is the tables of a slice of the items, one parquet file each, written atomically.  Its index, with checksums and
the position of the slice, is written last; a shard without an index does not count.  An interrupted run resumes with
the missing shards, in any order and by any process.  A shard that was truncated, altered, moved or made with other
settings is computed again.

Results are always joined from what was read back from disk, so interrupted and uninterrupted runs give identical
tables.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import pandas as pd

from driftlens.errors import DriftlensError
from driftlens.files import atomic_path, writable_folder
from driftlens.progress import OnDone

__all__ = [
    "Compute",
    "Part",
    "Tables",
    "all_there",
    "foreign_shard",
    "settings_hash",
    "shard_starts",
    "sharded",
    "sharded_by",
]

Item = TypeVar("Item")
Tables: TypeAlias = Mapping[str, pd.DataFrame]
Compute: TypeAlias = Callable[[Mapping[int, Sequence[Item]]], Iterable[tuple[int, Tables]]]
"""Maps the missing slices, by the number of their first item, to their tables, in any order."""


Part: TypeAlias = tuple[int, int]
"""(i, n): the i-th (from 1) of n processes that share the work; it computes every n-th shard."""


def settings_hash(settings: object) -> str:
    """A hash of 20 hexadecimal digits of JSON values; other values are hashed by their repr."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode()).hexdigest()[:20]


def sharded(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Tables],
    folder: Path,
    *,
    size: int = 16,
    key: str = "",
    on_items: OnDone | None = None,
) -> dict[str, pd.DataFrame]:
    """Apply ``work`` to slices of ``items`` and join its tables; slices on disk are reused.

    If a table has a column ``case`` that counts a slice's items from 0, it counts all items in the joined table.

    Args:
        items: the items, always in the same order for one ``folder``.
        work: computes the tables of a slice, always with the same names.
        folder: the folder of these shards alone; its name, or ``key``, should contain a hash of all settings.
        size: items in a shard.
        key: shards that were written with another key are computed again.
        on_items: called with the number of finished items and the number of all.

    Raises:
        DriftlensError: no items, a size below 1, or the folder cannot be written.
    """

    def one_by_one(missing: Mapping[int, Sequence[Item]]) -> Iterable[tuple[int, Tables]]:
        return ((start, work(shard)) for start, shard in missing.items())

    def tell(done: int, _: Tables) -> None:
        if on_items is not None:
            on_items(done, len(items))

    return sharded_by(items, one_by_one, folder, size=size, key=key, on_shard=tell)


def sharded_by(
    items: Sequence[Item],
    compute: Compute[Item],
    folder: Path,
    *,
    size: int = 16,
    key: str = "",
    on_shard: Callable[[int, Tables], None] | None = None,
    part: Part | None = None,
    also: Iterable[Path] = (),
) -> dict[str, pd.DataFrame]:
    """As :func:`sharded`, but ``compute`` gets all missing slices at once and may distribute them.

    Args:
        items: as in :func:`sharded`.
        compute: computes the tables of all missing slices, and yields each slice's tables when they are finished.
        folder: as in :func:`sharded`.
        size: items of a shard.
        key: as in :func:`sharded`.
        on_shard: called with the number of finished items and the tables of the shard that was just read or computed.
        part: compute and return only the shards of this part.
        also: other folders that may hold shards of these items; shards found there are copied.

    Raises:
        DriftlensError: no items, a size below 1, a part without a shard, or the folder cannot be written.
    """
    slices = _slices(items, size, part)
    writable_folder(folder)
    found: dict[int, Tables] = {}
    done = lost = 0

    def keep(start: int, tables: Tables) -> None:
        nonlocal done
        found[start] = tables
        done += len(slices[start])
        if on_shard is not None:
            on_shard(done, tables)

    for start, shard in slices.items():
        tables, damaged = _read(folder, _stem(start, shard), key)
        lost += damaged
        if tables is None:
            elsewhere = (_read(other, _stem(start, shard), key)[0] for other in also)
            tables = next((tables for tables in elsewhere if tables is not None), None)
            if tables is not None:
                _write(folder, _stem(start, shard), tables, key)
        if tables is not None:
            keep(start, tables)
    missing = {start: shard for start, shard in slices.items() if start not in found}
    for start, tables in compute(missing) if missing else ():
        keep(start, _write(folder, _stem(start, slices[start]), tables, key))
    if lost:
        warnings.warn(f"{lost} damaged shards in {folder} were computed again", RuntimeWarning, stacklevel=3)
    return _together([(start, found[start]) for start in slices])


def all_there(
    items: Sequence[Item],
    folder: Path,
    *,
    size: int = 16,
    key: str = "",
    on_shard: Callable[[int, Tables], None] | None = None,
    part: Part | None = None,
) -> dict[str, pd.DataFrame] | None:
    """Return the result of :func:`sharded_by` if all shards exist, else None; this writes nothing."""
    slices = _slices(items, size, part)
    found: list[tuple[int, Tables]] = []
    for start, shard in slices.items():
        tables, _ = _read(folder, _stem(start, shard), key)
        if tables is None:
            return None
        found.append((start, tables))
    done = 0
    for start, tables in found:
        done += len(slices[start])
        if on_shard is not None:
            on_shard(done, tables)
    return _together(found)


def shard_starts(items: int, size: int, part: Part | None) -> range:
    """The number of each shard's first item; empty if the part has no shard."""
    starts = range(0, items, size)
    if part is None:
        return starts
    own, of = part
    return starts[own - 1 :: of] if 1 <= own <= of else range(0)


def _slices(items: Sequence[Item], size: int, part: Part | None) -> dict[int, Sequence[Item]]:
    """The shards' items by the number of their first."""
    if not items or size < 1:
        raise DriftlensError(f"{len(items)} items in shards of {size}; expected at least one of both")
    starts = shard_starts(len(items), size, part)
    if part is not None and not starts:
        own, of = part
        if not 1 <= own <= of:
            raise DriftlensError(f"part {own} of {of}: expected a part from 1 to the number of parts")
        most = len(shard_starts(len(items), size, None))
        raise DriftlensError(
            f"part {own} of {of} has nothing to do: {len(items)} records make {most} shards of {size}; "
            f"ask for {most} parts at most, or for smaller shards"
        )
    return {start: items[start : start + size] for start in starts}


def foreign_shard(folder: Path, key: str) -> Path | None:
    """The first complete shard in ``folder`` with another key than ``key``, or None."""
    for index in sorted(folder.glob("*.json")):
        try:
            told: Any = json.loads(index.read_text())
            if isinstance(told["key"], str) and told["key"] != key:
                return index
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged: it will be computed again
    return None


def _together(shards: Sequence[tuple[int, Tables]]) -> dict[str, pd.DataFrame]:
    pieces: dict[str, list[pd.DataFrame]] = {}
    for start, tables in shards:
        for name, table in tables.items():
            moved = table.assign(case=table["case"] + start) if "case" in table.columns else table
            pieces.setdefault(name, []).append(moved)
    # An empty table has less precise column types, so it counts only if there are no others.
    return {
        name: pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
        for name, tables in pieces.items()
    }


def _stem(start: int, shard: Sequence[object]) -> str:
    return f"{start:06d}-{start + len(shard):06d}"


def _write(folder: Path, stem: str, tables: Tables, key: str) -> Tables:
    """Write the tables and return them as they will be read back."""
    contents: dict[str, bytes] = {name: table.to_parquet(index=False) for name, table in tables.items()}
    for name, content in contents.items():
        with atomic_path(folder / f"{stem}.{name}.parquet") as temporary:
            temporary.write_bytes(content)
    # Last: a shard counts when all its tables are there.
    index = {"key": key, "items": stem, "sha256": {name: _checksum(content) for name, content in contents.items()}}
    with atomic_path(folder / f"{stem}.json") as temporary:
        temporary.write_text(json.dumps(index))
    return {name: pd.read_parquet(io.BytesIO(content)) for name, content in contents.items()}


def _read(folder: Path, stem: str, key: str) -> tuple[dict[str, pd.DataFrame] | None, int]:
    """Read the tables of a shard, or None, and the number of damaged shards."""
    index = folder / f"{stem}.json"
    if not index.exists():
        return None, 0
    try:
        told: Any = json.loads(index.read_text())
        if told["key"] != key or told["items"] != stem:
            return None, 1
        tables: dict[str, pd.DataFrame] = {}
        for name, checksum in told["sha256"].items():
            content = (folder / f"{stem}.{name}.parquet").read_bytes()
            if _checksum(content) != checksum:
                return None, 1
            tables[name] = pd.read_parquet(io.BytesIO(content))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # pyarrow's own errors are the first two
        return None, 1
    return tables, 0


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
