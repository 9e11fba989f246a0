"""Record what regularisers see of a pass: attention, hidden states and next tokens of some rows.

Rows come in *sets*. One set holds the contexts, which all regularisers without their own prompts share. The others hold
the prompts of regularisers that supply some; regularisers with the same prompts share a set. Hooks record for each set
exactly what its regularisers ask for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import or_

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from driftlens.editors.regularizers import BringsPrompts, Observed, Regularizer, Seen, Wants, prompts_place, wants_of
from driftlens.editors.rows import Rows
from driftlens.hooks import Hook, record
from driftlens.models import LensModel

__all__ = ["CONTEXTS", "RowSet", "Watch", "detached", "kept", "row_sets"]

CONTEXTS = -1
"""The set of the contexts. Any other set is numbered by the index of the first regulariser that uses it."""


@dataclass(frozen=True, kw_only=True)
class RowSet:
    """Rows that are observed together, and what is recorded of them."""

    rows: Int[Tensor, "rows"]
    wants: Wants


def row_sets(rows: Rows, regularizers: Sequence[Regularizer]) -> dict[int, RowSet]:
    """Make the sets of rows that the regularisers look at."""
    sets: dict[int, RowSet] = {}
    of_contexts = [wants_of(one) for one in regularizers if not isinstance(one, BringsPrompts)]
    if of_contexts and len(rows.contexts):
        wants = reduce(or_, of_contexts)
        sets[CONTEXTS] = RowSet(rows=rows.contexts, wants=wants)
    for place, one in enumerate(regularizers):
        if not isinstance(one, BringsPrompts):
            continue
        first = prompts_place(regularizers, place)
        own = rows.brought.get(first)
        if own is not None:
            wants = wants_of(one)
            sets[first] = RowSet(rows=own, wants=sets[first].wants | wants if first in sets else wants)
    return sets


def detached(observed: Observed) -> Observed:
    """Return the same without a gradient."""
    return replace(observed, **{name: tensor.detach() for name, tensor in _present(observed).items()})


def kept(observed: Observed, rows: Bool[Tensor, "rows"]) -> Observed:
    """Select some of its rows."""
    parts = {
        name: tensor[rows] if name in ("log_probabilities", "target") else tensor[:, rows]
        for name, tensor in _present(observed).items()
    }
    return replace(observed, **parts)


class Watch:
    """Hooks that record a pass above the edit layer for the regularisers.

    ``column`` is the column of ``subject_last`` in the pass: 0 if the pass begins there.
    """

    def __init__(
        self, model: LensModel, rows: Rows, regularizers: Sequence[Regularizer], above: range, *, column: int = 0
    ) -> None:
        self.model, self.rows, self.regularizers, self.above, self.column = model, rows, regularizers, above, column
        self.sets = row_sets(rows, regularizers)
        self._attention: dict[tuple[int, int], Tensor] = {}
        self._patterns: dict[tuple[int, int], Tensor] = {}
        self._hidden: dict[tuple[int, int], Tensor] = {}

    def hooks(self, layer: int) -> list[Hook]:
        """The recording hooks of one layer."""
        hooks: list[Hook] = []
        name, after = self.model.hook_name("pattern", layer), self.model.hook_name("resid_post", layer)
        begin = self.column
        for key, of in self.sets.items():
            own, last = of.rows, self.rows.last[of.rows] + begin
            if of.wants.attention:
                hooks.append(
                    (name, record(self._attention, (key, layer), lambda p, own=own, last=last: p[own, :, last]))
                )
            if of.wants.patterns:
                hooks.append((name, record(self._patterns, (key, layer), lambda p, own=own: p[own, :, begin:])))
            if of.wants.hidden:
                hooks.append((after, record(self._hidden, (key, layer), lambda h, own=own: h[own, begin:])))
        return hooks

    def inside(self, entry: Float[Tensor, "rows queries d_model"]) -> dict[int, Observed]:
        """What was recorded, by set, without next tokens; ``entry`` is the output of the edit layer."""

        def stacked(found: dict[tuple[int, int], Tensor], key: int) -> Tensor | None:
            own = [found.pop((key, layer)) for layer in self.above if (key, layer) in found]
            return torch.stack(own) if own else None

        observed: dict[int, Observed] = {}
        for key, of in self.sets.items():
            hidden = stacked(self._hidden, key)
            if of.wants.hidden:
                first = entry[of.rows, self.column :].unsqueeze(0)
                hidden = first if hidden is None else torch.cat([first, hidden])
            observed[key] = Observed(
                attention=stacked(self._attention, key), patterns=stacked(self._patterns, key), hidden=hidden
            )
        return observed

    @property
    def scored(self) -> Mapping[int, Int[Tensor, "rows"]]:
        """The rows whose target is to be scored, by set."""
        return {key: of.rows for key, of in self.sets.items() if of.wants.target}

    @property
    def read(self) -> Mapping[int, Int[Tensor, "rows"]]:
        """The rows whose next-token distribution is needed, by set."""
        return {key: of.rows for key, of in self.sets.items() if of.wants.next_tokens}

    def penalty(
        self, place: int, before: Mapping[int, Observed], now: Mapping[int, Observed]
    ) -> tuple[Float[Tensor, "rows"], Int[Tensor, "rows"]] | None:
        """Return the penalty per row of a regulariser, and the indices of the rows; None if it sees nothing."""
        regularizer = self.regularizers[place]
        key = prompts_place(self.regularizers, place) if isinstance(regularizer, BringsPrompts) else CONTEXTS
        if key not in self.sets or not _present(now[key]):
            return None
        own = self.sets[key].rows
        subject = torch.full_like(own, self.rows.subject_key)
        none = self.rows.resid.new_zeros(0, len(own), self.model.n_heads, 0)
        seen = Seen(
            layers=tuple(self.above),
            vanilla=none if (attention := before[key].attention) is None else attention,
            edited=none if (attention := now[key].attention) is None else attention,
            subject=subject,
            before=before[key],
            now=now[key],
            last=self.rows.last[own],
            mask=self.rows.batch.mask[own, self.column :],
        )
        return regularizer.penalty(seen), own


def _present(observed: Observed) -> dict[str, Tensor]:
    found = {item.name: getattr(observed, item.name) for item in fields(observed)}
    return {name: tensor for name, tensor in found.items() if tensor is not None}
