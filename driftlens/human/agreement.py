"""Win rates and inter-annotator agreement (paper, Table 9).

1. **Win, loss, tie**: the challenger's shares of all answers about a criterion.  Answers about one pair concern the
   same two texts, so intervals are bootstrapped over pairs, each with all its answers.
2. **Fleiss' κ** (Fleiss, 1971): (P̄ − P̄ₑ) / (1 − P̄ₑ), P̄ the share of annotator pairs who agree about a pair of texts,
   P̄ₑ the agreement by chance at the observed frequencies.  If nearly all answers are ties, P̄ₑ is close to 1 and κ is
   low even if annotators agree well.
3. **Randolph's κ** (Randolph, 2005): the same with P̄ₑ = 1/3, so it does not depend on how frequent ties are.
4. **Left–right bias**: among answers other than ties, the share that chose the text on the left; 50 % without bias,
   because sides are randomised for each annotator.

The intervals come from :func:`driftlens.statistics.intervals.corrected_interval`.  In simulations with 20 pairs and 9
annotators, 92 to 96 % of them contain the true κ and 95 % the true share, but only 86 % for rare outcomes (one in ten
answers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from driftlens.errors import DriftlensError
from driftlens.human.answers import AnswerSheet, checks, judgements
from driftlens.human.comparison import CRITERIA, Comparison
from driftlens.statistics.intervals import corrected_interval

__all__ = ["OUTCOMES", "Agreement", "agreement", "fleiss_kappa", "randolph_kappa"]

OUTCOMES = ("win", "loss", "tie")
Counts: TypeAlias = NDArray[np.int64]
"""The number of answers in each category: [pairs, categories]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """The results of a study.

    Attributes:
        table: a row per setting and criterion: ``setting, criterion, baseline, challenger, pairs, annotators,
            answers``; for each of ``win, loss, tie``, ``fleiss`` and ``randolph`` the value (shares from 0 to 1) and
            its 95 % interval ``_low``, ``_high``; ``kappa_pairs, kappa_raters``, the pairs and raters behind the two κ.
        annotators: a row per annotator: ``annotator, answers`` (complete pairs), ``checks, passed, left`` (share of
            left among answers other than ties), ``ties`` (share), ``seconds`` (median of a pair), ``failed``.
        bias: ``value, low, high, answers`` of the left–right bias.
        judgements: all answers, see :func:`driftlens.human.judgements`.
        excluded: annotators left out of ``table`` and ``bias`` because they failed attention checks.
    """

    table: pd.DataFrame
    annotators: pd.DataFrame
    bias: pd.Series
    judgements: pd.DataFrame
    excluded: tuple[str, ...]


def agreement(
    comparisons: Comparison | Sequence[Comparison],
    sheets: Sequence[AnswerSheet],
    *,
    exclude_failed: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Compute wins, losses, ties and κ of a study, or of several studies, whose settings are merged by name.

    Args:
        comparisons: the studies with their keys.
        sheets: the answers; from :func:`driftlens.human.read_answers`.
        exclude_failed: whether to leave out annotators who fail an attention check.
        resamples: number of bootstrap draws.
        seed: the seed of the bootstrap.

    Raises:
        DriftlensError: no answers about pairs are left, or answers belong to none of the studies.
    """
    studies = [comparisons] if isinstance(comparisons, Comparison) else list(comparisons)
    answers = judgements(studies, sheets)
    people = _annotators(answers, checks(studies, sheets), sheets)
    failed = people.loc[people["failed"], "annotator"].tolist()
    excluded = tuple(map(str, failed)) if exclude_failed else ()
    counted: Any = answers[~answers["annotator"].isin(excluded)]
    if not len(counted):
        raise DriftlensError(
            f"no answers are left to count ({len(sheets)} annotators, {len(excluded)} left out); "
            + ("keep annotators who fail checks, or wait for more answers" if excluded else "wait for answers")
        )
    rows: list[dict[str, Any]] = []
    for setting in dict.fromkeys(name for study in studies for name in study.systems):
        own: Any = counted[counted["setting"] == setting]
        systems = next(study.systems[setting] for study in studies if setting in study.systems)
        for criterion in CRITERIA:
            given = own[own["criterion"] == criterion.name]
            if len(given):
                row = {"setting": setting, "criterion": criterion.name, "baseline": systems.baseline,
                       "challenger": systems.challenger}  # fmt: skip
                rows.append({**row, **_row(given, resamples=resamples, seed=seed)})
    return Agreement(
        table=pd.DataFrame(rows),
        annotators=people,
        bias=_bias(counted, resamples=resamples, seed=seed),
        judgements=answers,
        excluded=excluded,
    )


def fleiss_kappa(counts: Counts) -> float:
    """Fleiss' κ of a table of counts [pairs, categories]; NaN if all answers are equal, or with one rater."""
    return _kappa(counts, "fleiss")


def randolph_kappa(counts: Counts) -> float:
    """Randolph's free-marginal κ of a table of counts [pairs, categories]; NaN with one rater."""
    return _kappa(counts, "randolph")


def _kappa(counts: Counts, method: str) -> float:
    from statsmodels.stats.inter_rater import fleiss_kappa as kappa

    raters = counts.sum(axis=1)
    if not len(counts) or raters.min() != raters.max() or raters.max() < 2:
        return float("nan")
    if method == "fleiss" and (counts.sum(axis=0) > 0).sum() < 2:
        return float("nan")  # nothing varies: chance alone would agree as well
    return float(kappa(counts, method=method))


def _row(given: pd.DataFrame, *, resamples: int, seed: int) -> dict[str, Any]:
    counts = _counts(given)
    people: Any = given["annotator"]
    row: dict[str, Any] = {
        "pairs": len(counts),
        "annotators": int(people.nunique()),
        "answers": int(counts.sum()),
    }
    for at, outcome in enumerate(OUTCOMES):
        row[outcome] = _share(at)(counts)
        row[f"{outcome}_low"], row[f"{outcome}_high"] = corrected_interval(
            _share(at), counts, resamples=resamples, seed=seed
        )
    # κ needs as many answers about every pair: those of the most frequent number, the larger of two.
    numbers, times = np.unique(counts.sum(axis=1), return_counts=True)
    raters = int(max(zip(times, numbers, strict=True))[1])
    even = counts[counts.sum(axis=1) == raters]
    for name, kappa in (("fleiss", fleiss_kappa), ("randolph", randolph_kappa)):
        row[name] = kappa(even)
        row[f"{name}_low"], row[f"{name}_high"] = corrected_interval(kappa, even, resamples=resamples, seed=seed)
    return {**row, "kappa_pairs": len(even), "kappa_raters": raters}


def _counts(given: pd.DataFrame) -> Counts:
    """Counts of outcomes by pair, sorted by name, so that the order of files does not matter."""
    table = pd.crosstab(given["pair"], given["outcome"]).reindex(columns=list(OUTCOMES), fill_value=0).sort_index()
    return table.to_numpy(dtype=np.int64)


def _share(category: int) -> Callable[[Counts], float]:
    def share(counts: Counts) -> float:
        total = counts.sum()
        return float(counts[:, category].sum() / total) if total else float("nan")

    return share


def _bias(answers: pd.DataFrame, *, resamples: int, seed: int) -> pd.Series:
    sided = answers[answers["side"] != "tie"]
    table = pd.crosstab(sided["pair"], sided["side"]).reindex(columns=["A", "B"], fill_value=0).sort_index()
    counts = table.to_numpy(dtype=np.int64)
    low, high = corrected_interval(_share(0), counts, resamples=resamples, seed=seed)
    return pd.Series({"value": _share(0)(counts), "low": low, "high": high, "answers": int(counts.sum())})


def _annotators(answers: pd.DataFrame, checked: pd.DataFrame, sheets: Sequence[AnswerSheet]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(sheet.annotator for sheet in sheets):
        own: Any = answers[answers["annotator"] == name]
        sided: Any = own[own["side"] != "tie"]
        asked: Any = checked[checked["annotator"] == name]
        answered: Any = own.groupby("pair").size()
        passed = int(asked["passed"].sum())
        rows.append(
            {
                "annotator": name,
                "answers": int((answered == len(CRITERIA)).sum()),
                "checks": len(asked),
                "passed": passed,
                "failed": passed < len(asked),
                "left": float((sided["side"] == "A").mean()) if len(sided) else float("nan"),
                "ties": float((own["side"] == "tie").mean()) if len(own) else float("nan"),
                "seconds": float(own.drop_duplicates("pair")["seconds"].median()) if len(own) else float("nan"),
            }
        )
    return pd.DataFrame(rows)
