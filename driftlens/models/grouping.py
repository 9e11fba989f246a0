"""Group rows of similar width into passes, because a batch is as wide as its widest row.

The benchmark has prompts of 3 to 120 tokens, so most columns of one batch of all prompts would be padding.  A separate
pass for every width would have no padding, but each pass has a fixed cost.  With this cost counted in tokens, dynamic
programming finds the cheapest split exactly: in order of width, the cheapest split of the first n widths is a last
group after the cheapest split of the widths before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Int
from torch import Tensor

PASS_COST = {"cpu": 32}
"""The fixed cost of a pass in tokens, by device: launches on a GPU, Python on a CPU.  Models use it until ``driftlens
profile`` has measured the cost on the machine (:mod:`driftlens.models.pass_costs`); ``model.pass_cost = N`` sets it.

On one core of a server, a pass of a 6 M GPT-2 costs as much as 34 more of its tokens, one of a 135 M Llama as much as
20.  The value for other devices is an estimate."""
PASS_COST_ELSEWHERE = 512


def pass_cost(device: torch.device) -> int:
    """The cost of one more pass there, in tokens."""
    return PASS_COST.get(device.type, PASS_COST_ELSEWHERE)


def passes(
    widths: Sequence[int], cost: float, *, most: int, rows: Sequence[int] | None = None, times: float = 1
) -> list[list[int]]:
    """The cheapest passes for items of these widths, with at most ``most`` items each.

    A pass has a fixed cost in tokens (``LensModel.pass_cost``); that of a group is ``times`` as much.  An item has one
    row, or the number in ``rows``.  The widest items come first, so that memory runs out at once or not at all.
    """
    return group_by_width(widths, rows, times * cost, most=max(1, most))[::-1]


def read_pays(read: Int[Tensor, "rows read"], rows: int, columns: int, cost: float) -> bool:
    """Whether the last block of a pass costs less in two calls than in one.

    The first call computes the keys and values of all columns, the second the rest for the columns that are read.
    Queries, keys and values are about a quarter of a block's products.  ``cost`` is the fixed cost of a pass in tokens,
    and so of one more call for each of its blocks.
    """
    again = cost if read.shape[1] else 0
    return rows * columns / 4 + read.numel() + again < rows * columns


def group_by_width(
    widths: Sequence[int], rows: Sequence[int] | None, cost: float, *, most: int | None = None
) -> list[list[int]]:
    """Split items into groups so that Σ (``cost`` + rows of the group · its largest width) is minimal.

    Items of equal width are never split, unless a group would have more than ``most`` items.  Such a group is cut,
    beginning with its widest item, and every piece counts as a pass.

    Args:
        widths: the width of each item's rows.
        rows: the number of rows of each item; ``None``: one each.
        cost: the fixed cost of a group, in tokens.
        most: the most items in a group.

    Returns:
        The groups, each with its items in ascending order, narrow groups first.
    """
    order = sorted(range(len(widths)), key=lambda i: widths[i])
    held = [0, *accumulate(1 if rows is None else rows[i] for i in order)]
    ordered = [widths[i] for i in order]
    # Where a group may begin or end: between different widths.
    cuts = [0, *(bisect_right(ordered, width) for width in sorted(set(widths)))]
    limit = len(order) if most is None else most

    def pieces(start: int, stop: int) -> list[tuple[int, int]]:
        return [(max(start, end - limit), end) for end in range(stop, start, -limit)]

    def price(start: int, stop: int) -> float:
        return sum(cost + (held[end] - held[begin]) * ordered[end - 1] for begin, end in pieces(start, stop))

    best: list[float] = [0.0]
    begins: list[int] = [0]
    for at in range(1, len(cuts)):
        totals = [best[before] + price(cuts[before], cuts[at]) for before in range(at)]
        best.append(min(totals))
        begins.append(totals.index(best[-1]))
    groups: list[list[int]] = []
    at = len(cuts) - 1
    while at:
        groups += [sorted(order[begin:end]) for begin, end in pieces(cuts[begins[at]], cuts[at])]
        at = begins[at]
    return groups[::-1]
