"""Records and the edits they are evaluated under."""

from __future__ import annotations

from collections.abc import Sequence

from driftlens.data import Record
from driftlens.edits import Edit, Edited, edits_or_none
from driftlens.errors import DriftlensError


def paired(
    records: Record | Sequence[Record], edits: Edited | Sequence[Edited | None] | None
) -> list[tuple[Record, Edit | None]]:
    """Pair each record with its edit; ``None``, for all records or for one, is the vanilla model.

    Raises:
        DriftlensError: the numbers of records and edits differ.
    """
    record_list = [records] if isinstance(records, Record) else list(records)
    edit_list = edits_or_none(edits, len(record_list) if edits is None else 1)
    if len(edit_list) != len(record_list):
        raise DriftlensError(f"{len(record_list)} records but {len(edit_list)} edits; give one edit for each record")
    return list(zip(record_list, edit_list, strict=True))
