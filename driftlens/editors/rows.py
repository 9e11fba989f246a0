"""The rows of a value optimisation: everything that does not change from step to step, computed once.

Each fact has a row for every context and one for the essence prompt.  Rows are aligned so that ``subject_last``
stands in one column, which is counted as column 0 from here on:

1. what stands left of it cannot change, so above the edit only its keys and values are kept;
2. from it on, the residual stream at the edit layer's output is kept, since the steps run no lower block.

A δ at the attention's output (PMET) in a block whose MLP reads that output (GPT-2, Llama) also goes through the
edit layer's own MLP.  Its steps run that block again, for column 0 alone: in all others its output stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from driftlens.data import Fact
from driftlens.hooks import Hook, record
from driftlens.models import Batch, KeyValues, LensModel
from driftlens.prompts import TokenizedPrompt, pad_rows, subject_last, target_positions, tokenize_prompt

Place = Literal["mlp_out", "resid_post", "attn_out"]
"""Where a δ is added: a site of one layer, at ``subject_last``."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of several facts after the vanilla pass; columns count from ``subject_last``."""

    fact: Int[Tensor, "rows"]
    is_context: Bool[Tensor, "rows"]  # the others are essence prompts
    batch: Batch
    resid: Float[Tensor, "rows columns d_model"]  # output of the edit layer
    entry: Float[Tensor, "rows 1 d_model"] | None  # its input in column 0, where the steps have to run it
    past: KeyValues | None
    last: Int[Tensor, "rows"]  # column of the last prompt token, before any target token
    weight: Float[Tensor, "rows"]  # 1 / (contexts of the row's fact)
    target_row: Int[Tensor, "targets"]
    target_column: Int[Tensor, "targets"]
    target_id: Int[Tensor, "targets"]
    target_length: Int[Tensor, "rows"]
    subject_key: int  # key index of subject_last, the same in all rows

    def of(self, facts: Bool[Tensor, "facts"]) -> Rows:
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
            # Whatever is added at any place of such a block is added to its output.
            first = self.resid[:, 0].to(delta.dtype) + mine.sum(dim=1)
        else:
            at = places.index("attn_out")

            def add(attn_out: Tensor, hook: object = None) -> Tensor:  # noqa: ARG001 (TransformerLens's call)
                return (attn_out.to(delta.dtype) + mine[:, at : at + 1]).to(attn_out.dtype)

            column = Batch(tokens=self.batch.tokens[:, :1], mask=self.batch.mask[:, :1])
            hooks: list[Hook] = [(model.hook_name("attn_out", layer), add)]
            out = model.run(column, hooks=hooks, start=layer, stop=layer + 1, resid=self.entry, past=self.past)
            others = [i for i in range(len(places)) if i != at]
            first = out[:, 0].to(delta.dtype) + mine[:, others].sum(dim=1)
        return torch.cat([first.to(self.resid.dtype).unsqueeze(1), self.resid[:, 1:]], dim=1)


@torch.no_grad()
def vanilla_rows(
    model: LensModel,
    facts: Sequence[Fact],
    *,
    layer: int,
    places: Sequence[Place],
    contexts: Sequence[str],
    essence: str | None,
) -> tuple[Rows, Float[Tensor, "facts places d_model"]]:
    """One pass of the vanilla model over all rows, and what stands at the places in the bare prompts.

    Args:
        model: the vanilla model.
        facts: the edit requests.
        layer: the edit layer.
        places: where δ is going to be added in it.
        contexts: templates with one ``{}`` for the prompt.
        essence: the essence prompt's template, or ``None`` for no such rows.

    Raises:
        DriftlensError: a prompt is too long for the model.
    """
    prompts, subject, fact_of, kind = _prompts(model, facts, contexts, essence)
    batch, shifts = pad_rows(model, [prompt.forced for prompt in prompts], align=subject)
    column = int(shifts[0]) + subject[0]
    store: dict[Place, Tensor] = {}

    def at_subject(out: Tensor) -> Tensor:
        return out[:, column]

    entry = model.run(batch, stop=layer)
    hooks: list[Hook] = [(model.hook_name(place, layer), record(store, place, at_subject)) for place in places]
    resid = model.run(batch, hooks=hooks, start=layer, resid=entry, stop=layer + 1)
    # Where the MLP reads the attention's output, a δ there takes another way than into the block's output.
    through_mlp = "attn_out" in places and not model.parallel_blocks

    device, precision = model.device, torch.promote_types(model.dtype, torch.float32)
    fact = torch.tensor(fact_of, device=device)
    is_bare = torch.tensor([role == "bare" for role in kind], device=device)
    is_context = torch.tensor([role == "context" for role in kind], device=device)
    # The steps need no bare row: where the contexts hold the bare prompt it is among them.
    used = (~is_bare).nonzero().squeeze(1)
    first, before = (layer, entry) if through_mlp else (layer + 1, resid)
    past = None
    if column and first < model.n_layers:
        prefix = Batch(tokens=batch.tokens[used, :column], mask=batch.mask[used, :column])
        past = model.keys_values(prefix, start=first, resid=before[used, :column], columns=column)[1]

    used_prompts = [prompts[i] for i in used.tolist()]
    target_row, target_column, target_id = target_positions(used_prompts, shifts[used] - column)
    last = torch.tensor([prompt.last for prompt in used_prompts], device=device) + shifts[used] - column
    rows = Rows(
        fact=fact[used],
        is_context=is_context[used],
        batch=Batch(tokens=batch.tokens[used, column:], mask=batch.mask[used, column:]),
        resid=resid[used, column:],
        entry=entry[used, column : column + 1] if through_mlp else None,
        past=past,
        # The essence prompt is read at subject_last itself (note 3), which is column 0 now.
        last=last.where(is_context[used], torch.zeros_like(last)),
        # The optimiser's precision: a float32 third is off by 1e-8, which a float64 model would show.
        weight=torch.full((len(used),), 1 / len(contexts), device=device, dtype=precision),
        target_row=target_row,
        target_column=target_column,
        target_id=target_id,
        target_length=torch.tensor([max(len(p.target_ids), 1) for p in used_prompts], device=device),
        subject_key=column,
    )
    return rows, torch.stack([store[place][is_bare] for place in places], dim=1)


def _prompts(
    model: LensModel, facts: Sequence[Fact], contexts: Sequence[str], essence: str | None
) -> tuple[list[TokenizedPrompt], list[int], list[int], list[str]]:
    """Every row's prompt, its ``subject_last``, the number of its fact, and which kind of row it is."""
    prompts: list[TokenizedPrompt] = []
    subject: list[int] = []
    fact_of: list[int] = []
    kind: list[str] = []

    def add(number: int, role: str, text: str, target: str, start: int) -> None:
        prompt = tokenize_prompt(model, text, target)
        prompts.append(prompt)
        subject.append(subject_last(prompt, facts[number].subject, start=start))
        fact_of.append(number)
        kind.append(role)

    for number, fact in enumerate(facts):
        for context in contexts:
            # A sampled prefix may name the subject too: the edit belongs to the one in the prompt.
            add(number, "context", context.replace("{}", fact.text), fact.target_new, context.index("{}"))
        if essence is not None:
            add(number, "essence", essence.replace("{}", fact.subject), "", essence.index("{}"))
        add(number, "bare", fact.text, "", 0)
    return prompts, subject, fact_of, kind
