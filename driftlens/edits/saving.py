"""Edits as files: one safetensors file with every change's tensors, and everything else as JSON in its metadata.

The metadata's ``format`` names the version:

* ``driftlens-edit-2``: ``changes``, a list of ``kind``, ``site`` (layer and map) and ``settings``, whose tensors are
  named ``<place in the list>.<name>``; ``facts``; ``provenance``.
* ``driftlens-edit-1``, read but no longer written: ``<layer>.left`` and ``<layer>.right``, low-rank changes of
  down-projections; ``provenance``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from driftlens.data import Fact
from driftlens.edits.changes import Change, LowRank, change_kind
from driftlens.errors import DriftlensError
from driftlens.files import atomic_path, existing_file
from driftlens.models.sites import LINEAR_MAPS, Site

__all__ = ["FIRST_FORMAT", "FORMAT", "load", "save"]

FORMAT = "driftlens-edit-2"
FIRST_FORMAT = "driftlens-edit-1"

_FACT = ("subject", "prompt", "target_true", "target_new")


def save(
    path: str | PathLike[str], made: Sequence[Change], facts: Sequence[Fact], provenance: Mapping[str, str]
) -> None:
    """Write an edit's changes, facts and provenance to one file, atomically."""
    tensors: dict[str, Tensor] = {}
    changes: list[dict[str, Any]] = []
    for number, change in enumerate(made):
        changes.append({"kind": change.kind, "site": list(change.site), "settings": dict(change.settings)})
        for name, tensor in change.tensors.items():
            # Cloned: changes that share a tensor would share memory, which the format refuses.
            tensors[f"{number}.{name}"] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    metadata = {
        "format": FORMAT,
        "changes": json.dumps(changes),
        "facts": json.dumps([asdict(fact) for fact in facts]),
        "provenance": json.dumps(dict(provenance)),
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(serialize(tensors, metadata=metadata))


def load(path: str | PathLike[str]) -> tuple[list[Change], Sequence[Fact], dict[str, str]]:
    """Read an edit's changes, facts and provenance.

    Raises:
        DriftlensError: the file is missing, damaged, or not an edit.
    """
    source = existing_file(path, "a file that Edit.save wrote")
    try:
        with safe_open(str(source), framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            handle: Any = file
            metadata: dict[str, str] = handle.metadata() or {}
            if metadata.get("format") not in (FORMAT, FIRST_FORMAT):
                raise DriftlensError(f"{path} is not a driftlens edit; expected a file that Edit.save wrote")
            tensors: dict[str, Tensor] = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        provenance: dict[str, str] = json.loads(metadata["provenance"])
        if metadata["format"] == FIRST_FORMAT:
            return _finite(path, _first_changes(path, tensors)), _told(provenance), provenance
        facts = [Fact(**told) for told in json.loads(metadata["facts"])]
        changes = [
            _restored(path, number, told, tensors) for number, told in enumerate(json.loads(metadata["changes"]))
        ]
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DriftlensError):
            raise
        raise DriftlensError(f"cannot read the edit {path} ({error}); expected a file that Edit.save wrote") from error
    return _finite(path, changes), facts, provenance


def _finite(path: object, changes: list[Change]) -> list[Change]:
    for change in changes:
        if not change.is_finite:
            raise DriftlensError(f"the edit {path} holds NaN or infinity in layer {change.site.layer}; make it again")
    return changes


def _restored(path: object, number: int, told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Change:
    layer, linear = told["site"]
    if not isinstance(layer, int) or linear not in LINEAR_MAPS:
        raise ValueError(f"{told['site']!r} is no site")
    prefix = f"{number}."
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        return change_kind(told["kind"]).restored(Site(layer, linear), own, told["settings"])
    except KeyError as error:
        raise DriftlensError(f"{path} lacks {error} of change {number}; save the edit again") from error


def _first_changes(path: object, tensors: Mapping[str, Tensor]) -> list[Change]:
    layers = sorted({int(name.split(".")[0]) for name in tensors})
    try:
        return [LowRank(site=Site(n), left=tensors[f"{n}.left"], right=tensors[f"{n}.right"]) for n in layers]
    except KeyError as error:
        raise DriftlensError(f"{path} lacks the factor {error}; save the edit again") from error


def _told(provenance: Mapping[str, str]) -> tuple[Fact, ...]:
    """Recover the facts from the first version's provenance, which joins several facts by " + "."""
    parts = [provenance.get(name, "").split(" + ") for name in _FACT]
    if len({len(part) for part in parts}) > 1:
        return ()
    try:
        return tuple(Fact(**dict(zip(_FACT, told, strict=True))) for told in zip(*parts, strict=True))
    except DriftlensError:  # no fact, or a text that contains the separator
        return ()
