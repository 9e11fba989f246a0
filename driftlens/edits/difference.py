"""Express the difference of two checkpoints as changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from driftlens.edits.changes import Dense
from driftlens.errors import DriftlensError
from driftlens.models.sites import LINEAR_MAPS, Site

if TYPE_CHECKING:
    from driftlens.models import LensModel

__all__ = ["difference"]


@torch.no_grad()
def difference(before: LensModel, after: LensModel) -> list[Dense]:
    """Make dense changes of the MLPs' linear maps that turn ``before`` into ``after``.

    They are computed in float32 or better, so ``before`` with the edit applied has ``after``'s weights up to one
    rounding.

    Raises:
        DriftlensError: the two differ in shape, or in a weight that is not a linear map of an MLP.
    """
    named = dict(before.named_weights()), dict(after.named_weights())
    shapes = [{name: tuple(weight.shape) for name, weight in weights.items()} for weights in named]
    if shapes[0] != shapes[1]:
        other = next(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
        raise DriftlensError(
            f"{before.name} and {after.name} are not of one shape: {other} is {shapes[0].get(other, 'missing')} and "
            f"{shapes[1].get(other, 'missing')}; give two checkpoints of one architecture"
        )
    precision = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
    changes: list[Dense] = []
    covered: set[str] = set()
    for layer in range(before.n_layers):
        for linear in LINEAR_MAPS:
            site = Site(layer, linear)
            name = before.stored_name(site)
            if name is None:
                continue
            covered.add(name)
            one, other = before.linear(site)[0], after.linear(site)[0].to(before.device)
            if not torch.equal(one.to(precision), other.to(precision)):
                changes.append(Dense(site=site, weight=(other.to(precision) - one.to(precision)).contiguous()))
    for name, weight in named[0].items():
        if name not in covered and not torch.equal(weight.to(precision), named[1][name].to(before.device, precision)):
            raise DriftlensError(
                f"{before.name} and {after.name} also differ in {name}, and an edit holds changes of the MLPs' linear "
                "maps only"
            )
    return changes
