"""Write values into several layers (MEMIT's Algorithm 1; paper, Eq. 4 and 5).

z is the desired output of the last of the layers at ``subject_last``.  The layers are processed in ascending order,
each with the updates of the ones below it in place:

1. a fact's key is the average of the bare prompt's key and the contexts' mean key (keys are inputs of the
   down-projection);
2. its residual is its part of what is still missing, (z − the output now) / share, with the output of the bare prompt;
3. ``W_out += left @ right`` with ``right = Rᵀ`` and the editor's ``left``. For MEMIT and PMET it is
   ``(λ C + K Kᵀ)⁻¹ K``: the least-squares fit of the residuals that preserves the outputs for the keys behind C.

The solve is done in float64 with the cached Cholesky factor of C, one small system for each update: (λ C + K Kᵀ)⁻¹ K =
C⁻¹K (λ I + Kᵀ C⁻¹ K)⁻¹, which for a single fact is C⁻¹k / (λ + kᵀ C⁻¹ k).  Updates of lower layers act through hooks.
No weight is written, so separate edits run side by side in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from driftlens.data import Fact
from driftlens.editors.keys import subject_keys, subject_outputs
from driftlens.editors.rows import Place
from driftlens.edits import Edit, LowRankUpdate, edit_hooks, hooks_of
from driftlens.errors import DriftlensError
from driftlens.hooks import Hook
from driftlens.models import LensModel
from driftlens.models.memory import in_batches

BARE = "{}"

Factors: TypeAlias = Callable[[int, Sequence[Float[Tensor, "facts d_mlp"]]], Sequence[Float[Tensor, "d_mlp facts"]]]
"""Maps a layer and the keys of each update, in float64, to each update's ``left``."""


@dataclass(frozen=True, kw_only=True)
class SpreadUpdate:
    """One update of several layers, and per layer the keys and values it was solved for."""

    updates: Mapping[int, LowRankUpdate]
    keys: Mapping[int, Float[Tensor, "facts d_mlp"]]
    values: Mapping[int, Float[Tensor, "facts d_model"]]


def spread(
    model: LensModel,
    groups: Sequence[Sequence[Fact]],
    targets: Float[Tensor, "facts d_model"],
    *,
    layers: Sequence[int],
    site: Place,
    share: Callable[[int], float],
    contexts: Sequence[str],
    factors: Factors,
    batch_size: int,
) -> list[SpreadUpdate]:
    """Make an independent update for each of ``groups``, with all its facts together.

    Args:
        model: the vanilla model; it is not changed.
        groups: the facts of each update.
        targets: z of every fact, in the groups' order.
        layers: the layers to write to, ascending.
        site: the output of the last layer that z refers to.
        share: the divisor of the residual, given how many layers are left.
        contexts: templates with one ``{}`` for the prompt; the bare prompt is always among the keys.
        factors: the solve of a layer.
        batch_size: facts in a pass.
    """
    facts = [fact for group in groups for fact in group]
    group_of = torch.tensor([number for number, group in enumerate(groups) for _ in group])
    sizes = [len(group) for group in groups]
    templates = (BARE, *(context for context in contexts if context != BARE))
    precision = torch.promote_types(model.dtype, torch.float32)
    updates: list[dict[int, LowRankUpdate]] = [{} for _ in groups]
    keys_by_layer: dict[int, Tensor] = {}
    values_by_layer: dict[int, Tensor] = {}

    for i, layer in enumerate(layers):
        edits = [Edit(updates=update) for update in updates]

        def in_place(batch: Sequence[int], rows_per_fact: int, edits: Sequence[Edit] = edits) -> list[Hook]:
            if len(edits) == 1:  # a single update for all rows needs no copy of its factors per row
                return hooks_of(model, edits[0])
            return edit_hooks(model, edits, group_of[list(batch)].repeat_interleave(rows_per_fact))

        def now(batch: Sequence[int], layer: int = layer) -> list[tuple[Tensor, Tensor]]:
            chosen = [facts[number] for number in batch]
            keys = subject_keys(model, chosen, templates, layer, hooks=in_place(batch, len(templates)))
            outputs = subject_outputs(model, chosen, layers[-1], site, hooks=in_place(batch, 1))
            return list(zip(_mean_keys(keys), outputs, strict=True))

        found = in_batches(range(len(facts)), batch_size, now)
        keys = torch.stack([key for key, _ in found])
        missing = targets.double() - torch.stack([output for _, output in found]).double()
        residuals = missing / share(len(layers) - i)
        lefts = factors(layer, keys.split(sizes))
        for number, (left, r) in enumerate(zip(lefts, residuals.split(sizes), strict=True)):
            updates[number][layer] = LowRankUpdate(left=left.to(precision), right=r.to(precision))
        with model.exclusive():  # another thread's edit is in the weights only while that thread holds the model
            W_out, bias = model.down_projection(layer)
            written = keys @ W_out.to(keys) if bias is None else keys @ W_out.to(keys) + bias.to(keys)
        keys_by_layer[layer], values_by_layer[layer] = keys.to(precision), (written + residuals).to(precision)

    return [
        SpreadUpdate(
            updates=updates[number],
            keys={layer: keys.split(sizes)[number] for layer, keys in keys_by_layer.items()},
            values={layer: values.split(sizes)[number] for layer, values in values_by_layer.items()},
        )
        for number in range(len(groups))
    ]


def least_squares_factor(
    keys: Float[Tensor, "facts d_mlp"], solved: Float[Tensor, "facts d_mlp"], weight: float
) -> Float[Tensor, "d_mlp facts"]:
    """Compute (λ C + K Kᵀ)⁻¹ K in float64 from C⁻¹K.

    ``keys`` and ``solved`` hold the columns of K and C⁻¹K as rows.

    Raises:
        DriftlensError: the facts' keys are so many or so alike that the small system is singular.
    """
    gram = keys @ solved.T
    system = (gram + gram.T) / 2 + weight * torch.eye(len(keys), device=keys.device, dtype=keys.dtype)
    factor, info = torch.linalg.cholesky_ex(system)
    if int(info) and bool(system.isfinite().all()):  # non-finite values are reported for their own fact
        raise DriftlensError(
            f"the keys of {len(keys)} facts are too much alike for a second_moment_weight of {weight}; "
            "give a larger one, or leave out facts that repeat others"
        )
    return torch.cholesky_solve(solved, factor).T


def _mean_keys(keys: Float[Tensor, "facts contexts d_mlp"]) -> Float[Tensor, "facts d_mlp"]:
    """The average of the bare prompt's key, which is the first, and the mean of the others, in float64."""
    bare, others = keys[:, 0].double(), keys[:, 1:].double()
    return (bare + others.mean(dim=1)) / 2 if others.shape[1] else bare
