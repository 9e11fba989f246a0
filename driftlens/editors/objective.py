"""The objective of a value optimisation: its settings, and its terms for a given δ (paper, Eq. 1 and 2).

    mean_j −log P(o_edit | x_j ⊕ p)  +  ω · KL  +  λ · Σ ‖δ‖ / ‖target_init‖²  +  Σ regularisers (SADR)

The sum in the weight decay is over the places where a δ stands: one in ROME and MEMIT, two in PMET.  All terms are
per fact: facts share a pass and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from driftlens.editors.regularizers import LastTokenAttention, Regularizer
from driftlens.editors.rows import Place, Rows
from driftlens.hooks import Hook, detach_pattern, record
from driftlens.models import LensModel


@dataclass(frozen=True, kw_only=True)
class ValueSettings:
    """What every editor's value optimisation has in common; see :class:`driftlens.ROME` for the meanings, and
    :class:`driftlens.PMET` for the last two.
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
    sadr: Float[Tensor, "facts"]
    probability: Float[Tensor, "facts"]
    """Of the new object: exp of the mean log-probability of its tokens, averaged over contexts."""
    certain: Bool[Tensor, "facts"]
    """Whether every token of the new object is the arg max in every context."""

    @property
    def loss(self) -> Float[Tensor, "facts"]:
        """The sum that is minimised."""
        return torch.stack([self.nll, self.kl, self.weight_decay, self.sadr]).sum(dim=0)


@dataclass(frozen=True)
class Reference:
    """What a pass is compared with: the vanilla model's last-token attention above the edit, and its
    log-probabilities behind the essence prompts.
    """

    attention: Float[Tensor, "layers rows heads keys"] | None
    essence: Float[Tensor, "facts d_vocab"] | None

    def detach(self) -> Reference:
        """The same without a gradient."""
        return Reference(*(None if t is None else t.detach() for t in (self.attention, self.essence)))

    def of(self, rows: Rows, facts: Bool[Tensor, "facts"]) -> Reference:
        """Only what belongs to ``facts``."""
        attention, essence = self.attention, self.essence
        if attention is not None:
            attention = attention[:, facts[rows.fact[rows.is_context]]]
        return Reference(attention, None if essence is None else essence[facts])


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
    """One pass with δ over the layers above the edit: the terms of the loss, and what the pass saw.

    Without ``vanilla``, as at step 0 where δ is zero, the pass is compared with itself.
    """
    n_facts, precision = delta.shape[0], delta.dtype
    above = range(layer + 1, model.n_layers)
    patterns: dict[int, Tensor] = {}
    resid = rows.shifted(model, delta, layer, places)
    hooks = _attention_hooks(model, rows, above, settings, patterns)
    resid = model.run(rows.batch, hooks=hooks, start=layer + 1, resid=resid, past=rows.past)

    def per_fact(values: Tensor, fact: Tensor) -> Tensor:
        return delta.new_zeros(n_facts).index_add(0, fact, values.to(precision))

    context_fact, context_weight = rows.fact[rows.is_context], rows.weight[rows.is_context]
    attention = None
    sadr = delta.new_zeros(n_facts)
    # Before the head's logits are there, so that what this takes for a moment is not part of the peak.
    if settings.regularizers and patterns:
        attention = torch.stack([patterns.pop(upper) for upper in above])
        seen = LastTokenAttention(
            layers=tuple(above),
            vanilla=attention.detach() if vanilla is None or vanilla.attention is None else vanilla.attention,
            edited=attention,
            subject=torch.full_like(context_fact, rows.subject_key),
        )
        for regularizer in settings.regularizers:
            penalty = regularizer.penalty(seen).to(precision)
            sadr = sadr + per_fact(penalty * context_weight, context_fact)

    # One call of the head for all that is read: the places that predict target tokens, then the essence prompts'.
    read_row, read_column = rows.target_row, rows.target_column
    if rows.essence_row is not None:
        read_row = torch.cat([read_row, rows.essence_row])
        read_column = torch.cat([read_column, torch.zeros_like(rows.essence_row)])
    logits = model.unembed(resid[read_row, read_column]).to(precision)
    logits, essence_logits = logits.split([len(rows.target_row), len(read_row) - len(rows.target_row)])
    token_nll = torch.nn.functional.cross_entropy(logits, rows.target_id, reduction="none")
    row_nll = delta.new_zeros(len(rows.fact)).index_add(0, rows.target_row, token_nll) / rows.target_length
    context_nll = row_nll[rows.is_context]
    # A target that shares the largest logit counts, as in the published code, which compares probabilities.
    missed = logits.detach().gather(1, rows.target_id[:, None]).squeeze(1) < logits.detach().amax(dim=1)

    kl = delta.new_zeros(n_facts)
    essence = None
    if rows.essence_row is not None:
        essence = essence_logits.log_softmax(dim=-1)
        before = essence.detach() if vanilla is None or vanilla.essence is None else vanilla.essence
        kl = settings.kl_factor * _essence_kl(before, essence, settings.essence_kl)

    # sqrt of a clamped square: the norm's own gradient at δ = 0 is undefined.
    length = delta.square().sum(-1).clamp_min(1e-30).sqrt()
    terms = Terms(
        nll=nll_factor * per_fact(context_nll * context_weight, context_fact),
        kl=kl,
        weight_decay=settings.weight_decay * (length / target_norm.square()).sum(dim=-1),
        sadr=sadr,
        probability=per_fact((-context_nll.detach()).exp() * context_weight, context_fact),
        certain=per_fact(missed, rows.fact[rows.target_row]) == 0,
    )
    # Held until after the backward pass, the edited model's attention would be one more copy at its peak.
    return terms, Reference(attention, essence) if vanilla is None else vanilla


def _attention_hooks(
    model: LensModel, rows: Rows, above: range, settings: ValueSettings, patterns: dict[int, Tensor]
) -> list[Hook]:
    context = rows.is_context.nonzero().squeeze(1)
    last = rows.last[context]
    hooks: list[Hook] = []
    for upper in above:
        # Recorded first: a regulariser keeps its gradient even where the likelihood's is cut.
        if settings.regularizers:
            pick = record(patterns, upper, lambda pattern: pattern[context, :, last])
            hooks.append((model.hook_name("pattern", upper), pick))
        if settings.detach_attention:
            hooks.append((model.hook_name("pattern", upper), detach_pattern()))
    return hooks


def _essence_kl(
    before: Float[Tensor, "facts d_vocab"], now: Float[Tensor, "facts d_vocab"], direction: str
) -> Float[Tensor, "facts"]:
    """KL between next-token distributions given as log-probabilities; the published code's direction is
    edited ‖ vanilla.
    """
    p, q = (now, before) if direction == "edited_from_vanilla" else (before, now)
    return (p.exp() * (p - q)).sum(dim=-1)
