"""Training rows: documents one after another, cut at a fixed length, each row from a document's start.

The batch of a step depends on the seed and the step alone, so an interrupted training goes on where it
stopped.
"""

import random
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from driftlens.demo.documents import Writer
from driftlens.demo.world import World

TOKENS = 3072
ROW_LENGTHS = (96, 96, 96, 128)
"""Lengths of rows that the steps take in turn; the longest is the context, so every position is learnt."""

FIRST_SUBJECTS = 0.08
ALL_SUBJECTS_AT = 0.4
"""Training starts with a small share of the subjects and meets the last one at this share of its steps."""


class Batches:
    """Batches by step, for a training of `steps` steps."""

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
        self._world = world
        self._tokenizer = tokenizer
        self._steps = steps
        self._seed = seed
        self._writer: tuple[int, Writer] | None = None

    def active_subjects(self, step: int) -> int:
        """How many of the world's subjects a step's texts are about."""
        share = FIRST_SUBJECTS + (1 - FIRST_SUBJECTS) * min(1.0, step / (ALL_SUBJECTS_AT * self._steps))
        return round(share * len(self._world.subjects))

    def batch(self, step: int) -> Int[Tensor, "rows length"]:
        """Token ids of a step's rows."""
        rng = random.Random(f"driftlens batch {self._seed} {step}")
        length = ROW_LENGTHS[step % len(ROW_LENGTHS)]
        return torch.tensor([self._row(step, length, rng) for _ in range(TOKENS // length)])

    def _row(self, step: int, length: int, rng: random.Random) -> list[int]:
        writer = self._writer_at(step)
        tokenizer: Any = self._tokenizer
        end_of_text: int = tokenizer.eos_token_id
        row: list[int] = [end_of_text] if rng.random() < 0.5 else []
        while len(row) < length:
            row += [*tokenizer(writer.document(rng)).input_ids, end_of_text]
        return row[:length]

    def _writer_at(self, step: int) -> Writer:
        active = self.active_subjects(step)
        if self._writer is None or self._writer[0] != active:
            self._writer = (active, Writer(self._world, active))
        return self._writer[1]
