"""Keys and values of the context prefixes, computed once for all facts that are optimised together.

A context puts the same text before every fact's prompt ("The man was a. "). The rows of different facts in one context
therefore begin with the same tokens, and a causal model computes the same activations for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from driftlens.editors.prompt_rows import PromptRow
from driftlens.models import KeyValues, LensModel
from driftlens.models.prompts import pad_rows

__all__ = ["Prefixes", "shared_prefixes"]


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """The shared beginnings of the facts' rows in each context, run once for all of them."""

    ids: tuple[tuple[int, ...], ...]
    kept: KeyValues | None  # a row for each, and behind them one without a token

    @classmethod
    def of(cls, model: LensModel, by_fact: Sequence[Sequence[PromptRow]], contexts: int) -> Prefixes:
        """Run the prefixes of all contexts in one pass."""
        ids = shared_prefixes(by_fact, contexts)
        longest = max(map(len, ids))
        batch = pad_rows(model, [*ids, ()])[0] if longest else None
        kept = None if batch is None else model.prefix(batch, columns=longest)
        return cls(ids=tuple(ids), kept=kept)

    def length(self, row: PromptRow) -> int:
        """The number of the row's tokens that belong to the prefix."""
        return 0 if row.context is None else len(self.ids[row.context])

    def before(self, rows: Sequence[PromptRow], layers: range) -> KeyValues | None:
        """The keys and values of every row's prefix in these layers."""
        if self.kept is None:
            return None
        places = [len(self.ids) if row.context is None else row.context for row in rows]
        return self.kept.within(layers).select(torch.tensor(places, device=self.kept.mask.device))


def shared_prefixes(by_fact: Sequence[Sequence[PromptRow]], contexts: int) -> list[tuple[int, ...]]:
    """For each context, the tokens shared by all facts' rows, before any of their subjects.

    Tokens are compared, not texts: if a tokenizer merges the end of the prefix with a prompt, that token is not shared.
    A single fact shares nothing.
    """
    if len(by_fact) < 2:
        return [()] * contexts
    prefixes: list[tuple[int, ...]] = []
    for number in range(contexts):
        first, *others = [own[number] for own in by_fact]
        stop = min(row.subject for row in (first, *others))
        shared = next((i for i in range(stop) if any(row.ids[i] != first.ids[i] for row in others)), stop)
        prefixes.append(first.ids[:shared])
    return prefixes
