"""Ties merging (Yadav et al. 2023): merge several changes of one matrix into one.

1. **Trim**: keep only the largest entries of each change, a share ``density`` of them.
2. **Elect**: an entry's sign is that of the weighted sum of the changes, or + if the sum is 0.
3. **Merge**: the entry is the weighted mean of the changes that have that sign there; 0 if none has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["ties_merge"]


def ties_merge(
    changes: Sequence[Float[Tensor, "d_in d_out"]], weights: Sequence[float], density: float
) -> Float[Tensor, "d_in d_out"]:
    """Merge ``changes`` into one; ``density`` is the share of entries, of all, that each of them keeps."""
    trimmed = torch.stack([_largest(change, density) for change in changes])
    share = trimmed.new_tensor(list(weights)).view(-1, 1, 1)
    weighted = trimmed * share
    sign = torch.where(weighted.sum(dim=0) >= 0, 1.0, -1.0)
    agree = trimmed.sign() == sign
    return (weighted * agree).sum(dim=0) / (share * agree).sum(dim=0).clamp_min(torch.finfo(weighted.dtype).tiny)


def _largest(change: Float[Tensor, "d_in d_out"], density: float) -> Float[Tensor, "d_in d_out"]:
    kept = change.abs().flatten().topk(int(density * change.numel())).indices
    trimmed = torch.zeros_like(change).flatten()
    trimmed[kept] = change.flatten()[kept]
    return trimmed.view_as(change)
