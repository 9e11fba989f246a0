"""Explain why a trace may show nothing: the unedited model does not know the answer, or the edit fails.

A trace explains changes of probabilities. If the unedited model gives the right answer almost no probability, it cannot
fall; if the edit fails, there is no change to explain. The effects are then noise, and one line says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from driftlens.commands.trace_study import TraceStudy
    from driftlens.data import Record
    from driftlens.models import LensModel

__all__ = ["KNOWN", "TAKEN", "doubts"]

KNOWN = 0.05
"""The least P(o_true) of the unedited model from which a fall is visible."""

TAKEN = 0.5
"""The least P(o_edit) of the edited model on the edit's own prompt if the edit succeeded."""

_SEARCHED = 64


def doubts(model: LensModel, study: TraceStudy, probabilities: Any) -> str:
    """What is wrong and what to do, in one line; empty if nothing is.

    Args:
        model: the unedited model.
        study: the traced fact and prompts.
        probabilities: a row for the edit's own prompt and each traced one: ``task, true_before,
            true_after, edit_after``.
    """
    fact = study.fact
    own: Any = probabilities[probabilities["task"] == "the edit"].iloc[0]
    traced: Any = probabilities[probabilities["task"] != "the edit"]
    missing: list[str] = []
    advice: list[str] = []
    known = own.true_before >= KNOWN
    if not known:
        missing.append(
            f"the unedited model does not seem to know the fact: it continues {fact.text!r} with "
            f"{_said(model, fact.text)!r} and gives {fact.target_true!r} a probability of {own.true_before:.3f}"
        )
        advice.append("look at the spelling of the subject and at the prompt, or choose a fact that it knows")
    if own.edit_after < TAKEN or own.edit_after <= own.true_after:
        missing.append(f"the edit does not take: P({fact.target_new!r}) is {own.edit_after:.3f} on its own prompt")
        advice.append("give it more --steps, a larger --lr or --clamp, or another --layer")
    if float(traced["true_before"].max()) < KNOWN:
        missing.append(
            "on the traced prompts the unedited model gives the right answers a probability of at most "
            f"{max(0.001, traced['true_before'].max()):.3f}, so P(o_true) has nothing to lose"
        )
        number = _known_record(model, study)
        advice.append(
            f"choose prompts that it answers: --record {number}"
            if number is not None
            else "choose prompts that it answers, with --task, --record or --test-prompt"
        )
    return f"{'; '.join(missing)}. What to do: {'; '.join(advice)}" if missing else ""


def _said(model: LensModel, prompt: str) -> str:
    from driftlens.evaluation.generation import generate
    from driftlens.models.prompts import tokenize_prompt

    n_prompt = len(tokenize_prompt(model, prompt).ids)
    (found,) = generate(model, [prompt], top_k=1, max_tokens=n_prompt + 5)
    return " ".join(found.continuation.split())[:40]


def _known_record(model: LensModel, study: TraceStudy) -> int | None:
    """The first of some records whose fact and whose prompts of the task the model knows."""
    import numpy as np

    from driftlens.evaluation import evaluate

    def short(record: Record) -> Record:
        from dataclasses import replace

        from driftlens.data import TASKS, TaskPrompt

        fact = record.fact
        own = TaskPrompt(text=fact.text, target_true=fact.target_true, target_new=fact.target_new)
        asked = tuple(record.tasks[study.task][:1])
        return replace(record, tasks={**dict.fromkeys(TASKS, ()), "rewrite": (own,), "relation": asked})

    able: Sequence[Record] = [one for one in study.records if one.tasks.get(study.task)]
    if not able:
        return None
    table: Any = evaluate(model, [short(one) for one in able[:_SEARCHED]])
    table = table.assign(true=np.exp(-table["nll_true"]))
    least: Any = table.groupby("record", sort=False)["true"].min()
    good = [int(number) for number, value in least.items() if value >= KNOWN]
    return good[0] if good else None
