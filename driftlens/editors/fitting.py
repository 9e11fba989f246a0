"""Choose how many facts to optimise at a time by default: as many as fit into free memory.

The memory of a fact is mostly what its steps store for the backward pass, which can be bounded from above. For every
token of its rows and every layer above the edit, these are some tensors as wide as the residual stream, some as wide as
the MLP, and the attention weights.  The estimate need not be exact: when memory runs out, the batch is halved
(:mod:`driftlens.models.memory`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from driftlens.data import Fact
from driftlens.models import LensModel
from driftlens.models.prompts import tokenize_prompt

USUAL = 16
"""Facts at a time if memory is not the limit, and on devices that do not report free memory."""
MOST = 64
"""More facts bring no speed-up: the passes are saturated long before."""
USED = 0.8
"""The share of free memory that is planned for; the rest covers what the estimate misses."""


def facts_that_fit(free: float, per_fact: float) -> int:
    """How many facts of ``per_fact`` bytes fit into ``free`` bytes: at least 1, at most ``MOST``."""
    return max(1, min(MOST, int(USED * free / per_fact)))


def bytes_per_fact(model: LensModel, *, rows: int, columns: int, layer: int) -> float:
    """Bound the memory of a fact's rows during a step and during the vanilla pass before it.

    Args:
        model: the model.
        rows: the fact's rows: its contexts and the essence prompt.
        columns: tokens of the longest row.
        layer: the edit layer; nothing is stored below it.
    """
    size = torch.finfo(model.dtype).bits // 8
    # Twelve tensors of a block are as wide as the stream (norms, queries, keys, values, sums), four as the MLP (before
    # and after the activation, with their gradients), four as the attention weights, in float32 in some families.
    block = size * (12 * model.d_model + 4 * model.d_mlp) + 4 * 4 * model.n_heads * columns
    head = 4 * 4 * model.d_vocab  # logits and their gradients in float32, at a few places of a row
    return rows * (columns * block * max(1, model.n_layers - layer - 1) + 4 * head)


def edit_batch_size(
    model: LensModel,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layer: int,
    *,
    rows: int | None = None,
    kept: float = 0.0,
) -> int:
    """The batch size for edits of ``facts`` with the memory that is free on the model's device now.

    Args:
        model: the model.
        facts: the facts to edit.
        contexts: the texts of a fact's rows.
        layer: the edit layer.
        rows: the rows of a fact; default: its contexts and the essence prompt.
        kept: bytes that a fact needs besides its rows.
    """
    if model.device.type != "cuda" or not facts:
        return USUAL
    longest = max(len(tokenize_prompt(model, fact.text, fact.target_new).ids) for fact in facts)
    columns = longest + max(len(model.encode(context).ids) for context in contexts)
    free, _ = torch.cuda.mem_get_info(model.device)
    # Memory that torch has reserved but not allocated is free as well.
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    rows = len(contexts) + 1 if rows is None else rows
    return facts_that_fit(free, kept + bytes_per_fact(model, rows=rows, columns=columns, layer=layer))
