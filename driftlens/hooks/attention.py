"""Hooks on attention: patch a pattern or a score, knock out edges, stop the gradient through the weights.

All of them work per row of the batch, because rows may have different prompts and thus different positions.  Shapes
follow TransformerLens: ``hook_pattern`` and ``hook_attn_scores`` are ``[batch, heads, query, key]``, with one head per
*query* head on grouped-query models too.
"""

# ruff: noqa: ARG001 (every hook takes `hook`, as TransformerLens calls it)

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from driftlens.hooks.activations import HookFunction


def patch_pattern(pattern: Float[Tensor, "n heads query key"], rows: Int[Tensor, "n"] | None = None) -> HookFunction:
    """Replace the whole attention pattern of ``rows`` (``None``: all rows) by ``pattern`` (paper, 3.4)."""

    def hook_function(activation: Tensor, hook: Any = None) -> Tensor:
        if rows is None:
            return pattern.to(activation.dtype).expand_as(activation)
        changed = activation.clone()
        changed[rows] = pattern.to(activation.dtype)
        return changed

    return hook_function


def patch_pattern_row(
    weights: Float[Tensor, "n heads key"], rows: Int[Tensor, "n"], queries: Int[Tensor, "n"]
) -> HookFunction:
    """Replace the attention of token ``queries[i]`` in row ``rows[i]`` by ``weights[i]``, in every head (3.4)."""

    def hook_function(activation: Tensor, hook: Any = None) -> Tensor:
        changed = activation.clone()
        changed[rows, :, queries] = weights.to(activation.dtype)
        return changed

    return hook_function


def patch_score(
    scores: Float[Tensor, "n heads"],
    rows: Int[Tensor, "n"],
    queries: Int[Tensor, "n"],
    keys: Int[Tensor, "n"],
) -> HookFunction:
    """Replace single pre-softmax scores ``[rows[i], :, queries[i], keys[i]]`` (paper, D.2).

    The softmax renormalises. The scores must come from positions that the causal mask leaves open: masked scores are
    −inf on one backend and the dtype's minimum on the other.
    """

    def hook_function(activation: Tensor, hook: Any = None) -> Tensor:
        changed = activation.clone()
        changed[rows, :, queries, keys] = scores.to(activation.dtype)
        return changed

    return hook_function


def knock_out(edges: Bool[Tensor, "batch query key"] | Bool[Tensor, "batch heads query key"]) -> HookFunction:
    """Knock out attention edges: the scores where ``edges`` is true become the dtype's minimum before the softmax.

    The dtype's minimum is used instead of −inf, which would turn a row without open edges into NaN.  Attention in such
    a row is meaningless (on one backend it includes masked keys), so leave every query at least one edge, e.g. to
    itself.
    """

    def hook_function(activation: Tensor, hook: Any = None) -> Tensor:
        closed = edges if edges.dim() == 4 else edges.unsqueeze(1)
        return activation.masked_fill(closed, torch.finfo(activation.dtype).min)

    return hook_function


def detach_pattern() -> HookFunction:
    """Stop the gradient through the attention weights, so that only values carry it (ROME-AWD; paper, D.4)."""

    def hook_function(activation: Tensor, hook: Any = None) -> Tensor:
        return activation.detach()

    return hook_function
