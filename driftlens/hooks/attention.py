"""Hooks on attention: patch a pattern or one score, knock edges out, cut the gradient through the weights.

All of them work per row of the batch: rows may have different prompts, and so different positions.  Shapes
are TransformerLens's: ``hook_pattern`` and ``hook_attn_scores`` are ``[batch, heads, query, key]``, with one
head per *query* head on grouped-query models too.
"""

# ruff: noqa: ARG001 (every hook takes `hook`, as TransformerLens calls it)

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from driftlens.hooks.activations import HookFunction


def patch_pattern(pattern: Float[Tensor, "n heads query key"], rows: Int[Tensor, "n"] | None = None) -> HookFunction:
    """Replace the whole attention pattern of ``rows`` (all rows when ``None``) by ``pattern`` (paper,
    3.4).
    """

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
    """Replace what token ``queries[i]`` of row ``rows[i]`` attends to by ``weights[i]``, in every head
    (paper, 3.4).
    """

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
    """Replace single pre-softmax scores ``[rows[i], :, queries[i], keys[i]]``; the softmax renormalises
    (paper, D.2).

    The scores must come from positions that the causal mask leaves open: masked scores are −inf on one
    backend and the dtype's minimum on the other.
    """

    def hook_function(activation: Tensor, hook: Any = None) -> Tensor:
        changed = activation.clone()
        changed[rows, :, queries, keys] = scores.to(activation.dtype)
        return changed

    return hook_function


def knock_out(edges: Bool[Tensor, "batch query key"] | Bool[Tensor, "batch heads query key"]) -> HookFunction:
    """Close attention edges: the scores where ``edges`` is true become the dtype's minimum before the
    softmax.

    The dtype's minimum rather than −inf: a row whose every edge is closed would become NaN.  Such a row attends to
    nothing in particular (on one backend to masked keys too), so leave every query at least one edge, e.g. to itself.
    """

    def hook_function(activation: Tensor, hook: Any = None) -> Tensor:
        closed = edges if edges.dim() == 4 else edges.unsqueeze(1)
        return activation.masked_fill(closed, torch.finfo(activation.dtype).min)

    return hook_function


def detach_pattern() -> HookFunction:
    """Let no gradient through the attention weights: only values carry it then (ROME-AWD; paper, D.4)."""

    def hook_function(activation: Tensor, hook: Any = None) -> Tensor:
        return activation.detach()

    return hook_function
