"""The rows of a value optimisation: what an editor's steps run and read, of a group of facts at once.

:mod:`driftlens.editors.vanilla_rows` makes them, :mod:`driftlens.editors.side_rows` those of a side memory.

Where δ is not simply added to the block's output (at an attention output that the MLP reads, as PMET's in GPT-2 and
Llama; in front of a norm, as in Gemma and OLMo 2), the steps run the edit layer's block again with δ in it, for
column 0 alone: in all other columns its output stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from driftlens.editors.prompt_rows import PromptRow
from driftlens.hooks import Hook, HookFunction
from driftlens.models import Batch, KeyValues, LensModel
from driftlens.models.prompts import target_positions

__all__ = ["Place", "Rows", "told_by_prompts"]

Place = Literal["mlp_out", "resid_post", "attn_out"]
"""Where a δ is added: a site of one layer, at ``subject_last``."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a group of facts after the vanilla pass; columns count from ``subject_last``."""

    fact: Int[Tensor, "rows"]
    is_context: Bool[Tensor, "rows"]  # the others are essence prompts, or a regulariser's own
    owner: Int[Tensor, "rows"]  # the place of the regulariser that brought the row, -1 for all others
    essence_row: Int[Tensor, "facts"] | None  # whose column 0 is the essence prompt's
    batch: Batch
    resid: Float[Tensor, "rows columns d_model"]  # output of the edit layer
    entry: Float[Tensor, "rows 1 d_model"] | None  # its input in column 0, where the steps have to run it
    past: KeyValues | None
    last: Int[Tensor, "rows"]  # column of the last prompt token, before any target token
    last_place: Int[Tensor, "rows"]  # which of the row's `read` that is
    read: Int[Tensor, "rows read"]  # the columns whose next tokens the objective reads, ascending; the last is repeated
    weight: Float[Tensor, "rows"]  # the share of the fact's contexts, or of a regulariser's prompts, that it stands for
    target_row: Int[Tensor, "targets"]
    target_place: Int[Tensor, "targets"]  # which of the row's `read` predicts it
    target_id: Int[Tensor, "targets"]
    target_length: Int[Tensor, "rows"]
    subject_key: int  # key index of subject_last, the same in all rows

    # Both are looked up at every step, and on a GPU the host would wait for each answer.

    @cached_property
    def contexts(self) -> Int[Tensor, "contexts"]:
        """The rows that are contexts."""
        return self.is_context.nonzero().squeeze(1)

    @cached_property
    def brought(self) -> Mapping[int, Int[Tensor, "prompts"]]:
        """The rows that each regulariser brought, by its place."""
        owners = sorted({owner for owner in self.owner.tolist() if owner >= 0})
        return {owner: (self.owner == owner).nonzero().squeeze(1) for owner in owners}

    def of(self, facts: Bool[Tensor, "facts"]) -> Self:
        """Only the rows of ``facts``; fact numbers are made consecutive again."""
        return replace(self, **self.kept(facts))

    def kept(self, facts: Bool[Tensor, "facts"]) -> dict[str, Any]:
        """The fields of :meth:`of`."""
        picked = self.picked(facts[self.fact].nonzero().squeeze(1))
        number, essence = torch.cumsum(facts.long(), 0) - 1, picked["essence_row"]
        return {
            **picked,
            "fact": number[picked["fact"]],
            "essence_row": None if essence is None else essence[facts],
        }

    def picked(self, rows: Int[Tensor, "picked"]) -> dict[str, Any]:
        """The fields of some rows, ascending; facts keep their numbers, and one without its essence row has -1."""
        place = torch.full_like(self.fact, -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        targets = (place[self.target_row] >= 0).nonzero().squeeze(1)
        return {
            "fact": self.fact[rows],
            "is_context": self.is_context[rows],
            "owner": self.owner[rows],
            "essence_row": None if self.essence_row is None else place[self.essence_row],
            "batch": self.batch.take(rows),
            "resid": self.resid[rows],
            "entry": None if self.entry is None else self.entry[rows],
            "past": None if self.past is None else self.past.select(rows),
            "last": self.last[rows],
            "last_place": self.last_place[rows],
            "read": self.read[rows],
            "weight": self.weight[rows],
            "target_row": place[self.target_row[targets]],
            "target_place": self.target_place[targets],
            "target_id": self.target_id[targets],
            "target_length": self.target_length[rows],
        }

    def shifted(
        self, model: LensModel, delta: Float[Tensor, "facts places d_model"], layer: int, places: Sequence[Place]
    ) -> Float[Tensor, "rows columns d_model"]:
        """The output of the edit layer with every fact's δ in column 0, added in δ's own precision."""
        mine = delta[self.fact]
        if self.entry is None:
            output, inside = self.resid[:, 0], []
        else:
            inside = [at for at, place in enumerate(places) if not model.adds_to_resid(place)]
            column = Batch(tokens=self.batch.tokens[:, :1], mask=self.batch.mask[:, :1])
            hooks: list[Hook] = [(model.hook_name(places[at], layer), _adding(mine[:, at])) for at in inside]
            output = model.run(column, hooks=hooks, start=layer, stop=layer + 1, resid=self.entry, past=self.past)[:, 0]
        others = [at for at in range(len(places)) if at not in inside]
        first = output.to(delta.dtype) + mine[:, others].sum(dim=1)
        return torch.cat([first.to(self.resid.dtype).unsqueeze(1), self.resid[:, 1:]], dim=1)


def _adding(delta: Float[Tensor, "rows d_model"]) -> HookFunction:
    """A hook for a pass of one column: δ added to every row, in δ's own precision."""

    def add(output: Tensor, hook: object = None) -> Tensor:  # noqa: ARG001 (TransformerLens's call)
        return (output.to(delta.dtype) + delta[:, None]).to(output.dtype)

    return add


def told_by_prompts(
    model: LensModel,
    by_fact: Sequence[Sequence[PromptRow]],
    *,
    begins: Int[Tensor, "rows"],
    last: Int[Tensor, "rows"],
    last_place: Int[Tensor, "rows"],
) -> dict[str, Any]:
    """The fields of :class:`Rows` that follow from the prompts and from where they stand.

    Args:
        model: the vanilla model.
        by_fact: the rows of each fact.
        begins: the column of each row's first token, as ``read`` counts columns.
        last: that of its last prompt token.
        last_place: which of the columns that are read that is.  What comes before it is column 0.
    """
    rows = [row for own in by_fact for row in own]
    device, precision = model.device, torch.promote_types(model.dtype, torch.float32)
    target_row, target_column, target_id = target_positions([row.prompt for row in rows], begins)
    count = torch.tensor([max(len(row.prompt.target_ids), 1) for row in rows], device=device)
    place = torch.arange(int((last_place + count).max()), device=device) - last_place[:, None]
    return {
        "fact": torch.tensor([number for number, own in enumerate(by_fact) for _ in own], device=device),
        "is_context": torch.tensor([row.kind == "context" for row in rows], device=device),
        "owner": torch.tensor([row.owner for row in rows], device=device),
        "last_place": last_place,
        "read": (last[:, None] + torch.minimum(place, count[:, None] - 1)) * (place >= 0),
        # The optimiser's precision: a float32 third is off by 1e-8, which a float64 model would show.
        "weight": torch.tensor([row.weight for row in rows], device=device, dtype=precision),
        "target_row": target_row,
        "target_place": last_place[target_row] + target_column - last[target_row],
        "target_id": target_id,
        "target_length": count,
    }
