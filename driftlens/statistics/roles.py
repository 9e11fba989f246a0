"""Token roles, and effects averaged by role over many prompts (Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from driftlens.statistics.intervals import interval_ends

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ROLES", "SUBJECT_ROLES", "average_by_role"]

SUBJECT_ROLES = ("first subject token", "middle subject tokens", "last subject token")
ROLES = ("before subject", *SUBJECT_ROLES, "after subject", "test subject", "test prompt", "last token")
"""In the order of a prompt; "subject" is the edited subject, "test subject" that of the test prompt."""


def average_by_role(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Average a table's `effect` over cases, for each combination of `keys`, role and layer.

    A role's tokens are first averaged within each case, so that a case with a long subject counts once, and then over
    cases. `low` and `high` are the 95 % interval of this mean over the `cases` that have the role, NaN for a single
    case; it stays between -1 and 1 (:func:`driftlens.statistics.intervals.bounded_interval`). `example` is the role's
    text in the first such case. The columns are `keys`, then `role, example, layer, effect, low, high, cases`; rows are
    in the order of a prompt.
    """
    groups = [*keys, "role", "layer"]
    cells: Any = table.groupby([*groups, "case"], sort=False)
    per_case = cells["effect"].mean().reset_index()
    by_group: Any = per_case.groupby(groups, sort=False)["effect"]
    grid: Any = by_group.agg(effect="mean", cases="count").reset_index()
    grid["low"], grid["high"] = interval_ends(by_group, bounds=(-1.0, 1.0))
    grid["example"] = grid["role"].map(_examples(table))
    # Keys keep their order in the table.
    orders = {**{key: list(table[key].unique()) for key in keys}, "role": list(ROLES)}
    for key, order in orders.items():
        grid[f"{key} order"] = grid[key].map({name: at for at, name in enumerate(order)})
    grid = grid.sort_values([*(f"{key} order" for key in orders), "layer"], ignore_index=True)
    return grid[[*keys, "role", "example", "layer", "effect", "low", "high", "cases"]]


def _examples(table: Any) -> dict[str, str]:
    first = table[["role", "case", "token", "token_text"]].drop_duplicates(["role", "case", "token"])
    examples: dict[str, str] = {}
    for role, rows in first.groupby("role", sort=False):
        case = rows[rows["case"] == rows["case"].min()].sort_values("token")
        examples[str(role)] = "".join(case["token_text"]).strip()
    return examples
