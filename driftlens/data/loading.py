"""Load the records of a dataset, by name or path.

The fields of a file's first record determine its schema, whatever the file's name. A local copy of a dataset is
therefore read like the public one.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import cast

from driftlens.data.counterfact import parse_counterfact
from driftlens.data.homes import HOMES, fetch
from driftlens.data.knowedit import parse_knowedit
from driftlens.data.merged_counterfact import parse_merged
from driftlens.data.reading import Node, read_nodes
from driftlens.data.record import Record
from driftlens.data.uneditable import UneditableError
from driftlens.data.zsre import parse_zsre
from driftlens.errors import DriftlensError, unknown_name
from driftlens.files import path_of

__all__ = ["DATASETS", "dataset_path", "load_records"]

DATASETS = (
    "demo",
    "real",
    "merged_counterfact",
    "counterfact",
    "zsre",
    "wiki_recent",
    "wiki_counterfact",
    "knowedit_zsre",
)
"""The names that `load_records` accepts."""

_SHIPPED = {
    "demo": Path(__file__).parents[1] / "demo" / "records.json",
    "real": Path(__file__).parent / "real_facts.json",
}


@dataclass(frozen=True, kw_only=True)
class _Schema:
    fields: tuple[str, ...]
    parse: Callable[[Node], Record]


# The first schema whose fields are all present is the file's.
_SCHEMAS = (
    _Schema(fields=("requested_rewrite.target_new.str",), parse=parse_counterfact),
    _Schema(fields=("requested_rewrite",), parse=parse_merged),
    _Schema(fields=("src", "alt"), parse=parse_zsre),
    _Schema(fields=("subject", "prompt", "target_new"), parse=parse_knowedit),
)


def load_records(source: str | os.PathLike[str] = "demo", *, limit: int | None = None) -> list[Record]:
    """Load the records of a dataset; at most the first `limit` if given.

    `source` is a name in `DATASETS` or the path of a JSON file in one of their schemas. "demo" is the bundled world and
    "real" five famous facts; the other datasets are downloaded at first use.

    Records of a public dataset whose fact cannot be edited are left out, with a warning that counts them: the prompt
    does not contain the subject exactly once, or the targets are equal. A record's `index` is its place in the file.

    Raises:
        DriftlensError: the file violates its schema; the message names file, record and field.
    """
    if limit is not None and limit < 0:
        raise DriftlensError(f"limit {limit} is negative; give the number of records wanted, or none for all")
    nodes = read_nodes(dataset_path(source))
    first = next(nodes, None)
    if first is None or limit == 0:
        return []
    parse = _parser(first)
    records: list[Record] = []
    left_out: list[UneditableError] = []
    for node in chain([first], nodes):
        try:
            records.append(parse(node))
        except UneditableError as error:
            left_out.append(error)
        if len(records) == limit:
            break
    if left_out:
        total = len(records) + len(left_out)
        warnings.warn(f"left out {len(left_out)} of {total} records that cannot be edited; {left_out[0]}", stacklevel=2)
    return records


def dataset_path(source: str | os.PathLike[str]) -> Path:
    """Return the file of a named dataset, downloaded if necessary, or the given path."""
    if isinstance(source, str) and source in DATASETS:
        return _SHIPPED[source] if source in _SHIPPED else fetch(source)
    path = path_of(source)
    # A bare word that is not a file was probably meant as a name; anything that looks like a path is reported as one.
    if isinstance(source, str) and len(path.parts) <= 1 and not path.suffix and not path.exists():
        if source in HOMES:
            raise DriftlensError(f"{source!r} holds no edits; known datasets: {', '.join(DATASETS)}")
        raise unknown_name("dataset", source, DATASETS, instead="(or give the path of a JSON file of records)")
    return path


def _parser(first: Node) -> Callable[[Node], Record]:
    if not isinstance(first.value, dict):
        first.fail(f"expected an object, found {first.kind()}")
    for schema in _SCHEMAS:
        if all(_has(first.value, field) for field in schema.fields):
            return schema.parse
    if _has(first.value, "template") and _has(first.value, "attribute"):
        problem = "known facts have no new target to edit in; read them with driftlens.data.load_known_facts"
        raise DriftlensError(first.message(problem))
    found = ", ".join(map(str, cast("dict[str, object]", first.value))) or "none"
    wanted = "; or ".join(" and ".join(schema.fields) for schema in _SCHEMAS[1:])
    raise DriftlensError(first.message(f"no known schema has the fields found ({found}); expected {wanted}"))


def _has(value: object, field: str) -> bool:
    """Whether the nested keys exist."""
    for key in field.split("."):
        if not isinstance(value, dict) or key not in value:
            return False
        value = cast("dict[str, object]", value)[key]
    return True
