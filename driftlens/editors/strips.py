"""Split the rows of a group of facts into separate passes, so that narrow rows do not share a pass with wide ones.

A pass is as wide as its widest row, counted from ``subject_last``.  Contexts and questions about the subject end soon
after it, but a guard that begins with the edited statement is a sentence longer.  In a single pass, nearly all columns
of the short rows would be padding.  The contexts and the essence prompts stay together and come first.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from driftlens.editors.rows import Rows
from driftlens.models.grouping import group_by_width

__all__ = ["strips_of"]


def strips_of(rows: Rows, cost: float) -> tuple[Rows, ...]:
    """Split rows into the cheapest passes, contexts first.

    Every strip keeps the numbering of all facts; some facts may have no row in it.

    Args:
        rows: the rows of a group of facts.
        cost: the cost of one more pass, in tokens.
    """
    own = (rows.owner < 0).nonzero().squeeze(1)
    brought = (rows.owner >= 0).nonzero().squeeze(1)
    width = rows.batch.mask.long().cumsum(dim=1).argmax(dim=1) + 1
    widths = [int(width[own].max()) if len(own) else 0, *width[brought].tolist()]
    groups = group_by_width(widths, [len(own), *[1] * len(brought)], cost)
    if len(groups) < 2:
        return (rows,)
    sets = [
        torch.cat([own if 0 in group else own[:0], brought[[at - 1 for at in group if at]]]).sort().values
        for group in sorted(groups, key=lambda group: 0 not in group)
    ]
    return tuple(_strip(rows, kept) for kept in sets)


def _strip(rows: Rows, kept: Int[Tensor, "kept"]) -> Rows:
    """Select some rows, trimmed to the width they need; all facts keep their numbers."""
    picked = rows.picked(kept)
    columns = int(picked["batch"].mask.any(dim=0).nonzero().max()) + 1
    read = int((picked["last_place"] + picked["target_length"]).max())
    essence = picked["essence_row"]
    trimmed = {
        "batch": picked["batch"].take(slice(None), slice(columns)),
        "resid": picked["resid"][:, :columns],
        "read": picked["read"][:, :read],
        # Essence prompts are together in the first strip.
        "essence_row": None if essence is None or bool((essence < 0).any()) else essence,
    }
    return replace(rows, **{**picked, **trimmed})
