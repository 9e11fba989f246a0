"""Scores from per-prompt NLLs (paper, 2.1 and 5.1), whoever computed them.

With P(o | prompt) = exp(−NLL), the mean over the target's tokens inside (the published code's convention):

==============  =======================  ===========================  =====================
scores          task                     a prompt counts when         magnitude is the mean
==============  =======================  ===========================  =====================
ES, EM          rewrite                  P(new) > P(true)             P(new)
PS, PM          paraphrase               P(new) > P(true)             P(new)
NS, NM          neighborhood             P(true) > P(new)             P(true)
RS, RM          relation                 P(true) > P(new)             P(true)
DNS, DNM        distract_neighborhood    P(true) > P(new)             P(true)
RES             reasoning                P(new) > P(true)             –
OS              other_task               P(true) > P(new)             –
DOS             distract_other_task      P(true) > P(new)             –
==============  =======================  ===========================  =====================

Comparisons are strict, so a tie fails.  Means are over prompts, not over records (note 15).  Avg.S is the
harmonic mean of ES, PS, NS, RS and DNS.  Everything is in percent.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from driftlens.errors import DriftlensError

SCORES = {
    # score: (task, which target must be the likelier)
    "ES": ("rewrite", "new"),
    "PS": ("paraphrase", "new"),
    "NS": ("neighborhood", "true"),
    "RS": ("relation", "true"),
    "DNS": ("distract_neighborhood", "true"),
    "RES": ("reasoning", "new"),
    "OS": ("other_task", "true"),
    "DOS": ("distract_other_task", "true"),
}
MAGNITUDES = {"EM": "ES", "PM": "PS", "NM": "NS", "RM": "RS", "DNM": "DNS"}
ORDER = ("ES", "EM", "PS", "PM", "NS", "NM", "RS", "RM", "DNS", "DNM", "RES", "OS", "DOS", "Avg.S")
AVERAGED = ("ES", "PS", "NS", "RS", "DNS")


def summarize(nlls: pd.DataFrame) -> pd.DataFrame:
    """The scores of a long table with at least the columns ``task, nll_true, nll_new``.

    Returns:
        Index ``ES EM PS PM NS NM RS RM DNS DNM RES OS DOS Avg.S``; columns ``value, low, high, n``: percent,
        its 95 % interval (1.96 · standard error over prompts, the paper's), and the number of prompts.  A
        score without a prompt is NaN with n = 0; Avg.S is NaN unless all its parts are there, and has no
        interval.

    Raises:
        DriftlensError: a column is missing.
    """
    for column in ("task", "nll_true", "nll_new"):
        if column not in nlls.columns:
            raise DriftlensError(
                f"the table has no column {column!r}; expected at least task, nll_true, nll_new"
            )
    rows: dict[str, tuple[float, float, float, int]] = {}
    for score, (task, wanted) in SCORES.items():
        of_task = nlls[nlls["task"] == task]
        nll_true, nll_new = (np.asarray(of_task[column], dtype=float) for column in ("nll_true", "nll_new"))
        right, wrong = (nll_new, nll_true) if wanted == "new" else (nll_true, nll_new)
        # NLLs are compared, not probabilities, which underflow to a tie for very unlikely targets.
        rows[score] = _mean((right < wrong).astype(float))
        for magnitude, of in MAGNITUDES.items():
            if of == score:
                rows[magnitude] = _mean(np.exp(-right))
    parts = np.array([rows[score][0] for score in AVERAGED])
    average = (
        float("nan") if np.isnan(parts).any() else 0.0 if (parts == 0).any() else float(stats.hmean(parts))
    )
    rows["Avg.S"] = (average, float("nan"), float("nan"), min(rows[score][3] for score in AVERAGED))
    return pd.DataFrame.from_dict(
        {score: rows[score] for score in ORDER}, orient="index", columns=["value", "low", "high", "n"]
    )


def _mean(values: np.ndarray) -> tuple[float, float, float, int]:
    """Mean in percent with the paper's interval."""
    n = len(values)
    if n == 0:
        return float("nan"), float("nan"), float("nan"), 0
    mean = 100 * float(values.mean())
    half = 196 * float(stats.sem(values)) if n > 1 else float("nan")
    return mean, mean - half, mean + half, n
