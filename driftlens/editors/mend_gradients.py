"""The gradient of an edit's loss as MEND reads it: what goes into each edited map, and the gradient of what comes out.

A pass needs a gradient only from the first edited block on.  What lies below is computed once and without one; training
keeps it (:class:`Entry`), since an edit does not change it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.editors.mend_network import Factors
from driftlens.hooks import Hook, record
from driftlens.models import Batch, LensModel
from driftlens.models.prompts import TokenizedPrompt, pad_rows, target_positions
from driftlens.models.sites import Site

__all__ = ["Entry", "Targets", "enter", "gradient_factors", "target_nll"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Rows at the first edited block.

    Attributes:
        batch: the tokens.
        resid: the residual stream that goes into the block, without a gradient.
        first: the block.
    """

    batch: Batch
    resid: Float[Tensor, "rows seq d_model"]
    first: int


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Where the targets of rows are predicted: an entry for each target token."""

    row: Int[Tensor, "targets"]
    column: Int[Tensor, "targets"]
    token: Int[Tensor, "targets"]

    @classmethod
    def of(cls, model: LensModel, prompts: Sequence[TokenizedPrompt]) -> Targets:
        """Of rows that hold the prompts' ``forced`` tokens from the first column on."""
        row, column, token = target_positions(prompts, torch.zeros(len(prompts), dtype=torch.long, device=model.device))
        return cls(row=row, column=column, token=token)


@torch.no_grad()
def enter(model: LensModel, rows: Sequence[Sequence[int]], first: int) -> Entry:
    """Token rows, padded on the right, run up to block ``first``."""
    batch, _ = pad_rows(model, rows)
    return Entry(batch=batch, resid=model.run(batch, stop=first), first=first)


def target_nll(
    model: LensModel, resid: Float[Tensor, "rows seq d_model"], targets: Targets
) -> Float[Tensor, " targets"]:
    """The NLL of each target token, in nats, float32 or better."""
    logits = model.unembed(resid[targets.row, targets.column])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(logits, targets.token, reduction="none")


def gradient_factors(
    model: LensModel, entry: Entry, targets: Targets, sites: Sequence[Site], *, together: int = 1
) -> tuple[dict[Site, Factors], Float[Tensor, " targets"]]:
    """The factors of every edit's own loss, the mean NLL of its target tokens.

    Args:
        model: the unedited model.
        entry: the rows.
        targets: where the loss is taken.
        sites: the weights.
        together: how many rows, one after another, are one edit and have one loss.

    Returns:
        The factors by site, and each target token's NLL before the edit.
    """
    store: dict[tuple[Site, int], Tensor] = {}
    hooks: list[Hook] = []
    for site in sites:
        hooks += [(name, record(store, (site, at))) for at, name in enumerate(model.linear_hooks(site))]
    with torch.enable_grad():
        resid = model.run(entry.batch, hooks=hooks, start=entry.first, resid=entry.resid.detach().requires_grad_())
        nll = target_nll(model, resid, targets)
        loss = (nll / _lengths(targets, together)[targets.row // together]).sum()
        gradients = torch.autograd.grad(loss, [store[site, 1] for site in sites])
    precision = torch.promote_types(model.dtype, torch.float32)
    factors = {
        site: Factors.of(store[site, 0].detach().to(precision), gradient.to(precision)).together(together)
        for site, gradient in zip(sites, gradients, strict=True)
    }
    return factors, nll.detach()


def _lengths(targets: Targets, together: int) -> Float[Tensor, " edits"]:
    """How many target tokens each edit has."""
    return torch.bincount(targets.row // together).to(torch.float32)


def low_rank_hooks(
    model: LensModel, updates: Mapping[Site, tuple[Tensor, Tensor]], rows: Int[Tensor, " rows"] | None = None
) -> list[Hook]:
    """Hooks that apply edits, a row each or those of ``rows``, and let gradients through to them."""
    from driftlens.hooks import apply_low_rank

    hooks: list[Hook] = []
    for site, (left, right) in updates.items():
        pair = apply_low_rank(left, right) if rows is None else apply_low_rank(left[rows], right[rows])
        hooks += zip(model.linear_hooks(site), pair, strict=True)
    return hooks
