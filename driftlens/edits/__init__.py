"""Edits as data: what changes where, and what an editor gives back."""

from driftlens.edits.edit import (
    FORMAT,
    Edit,
    Edited,
    EditResult,
    JointEditResult,
    LowRankUpdate,
    edit_hooks,
    edits_of,
    edits_or_none,
    one_edit,
)

__all__ = [
    "FORMAT",
    "Edit",
    "EditResult",
    "Edited",
    "JointEditResult",
    "LowRankUpdate",
    "edit_hooks",
    "edits_of",
    "edits_or_none",
    "one_edit",
]
