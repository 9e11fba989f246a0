"""Decide gates: turn an edit and a prompt into the edit as it acts on that prompt.

1. Gates are decided layer by layer, from the lowest. One pass up to the layer, with the decisions below it applied,
   records the input and output of the gated map at every token of the prompt.
2. Each gate's router scores the prompt.  Among a site's gates with a score above their threshold, the highest opens.
3. An open gate leaves its change, a closed one nothing, so the result has no gates.  Prompts that open the same gates
   of one edit share one resulting edit, so that rows can still be grouped by edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from driftlens.edits.changes import Change
from driftlens.edits.edit import Edit, edit_hooks
from driftlens.edits.gated import Gated
from driftlens.hooks import Hook, record
from driftlens.models.memory import in_batches
from driftlens.models.prompts import pad_rows
from driftlens.models.sites import Site, site_order

if TYPE_CHECKING:
    from driftlens.models import LensModel

__all__ = ["routed"]

_ROWS = 32


def routed(
    model: LensModel, edits: Sequence[Edit | None], prompts: Sequence[Sequence[int]], *, batch_size: int = _ROWS
) -> list[Edit | None]:
    """Return each edit as it acts on its prompt: gates decided, everything else unchanged.

    Args:
        model: the vanilla model.
        edits: one for each prompt; ``None`` means no edit.
        prompts: the prompts' tokens, without targets.
        batch_size: rows of a pass.

    Raises:
        DriftlensError: an edit does not fit the model.
    """
    found = list(edits)
    if not any(edit is not None and edit.gates for edit in edits):
        return found
    asked: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for at, (edit, ids) in enumerate(zip(edits, prompts, strict=True)):
        if edit is not None and edit.gates:
            asked.setdefault((id(edit), tuple(ids)), []).append(at)
    places = list(asked.values())
    rows = [(found[first], tuple(prompts[first])) for first, *_ in places]
    opened = in_batches(rows, batch_size, lambda batch: _opened(model, batch))
    alike: dict[tuple[int, tuple[int, ...]], Edit] = {}
    for members, gates in zip(places, opened, strict=True):
        edit = edits[members[0]]
        assert edit is not None
        key = id(edit), tuple(sorted(id(gate) for gate in gates))
        acting = alike.setdefault(key, _without_gates(edit, gates))
        for at in members:
            found[at] = acting
    return found


@torch.no_grad()
def _opened(model: LensModel, rows: Sequence[tuple[Edit | None, tuple[int, ...]]]) -> list[list[Gated]]:
    """The gates that each row's prompt opens."""
    edits = [edit for edit, _ in rows if edit is not None]
    for edit in {id(edit): edit for edit in edits}.values():
        edit.check_shapes(model)
    batch, _ = pad_rows(model, [ids for _, ids in rows])
    best: list[dict[Site, tuple[float, Gated]]] = [{} for _ in rows]
    for site in sorted({gate.site for edit in edits for gate in edit.gates}, key=site_order):
        seen: dict[str, Tensor] = {}
        before, after = model.linear_hooks(site)
        so_far = [_without_gates(edit, _gates(own)) for edit, own in zip(edits, best, strict=True)]
        # Recorded before an ungated change of the same site adds to the output.
        hooks: list[Hook] = [(before, record(seen, "x")), (after, record(seen, "y")), *edit_hooks(model, so_far)]
        model.run(batch, hooks=hooks, stop=site.layer + 1)
        for gate, members in _members(edits, site):
            scores = gate.score(model, seen["x"][members], seen["y"][members], batch.mask[members]).tolist()
            for own, score in zip((best[at] for at in members), scores, strict=True):
                if score > gate.router.threshold and (site not in own or score > own[site][0]):
                    own[site] = score, gate
    return [_gates(own) for own in best]


def _gates(best: Mapping[Site, tuple[float, Gated]]) -> list[Gated]:
    return [gate for _, gate in best.values()]


def _members(edits: Sequence[Edit], site: Site) -> list[tuple[Gated, list[int]]]:
    """Every gate of a site, with the rows whose edit has it."""
    members: dict[int, tuple[Gated, list[int]]] = {}
    for at, edit in enumerate(edits):
        for gate in edit.gates:
            if gate.site == site:
                members.setdefault(id(gate), (gate, []))[1].append(at)
    return list(members.values())


def _without_gates(edit: Edit, opened: Sequence[Gated]) -> Edit:
    changes: list[Change] = [change for change in edit.changes if not isinstance(change, Gated)]
    return Edit([*changes, *(gate.change for gate in opened)], facts=edit.facts, provenance=edit.provenance)
