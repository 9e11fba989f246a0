"""The rows that a side memory is trained on, after the vanilla pass up to its layer.

A fact has a row for each of its contexts, with the new object behind the prompt; rows of irrelevant text, which the
memory must leave alone; and the prompts of regularisers that bring some.  The memory acts at every token, so unlike in
the value optimisation nothing to the left of the subject stays as it is, and nothing can be kept of it.  What stays is
what goes into the memory's linear map: one vanilla pass records it, and the steps run the layers above only.

Rows are aligned so that ``subject_last`` stands in one column, as regularisers expect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from driftlens.data import Fact
from driftlens.editors.failures import Failure
from driftlens.editors.prompt_rows import PromptRow, brought_rows, share_of
from driftlens.editors.regularizers import Brought
from driftlens.editors.rows import Rows, told_by_prompts
from driftlens.errors import DriftlensError
from driftlens.hooks import Hook, HookFunction, record
from driftlens.models import LensModel
from driftlens.models.prompts import pad_rows, subject_last, tokenize_prompt

__all__ = ["FactRows", "SideRows", "rows_of_facts", "side_rows"]


@dataclass(frozen=True, kw_only=True)
class SideRows(Rows):
    """:class:`~driftlens.editors.rows.Rows` of whole prompts.

    Columns count from the first of the pass, ``read`` too; ``last`` counts from ``subject_last``, which stands in the
    column ``subject_key``.
    """

    is_irrelevant: Bool[Tensor, "rows"]
    keys: Float[Tensor, "rows columns d_mlp"]  # what goes into the map, 0 at padding, in float32 or better
    outputs: Float[Tensor, "rows columns d_model"]  # what it gives
    share: Float[Tensor, "rows columns"]  # a token's share in its row's distance
    inputs: Float[Tensor, "rows columns d_model"] | None  # of the layer, where the steps have to run it

    @override
    def kept(self, facts: Bool[Tensor, "facts"]) -> dict[str, Any]:
        rows = facts[self.fact].nonzero().squeeze(1)
        return {
            **super().kept(facts),
            "is_irrelevant": self.is_irrelevant[rows],
            "keys": self.keys[rows],
            "outputs": self.outputs[rows],
            "share": self.share[rows],
            "inputs": None if self.inputs is None else self.inputs[rows],
        }

    def added(self, deltas: Sequence[Float[Tensor, "d_mlp d_model"]]) -> Float[Tensor, "rows columns d_model"]:
        """What the memories, one a fact, add to the map's output."""
        counts = torch.bincount(self.fact, minlength=len(deltas)).tolist()
        return torch.cat([keys @ delta for keys, delta in zip(self.keys.split(counts), deltas, strict=True)])

    def entering(
        self, model: LensModel, added: Float[Tensor, "rows columns d_model"], layer: int
    ) -> Float[Tensor, "rows columns d_model"]:
        """The output of the memory's layer with that added; the sum is formed in the memory's precision."""
        if self.inputs is None:
            return (self.resid.to(added.dtype) + added).to(self.resid.dtype)
        hooks: list[Hook] = [(model.hook_name("mlp_out", layer), _adding(added))]
        return model.run(self.batch, hooks=hooks, start=layer, stop=layer + 1, resid=self.inputs)


def _adding(added: Float[Tensor, "rows columns d_model"]) -> HookFunction:
    def add(output: Tensor, hook: object = None) -> Tensor:  # noqa: ARG001 (TransformerLens's call)
        return (output.to(added.dtype) + added).to(output.dtype)

    return add


FactRows = list[PromptRow]
"""A fact's rows: its different contexts, irrelevant text, and prompts of regularisers."""


def rows_of_facts(
    model: LensModel,
    facts: Sequence[Fact],
    *,
    contexts: Sequence[str],
    irrelevant: Sequence[Sequence[str]],
    whole_target: bool,
    brought: Sequence[tuple[int, Sequence[Sequence[Brought]]]] = (),
) -> tuple[list[FactRows | None], Mapping[int, Failure]]:
    """The rows of each fact, as tokens, and what cannot be read, by its place.

    Args:
        model: the vanilla model.
        facts: the edit requests.
        contexts: templates with one ``{}`` for the prompt; one that occurs twice counts twice.
        irrelevant: of each fact, texts that have nothing to do with it.
        whole_target: whether the last token of the target, which nothing is predicted from, is read as well.
        brought: for each regulariser that brings prompts, its place and those of each fact.
    """
    found: list[FactRows | None] = []
    failures: dict[int, Failure] = {}
    for place, fact in enumerate(facts):
        try:
            own = _contexts(model, fact, contexts, whole_target=whole_target)
            for text in irrelevant[place]:
                prompt, share = tokenize_prompt(model, text), 1 / len(irrelevant[place])
                own.append(
                    PromptRow(kind="irrelevant", prompt=prompt, ids=prompt.ids, subject=prompt.last, weight=share)
                )
            own += brought_rows(model, fact, [(owner, texts[place]) for owner, texts in brought])
            found.append(own)
        except DriftlensError as error:
            failures[place] = Failure(fact=fact, reason=str(error))
            found.append(None)
    return found, failures


def _contexts(model: LensModel, fact: Fact, contexts: Sequence[str], *, whole_target: bool) -> FactRows:
    rows: FactRows = []
    for context in dict.fromkeys(contexts):
        prompt = tokenize_prompt(model, context.replace("{}", fact.text), fact.target_new)
        rows.append(
            PromptRow(
                kind="context",
                prompt=prompt,
                ids=prompt.ids if whole_target else prompt.forced,
                # A sampled prefix may name the subject too: the edit belongs to the one in the prompt.
                subject=subject_last(prompt, fact.subject, start=context.index("{}")),
                weight=share_of(context, contexts),
            )
        )
    return rows


@torch.no_grad()
def side_rows(model: LensModel, by_fact: Sequence[FactRows], *, layer: int, whole_target: bool) -> SideRows:
    """One pass of the vanilla model over the rows of some facts, up to the memory's layer.

    A row's distance is the mean over its prompt's tokens, with ``whole_target`` over the target's as well.
    """
    rows = [row for own in by_fact for row in own]
    reach = max(row.subject for row in rows if row.kind != "irrelevant")
    align = [min(row.subject, reach) for row in rows]
    batch, first = pad_rows(model, [row.ids for row in rows], align=align)
    column = max(align)
    store: dict[str, Tensor] = {}
    hooks: list[Hook] = [(model.hook_name(site, layer), record(store, site)) for site in ("mlp_post", "mlp_out")]
    inputs = model.run(batch, stop=layer)
    resid = model.run(batch, hooks=hooks, start=layer, resid=inputs, stop=layer + 1)

    device, precision = model.device, torch.promote_types(model.dtype, torch.float32)
    length = torch.tensor([len(row.ids) if whole_target else row.prompt.n_prompt for row in rows], device=device)
    columns = torch.arange(batch.shape[1], device=device)
    counted = (columns >= first[:, None]) & (columns < (first + length)[:, None])
    subject = torch.tensor([row.subject for row in rows], device=device)
    last = torch.tensor([row.prompt.last for row in rows], device=device)
    return SideRows(
        **told_by_prompts(
            model, by_fact, begins=first, last=first.to(device) + last, last_place=torch.zeros_like(last)
        ),
        is_irrelevant=torch.tensor([row.kind == "irrelevant" for row in rows], device=device),
        essence_row=None,
        batch=batch,
        resid=resid,
        entry=None,
        past=None,
        last=last - subject,
        subject_key=column,
        keys=store["mlp_post"].to(precision) * batch.mask[..., None],
        outputs=store["mlp_out"].to(precision),
        share=counted.to(precision) / length[:, None],
        inputs=None if model.adds_to_resid("mlp_out") else inputs,
    )
