"""Keys (inputs of an MLP's down-projection) and outputs of a layer at ``subject_last``.

A pass reads each prompt only up to the subject's last token, and runs only the layers up to the requested one: later
tokens and higher layers cannot change the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from driftlens.data import Fact
from driftlens.hooks import Hook, record
from driftlens.models import LensModel
from driftlens.models.prompts import pad_rows, subject_last, tokenize_prompt


def subject_keys(
    model: LensModel,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layer: int,
    *,
    hooks: Sequence[Hook] = (),
) -> Float[Tensor, "facts contexts d_mlp"]:
    """Return the key of every fact in every context, in the model's dtype.

    Contexts are templates with one ``{}`` for the prompt. ``hooks`` are added to the pass, e.g. those of an edit of
    lower layers; its rows are facts times contexts.
    """
    return _at_subject(model, facts, contexts, layer, "mlp_post", hooks)


def subject_outputs(
    model: LensModel,
    facts: Sequence[Fact],
    layer: int,
    site: str,
    *,
    hooks: Sequence[Hook] = (),
) -> Float[Tensor, "facts d_model"]:
    """Return a layer's output at ``subject_last`` of every fact's bare prompt, in the model's dtype."""
    return _at_subject(model, facts, ("{}",), layer, site, hooks)[:, 0]


@torch.no_grad()
def _at_subject(
    model: LensModel,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layer: int,
    site: str,
    hooks: Sequence[Hook],
) -> Float[Tensor, "facts contexts d"]:
    rows: list[tuple[int, ...]] = []
    for fact in facts:
        for context in contexts:
            prompt = tokenize_prompt(model, context.replace("{}", fact.text))
            # A sampled prefix may contain the subject too; the edit refers to its occurrence in the prompt.
            rows.append(prompt.ids[: subject_last(prompt, fact.subject, start=context.index("{}")) + 1])
    # Aligned at their last token, which is subject_last in every row.
    batch, _ = pad_rows(model, rows, align=[len(row) - 1 for row in rows])
    store: dict[str, Tensor] = {}
    keep: Hook = (model.hook_name(site, layer), record(store, site, lambda out: out[:, -1]))
    model.run(batch, hooks=[*hooks, keep], stop=layer + 1)
    return store[site].view(len(facts), len(contexts), -1)
