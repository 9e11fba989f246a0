"""MEND's hypernetwork: from the factors of a gradient to the factors of an edit (Mitchell et al. 2022, Section 3).

The gradient of a loss with respect to the weight of ``y = x W + b`` is ``xᵀ δ``, with a row of ``x`` and of ``δ``, the
loss's gradient with respect to ``y``, for each token.  The hypernetwork changes the rows, not the matrix:

1. ``x`` and ``δ`` are normalised, entry by entry, by mean and standard deviation over training data.
2. ``z = [x; δ]`` goes through two layers, ``z ← z + max(scale ⊙ (u v z + bias) + shift, 0)``.  ``u v`` has low
   rank.  ``scale`` and ``shift`` are each weight's own, the rest is shared by the weights of one shape.  ``u`` is zero
   at first, so that an untrained network is the identity.
3. ``W ← W − lr · x̃ᵀ δ̃``, with a learned rate for each weight.

At the identity this is a step of gradient descent on normalised factors, and the loss falls.  The published code adds
where the paper subtracts (its author has acknowledged that; training turns the rates or factors round):
``sign="published"``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from driftlens.errors import DriftlensError
from driftlens.models.fingerprint import tensor_digest
from driftlens.models.sites import Site

__all__ = ["Factors", "Hypernetwork", "Sign"]

Sign: TypeAlias = Literal["paper", "published"]
"""Whether the update is subtracted, as in the paper, or added, as in the published code."""

_EPS = 1e-7


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The gradient of some rows' losses with respect to one weight, by token.

    Attributes:
        inputs: x, the map's input, in float32 or better.
        gradients: δ, the gradient with respect to the map's output.
        used: tokens where neither is zero; padding, and in the last layer all that predicts nothing, is left out.
    """

    inputs: Float[Tensor, "edits tokens d_in"]
    gradients: Float[Tensor, "edits tokens d_out"]
    used: Bool[Tensor, "edits tokens"]

    @classmethod
    def of(cls, inputs: Float[Tensor, "edits tokens d_in"], gradients: Float[Tensor, "edits tokens d_out"]) -> Factors:
        """The factors, with the tokens that count marked."""
        used = (inputs != 0).any(dim=-1) & (gradients != 0).any(dim=-1)
        return cls(inputs=inputs, gradients=gradients, used=used)

    def together(self, facts: int) -> Factors:
        """Every ``facts`` edits as one, whose tokens follow one another."""
        inputs, gradients, used = (
            part.reshape(len(part) // facts, -1, *part.shape[2:]) for part in (self.inputs, self.gradients, self.used)
        )
        return Factors(inputs=inputs, gradients=gradients, used=used)


class _Layer(nn.Module):
    """One layer of rank ``rank``: z + max(scale ⊙ (u v z + bias) + shift, 0), the identity at first."""

    def __init__(self, width: int, weights: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rank = min(rank, width)
        self.u = nn.Parameter(torch.zeros(width, rank))
        self.v = nn.Parameter(torch.randn(rank, width, generator=generator))
        self.bias = nn.Parameter(torch.zeros(width))
        self.shift = nn.Parameter(torch.zeros(weights, width))
        self.scale = nn.Parameter(torch.ones(weights, width))

    @override
    def forward(self, z: Float[Tensor, "*tokens width"], weight: int) -> Float[Tensor, "*tokens width"]:
        inner = z @ self.v.T @ self.u.T + self.bias
        # clamp passes a gradient at 0, where relu passes none: an untrained network could never leave the identity.
        return z + (self.scale[weight] * inner + self.shift[weight]).clamp(min=0)


class _Transform(nn.Module):
    """What the weights of one shape share: two layers, and mean and standard deviation of the factors."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, d_in: int, d_out: int, weights: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        width = d_in + d_out
        self.widths = (d_in, d_out)
        self.layers = nn.ModuleList([_Layer(width, weights, rank, generator) for _ in range(2)])
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))

    @property
    def deviation(self) -> Float[Tensor, " width"]:
        """The standard deviation of every entry."""
        return (self.squares / (self.count - 1)).sqrt()

    def observe(self, z: Float[Tensor, "tokens width"]) -> None:
        """Take tokens into mean and deviation (Chan et al.'s merge of two samples)."""
        if not len(z):
            return
        count = len(z)
        total = self.count + count
        mean = z.mean(dim=0)
        apart = mean - self.mean
        self.squares += (z - mean).square().sum(dim=0) + apart.square() * self.count * count / total
        self.mean += apart * count / total
        self.count.copy_(total)

    @override
    def forward(self, z: Float[Tensor, "*tokens width"], weight: int) -> Float[Tensor, "*tokens width"]:
        z = (z - self.mean) / (self.deviation + _EPS)
        for layer in self.layers:
            z = layer(z, weight)
        return z


class Hypernetwork(nn.Module):
    """MEND's hypernetwork for some weights of a model.

    Args:
        shapes: ``[d_in, d_out]`` of every weight, in the order in which running statistics see them.
        rank: of the layers; at most d_in + d_out.
        rate: the learning rate of every weight at first.
        sign: whether updates are subtracted ("paper") or added ("published").
        seed: of the layers' second factors.

    Raises:
        DriftlensError: no weight, or a rank below 1.
    """

    def __init__(
        self, shapes: Mapping[Site, tuple[int, int]], *, rank: int, rate: float, sign: Sign = "paper", seed: int = 0
    ) -> None:
        super().__init__()
        if not shapes or rank < 1:
            raise DriftlensError(
                f"a hypernetwork of rank {rank} for {len(shapes)} weights; give a rank of 1 or more, and a weight"
            )
        self.shapes = dict(shapes)
        self.rank = rank
        self.sign: Sign = sign
        generator = torch.Generator().manual_seed(seed)
        alike: dict[tuple[int, int], list[Site]] = {}
        for site, shape in shapes.items():
            alike.setdefault(shape, []).append(site)
        self.transforms = nn.ModuleDict(
            {_name(shape): _Transform(*shape, len(sites), rank, generator) for shape, sites in alike.items()}
        )
        self._place = {site: at for sites in alike.values() for at, site in enumerate(sites)}
        self.rates = nn.Parameter(torch.full((len(shapes),), rate))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The weights that it edits."""
        return tuple(self.shapes)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that it edits, ascending."""
        return tuple(sorted({site.layer for site in self.shapes}))

    @property
    def size(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def digest(self) -> str:
        """20 hexadecimal digits that name it: its weights, statistics, sites and sign."""
        parts = [f"{name} {tensor_digest(tensor)}" for name, tensor in sorted(self.state_dict().items())]
        return hashlib.sha256(" ".join([repr(self.shapes), self.sign, *parts]).encode()).hexdigest()[:20]

    def observe(self, site: Site, factors: Factors) -> None:
        """Take the tokens of a weight's factors into the statistics of its shape."""
        self._transform(site).observe(_joined(factors)[factors.used])

    def update(self, site: Site, factors: Factors) -> tuple[Tensor, Tensor]:
        """The edit of one weight, ``W += left @ right``.

        Returns:
            left ``[edits, d_in, tokens]`` and right ``[edits, tokens, d_out]``, differentiable; zero at tokens that are
            not used.
        """
        changed = self._transform(site)(_joined(factors), self._place[site])
        # Selected, not multiplied: what padding is transformed to does not matter, even if it is not finite.
        changed = changed.where(factors.used[..., None], torch.zeros_like(changed))
        inputs, gradients = changed.split(self.shapes[site], dim=-1)
        rate = self.rates[self.sites.index(site)]
        return inputs.mT, (-rate if self.sign == "paper" else rate) * gradients

    def transformed(self, site: Site, factors: Factors) -> tuple[Tensor, Tensor]:
        """x̃ and δ̃ of the tokens that are used, ``[used, d_in]`` and ``[used, d_out]``."""
        changed = self._transform(site)(_joined(factors)[factors.used], self._place[site])
        inputs, gradients = changed.split(self.shapes[site], dim=-1)
        return inputs, gradients

    def _transform(self, site: Site) -> _Transform:
        found = self.transforms[_name(self.shapes[site])]
        assert isinstance(found, _Transform)
        return found


def _joined(factors: Factors) -> Float[Tensor, "edits tokens width"]:
    return torch.cat([factors.inputs, factors.gradients], dim=-1)


def _name(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
