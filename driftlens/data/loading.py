"""From a dataset's name or path to its records."""

import os
from itertools import islice
from pathlib import Path

from driftlens.data.counterfact import parse_record
from driftlens.data.reading import read_nodes
from driftlens.data.record import Record
from driftlens.errors import DriftlensError, unknown_name

__all__ = ["load_records"]

_NAMED = {"demo": Path(__file__).parents[1] / "demo" / "records.json"}


def load_records(source: str | os.PathLike[str] = "demo", *, limit: int | None = None) -> list[Record]:
    """The records of a dataset, the first `limit` of them if given.

    `source` is "demo" for the bundled world, or the path of a JSON file in the schema of
    `merged_counterfact.json`.
    """
    if limit is not None and limit < 0:
        raise DriftlensError(f"limit {limit} is negative; give the number of records wanted, or none for all")
    return [parse_record(node) for node in islice(read_nodes(_path_of(source)), limit)]


def _path_of(source: str | os.PathLike[str]) -> Path:
    if isinstance(source, str) and source in _NAMED:
        return _NAMED[source]
    path = Path(source)
    # A bare word that is no file was meant as a name; anything that looks like a path is reported as one.
    if isinstance(source, str) and len(path.parts) <= 1 and not path.suffix and not path.exists():
        raise unknown_name("dataset", source, _NAMED, instead="(or give the path of a JSON file of records)")
    return path
