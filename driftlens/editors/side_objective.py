"""The objective of a side memory's training: its settings, and its terms for given memories.

The memory is W' = W + D.  With Δ(x) the mean over a prompt's tokens of ‖x D‖₂, the loss of a fact is (Wang et al.
2024, Eq. 5; x_e its prompt in several contexts, x_i irrelevant text)

    −log P(o_edit | x_e)  +  [Δ(x_i) − Δ(x_e) + γ]₊  +  [Δ(x_i) − α]₊  +  [β − Δ(x_e)]₊  +  Σ regularisers (SADR)

At D = 0 every distance is 0 and has the gradient 0, so the first step follows the likelihood alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.editors.objective import Reference
from driftlens.editors.observing import Watch, detached
from driftlens.editors.regularizers import Regularizer, column_names
from driftlens.editors.side_rows import SideRows
from driftlens.edits.gated import ACTIVATIONS
from driftlens.hooks import Hook
from driftlens.models import LensModel

__all__ = ["MemoryTerms", "SideSettings", "WISEConventions", "evaluate_memory", "row_distances"]


@dataclass(frozen=True, kw_only=True)
class WISEConventions:
    """Where WISE's published code differs from the method's paper.  The defaults are the paper's.

    Two slips of the code are not reproduced by any setting: it averages distances over padding, and outside GPT-2 it
    drops the bias of a down-projection that has one (GPT-J's).

    Attributes:
        distance: ``"added"``, ‖x D‖; or ``"activated"``, ‖f(y) − f(y + x D)‖ of the map's output y, with the MLP's
            activation function f, which nothing in the model applies there.
        tokens: a distance is a mean over the ``"prompt"``'s tokens, or over ``"all"``, the target's included.
        hinges: a margin's hinge is averaged over all ``"rows"``, or over those where it is ``"active"``.
        nll: a target's NLL is divided by its number of ``"tokens"``, or by ``"one_more"``.
        weight_decay: it acts on W's entries under the ``"mask"``, or on ``"all"`` of them.
        threshold: the gate's threshold goes by the ``"final"`` memory's smallest distance over facts and contexts; or
            by the smallest over facts of the mean over contexts, as measured during the ``"last_step"``, before its
            update, and before later facts and merges changed the memory.
    """

    distance: Literal["added", "activated"] = "added"
    tokens: Literal["prompt", "all"] = "prompt"
    hinges: Literal["rows", "active"] = "rows"
    nll: Literal["tokens", "one_more"] = "tokens"
    weight_decay: Literal["mask", "all"] = "mask"
    threshold: Literal["final", "last_step"] = "final"

    @classmethod
    def published(cls) -> Self:
        """The published code's, of prompts without padding."""
        return cls(
            distance="activated",
            tokens="all",
            hinges="active",
            nll="one_more",
            weight_decay="all",
            threshold="last_step",
        )


@dataclass(frozen=True, kw_only=True)
class SideSettings:
    """What the training is given of the settings; see :class:`driftlens.WISE` for the meanings."""

    steps: int
    lr: float
    weight_decay: float
    norm_constraint: float
    alpha: float
    beta: float
    gamma: float
    early_stop_loss: float
    early_stop_change: float
    conventions: WISEConventions
    activation: str
    regularizers: tuple[Regularizer, ...]


@dataclass(frozen=True, kw_only=True)
class MemoryTerms:
    """The terms of the loss, with their factors, and what is measured besides; one entry per fact."""

    nll: Float[Tensor, "facts"]
    margin_gap: Float[Tensor, "facts"]
    margin_irrelevant: Float[Tensor, "facts"]
    margin_edited: Float[Tensor, "facts"]
    penalties: Mapping[str, Float[Tensor, "facts"]]
    """Of the regularisers, by their columns in the history."""
    probability: Float[Tensor, "facts"]
    distance_edited: Float[Tensor, "facts"]
    """Mean over contexts."""
    distance_irrelevant: Float[Tensor, "facts"]

    @property
    def columns(self) -> dict[str, Float[Tensor, "facts"]]:
        """The columns of the history."""
        return {
            "loss": self.loss,
            "nll": self.nll,
            "margin_gap": self.margin_gap,
            "margin_irrelevant": self.margin_irrelevant,
            "margin_edited": self.margin_edited,
            **self.penalties,
            "probability": self.probability,
            "distance_edited": self.distance_edited,
            "distance_irrelevant": self.distance_irrelevant,
        }

    @property
    def loss(self) -> Float[Tensor, "facts"]:
        """The sum that is minimised."""
        margins = self.margin_gap + self.margin_irrelevant + self.margin_edited
        return torch.stack([self.nll, margins, *self.penalties.values()]).sum(dim=0)


def row_distances(
    rows: SideRows, deltas: Sequence[Float[Tensor, "d_mlp d_model"]], settings: SideSettings
) -> Float[Tensor, "rows"]:
    """Δ of every row under its fact's memory."""
    return _distances(rows, rows.added(deltas), settings)


def _distances(rows: SideRows, added: Float[Tensor, "rows columns d_model"], settings: SideSettings) -> Tensor:
    if settings.conventions.distance == "activated":
        f = ACTIVATIONS[settings.activation]
        added = f(rows.outputs + added) - f(rows.outputs)
    # The gradient of a norm at exactly 0 is 0.
    return (added.norm(dim=-1) * rows.share).sum(dim=1)


def evaluate_memory(
    model: LensModel,
    rows: SideRows,
    deltas: Sequence[Float[Tensor, "d_mlp d_model"]],
    *,
    layer: int,
    settings: SideSettings,
    vanilla: Reference | None,
) -> tuple[MemoryTerms, Reference]:
    """One pass with the memories, one a fact: the terms of the loss, and what the pass saw.

    Without ``vanilla``, as at step 0 where D is 0, the pass is compared with itself.
    """
    n_facts, precision = len(deltas), rows.keys.dtype
    above = range(layer + 1, model.n_layers)
    added = rows.added(deltas)
    distance = _distances(rows, added, settings)
    entry = rows.entering(model, added, layer)
    watch = Watch(model, rows, settings.regularizers, above, column=rows.subject_key)
    hooks: list[Hook] = [hook for upper in above for hook in watch.hooks(upper)]
    resid = model.run(rows.batch, hooks=hooks, start=layer + 1, resid=entry, read=rows.read)
    now = watch.inside(entry)

    # One call of the head for all that is read: the places that predict target tokens, and regularisers' next tokens.
    read_row = torch.cat([rows.target_row, *watch.read.values()])
    places = [rows.last_place[own] for own in watch.read.values()]
    logits = model.unembed(resid[read_row, torch.cat([rows.target_place, *places])]).to(precision)
    logits, *next_logits = logits.split([len(rows.target_row), *map(len, watch.read.values())])
    for key, own_logits in zip(watch.read, next_logits, strict=True):
        now[key] = replace(now[key], log_probabilities=own_logits.log_softmax(dim=-1))
    token_nll = torch.nn.functional.cross_entropy(logits, rows.target_id, reduction="none")
    row_nll = distance.new_zeros(len(rows.fact)).index_add(0, rows.target_row, token_nll)
    for key, own in watch.scored.items():
        now[key] = replace(now[key], target=-row_nll[own] / rows.target_length[own])

    def per_fact(values: Tensor, fact: Int[Tensor, "n"]) -> Float[Tensor, "facts"]:
        return distance.new_zeros(n_facts).index_add(0, fact, values.to(precision))

    before = {key: detached(one) for key, one in now.items()} if vanilla is None else vanilla.observed
    penalties: dict[str, Tensor] = {}
    for place, name in enumerate(column_names(settings.regularizers)):
        penalties[name] = distance.new_zeros(n_facts)
        found = watch.penalty(place, before, now)
        if found is not None:
            penalty, own = found
            penalties[name] = per_fact(penalty.to(precision) * rows.weight[own], rows.fact[own])

    one_more = settings.conventions.nll == "one_more"
    total = row_nll[rows.is_context]
    length, fact, weight = (part[rows.is_context] for part in (rows.target_length, rows.fact, rows.weight))
    edited, irrelevant = distance[rows.is_context], distance[rows.is_irrelevant]
    other_fact, other_weight = (part[rows.is_irrelevant] for part in (rows.fact, rows.weight))
    # Every context of a fact beside every irrelevant text of it.
    pair, other = (fact[:, None] == other_fact[None, :]).nonzero(as_tuple=True)

    def hinge(value: Tensor, share: Tensor, of: Tensor) -> Float[Tensor, "facts"]:
        mean = per_fact(share * value.relu(), of)
        if settings.conventions.hinges == "rows":
            return mean
        active = per_fact(share * (value > 0), of)
        return mean / active.where(active > 0, torch.ones_like(active))

    terms = MemoryTerms(
        nll=per_fact(weight * total / (length + one_more), fact),
        margin_gap=hinge(
            irrelevant[other] - edited[pair] + settings.gamma, weight[pair] * other_weight[other], fact[pair]
        ),
        margin_irrelevant=hinge(irrelevant - settings.alpha, other_weight, other_fact),
        margin_edited=hinge(settings.beta - edited, weight, fact),
        penalties=penalties,
        probability=per_fact((-total.detach() / length).exp() * weight, fact),
        distance_edited=per_fact(weight * edited.detach(), fact),
        distance_irrelevant=per_fact(other_weight * irrelevant.detach(), other_fact),
    )
    # Held until after the backward pass, the edited model's attention would be one more copy at its peak.
    return terms, Reference(now, None) if vanilla is None else vanilla
