"""Tables that are computed a few items at a time, each piece kept on disk as soon as it is done.

A shard is the tables of a slice of the items, one parquet file each, written atomically; the folder is named by a hash
of what the numbers depend on.  A run that was interrupted goes on behind the last shard, and one that has all of them
computes nothing.  A shard that cannot be read is computed again.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from driftlens.errors import DriftlensError
from driftlens.files import atomic_path, writable_folder

__all__ = ["Tables", "settings_hash", "sharded"]

Item = TypeVar("Item")
Tables = Mapping[str, pd.DataFrame]


def settings_hash(settings: object) -> str:
    """20 hexadecimal digits over anything that JSON can say; what it cannot goes by its repr."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode()).hexdigest()[:20]


def sharded(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Tables],
    folder: Path,
    *,
    size: int = 16,
    on_items: Callable[[int], None] | None = None,
) -> dict[str, pd.DataFrame]:
    """``work`` on slices of ``items``, its tables put together, every slice read back where it is on disk.

    Tables may have a column ``case`` that counts a slice's items from 0; put together it counts all items.

    Args:
        items: what to compute, in an order that belongs to ``folder``.
        work: makes the tables of a slice; the same names every time.
        folder: the place of these shards and of no others: its name should hold a hash of all settings.
        size: items of a shard.
        on_items: called with the number of items done.

    Raises:
        DriftlensError: no items, a size below 1, or the folder cannot be written.
    """
    if not items or size < 1:
        raise DriftlensError(f"{len(items)} items in shards of {size}; expected at least one of both")
    writable_folder(folder)
    pieces: dict[str, list[pd.DataFrame]] = {}
    lost = 0
    for start in range(0, len(items), size):
        shard = items[start : start + size]
        stem = f"{start:06d}-{start + len(shard):06d}"
        tables, damaged = _read(folder, stem)
        lost += damaged
        if tables is None:
            tables = work(shard)
            _write(folder, stem, tables)
        for name, table in tables.items():
            moved = table.assign(case=table["case"] + start) if "case" in table.columns else table
            pieces.setdefault(name, []).append(moved)
        if on_items is not None:
            on_items(start + len(shard))
    if lost:
        warnings.warn(f"{lost} damaged shards in {folder} were computed again", RuntimeWarning, stacklevel=2)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in pieces.items()}


def _write(folder: Path, stem: str, tables: Tables) -> None:
    for name, table in tables.items():
        with atomic_path(folder / f"{stem}.{name}.parquet") as temporary:
            temporary.write_bytes(table.to_parquet(index=False))
    # Last: a shard counts when all its tables are there.
    with atomic_path(folder / f"{stem}.json") as temporary:
        temporary.write_text(json.dumps(sorted(tables)))


def _read(folder: Path, stem: str) -> tuple[dict[str, pd.DataFrame] | None, int]:
    """The tables of a shard or None, and how many shards were found damaged."""
    index = folder / f"{stem}.json"
    if not index.exists():
        return None, 0
    try:
        names: Any = json.loads(index.read_text())
        return {name: pd.read_parquet(folder / f"{stem}.{name}.parquet") for name in names}, 0
    except (OSError, ValueError):  # pyarrow's own errors are both
        return None, 1
