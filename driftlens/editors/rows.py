"""The rows of a value optimisation: everything that does not change from step to step, computed once.

Each fact has a row for every different context, one for the essence prompt, and one for every prompt that a
regulariser brings.  Rows are aligned so that
``subject_last`` stands in one column, which is counted as column 0 from here on:

1. what stands left of it cannot change, so above the edit only its keys and values are kept;
2. from it on, the residual stream at the edit layer's output is kept, since the steps run no lower block;
3. the essence prompt is read in column 0, so nothing behind it is run; and where the bare prompt begins with the same
   tokens ("Paris is the capital of", "Paris is a"), that row is read instead;
4. facts of like width share a pass (:mod:`driftlens.models.grouping`).

Where δ is not simply added to the block's output (at an attention output that the MLP reads, as PMET's in GPT-2 and
Llama; in front of a norm, as in Gemma and OLMo 2), the steps run the edit layer's block again with δ in it, for
column 0 alone: in all other columns its output stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from driftlens.data import Fact
from driftlens.editors.failures import Failure
from driftlens.errors import DriftlensError
from driftlens.hooks import Hook, HookFunction, record
from driftlens.models import Batch, KeyValues, LensModel
from driftlens.models.grouping import group_by_width, pass_cost
from driftlens.models.prompts import TokenizedPrompt, pad_rows, subject_last, target_positions, tokenize_prompt

Place = Literal["mlp_out", "resid_post", "attn_out"]
"""Where a δ is added: a site of one layer, at ``subject_last``."""

BARE = "{}"


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
    weight: Float[Tensor, "rows"]  # the share of the fact's contexts, or of a regulariser's prompts, that it stands for
    target_row: Int[Tensor, "targets"]
    target_column: Int[Tensor, "targets"]
    target_id: Int[Tensor, "targets"]
    target_length: Int[Tensor, "rows"]
    subject_key: int  # key index of subject_last, the same in all rows

    def of(self, facts: Bool[Tensor, "facts"]) -> Self:
        """Only the rows of ``facts``; fact numbers are made consecutive again."""
        keep = facts[self.fact]
        rows = keep.nonzero().squeeze(1)
        new_fact = torch.cumsum(facts.long(), 0) - 1
        new_row = torch.cumsum(keep.long(), 0) - 1
        kept_target = keep[self.target_row]
        return replace(
            self,
            fact=new_fact[self.fact[rows]],
            is_context=self.is_context[rows],
            owner=self.owner[rows],
            essence_row=None if self.essence_row is None else new_row[self.essence_row[facts]],
            batch=Batch(tokens=self.batch.tokens[rows], mask=self.batch.mask[rows]),
            resid=self.resid[rows],
            entry=None if self.entry is None else self.entry[rows],
            past=None if self.past is None else self.past.select(rows),
            last=self.last[rows],
            weight=self.weight[rows],
            target_row=new_row[self.target_row[kept_target]],
            target_column=self.target_column[kept_target],
            target_id=self.target_id[kept_target],
            target_length=self.target_length[rows],
        )

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
    keys: Float[Tensor, "facts 1+contexts d_mlp"]


@torch.no_grad()
def vanilla_rows(
    model: LensModel,
    facts: Sequence[Fact],
    *,
    layer: int,
    places: Sequence[Place],
    contexts: Sequence[str],
    essence: str | None,
    brought: Sequence[tuple[int, Sequence[Sequence[str]]]] = (),
) -> Vanilla:
    """One pass of the vanilla model over all rows up to the edit layer, and one above it over what stands left of δ.

    Args:
        model: the vanilla model.
        facts: the edit requests.
        layer: the edit layer.
        places: where δ is going to be added in it.
        contexts: templates with one ``{}`` for the prompt.
        essence: the essence prompt's template, or ``None`` for no such rows.
        brought: for each regulariser that brings prompts, its place and those of each fact.
    """
    distinct = list(dict.fromkeys(contexts))
    readable: list[Fact] = []
    by_fact: list[list[_Row]] = []
    failures: dict[int, Failure] = {}
    for place, fact in enumerate(facts):
        try:
            own = [(owner, texts[place]) for owner, texts in brought]
            by_fact.append(_rows_of(model, fact, contexts, distinct, essence, own))
            readable.append(fact)
        except DriftlensError as error:
            failures[place] = Failure(fact=fact, reason=str(error))
    if not readable:
        none = torch.empty(0, len(places), model.d_model, device=model.device, dtype=model.dtype)
        keys = none.new_empty(0, 1 + len(contexts), model.d_mlp)
        return Vanilla(facts=(), failures=failures, groups=(), target_init=none, keys=keys)
    begin = [sum(len(own) for own in by_fact[:number]) for number in range(len(by_fact))]
    rows = [row for own in by_fact for row in own]
    batch, shifts = pad_rows(model, [row.ids for row in rows], align=[row.subject for row in rows])
    column = int(shifts[0]) + rows[0].subject
    store: dict[str, Tensor] = {}

    def at_subject(out: Tensor) -> Tensor:
        return out[:, column].clone()  # a view would keep all columns

    entry = model.run(batch, stop=layer)
    hooks: list[Hook] = [
        (model.hook_name(site, layer), record(store, site, at_subject)) for site in dict.fromkeys([*places, "mlp_post"])
    ]
    resid = model.run(batch, hooks=hooks, start=layer, resid=entry, stop=layer + 1)

    through_block = not all(model.adds_to_resid(place) for place in places)
    first, before = (layer, entry) if through_block else (layer + 1, resid)
    # The steps need no bare row: where the contexts hold the bare prompt it is among them.
    stepped = [[at for at, row in enumerate(own) if row.kind != "bare"] for own in by_fact]
    widths = [
        max(len(own[at].ids) - own[at].subject for at in kept) for own, kept in zip(by_fact, stepped, strict=True)
    ]
    groups: list[tuple[Tensor, Rows]] = []
    for members in group_by_width(widths, [len(kept) for kept in stepped], pass_cost(model.device)):
        at = torch.tensor([begin[n] + row for n in members for row in stepped[n]], device=model.device)
        here = [[by_fact[n][row] for row in stepped[n]] for n in members]
        reach = max(row.subject for own in here for row in own)
        left, right = slice(column - reach, column), slice(column, column + max(widths[n] for n in members))
        past = None
        if reach and first < model.n_layers:
            prefix = Batch(tokens=batch.tokens[at, left], mask=batch.mask[at, left])
            past = model.keys_values(prefix, start=first, resid=before[at, left], columns=reach)[1]
        group = _group(
            model,
            here,
            batch=Batch(tokens=batch.tokens[at, right], mask=batch.mask[at, right]),
            resid=resid[at, right],
            entry=entry[at, column : column + 1] if through_block else None,
            past=past,
            subject_key=reach,
        )
        groups.append((torch.tensor(members, device=model.device), group))

    bare = [
        start + next(at for at, row in enumerate(own) if row.bare) for start, own in zip(begin, by_fact, strict=True)
    ]
    in_order = [distinct.index(context) for context in contexts]
    read = torch.tensor(
        [[own, *(start + at for at in in_order)] for own, start in zip(bare, begin, strict=True)], device=model.device
    )
    return Vanilla(
        facts=tuple(readable),
        failures=failures,
        groups=tuple(groups),
        target_init=torch.stack([store[place][read[:, 0]] for place in places], dim=1),
        keys=store["mlp_post"][read],
    )


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row of the vanilla pass.

    Those of a fact come in this order: its different contexts, essence, prompts of regularisers, bare prompt.
    """

    kind: Literal["context", "essence", "brought", "bare"]
    prompt: TokenizedPrompt
    ids: tuple[int, ...]  # a context's with its target, the others' up to subject_last
    subject: int
    weight: float = 0.0
    bare: bool = False  # the prompt is the bare one, as a context or not
    essence: bool = False  # its column 0 is the essence prompt's
    owner: int = -1  # the place of the regulariser that brought it


def _rows_of(
    model: LensModel,
    fact: Fact,
    contexts: Sequence[str],
    distinct: Sequence[str],
    essence: str | None,
    brought: Sequence[tuple[int, Sequence[str]]],
) -> list[_Row]:
    def row(kind: Literal["context", "essence", "bare"], template: str, text: str, target: str = "") -> _Row:
        prompt = tokenize_prompt(model, template.replace(BARE, text), target)
        # A sampled prefix may name the subject too: the edit belongs to the one in the prompt.
        subject = subject_last(prompt, fact.subject, start=template.index(BARE))
        ids = prompt.forced if kind == "context" else prompt.ids[: subject + 1]
        return _Row(kind=kind, prompt=prompt, ids=ids, subject=subject, bare=template == BARE and kind != "essence")

    rows: list[_Row] = []
    for context in distinct:
        share = sum(context == other for other in contexts) / len(contexts)
        rows.append(replace(row("context", context, fact.text, fact.target_new), weight=share))
    bare = next((at for at, own in enumerate(rows) if own.bare), None)
    if essence is not None:
        read = replace(row("essence", essence, fact.subject), essence=True)
        if bare is not None and rows[bare].ids[: rows[bare].subject + 1] == read.ids:
            rows[bare] = replace(rows[bare], essence=True)
        else:
            rows.append(read)
    for owner, texts in brought:
        for text in texts:
            prompt = tokenize_prompt(model, text)
            subject = subject_last(prompt, fact.subject)
            own = _Row(
                kind="brought", prompt=prompt, ids=prompt.ids, subject=subject, weight=1 / len(texts), owner=owner
            )
            rows.append(own)
    return rows if bare is not None else [*rows, row("bare", BARE, fact.text)]


def _group(
    model: LensModel,
    by_fact: Sequence[Sequence[_Row]],
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
    return Rows(
        fact=torch.tensor([number for number, own in enumerate(by_fact) for _ in own], device=device),
        is_context=is_context,
        owner=owner,
        essence_row=torch.tensor(essence_row, device=device) if essence_row else None,
        batch=batch,
        resid=resid,
        entry=entry,
        past=past,
        # The essence prompt is read at subject_last itself, which is column 0 now.
        last=last.where(is_context | (owner >= 0), torch.zeros_like(last)),
        # The optimiser's precision: a float32 third is off by 1e-8, which a float64 model would show.
        weight=torch.tensor([row.weight for row in rows], device=device, dtype=precision),
        target_row=target_row,
        target_column=target_column,
        target_id=target_id,
        target_length=torch.tensor([max(len(row.prompt.target_ids), 1) for row in rows], device=device),
        subject_key=subject_key,
    )
