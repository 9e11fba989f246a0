"""Sites: which linear map of which layer an edit changes."""

from typing import Literal, NamedTuple, TypeAlias

__all__ = ["LINEAR_MAPS", "LinearMap", "Site", "site_order"]

LinearMap: TypeAlias = Literal["mlp.in", "mlp.gate", "mlp.out"]
"""An MLP's up-projection, its gate (in gated MLPs such as Llama's), its down-projection."""

LINEAR_MAPS: tuple[LinearMap, ...] = ("mlp.in", "mlp.gate", "mlp.out")
"""In the order in which a block computes them."""


class Site(NamedTuple):
    """A linear map `y = x W + b` of one layer, with `W` as `[d_in, d_out]` in every family."""

    layer: int
    map: LinearMap = "mlp.out"

    def __str__(self) -> str:
        return f"{self.map} of layer {self.layer}"


def site_order(site: Site) -> tuple[int, int]:
    """A sort key for the order in which a pass reaches sites."""
    return site.layer, LINEAR_MAPS.index(site.map)
