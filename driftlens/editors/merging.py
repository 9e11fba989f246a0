"""The memories of facts that WISE edits together, and the merging of full ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from driftlens.data import Fact
from driftlens.editors.ties import ties_merge

__all__ = ["Memory", "merged_memories"]

_MERGED_BEFORE = 0.6
"""The weight of an already merged memory when more is merged into it (published code)."""


@dataclass(frozen=True)
class Memory:
    """A memory, its facts, and the smallest of their distances at training time."""

    delta: Float[Tensor, "d_mlp d_model"] | None = None
    facts: tuple[Fact, ...] = ()
    last_step: float = float("inf")
    merged: bool = False


def merged_memories(memories: Sequence[Memory], *, retrieve: bool, density: float) -> list[Memory]:
    """Merge the full memories and return the merged ones; :class:`driftlens.WISE` explains the settings."""
    before = [memory for memory in memories if memory.merged]
    full = [memory for memory in memories if not memory.merged]
    together, weights = full, [1 / len(full)] * len(full)
    if before and not retrieve:
        weights = [*((1 - _MERGED_BEFORE) * weight for weight in weights), _MERGED_BEFORE]
        together, before = [*full, *before], []
    deltas = [memory.delta for memory in together if memory.delta is not None]
    merged = Memory(
        ties_merge(deltas, weights, density),
        tuple(fact for memory in together for fact in memory.facts),
        min(memory.last_step for memory in together),
    )
    return [*before, replace(merged, merged=True)]
