"""Edits as data: which weights change, for which facts, and the results of editors."""

from driftlens.edits.changes import Change, Dense, LowRank, LowRankUpdate
from driftlens.edits.edit import Edit, check_edits, edit_hooks, hooks_of
from driftlens.edits.gated import ActivatedNorm, AddedNorm, Gated, Router
from driftlens.edits.results import (
    Edited,
    EditResult,
    EditSequence,
    JointEditResult,
    Overridden,
    edits_of,
    edits_or_none,
    one_edit,
)
from driftlens.edits.routing import routed
from driftlens.edits.saving import FORMAT
from driftlens.edits.sparse import Sparse
from driftlens.models.sites import Site

__all__ = [
    "FORMAT",
    "ActivatedNorm",
    "AddedNorm",
    "Change",
    "Dense",
    "Edit",
    "EditResult",
    "EditSequence",
    "Edited",
    "Gated",
    "JointEditResult",
    "LowRank",
    "LowRankUpdate",
    "Overridden",
    "Router",
    "Site",
    "Sparse",
    "check_edits",
    "edit_hooks",
    "edits_of",
    "edits_or_none",
    "hooks_of",
    "one_edit",
    "routed",
]
