"""How many facts to optimise at a time where nobody says: as many as fit into the memory that is free.

What a fact holds is mostly what its steps keep for the way back, and it can be estimated from above: for every token of
its rows and every layer above the edit, some tensors as wide as the residual stream, some as wide as the MLP, and the
attention's weights.  The estimate need not be exact: out of memory halves the batch and goes on
(:mod:`driftlens.models.memory`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from driftlens.data import Fact
from driftlens.models import LensModel
from driftlens.models.prompts import tokenize_prompt

USUAL = 16
"""Facts at a time where memory is not what limits, and on devices that do not tell how much is free."""
MOST = 64
"""More gain nothing: the passes are full long before."""
USED = 0.8
"""The part of the free memory that is planned with; the rest is for what an estimate cannot see."""


def facts_that_fit(free: float, per_fact: float) -> int:
    """How many facts of ``per_fact`` bytes fit into ``free`` bytes: at least 1, at most ``MOST``."""
    return max(1, min(MOST, int(USED * free / per_fact)))


def bytes_per_fact(model: LensModel, *, rows: int, columns: int, layer: int) -> float:
    """What a fact's rows hold during a step, and during the vanilla pass before, from above.

    Args:
        model: the model.
        rows: of the fact: its contexts and the essence prompt.
        columns: tokens of the longest row.
        layer: the edit layer; nothing is kept below it.
    """
    size = torch.finfo(model.dtype).bits // 8
    # Twelve tensors of a block are as wide as the stream (norms, queries, keys, values, sums), four as the MLP (before
    # and behind the activation, with their gradients), four as the attention's weights, in float32 on some families.
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
    """Facts at a time for edits of ``facts`` on the model's device as it is now.

    Args:
        model: the model.
        facts: what to edit.
        contexts: the texts of a fact's rows.
        layer: the edit layer.
        rows: of a fact; default: its contexts and the essence prompt.
        kept: bytes that a fact holds beside its rows.
    """
    if model.device.type != "cuda" or not facts:
        return USUAL
    longest = max(len(tokenize_prompt(model, fact.text, fact.target_new).ids) for fact in facts)
    columns = longest + max(len(model.encode(context).ids) for context in contexts)
    free, _ = torch.cuda.mem_get_info(model.device)
    # What torch holds without a tensor in it is free as well.
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    rows = len(contexts) + 1 if rows is None else rows
    return facts_that_fit(free, kept + bytes_per_fact(model, rows=rows, columns=columns, layer=layer))
