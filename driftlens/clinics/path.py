"""The candidates: the editor as it is (γ = 0) and with SADR at a few γ, each measured on the probes, and the choice.

The rule.  Among the candidates with which the edit *takes* (:func:`takes`), the one that protects the choosing probes
best: the largest share of relation, neighbour, distractor and user's probes that stand, the mean over these kinds.  A
probe stands when its answer is likelier than the new target, the paper's RS, NS and DNS.  Shares within
:data:`EVEN` are even; then the mean probability of the answers decides.  Where the edit takes with none, the one that
comes nearest is shown, and the verdict will say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from driftlens.clinics.probes import Probe, probe_record
from driftlens.data import Fact
from driftlens.editors import SADR, sadr_gamma, second_moments
from driftlens.editors.base import Editor
from driftlens.editors.restrained import with_sadr
from driftlens.edits import EditResult
from driftlens.errors import DriftlensError
from driftlens.evaluation import evaluate
from driftlens.models import LensModel
from driftlens.registry import EDITORS

__all__ = ["FACTORS", "Candidate", "choose", "editor_for", "gamma_path", "measure", "scores", "take_moments", "takes"]

FACTORS = (0.2, 0.4, 1.0, 2.0, 4.0)
"""The path of γ, in units of the model's preset."""

TAKEN = 0.5
"""P(o_edit) behind the edit's prompt, at least: likelier than all other answers together."""

WORDINGS = 0.5
"""In so many of the paraphrases the new target must win, unless it does not without SADR either."""

EVEN = 0.02
"""Shares that differ by less are taken as even: with a few dozen probes they differ by one or none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """An edit of the path.

    Attributes:
        gamma: SADR's weight; 0 is the editor without it.
        result: what the editor gave back.
        seconds: how long it took.
        taken: P(o_edit) > P(o_true) behind the edit's prompt.
        probability: P(o_edit) there.
    """

    gamma: float
    result: EditResult
    seconds: float
    taken: bool = False
    probability: float = 0.0


def editor_for(model: LensModel, editor: str | Editor | Callable[[float], Editor], gamma: float) -> Editor:
    """The editor with SADR at ``gamma``, without it where that is 0.

    Args:
        model: the model to be edited.
        editor: "rome", "memit" or "pmet" with the model's presets; an editor, whose other regularizers stay; or a
            function from γ to an editor.
        gamma: SADR's weight.

    Raises:
        DriftlensError: an unknown name.
    """
    if isinstance(editor, str):
        return EDITORS.find(editor).for_model(model, regularizers=(SADR(gamma=gamma),) if gamma else ())
    if isinstance(editor, Editor):
        return with_sadr(model, editor, gamma)
    return editor(gamma)


def take_moments(model: LensModel, editor: Editor) -> Editor:
    """The editor with the second moments of its layers, over its own corpus or the model's default."""
    layers = editor.missing_second_moments
    if not layers:
        return editor
    moments = second_moments(model, layers, editor.moment_corpus(model), samples=editor.moment_samples)
    return editor.with_second_moments(moments)


def gamma_path(model: LensModel, editor: Editor, gammas: Sequence[float] | None) -> tuple[float, ...]:
    """0 and the weights to try, ascending: those given, those that the editor has, or five around its preset.

    Raises:
        DriftlensError: a weight that is no number above 0.
    """
    if gammas is None and (known := editor.gammas(model)) is not None:
        return (0.0, *known)
    if gammas is None:
        centre = sadr_gamma(model, editor.presets)
        return (0.0, *(float(f"{centre * factor:.6g}") for factor in FACTORS))
    for gamma in gammas:
        if not 0 <= gamma < float("inf"):
            raise DriftlensError(f"gamma is {gamma}; expected numbers above 0, e.g. 0.005")
    return (0.0, *sorted({float(gamma) for gamma in gammas if gamma > 0}))


def measure(
    model: LensModel, fact: Fact, probes: Sequence[Probe], candidates: Sequence[Candidate], *, batch_size: int = 64
) -> tuple[list[Candidate], pd.DataFrame]:
    """Both targets' probabilities of every probe under every candidate, and in the vanilla model.

    Returns:
        The candidates with what was seen at the edit's prompt, and a table with a row per candidate and probe:
        ``gamma`` (NaN: the vanilla model), ``probe`` (−1: the edit's prompt), ``p_answer, p_other, stands``.  The
        other target is ``o_edit``, or ``o_true`` where ``o_edit`` is what is wanted.
    """
    edits = [None, *(candidate.result.edit for candidate in candidates)]
    record, places = probe_record(fact, probes)
    table: Any = evaluate(model, [replace(record, index=n) for n in range(len(edits))], edits, batch_size=batch_size)
    gammas = [float("nan"), *(candidate.gamma for candidate in candidates)]
    rows: list[dict[str, Any]] = []
    for line in table.itertuples():
        probe = places[(line.task, line.prompt_index)]
        # A prompt that is to give the new answer has it as target_new, every other one as the wrong target.
        rising = probe == -1 or probes[probe].answer == fact.target_new
        true, new = float(np.exp(-line.nll_true)), float(np.exp(-line.nll_new))
        stands = line.nll_new < line.nll_true if rising else line.nll_true < line.nll_new
        wanted, other = (new, true) if rising else (true, new)
        rows.append(
            {"gamma": gammas[line.record], "probe": probe, "p_answer": wanted, "p_other": other, "stands": bool(stands)}
        )
    measured = pd.DataFrame(rows)
    own: Any = measured[measured["probe"] == -1].set_index("gamma")
    seen = [
        replace(one, taken=bool(own.loc[one.gamma, "stands"]), probability=float(own.loc[one.gamma, "p_answer"]))
        for one in candidates
    ]
    return seen, measured


def scores(probes: Sequence[Probe], measured: pd.DataFrame, *, held_out: bool) -> pd.DataFrame:
    """Per candidate and kind: ``gamma, kind, stands`` (a share), ``probability`` (of the answers), ``n``."""
    chosen = [n for n, probe in enumerate(probes) if probe.held_out == held_out]
    rows: Any = measured[measured["probe"].isin(chosen) & measured["gamma"].notna()]
    rows = rows.assign(kind=[probes[n].kind for n in rows["probe"]])
    grouped = rows.groupby(["gamma", "kind"], sort=False)
    return grouped.agg(stands=("stands", "mean"), probability=("p_answer", "mean"), n=("stands", "size")).reset_index()


def takes(candidate: Candidate, table: pd.DataFrame) -> bool:
    """Whether the edit takes: at its own prompt, and in its paraphrases as far as it does without SADR."""
    if not candidate.taken or candidate.probability < TAKEN:
        return False
    needed = min(WORDINGS, _share(table, 0.0, "paraphrase", missing=1.0))
    return _share(table, candidate.gamma, "paraphrase", missing=1.0) >= needed


def choose(candidates: Sequence[Candidate], table: pd.DataFrame) -> Candidate:
    """The rule of the module; ``table`` is that of :func:`scores` on the choosing probes."""
    good = [one for one in candidates if takes(one, table)]
    if not good:
        return max(candidates, key=lambda one: (one.taken, one.probability))
    protection = {one.gamma: _protection(table, one.gamma) for one in good}
    best = max(share for share, _ in protection.values())
    even = [one for one in good if protection[one.gamma][0] > best - EVEN]
    return max(even, key=lambda one: protection[one.gamma][1])


def _protection(table: Any, gamma: float) -> tuple[float, float]:
    """Means over the kinds that must not change: the share that stands, the answers' probability."""
    rows = table[(table["gamma"] == gamma) & (table["kind"] != "paraphrase")]
    return (float(rows["stands"].mean()), float(rows["probability"].mean())) if len(rows) else (1.0, 1.0)


def _share(table: Any, gamma: float, kind: str, *, missing: float) -> float:
    rows = table[(table["gamma"] == gamma) & (table["kind"] == kind)]
    return float(rows["stands"].iloc[0]) if len(rows) else missing
