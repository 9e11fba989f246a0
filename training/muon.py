"""Muon for the matrices inside the transformer's blocks: momentum with all singular values set to about one.

Keller Jordan's optimiser (https://kellerjordan.github.io/posts/muon/). Newton–Schulz runs in fp32, since bf16
matrix products crawl on many CPUs, and on stacks of equally shaped matrices at once.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalised(stack: Float[Tensor, "n rows cols"]) -> Float[Tensor, "n rows cols"]:
    """Each matrix with its singular values moved to about one, its singular vectors kept."""
    a, b, c = NEWTON_SCHULZ
    wide = stack if stack.shape[1] <= stack.shape[2] else stack.mT
    x = wide / (wide.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is stack else x.mT


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum, orthogonalised, with decoupled weight decay.

    Weights are [input, output], as in GPT-2's `Conv1D`. Matrices that stand side by side in one weight
    (query, key and value) are orthogonalised one by one; `parts` says how many a weight holds.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        parts: Callable[[Tensor], int],
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._parts = parts

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every weight that has a gradient."""
        if closure is not None:
            raise NotImplementedError("this optimiser takes no closure")
        for group in self.param_groups:
            by_shape: defaultdict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                direction = weight.grad.lerp(momentum, group["momentum"])
                parts = self._parts(weight)
                for target, part in zip(weight.chunk(parts, 1), direction.chunk(parts, 1), strict=True):
                    by_shape[tuple(part.shape)].append((target, part))
            for (rows, cols), pairs in by_shape.items():
                updates = orthogonalised(torch.stack([part for _, part in pairs]))
                scale = group["lr"] * max(1.0, cols / rows) ** 0.5
                for (target, _), update in zip(pairs, updates, strict=True):
                    target.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)
