"""A cache of edits on disk, shared by all commands and runs.

An edit takes a minute on a large model and a few kilobytes on disk.  Its file is named by a hash of everything that it
depends on: the model's weights, the editor's settings with regularizers and contexts, the texts of the second moment,
the fact, and driftlens's version.  Any change leads to another file.

Files are written after each batch of facts, atomically and with a checksum of the factors.  An interrupted run reuses
them; a damaged file is computed again.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from driftlens.data import Fact
from driftlens.editors import Failure, SecondMoment
from driftlens.editors.base import Editor
from driftlens.editors.failures import delivered
from driftlens.editors.identity import UnidentifiedError, identity
from driftlens.editors.second_moment import text_source
from driftlens.edits import Edit, EditResult
from driftlens.errors import DriftlensError
from driftlens.files import writable_folder
from driftlens.models import LensModel
from driftlens.progress import OnDone, unseen

__all__ = ["cached_edits", "editor_identity"]

_KEY, _CHECKSUM = "cache_key", "cache_sha256"


def cached_edits(
    model: LensModel,
    editor: Editor,
    facts: Sequence[Fact],
    folder: str | PathLike[str],
    *,
    batch_size: int = 16,
    on_facts: OnDone | None = None,
) -> list[Edit]:
    """Return the edit of each of ``facts``, read from ``folder`` or computed and stored there.

    Args:
        model: the vanilla model.
        editor: the editor.
        facts: the edit requests; duplicates are edited once.
        folder: the cache, created if necessary.  Models, editors and processes can share it.
        batch_size: facts that are optimised at a time; files are written after each batch.
        on_facts: called with the number of distinct facts that are available and the number of all.

    Raises:
        DriftlensError: the folder cannot be written, or an error of the editor.  Errors of single facts
            (:class:`driftlens.editors.EditError`) are raised after all other edits have been stored.
    """
    if batch_size < 1:
        raise DriftlensError(f"batch_size is {batch_size}; expected at least 1")
    place = writable_folder(folder)
    try:
        editor.check_identified()
    except UnidentifiedError as error:
        warnings.warn(f"{error}: these edits are made anew and not cached", RuntimeWarning, stacklevel=2)
        return _uncached(model, editor, facts, batch_size, on_facts)
    with model.unchanged():
        about = editor_identity(model, editor)
        keys = [_key(about, editor.provenance(model, fact)) for fact in facts]
    wanted = dict(zip(keys, facts, strict=True))
    found: dict[str, Edit] = {}
    damaged: list[Path] = []
    for key in wanted:
        path = _path(place, key)
        if path.exists():
            edit = _read(path, key)
            if edit is None:
                damaged.append(path)
            else:
                found[key] = edit
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        warnings.warn(f"the cached edit {damaged[0]}{more} is damaged and made again", RuntimeWarning, stacklevel=2)
    tell = on_facts or unseen
    tell(len(found), len(wanted))
    missing = [key for key in wanted if key not in found]
    outcomes: list[EditResult | Failure] = []
    for at in range(0, len(missing), batch_size):
        batch = missing[at : at + batch_size]
        outcomes += editor.try_many(model, [wanted[key] for key in batch], batch_size=batch_size)
        for key, outcome in zip(batch, outcomes[at:], strict=True):
            if not isinstance(outcome, Failure):
                _write(_path(place, key), key, outcome.edit)
                found[key] = outcome.edit
        tell(len(found), len(wanted))
    delivered(outcomes)
    return [found[key] for key in keys]


def _uncached(
    model: LensModel,
    editor: Editor,
    facts: Sequence[Fact],
    batch_size: int,
    on_facts: OnDone | None,
) -> list[Edit]:
    wanted = list(dict.fromkeys(facts))
    edits = dict(zip(wanted, editor.edit_many(model, wanted, batch_size=batch_size, on_facts=on_facts), strict=True))
    return [edits[fact].edit for fact in facts]


def editor_identity(model: LensModel, editor: Editor) -> str:
    """Identify the texts of the editor's second moments, which its provenance lacks before an edit.

    Given moments and moments yet to be computed have the same identity if texts and model are the same.  Moments of
    another model or of unknown origin are identified by their numbers.
    """
    given: Any = getattr(editor, "second_moment", None)
    if given is None and not editor.missing_second_moments:
        return ""
    if given is None:
        return text_source(editor.moment_corpus(model), editor.moment_samples)
    parts: Mapping[Any, Any] = given if isinstance(given, Mapping) else {"": given}
    model_hash = model.model_hash
    sources = {layer: _moment(moment, model_hash) for layer, moment in parts.items()}
    same = set(sources.values())
    return same.pop() if len(same) == 1 else "; ".join(f"{layer} {source}" for layer, source in sources.items())


def _moment(moment: Tensor | SecondMoment, model_hash: str) -> str:
    if isinstance(moment, SecondMoment):
        return moment.source if moment.model_hash == model_hash else identity(moment.matrix)
    return identity(moment)


def _key(about: str, provenance: Mapping[str, str]) -> str:
    # The hash of the weights identifies the model; its name and source do not matter.
    parts = {name: value for name, value in provenance.items() if name not in ("model", "model_source")}
    return hashlib.sha256(json.dumps([about, parts], sort_keys=True).encode()).hexdigest()[:32]


def _path(folder: Path, key: str) -> Path:
    return folder / f"edit-{key}.safetensors"


def _write(path: Path, key: str, edit: Edit) -> None:
    kept = {**edit.provenance, _KEY: key, _CHECKSUM: _checksum(edit)}
    Edit(edit.changes, facts=edit.facts, provenance=kept).save(path)


def _read(path: Path, key: str) -> Edit | None:
    """Read an edit; None if the file is missing or damaged."""
    try:
        edit = Edit.load(path)
    except DriftlensError:
        return None
    own = {name: value for name, value in edit.provenance.items() if name not in (_KEY, _CHECKSUM)}
    whole = edit.provenance.get(_KEY) == key and edit.provenance.get(_CHECKSUM) == _checksum(edit)
    return Edit(edit.changes, facts=edit.facts, provenance=own) if whole else None


def _checksum(edit: Edit) -> str:
    return " ".join(
        f"{change.site} {change.kind} {name} {identity(tensor)}"
        for change in edit.changes
        for name, tensor in change.tensors.items()
    )
