"""The rows of a value optimisation: everything that does not change from step to step, computed once.

Each fact has a row for every different context, one for the essence prompt, and one for every prompt that a
regulariser brings (:mod:`driftlens.editors.prompt_rows`).  Rows are aligned so that
``subject_last`` stands in one column, which is counted as column 0 from here on:

1. what all facts' rows of one context begin with, the context's prefix, is run once for all of them, and its keys and
   values are reused;
2. what stands left of column 0 cannot change, so above the edit only its keys and values are kept;
3. from it on, the residual stream at the edit layer's output is kept, since the steps run no lower block;
4. the essence prompt is read in column 0, so nothing behind it is run;
5. facts of like width share a pass (:mod:`driftlens.models.grouping`), those of a group's that are alike left of the
   subject too share the vanilla pass.

Where δ is not simply added to the block's output (at an attention output that the MLP reads, as PMET's in GPT-2 and
Llama; in front of a norm, as in Gemma and OLMo 2), the steps run the edit layer's block again with δ in it, for
column 0 alone: in all other columns its output stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from driftlens.data import Fact
from driftlens.editors.failures import Failure
from driftlens.editors.prefixes import Prefixes
from driftlens.editors.prompt_rows import PromptRow, prompt_rows
from driftlens.editors.regularizers import Brought
from driftlens.errors import DriftlensError
from driftlens.hooks import Hook, HookFunction, record
from driftlens.models import Batch, KeyValues, LensModel
from driftlens.models.grouping import group_by_width
from driftlens.models.prompts import pad_rows, target_positions

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
        keep = facts[self.fact]
        rows = keep.nonzero().squeeze(1)
        new_fact = torch.cumsum(facts.long(), 0) - 1
        new_row = torch.cumsum(keep.long(), 0) - 1
        kept_target = keep[self.target_row]
        return {
            "fact": new_fact[self.fact[rows]],
            "is_context": self.is_context[rows],
            "owner": self.owner[rows],
            "essence_row": None if self.essence_row is None else new_row[self.essence_row[facts]],
            "batch": Batch(tokens=self.batch.tokens[rows], mask=self.batch.mask[rows]),
            "resid": self.resid[rows],
            "entry": None if self.entry is None else self.entry[rows],
            "past": None if self.past is None else self.past.select(rows),
            "last": self.last[rows],
            "last_place": self.last_place[rows],
            "read": self.read[rows],
            "weight": self.weight[rows],
            "target_row": new_row[self.target_row[kept_target]],
            "target_place": self.target_place[kept_target],
            "target_id": self.target_id[kept_target],
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


@dataclass(frozen=True, kw_only=True)
class Vanilla:
    """What the vanilla model says about some facts.

    Facts are numbered as in ``facts``.

    Attributes:
        facts: those that the model can read, in their order.
        failures: the others, by their places among the facts that were given.
        groups: the facts of a group, by their numbers, and its rows; every fact is in one group.
        target_init: what stands at the places in the bare prompts.
        keys: what goes into the edit layer's down-projection at ``subject_last``: of the bare prompt, then of every
            context.
    """

    facts: tuple[Fact, ...]
    failures: Mapping[int, Failure]
    groups: tuple[tuple[Int[Tensor, "members"], Rows], ...]
    target_init: Float[Tensor, "facts places d_model"]
    keys: Float[Tensor, "facts prompts d_mlp"]


@torch.no_grad()
def vanilla_rows(
    model: LensModel,
    facts: Sequence[Fact],
    *,
    layer: int,
    places: Sequence[Place],
    contexts: Sequence[str],
    essence: str | None,
    brought: Sequence[tuple[int, Sequence[Sequence[Brought]]]] = (),
) -> Vanilla:
    """The vanilla model over all rows up to the edit layer, and above it over what stands left of δ.

    Args:
        model: the vanilla model.
        facts: the edit requests.
        layer: the edit layer.
        places: where δ is going to be added in it.
        contexts: templates with one ``{}`` for the prompt.
        essence: the essence prompt's template, or ``None`` for no such rows.
        brought: for each regulariser that brings prompts, its place and those of each fact, with a target or "".
    """
    distinct = list(dict.fromkeys(contexts))
    readable: list[Fact] = []
    by_fact: list[list[PromptRow]] = []
    failures: dict[int, Failure] = {}
    for place, fact in enumerate(facts):
        try:
            own = [(owner, texts[place]) for owner, texts in brought]
            by_fact.append(prompt_rows(model, fact, contexts, distinct, essence, own))
            readable.append(fact)
        except DriftlensError as error:
            failures[place] = Failure(fact=fact, reason=str(error))
    target_init = torch.empty(len(readable), len(places), model.d_model, device=model.device, dtype=model.dtype)
    keys = target_init.new_empty(len(readable), 1 + len(contexts), model.d_mlp)
    if not readable:
        return Vanilla(facts=(), failures=failures, groups=(), target_init=target_init, keys=keys)
    prefixes = Prefixes.of(model, by_fact, len(distinct))
    order = [distinct.index(context) for context in contexts]
    # The steps need no bare row: where the contexts hold the bare prompt it is among them.
    counts = [sum(row.kind != "bare" for row in own) for own in by_fact]
    right = [max(len(row.ids) - row.subject for row in own if row.kind != "bare") for own in by_fact]
    left = [max(row.subject - prefixes.length(row) for row in own) for own in by_fact]
    cost = model.pass_cost
    groups: list[tuple[Tensor, Rows]] = []
    for group in group_by_width(right, counts, cost):
        # Before the steps a row has columns left of the subject too, so fewer facts may be of like width.
        parts: list[_Part] = []
        numbers: list[int] = []
        reach = max(left[n] for n in group)
        for part in group_by_width([left[n] + right[n] for n in group], [counts[n] for n in group], cost):
            members = [group[at] for at in part]
            rows = [by_fact[n] for n in members]
            parts.append(_Part.of(model, rows, layer, places, prefixes, least=min(reach, 1)))
            for number, own in zip(members, parts[-1].starts, strict=True):
                bare = own + next(at for at, row in enumerate(by_fact[number]) if row.bare)
                target_init[number] = torch.stack([parts[-1].seen[place][bare] for place in places])
                keys[number] = parts[-1].seen["mlp_post"][[bare, *(own + at for at in order)]]
            numbers += members
        groups.append((torch.tensor(numbers, device=model.device), _joined(model, parts)))
    return Vanilla(facts=tuple(readable), failures=failures, groups=tuple(groups), target_init=target_init, keys=keys)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Facts that share the vanilla pass: all that it finds out about the rows that the steps run."""

    rows: tuple[tuple[PromptRow, ...], ...]  # by fact
    starts: tuple[int, ...]  # by fact, its first row in `seen`
    seen: Mapping[str, Float[Tensor, "all_rows d"]]  # at subject_last, by site, the bare rows' as well
    batch: Batch  # from subject_last on, like all that follows
    resid: Float[Tensor, "rows columns d_model"]
    entry: Float[Tensor, "rows 1 d_model"] | None
    past: KeyValues | None

    @classmethod
    def of(
        cls,
        model: LensModel,
        by_fact: Sequence[Sequence[PromptRow]],
        layer: int,
        places: Sequence[Place],
        prefixes: Prefixes,
        least: int,
    ) -> _Part:
        """The passes over these facts' rows, with at least ``least`` columns left of the subject."""
        rows = [row for own in by_fact for row in own]
        begins = [prefixes.length(row) for row in rows]
        subjects = [row.subject - begin for row, begin in zip(rows, begins, strict=True)]
        column = max(least, *subjects)
        tails = [row.ids[begin:] for row, begin in zip(rows, begins, strict=True)]
        batch, _ = pad_rows(model, tails, align=subjects, column=column)
        seen: dict[str, Tensor] = {}

        def at_subject(out: Tensor) -> Tensor:
            return out[:, column].clone()  # a view would keep all columns

        hooks: list[Hook] = [
            (model.hook_name(site, layer), record(seen, site, at_subject))
            for site in dict.fromkeys([*places, "mlp_post"])
        ]
        below = prefixes.before(rows, range(layer + 1))
        entry = model.run(batch, stop=layer, past=below)
        resid = model.run(batch, hooks=hooks, start=layer, resid=entry, stop=layer + 1, past=below)

        through_block = not all(model.adds_to_resid(place) for place in places)
        first, into = (layer, entry) if through_block else (layer + 1, resid)
        stepped = [at for at, row in enumerate(rows) if row.kind != "bare"]
        at = torch.tensor(stepped, device=model.device)
        past = None
        if first < model.n_layers:
            past = prefixes.before([rows[n] for n in stepped], range(first, model.n_layers))
            if column:
                left = slice(0, column)
                past = model.prefix(batch.take(at, left), start=first, resid=into[at, left], columns=column, past=past)
        right = slice(column, column + max(len(rows[n].ids) - rows[n].subject for n in stepped))
        return cls(
            rows=tuple(tuple(row for row in own if row.kind != "bare") for own in by_fact),
            starts=tuple(accumulate((len(own) for own in by_fact[:-1]), initial=0)),
            seen=seen,
            batch=batch.take(at, right),
            resid=resid[at, right],
            entry=entry[at, column : column + 1] if through_block else None,
            past=past,
        )


def _joined(model: LensModel, parts: Sequence[_Part]) -> Rows:
    """The rows of all parts: as wide as the widest on either side of the subject."""
    width = max(part.batch.shape[1] for part in parts)
    reach = max(0 if part.past is None else part.past.mask.shape[1] for part in parts)

    def filled(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        shape[1] = width - shape[1]
        return torch.cat([tensor, tensor.new_zeros(shape)], dim=1) if shape[1] else tensor

    pasts = [part.past.widened(reach) for part in parts if part.past is not None]
    entries = [part.entry for part in parts if part.entry is not None]
    return _group(
        model,
        [own for part in parts for own in part.rows],
        batch=Batch(
            tokens=torch.cat([filled(part.batch.tokens) for part in parts]),
            mask=torch.cat([filled(part.batch.mask) for part in parts]),
        ),
        resid=torch.cat([filled(part.resid) for part in parts]),
        entry=torch.cat(entries) if entries else None,
        past=KeyValues.together(pasts) if pasts else None,
        subject_key=reach,
    )


def _group(
    model: LensModel,
    by_fact: Sequence[Sequence[PromptRow]],
    *,
    batch: Batch,
    resid: Float[Tensor, "rows columns d_model"],
    entry: Float[Tensor, "rows 1 d_model"] | None,
    past: KeyValues | None,
    subject_key: int,
) -> Rows:
    rows = [row for own in by_fact for row in own]
    device, precision = model.device, torch.promote_types(model.dtype, torch.float32)
    subject = torch.tensor([row.subject for row in rows], device=device)
    is_context = torch.tensor([row.kind == "context" for row in rows], device=device)
    owner = torch.tensor([row.owner for row in rows], device=device)
    essence_row = [at for at, row in enumerate(rows) if row.essence]
    target_row, target_column, target_id = target_positions([row.prompt for row in rows], -subject)
    last = torch.tensor([row.prompt.last for row in rows], device=device) - subject
    # The essence prompt is read at subject_last itself, which is column 0 now.
    last = last.where(is_context | (owner >= 0), torch.zeros_like(last))
    # Behind column 0, where that is read as the essence prompt's.
    last_place = (torch.tensor([row.essence for row in rows], device=device) & (last > 0)).long()
    count = torch.tensor([max(len(row.prompt.target_ids), 1) for row in rows], device=device)
    place = torch.arange(int((last_place + count).max()), device=device) - last_place[:, None]
    read = (last[:, None] + torch.minimum(place, count[:, None] - 1)) * (place >= 0)
    return Rows(
        fact=torch.tensor([number for number, own in enumerate(by_fact) for _ in own], device=device),
        is_context=is_context,
        owner=owner,
        essence_row=torch.tensor(essence_row, device=device) if essence_row else None,
        batch=batch,
        resid=resid,
        entry=entry,
        past=past,
        last=last,
        last_place=last_place,
        read=read,
        # The optimiser's precision: a float32 third is off by 1e-8, which a float64 model would show.
        weight=torch.tensor([row.weight for row in rows], device=device, dtype=precision),
        target_row=target_row,
        target_place=last_place[target_row] + target_column - last[target_row],
        target_id=target_id,
        target_length=count,
        subject_key=subject_key,
    )
