"""Which rows share a pass: rows of similar width, since a batch is as wide as its widest row.

The real benchmark has prompts of 3 to 120 tokens, and in one batch of all of them most columns are padding.  A pass
of its own for every width would waste no column, but a pass has a cost of its own, whatever it holds.  With that cost
counted in tokens, the cheapest split is found exactly: sorted by width, groups are runs of neighbours, and the
cheapest split of the first n widths ends in some last group after the cheapest split of the widths before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Int
from torch import Tensor

PASS_COST = {"cpu": 32}
"""What a pass costs besides its tokens, in tokens, by device: launches on a GPU, Python on a CPU.  It is what a model
begins with until ``driftlens profile`` has measured it on the machine (:mod:`driftlens.models.pass_costs`);
``model.pass_cost = N`` sets it.

On one core of a server, a pass of a 6 M GPT-2 costs as much as 34 more of its tokens, one of a 135 M Llama as much as
20.  The value for other devices is an estimate."""
PASS_COST_ELSEWHERE = 512


def pass_cost(device: torch.device) -> int:
    """The cost of one more pass there, in tokens."""
    return PASS_COST.get(device.type, PASS_COST_ELSEWHERE)


def passes(
    widths: Sequence[int], cost: float, *, most: int, rows: Sequence[int] | None = None, times: float = 1
) -> list[list[int]]:
    """The cheapest passes for items of these widths, at most ``most`` items each, where a pass costs as much as so many
    tokens (``LensModel.pass_cost``).

    An item has one row, or as many as ``rows`` says, and a group costs ``times`` a usual pass besides its tokens.  The
    widest come first: if memory runs out, it does so at once.
    """
    return group_by_width(widths, rows, times * cost, most=max(1, most))[::-1]


def read_pays(read: Int[Tensor, "rows read"], rows: int, columns: int, cost: float) -> bool:
    """Whether the last block of a pass costs less in two calls: one up to the keys and values of all columns, and one
    for the columns that are read.

    Queries, keys and values are about a quarter of a block's products.  ``cost`` is that of one more pass, and so also
    of one more call for each of its blocks, in tokens.
    """
    again = cost if read.shape[1] else 0
    return rows * columns / 4 + read.numel() + again < rows * columns


def group_by_width(
    widths: Sequence[int], rows: Sequence[int] | None, cost: float, *, most: int | None = None
) -> list[list[int]]:
    """The split of items into groups that minimises Σ (``cost`` + rows of the group · its largest width).

    Items of one width are never split, unless a group would hold more than ``most`` items; it is cut then, from its
    widest item on, and every piece counts as a pass.

    Args:
        widths: the width of each item's rows.
        rows: how many rows each item has; ``None``: one each.
        cost: that of one more group, in tokens.
        most: items in a group at most.

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
