"""Edits as data: what changes where, and what an editor gives back."""

from driftlens.edits.edit import (
    FORMAT,
    Edit,
    EditResult,
    JointEditResult,
    LowRankUpdate,
    edit_hooks,
)

__all__ = ["FORMAT", "Edit", "EditResult", "JointEditResult", "LowRankUpdate", "edit_hooks"]
