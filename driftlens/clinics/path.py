"""The candidates (the plain editor, SADR at several γ, guards), their scores on the probes, and the choice.

The rule: among the candidates for which the edit *takes* (:func:`takes`), choose the one that best preserves the
choosing probes. The criterion is the share of relation, neighbour, distractor and user's probes that stand, averaged
over these kinds.  A probe stands if its answer is more probable than the new target, as in the paper's RS, NS and DNS.
Shares within :data:`EVEN` of each other count as equal; then the mean probability of the answers decides.  If the edit
takes with none, the candidate that comes nearest is shown, and the verdict says so.

Guards (:class:`driftlens.GuardedSADR`) are prompts too, but no guard is a probe, and no probe contains one of their
subjects.  So the choosing probes and the held-out ones are new to every candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from driftlens.clinics.probes import Probe, probe_record
from driftlens.clinics.restraints import PLAIN, Restraint
from driftlens.data import Fact
from driftlens.edits import EditResult
from driftlens.evaluation import evaluate
from driftlens.models import LensModel

__all__ = ["BEFORE", "Candidate", "choose", "measure", "scores", "takes"]

BEFORE = "before"
"""The name of the vanilla model in tables."""

TAKEN = 0.5
"""The least P(o_edit) after the edit's prompt: more probable than all other answers together."""

WORDINGS = 0.5
"""The share of paraphrases in which the new target must win, unless it does not without a restraint either."""

EVEN = 0.02
"""Shares that differ by less count as equal: with a few dozen probes they differ by at most one probe."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """An edit of the path.

    Attributes:
        restraint: SADR's weight, or that of guards.
        result: the editor's result.
        seconds: how long the edit took.
        taken: P(o_edit) > P(o_true) after the edit's prompt.
        probability: P(o_edit) there.
    """

    restraint: Restraint
    result: EditResult
    seconds: float
    taken: bool = False
    probability: float = 0.0


def measure(
    model: LensModel, fact: Fact, probes: Sequence[Probe], candidates: Sequence[Candidate], *, batch_size: int = 64
) -> tuple[list[Candidate], pd.DataFrame]:
    """Measure both targets' probabilities for every probe under every candidate, and in the vanilla model.

    Returns:
        The candidates with their measurements at the edit's prompt, and a table with a row per candidate and probe:
        ``restraint`` (its name; "before": the vanilla model), ``probe`` (−1: the edit's prompt), ``p_answer, p_other,
        stands``.  The other target is ``o_edit``, or ``o_true`` if the probe should answer ``o_edit``.
    """
    edits = [None, *(candidate.result.edit for candidate in candidates)]
    record, places = probe_record(fact, probes)
    table: Any = evaluate(model, [replace(record, index=n) for n in range(len(edits))], edits, batch_size=batch_size)
    names = [BEFORE, *(candidate.restraint.name for candidate in candidates)]
    rows: list[dict[str, Any]] = []
    for line in table.itertuples():
        probe = places[(line.task, line.prompt_index)]
        # A prompt that should give the new answer has it as target_new; every other one has it as the wrong target.
        rising = probe == -1 or probes[probe].answer == fact.target_new
        true, new = float(np.exp(-line.nll_true)), float(np.exp(-line.nll_new))
        stands = line.nll_new < line.nll_true if rising else line.nll_true < line.nll_new
        wanted, other = (new, true) if rising else (true, new)
        rows.append(
            {"restraint": names[line.record], "probe": probe, "p_answer": wanted, "p_other": other,
             "stands": bool(stands)}
        )  # fmt: skip
    measured = pd.DataFrame(rows)
    own: Any = measured[measured["probe"] == -1].set_index("restraint")
    seen = [
        replace(
            one,
            taken=bool(own.loc[one.restraint.name, "stands"]),
            probability=float(own.loc[one.restraint.name, "p_answer"]),
        )
        for one in candidates
    ]
    return seen, measured


def scores(probes: Sequence[Probe], measured: pd.DataFrame, *, held_out: bool) -> pd.DataFrame:
    """Tabulate, by candidate and kind, ``restraint, kind, stands`` (a share), ``probability`` (of answers), ``n``."""
    chosen = [n for n, probe in enumerate(probes) if probe.held_out == held_out]
    rows: Any = measured[measured["probe"].isin(chosen) & (measured["restraint"] != BEFORE)]
    rows = rows.assign(kind=[probes[n].kind for n in rows["probe"]])
    grouped = rows.groupby(["restraint", "kind"], sort=False)
    return grouped.agg(stands=("stands", "mean"), probability=("p_answer", "mean"), n=("stands", "size")).reset_index()


def takes(candidate: Candidate, table: pd.DataFrame) -> bool:
    """Whether the edit takes: at its own prompt, and in its paraphrases as far as it does without a restraint."""
    if not candidate.taken or candidate.probability < TAKEN:
        return False
    needed = min(WORDINGS, _share(table, PLAIN, "paraphrase", missing=1.0))
    return _share(table, candidate.restraint, "paraphrase", missing=1.0) >= needed


def choose(candidates: Sequence[Candidate], table: pd.DataFrame) -> Candidate:
    """Apply the module's rule; ``table`` is that of :func:`scores` on the choosing probes."""
    good = [one for one in candidates if takes(one, table)]
    if not good:
        return max(candidates, key=lambda one: (one.taken, one.probability))
    protection = {one.restraint: _protection(table, one.restraint) for one in good}
    best = max(share for share, _ in protection.values())
    even = [one for one in good if protection[one.restraint][0] > best - EVEN]
    return max(even, key=lambda one: protection[one.restraint][1])


def _protection(table: Any, restraint: Restraint) -> tuple[float, float]:
    """Means over the kinds that must not change: the share that stands, and the answers' probability."""
    rows = table[(table["restraint"] == restraint.name) & (table["kind"] != "paraphrase")]
    return (float(rows["stands"].mean()), float(rows["probability"].mean())) if len(rows) else (1.0, 1.0)


def _share(table: Any, restraint: Restraint, kind: str, *, missing: float) -> float:
    rows = table[(table["restraint"] == restraint.name) & (table["kind"] == kind)]
    return float(rows["stands"].iloc[0]) if len(rows) else missing
