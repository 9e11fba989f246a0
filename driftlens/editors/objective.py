"""The objective of a value optimisation: its settings, and its terms for a given δ (paper, Eq. 1 and 2).

    mean_j −log P(o_edit | x_j ⊕ p)  +  ω · KL  +  λ · Σ ‖δ‖ / ‖target_init‖²  +  Σ regularisers (SADR)

The sum in the weight decay is over the places where a δ is added: one in ROME and MEMIT, two in PMET.  All terms are
computed per fact: facts share a pass but not a loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from driftlens.editors.observing import Watch, detached, kept, row_sets
from driftlens.editors.regularizers import Observed, Regularizer, column_names, wants_of
from driftlens.editors.rows import Place, Rows
from driftlens.hooks import Hook, detach_pattern
from driftlens.models import LensModel


@dataclass(frozen=True, kw_only=True)
class ValueSettings:
    """Settings of the value optimisation, common to all editors.

    :class:`driftlens.ROME` explains them; :class:`driftlens.PMET` the last two.
    """

    steps: int
    lr: float
    weight_decay: float
    kl_factor: float
    clamp_norm_factor: float
    early_stop_loss: float
    essence: str
    essence_kl: Literal["edited_from_vanilla", "vanilla_from_edited"]
    detach_attention: bool
    regularizers: tuple[Regularizer, ...]
    certain_nll_factor: float = 1.0
    certain_stop_kl: float | None = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of the loss, with their factors, and two measurements; one entry per fact."""

    nll: Float[Tensor, "facts"]
    kl: Float[Tensor, "facts"]
    weight_decay: Float[Tensor, "facts"]
    penalties: Mapping[str, Float[Tensor, "facts"]]
    """Penalties of the regularisers, by their columns in the history."""
    probability: Float[Tensor, "facts"]
    """Probability of the new object: exp of the mean log-probability of its tokens, averaged over contexts."""
    certain: Bool[Tensor, "facts"]
    """Whether every token of the new object is the arg max in every context."""

    @property
    def loss(self) -> Float[Tensor, "facts"]:
        """The sum of the terms, which is minimised."""
        return torch.stack([self.nll, self.kl, self.weight_decay, *self.penalties.values()]).sum(dim=0)


def together(parts: Sequence[Terms]) -> Terms:
    """Combine the terms of facts whose rows came in several passes.

    The first pass holds the contexts and supplies all terms that depend on δ alone.
    """
    first, *others = parts
    if not others:
        return first
    return Terms(
        nll=first.nll,
        kl=first.kl,
        weight_decay=first.weight_decay,
        penalties={name: torch.stack([part.penalties[name] for part in parts]).sum(dim=0) for name in first.penalties},
        probability=first.probability,
        certain=first.certain,
    )


@dataclass(frozen=True)
class Reference:
    """The reference for a pass: what the regularisers see of the vanilla model, and its essence log-probabilities.

    The former is given by set of rows; the latter are read after the essence prompts.
    """

    observed: Mapping[int, Observed]
    essence: Float[Tensor, "facts d_vocab"] | None

    def detach(self) -> Reference:
        """Return the same without a gradient."""
        observed = {key: detached(one) for key, one in self.observed.items()}
        return Reference(observed, None if self.essence is None else self.essence.detach())

    def of(self, rows: Rows, regularizers: Sequence[Regularizer], facts: Bool[Tensor, "facts"]) -> Reference:
        """Select the part for ``facts``."""
        sets = row_sets(rows, regularizers) if self.observed else {}
        observed = {key: kept(one, facts[rows.fact[sets[key].rows]]) for key, one in self.observed.items()}
        return Reference(observed, None if self.essence is None else self.essence[facts])


def evaluate_delta(
    model: LensModel,
    rows: Rows,
    delta: Float[Tensor, "facts places d_model"],
    *,
    layer: int,
    places: Sequence[Place],
    settings: ValueSettings,
    vanilla: Reference | None,
    target_norm: Float[Tensor, "facts places"],
    nll_factor: Float[Tensor, "facts"],
) -> tuple[Terms, Reference]:
    """Run one pass with δ over the layers above the edit; return the terms of the loss and what was recorded.

    Without ``vanilla``, as at step 0 where δ is zero, the pass is compared with itself.
    """
    n_facts, precision = delta.shape[0], delta.dtype
    above = range(layer + 1, model.n_layers)
    entry = rows.shifted(model, delta, layer, places)
    watch = Watch(model, rows, settings.regularizers, above)
    resid = model.run(
        rows.batch,
        hooks=_hooks(model, watch, above, settings),
        start=layer + 1,
        resid=entry,
        past=rows.past,
        read=rows.read,
    )

    def per_fact(values: Tensor, fact: Tensor) -> Tensor:
        return delta.new_zeros(n_facts).index_add(0, fact, values.to(precision))

    context_fact, context_weight = rows.fact[rows.contexts], rows.weight[rows.contexts]
    now = watch.inside(entry)
    before = {key: detached(one) for key, one in now.items()} if vanilla is None else vanilla.observed
    names = column_names(settings.regularizers)
    penalties = {name: delta.new_zeros(n_facts) for name in names}

    def penalize(*, after_the_head: bool) -> None:
        for place, (name, regularizer) in enumerate(zip(names, settings.regularizers, strict=True)):
            wants = wants_of(regularizer)
            if (wants.next_tokens or wants.target) == after_the_head:
                found = watch.penalty(place, before, now)
                if found is not None:
                    penalty, own = found
                    penalties[name] = per_fact(penalty.to(precision) * rows.weight[own], rows.fact[own])

    # Computed before the head's logits exist, so that its temporary memory does not add to the peak.
    penalize(after_the_head=False)

    # One call of the head for every position read: those that predict target tokens, then those of the essence prompts.
    read_row, read_place = rows.target_row, rows.target_place
    if rows.essence_row is not None:
        read_row = torch.cat([read_row, rows.essence_row])
        read_place = torch.cat([read_place, torch.zeros_like(rows.essence_row)])
    read_row = torch.cat([read_row, *watch.read.values()])
    read_place = torch.cat([read_place, *(rows.last_place[own] for own in watch.read.values())])
    logits = model.unembed(resid[read_row, read_place]).to(precision)
    n_essence = 0 if rows.essence_row is None else len(rows.essence_row)
    logits, essence_logits, *next_logits = logits.split(
        [len(rows.target_row), n_essence, *map(len, watch.read.values())]
    )
    token_nll = torch.nn.functional.cross_entropy(logits, rows.target_id, reduction="none")
    row_nll = delta.new_zeros(len(rows.fact)).index_add(0, rows.target_row, token_nll) / rows.target_length
    for key, own_logits in zip(watch.read, next_logits, strict=True):
        now[key] = replace(now[key], log_probabilities=own_logits.log_softmax(dim=-1))
    for key, own in watch.scored.items():
        now[key] = replace(now[key], target=-row_nll[own])
    if vanilla is None:
        before = {key: detached(one) for key, one in now.items()}
    penalize(after_the_head=True)
    context_nll = row_nll[rows.contexts]
    # A target that ties for the largest logit counts, as in the published code, which compares probabilities.
    missed = logits.detach().gather(1, rows.target_id[:, None]).squeeze(1) < logits.detach().amax(dim=1)

    kl = delta.new_zeros(n_facts)
    essence = None
    if rows.essence_row is not None:
        essence = essence_logits.log_softmax(dim=-1)
        unedited = essence.detach() if vanilla is None or vanilla.essence is None else vanilla.essence
        kl = settings.kl_factor * _essence_kl(unedited, essence, settings.essence_kl)

    # sqrt of a clamped square, because the gradient of the norm is undefined at δ = 0.
    length = delta.square().sum(-1).clamp_min(1e-30).sqrt()
    terms = Terms(
        nll=nll_factor * per_fact(context_nll * context_weight, context_fact),
        kl=kl,
        weight_decay=settings.weight_decay * (length / target_norm.square()).sum(dim=-1),
        penalties=penalties,
        probability=per_fact((-context_nll.detach()).exp() * context_weight, context_fact),
        certain=per_fact(missed & rows.is_context[rows.target_row], rows.fact[rows.target_row]) == 0,
    )
    # If the edited model's attention were held until after the backward pass, it would add one more copy to the peak.
    return terms, Reference(now, essence) if vanilla is None else vanilla


def _hooks(model: LensModel, watch: Watch, above: range, settings: ValueSettings) -> list[Hook]:
    hooks: list[Hook] = []
    for upper in above:
        # Recorded first, so that a regulariser keeps its gradient even where the likelihood's is cut.
        hooks += watch.hooks(upper)
        if settings.detach_attention:
            hooks.append((model.hook_name("pattern", upper), detach_pattern()))
    return hooks


def _essence_kl(
    before: Float[Tensor, "facts d_vocab"], now: Float[Tensor, "facts d_vocab"], direction: str
) -> Float[Tensor, "facts"]:
    """KL between next-token distributions given as log-probabilities.

    The published code's direction is KL(edited ‖ vanilla).
    """
    p, q = (now, before) if direction == "edited_from_vanilla" else (before, now)
    return (p.exp() * (p - q)).sum(dim=-1)
