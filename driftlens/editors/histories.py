"""Histories of several facts in one table."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

__all__ = ["joint_history"]


def joint_history(histories: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate the histories, with a first column ``fact`` that counts them from 0."""
    copies = [history.copy() for history in histories]
    for number, history in enumerate(copies):
        history.insert(0, "fact", number)
    return pd.concat(copies, ignore_index=True)
