"""The objective that a MEND hypernetwork is trained for (Mitchell et al. 2022, Eq. 4), with SADR.

    c_edit · NLL(new target | paraphrase, edited)  +  c_loc · KL(unedited ‖ edited, every token of a locality text)
      +  SADR(paraphrase's last prompt token, layers above the first edited block)

An edit is made from the gradient at the edit prompt alone.  All edits of a batch run side by side as rows of three
passes, none of which runs what lies below the first edited block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.editors.mend_data import Example
from driftlens.editors.mend_gradients import Entry, Targets, enter, gradient_factors, low_rank_hooks, target_nll
from driftlens.editors.mend_network import Factors, Hypernetwork
from driftlens.editors.regularizers import LastTokenAttention
from driftlens.editors.sadr import SADR
from driftlens.hooks import Hook, record
from driftlens.models import LensModel
from driftlens.models.prompts import pad_rows
from driftlens.models.sites import Site

__all__ = ["Drawn", "ExampleRows", "Losses", "edit_losses", "factors_of"]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One edit of a batch: an example, and which of its paraphrases and locality texts it is judged by."""

    example: Example
    paraphrase: int = 0
    locality: int = 0


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The terms of each edit's loss, without factors but for SADR's γ, and the NLL of each before the edit."""

    before: Float[Tensor, " edits"]
    edit: Float[Tensor, " edits"]
    locality: Float[Tensor, " edits"]
    drift: Float[Tensor, " edits"]


class ExampleRows:
    """Examples' token rows at the first edited block, run there when first asked for and then kept.

    The rows of an example are run together and with nothing else: its numbers never depend on what ran before, so that
    a training that goes on after an interruption is the one that was not interrupted, bit for bit.
    """

    def __init__(self, model: LensModel, first: int) -> None:
        self.model = model
        self.first = first
        self._kept: dict[Example, list[Tensor]] = {}

    def entry(self, examples: Sequence[Example], places: Sequence[int]) -> Entry:
        """Row ``places[i]`` of ``examples[i]``'s rows, padded on the right."""
        rows = [example.rows[place] for example, place in zip(examples, places, strict=True)]
        batch, _ = pad_rows(self.model, rows)
        resid = torch.zeros(*batch.shape, self.model.d_model, device=self.model.device, dtype=self.model.dtype)
        for at, (example, place) in enumerate(zip(examples, places, strict=True)):
            resid[at, : len(rows[at])] = self._of(example)[place]
        return Entry(batch=batch, resid=resid, first=self.first)

    def _of(self, example: Example) -> list[Tensor]:
        if example not in self._kept:
            entry = enter(self.model, example.rows, self.first)
            # Cloned: a view would keep the padding, too.
            self._kept[example] = [entry.resid[at, : len(row)].clone() for at, row in enumerate(example.rows)]
        return self._kept[example]


def factors_of(
    model: LensModel, rows: ExampleRows, examples: Sequence[Example], sites: Sequence[Site], *, together: int = 1
) -> tuple[dict[Site, Factors], Float[Tensor, " edits"]]:
    """The gradient factors of the edit prompts, and each edit's NLL before it is made."""
    entry = rows.entry(examples, [0] * len(examples))
    targets = Targets.of(model, [example.edit for example in examples])
    factors, nll = gradient_factors(model, entry, targets, sites, together=together)
    return factors, _per_edit(nll, targets.row // together)


def edit_losses(
    model: LensModel,
    rows: ExampleRows,
    network: Hypernetwork,
    drawn: Sequence[Drawn],
    *,
    sadr: SADR | None = None,
    observe: bool = False,
    together: int = 1,
) -> Losses:
    """The losses of a batch of edits, differentiable in the network.

    Args:
        model: the unedited model.
        rows: the examples' rows.
        network: the hypernetwork.
        drawn: the edits.
        sadr: the drift term; None: it is 0.
        observe: whether the statistics see each weight's tokens before these are normalised, as in the published code.
        together: how many facts, one after another, are written by one edit.
    """
    chosen = [one.example for one in drawn]
    with torch.enable_grad():
        factors, before = factors_of(model, rows, chosen, network.sites, together=together)
        updates: dict[Site, tuple[Tensor, Tensor]] = {}
        for site, own in factors.items():
            if observe:
                network.observe(site, own)
            updates[site] = network.update(site, own)
        edit_of = torch.arange(len(drawn), device=model.device) // together
        edit, drift = _edit_loss(model, rows, drawn, updates, edit_of, sadr)
        locality = _locality_loss(model, rows, drawn, updates, edit_of)
    return Losses(before=before, edit=edit, locality=locality, drift=drift)


def _edit_loss(
    model: LensModel,
    rows: ExampleRows,
    drawn: Sequence[Drawn],
    updates: Mapping[Site, tuple[Tensor, Tensor]],
    edit_of: Int[Tensor, " rows"],
    sadr: SADR | None,
) -> tuple[Float[Tensor, " edits"], Float[Tensor, " edits"]]:
    prompts = [one.example.rephrased[one.paraphrase] for one in drawn]
    entry = rows.entry([one.example for one in drawn], [1 + one.paraphrase for one in drawn])
    above = range(rows.first + 1, model.n_layers) if sadr is not None else range(0)
    last = torch.tensor([prompt.last for prompt in prompts], device=model.device)

    def watch(store: dict[int, Tensor]) -> list[Hook]:
        number = torch.arange(len(drawn), device=model.device)
        return [
            (model.hook_name("pattern", layer), record(store, layer, lambda pattern: pattern[number, :, last]))
            for layer in above
        ]

    edited: dict[int, Tensor] = {}
    hooks = [*low_rank_hooks(model, updates, edit_of), *watch(edited)]
    resid = model.run(entry.batch, hooks=hooks, start=rows.first, resid=entry.resid)
    targets = Targets.of(model, prompts)
    edit = _per_edit(target_nll(model, resid, targets), edit_of[targets.row])
    drift = torch.zeros_like(edit)
    if sadr is not None and above:
        vanilla: dict[int, Tensor] = {}
        with torch.no_grad():
            model.run(entry.batch, hooks=watch(vanilla), start=rows.first, resid=entry.resid)
        seen = LastTokenAttention(
            layers=tuple(above),
            vanilla=torch.stack([vanilla[layer] for layer in above]),
            edited=torch.stack([edited[layer] for layer in above]),
            subject=torch.tensor([one.example.subjects[one.paraphrase] for one in drawn], device=model.device),
        )
        drift = _per_edit(sadr.penalty(seen), edit_of)
    return edit, drift


def _locality_loss(
    model: LensModel,
    rows: ExampleRows,
    drawn: Sequence[Drawn],
    updates: Mapping[Site, tuple[Tensor, Tensor]],
    edit_of: Int[Tensor, " rows"],
) -> Float[Tensor, " edits"]:
    places = [1 + len(one.example.rephrased) + one.locality for one in drawn]
    entry = rows.entry([one.example for one in drawn], places)
    row, column = entry.batch.mask.nonzero(as_tuple=True)

    def log_probabilities(hooks: Sequence[Hook]) -> Float[Tensor, "tokens d_vocab"]:
        resid = model.run(entry.batch, hooks=hooks, start=rows.first, resid=entry.resid)
        logits = model.unembed(resid[row, column])
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)

    with torch.no_grad():
        before = log_probabilities([])
    after = log_probabilities(low_rank_hooks(model, updates, edit_of))
    return _per_edit((before.exp() * (before - after)).sum(dim=-1), edit_of[row])


def _per_edit(values: Float[Tensor, " n"], edit: Int[Tensor, " n"]) -> Float[Tensor, " edits"]:
    """The mean of each edit's values."""
    total = values.new_zeros(int(edit.max()) + 1).index_add(0, edit, values)
    return total / torch.bincount(edit).to(values.dtype)
