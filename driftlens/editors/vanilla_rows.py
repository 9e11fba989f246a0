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
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.data import Fact
from driftlens.editors.failures import Failure
from driftlens.editors.prefixes import Prefixes
from driftlens.editors.prompt_rows import PromptRow, prompt_rows
from driftlens.editors.regularizers import Brought
from driftlens.editors.rows import Place, Rows, told_by_prompts
from driftlens.errors import DriftlensError
from driftlens.hooks import Hook, record
from driftlens.models import Batch, KeyValues, LensModel
from driftlens.models.grouping import group_by_width
from driftlens.models.prompts import pad_rows

__all__ = ["Vanilla", "vanilla_rows"]


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
    subject = torch.tensor([row.subject for row in rows], device=model.device)
    essence_row = [at for at, row in enumerate(rows) if row.essence]
    # Essence prompts are read at subject_last itself, which is column 0 now.
    ends = [row.prompt.last - row.subject if row.kind in ("context", "brought") else 0 for row in rows]
    last = torch.tensor(ends, device=model.device)
    # Behind column 0, where that is read as the essence prompt's.
    last_place = (torch.tensor([row.essence for row in rows], device=model.device) & (last > 0)).long()
    return Rows(
        **told_by_prompts(model, by_fact, begins=-subject, last=last, last_place=last_place),
        essence_row=torch.tensor(essence_row, device=model.device) if essence_row else None,
        batch=batch,
        resid=resid,
        entry=entry,
        past=past,
        last=last,
        subject_key=subject_key,
    )
