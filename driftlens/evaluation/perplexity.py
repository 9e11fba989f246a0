"""Perplexity (PPL) of ordinary text under edited models (paper, E.1: on ME-PPL).

1. The texts are joined by blanks and tokenised once; the first N = 100 tokens are kept, BOS included where the
   tokenizer adds one.
2. PPL = exp(−(1/N) Σ log P(token | previous tokens)), summed over all tokens but the first.  As in the published code,
   the divisor is N, not N − 1, the number of predicted tokens.

All models read the same tokens, so the layers below the first edited one are computed once for all edits; from there,
every edit is a row of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from driftlens.data import Record
from driftlens.edits import Edit, Edited, check_edits, edit_hooks, edits_or_none, routed
from driftlens.errors import DriftlensError
from driftlens.models import Batch, LensModel
from driftlens.models.memory import in_batches
from driftlens.progress import OnDone


def perplexities(
    model: LensModel,
    edits: Edited | Sequence[Edited | None] | None,
    *,
    texts: Sequence[str],
    records: Sequence[Record] | None = None,
    max_tokens: int = 100,
    batch_size: int = 32,
    on_rows: OnDone | None = None,
) -> pd.DataFrame:
    """Compute the PPL of ``texts`` under each edit.

    Args:
        model: the vanilla model.
        edits: one edit or several; ``None`` is the vanilla model.
        texts: e.g. ``driftlens.data.load_texts("me_ppl")``.
        records: the record of each edit, for the column ``record``; default: the edit's place in the list.
        max_tokens: N.
        batch_size: edits at a time.
        on_rows: called with (edits done, edits in all).

    Returns:
        One row per edit: ``record``, ``perplexity``, ``tokens`` (N, or fewer if the texts are shorter).

    Raises:
        DriftlensError: the texts have fewer than two tokens, or the numbers of records and edits differ.
    """
    edit_list = edits_or_none(edits, 1)
    labels = list(range(len(edit_list))) if records is None else [record.index for record in records]
    if len(labels) != len(edit_list):
        raise DriftlensError(f"{len(labels)} records but {len(edit_list)} edits; give one edit for each record")
    check_edits(model, edit_list)
    ids = model.encode(" ".join(texts)).ids[: min(max_tokens, model.n_ctx)]
    if len(ids) < 2:
        raise DriftlensError(f"{len(ids)} tokens of text; perplexity needs 2 or more, so give longer texts")

    tokens = torch.tensor([ids], device=model.device)
    edit_list = routed(model, edit_list, [ids] * len(edit_list))
    first = min((layer for edit in edit_list if edit is not None for layer in edit.layers), default=model.n_layers)
    with torch.no_grad():
        below = model.run(Batch(tokens, torch.ones_like(tokens, dtype=torch.bool)), stop=first)
    values = in_batches(
        edit_list,
        batch_size,
        lambda batch: _of_batch(model, tokens, below, first, batch),
        on_done=on_rows,
    )
    return pd.DataFrame({"record": labels, "perplexity": values, "tokens": len(ids)})


@torch.no_grad()
def _of_batch(
    model: LensModel, tokens: Tensor, below: Float[Tensor, "1 seq d_model"], first: int, edits: Sequence[Edit | None]
) -> list[float]:
    rows = tokens.expand(len(edits), -1)
    batch = Batch(rows, torch.ones_like(rows, dtype=torch.bool))
    resid = model.run(batch, hooks=edit_hooks(model, edits), start=first, resid=below.expand(len(edits), -1, -1))
    precision = torch.promote_types(model.dtype, torch.float32)
    totals: list[float] = []
    # Row by row: the logits of a whole batch would be by far the largest tensor.
    for row in resid[:, :-1]:
        logits = model.unembed(row).to(precision)
        totals.append(float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum").double()))
    return [_exp(total / tokens.shape[1]) for total in totals]


def _exp(nll: float) -> float:
    """The exponential, or infinity if a broken model's perplexity exceeds every float."""
    return math.exp(nll) if nll < 709 else math.inf
