"""Which facts share a pass: facts of like width, since a batch is as wide as its widest row.

On the real benchmark a prompt has 3 to 15 tokens from the subject's last to the end, and in one batch of all of them
six of ten columns are padding.  A pass of its own for every width would waste nothing, but a pass costs something
whatever it holds.  With that cost counted in tokens, the best split is found exactly: sorted by width, groups are runs
of neighbours, and the cheapest split of the first n facts ends in some last group behind the cheapest split of the
facts before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

PASS_COST = {"cpu": 64}
"""What a pass costs besides its tokens, in tokens, by device: launches on a GPU, Python on a CPU.

Estimates, not measured."""
PASS_COST_ELSEWHERE = 512


def pass_cost(device: torch.device) -> int:
    """The cost of one more pass there, in tokens."""
    return PASS_COST.get(device.type, PASS_COST_ELSEWHERE)


def group_by_width(widths: Sequence[int], rows: Sequence[int], cost: int) -> list[list[int]]:
    """The split of facts into groups that makes Σ (``cost`` + rows of the group · its largest width) smallest.

    Args:
        widths: the width of each fact's rows.
        rows: how many rows each fact has.
        cost: that of one more group, in tokens.

    Returns:
        The groups, each with its facts in ascending order, narrow groups first.
    """
    order = sorted(range(len(widths)), key=lambda i: widths[i])
    best: list[float] = [0.0]
    begins: list[int] = []
    for stop in range(1, len(order) + 1):
        width, held = widths[order[stop - 1]], 0
        found, begin = float("inf"), 0
        for start in range(stop - 1, -1, -1):
            held += rows[order[start]]
            total = best[start] + cost + held * width
            if total < found:
                found, begin = total, start
        best.append(found)
        begins.append(begin)
    groups: list[list[int]] = []
    stop = len(order)
    while stop:
        groups.append(sorted(order[begins[stop - 1] : stop]))
        stop = begins[stop - 1]
    return groups[::-1]
