"""Edits as data: what changes where, and what an editor gives back."""

from driftlens.edits.edit import FORMAT, Edit, LowRankUpdate, check_edits, edit_hooks, hooks_of
from driftlens.edits.results import Edited, EditResult, JointEditResult, edits_of, edits_or_none, one_edit

__all__ = [
    "FORMAT",
    "Edit",
    "EditResult",
    "Edited",
    "JointEditResult",
    "LowRankUpdate",
    "check_edits",
    "edit_hooks",
    "edits_of",
    "edits_or_none",
    "hooks_of",
    "one_edit",
]
