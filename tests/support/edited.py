"""Random edits, and what they do, written as hooks on plain Hugging Face."""

from typing import Any

import torch
from torch import Tensor

from driftlens.edits import Edit, LowRankUpdate
from tests.support.plain import Edit as Change


def random_edit(model: Any, seed: int, *layers: int, rank: int = 2) -> Edit:
    """Large enough that what the model says changes."""
    generator = torch.Generator().manual_seed(seed)
    return Edit(
        updates={
            layer: LowRankUpdate(
                left=torch.randn(model.d_mlp, rank, generator=generator) / model.d_mlp**0.5,
                right=3 * torch.randn(rank, model.d_model, generator=generator),
            )
            for layer in layers
        }
    )


def changes(edit: Edit | None) -> list[Change]:
    """The edit for a `PlainModel`: what the MLP's output gains is its input times the update's matrix."""
    found: list[Change] = []
    for layer, update in {} if edit is None else edit.updates.items():
        found += _at(layer, update.matrix())
    return found


def _at(layer: int, matrix: Tensor) -> list[Change]:
    inputs: list[Tensor] = []

    def see(activation: Tensor) -> None:
        inputs[:] = [activation]

    def add(output: Tensor) -> Tensor:
        return output + inputs[0] @ matrix.to(output.dtype)

    return [("mlp_post", layer, see), ("mlp_out", layer, add)]
