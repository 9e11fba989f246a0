"""Test whether a model knows the fact that is to be edited, before anything is edited.

If a model does not know a fact, an edit of it changes a guess, and nothing can be said about what it breaks. The test
asks about

1. **The prompt.**  Does it elicit ``o_true``?  It does if ``o_true`` is the greedy answer, or has at least the
   probability :data:`ELICITED`.  If no current target is given, the model's own greedy answer is used.
2. **The answer**, if the model's own is used.  A guess is unsteady: it changes with the wording.  The median of the
   answer's probability over wordings is compared with that of other subjects asked the same, most of which are known:
   its shortfall from 1 may be at most :data:`LESS_STEADY` times theirs.  How steady a known answer is depends on the
   model and on the wordings, so a fixed bound would not work.
3. **The subject**, in the same case.  Invented names are made from the subject's letters, and the same questions are
   asked about them.  A model that is as sure about them as about the subject does not know the subject.

We checked the test on two models with facts that they were taught and facts that they were not. For the bundled model,
all of the former and one in ten of the latter pass. For a model trained on the real benchmark's statements, two thirds
and one in twenty pass.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from driftlens.clinics.answers import GreedyAnswer, greedy_answers, says
from driftlens.clinics.english import asked_of
from driftlens.clinics.relation import WRAPPED, Relation, with_article_of
from driftlens.data import Fact, Record, TaskPrompt
from driftlens.data.tasks import Asked, all_tasks
from driftlens.evaluation import evaluate
from driftlens.models import LensModel
from driftlens.models.memory import in_batches
from driftlens.models.prompts import pad_rows, tokenize_prompt, tokenize_prompts

__all__ = ["Knowledge", "examine"]

ELICITED = 0.2
"""With a fifth of the probability, at most four other answers can be equally likely."""

LESS_STEADY = 3.0
"""A known answer may be at most this many times as unsteady as other subjects' answers."""

STEADY = 0.7
"""The required steadiness if there are no other subjects to compare with."""

ALWAYS, NEVER = 0.95, 0.5
"""Steadiness that always suffices, and steadiness that never does."""

PEERS = 12
"""The number of other subjects; with fewer than half of them, no comparison is made."""

CONTROLS = 20
"""The number of invented names; for at most one of them (5 %) may the model be as certain as for the subject."""

_WORDINGS, _RELATIONS = 6, 8


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """The result of the test.

    Attributes:
        answer: the model's greedy answer to the prompt.
        answer_probability: the answer's probability.
        entropy: entropy of the next token, in nats.
        target_true: the current target: as given, or the model's answer.
        given: whether the current target was given.
        true_probability: probability of all tokens of ``target_true``.
        new_probability: probability of all tokens of the new target.
        wordings: the number of wordings in which the answer was tested.
        steadiness: the median probability of the answer over the wordings.
        needed: the least steadiness of a known answer; NaN if ``target_true`` was given.
        certainty: the mean probability of the most probable next token over all questions about the subject; NaN if
            ``target_true`` was given and no questions were asked.
        control_certainty: the same for the invented names, in descending order; empty if no questions were asked.
        subject_kind: the assumed kind of the subject ("person"), which determines what else it is asked; None: unknown.
        objection: the reason why nothing should be edited, in a sentence; None if there is no reason.
    """

    answer: str
    answer_probability: float
    entropy: float
    target_true: str
    given: bool
    true_probability: float
    new_probability: float
    wordings: int
    steadiness: float
    needed: float
    certainty: float
    control_certainty: tuple[float, ...]
    subject_kind: str | None
    objection: str | None

    @property
    def as_sure_of(self) -> int:
        """The number of invented names about which the model is at least as certain."""
        return sum(value >= self.certainty for value in self.control_certainty)


def examine(
    model: LensModel,
    *,
    subject: str,
    prompt: str,
    target_new: str,
    target_true: str | None,
    relation: Relation | None,
    relations: Sequence[Relation],
    subject_kind: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Knowledge:
    """Test the vanilla model.

    Args:
        model: the vanilla model.
        subject: the fact's subject.
        prompt: the fact's template.
        target_new: the new target.
        target_true: the current target, if known.
        relation: the relation whose template the prompt is, if known.
        relations: other relations to ask of the same subject.
        subject_kind: what the subject is, if known.
        seed: seed of the invented names.
        batch_size: prompts at a time.

    Raises:
        DriftlensError: a prompt is too long for the model, or a target is empty.
    """
    text = prompt.replace("{}", subject, 1)
    (answer,) = greedy_answers(model, [text], batch_size=batch_size)
    true = target_true or answer.text
    others_of = [with_article_of(prompt, one) for one in (relation.templates if relation else ())]
    templates = [prompt, *(one for one in others_of if one != prompt)][:_WORDINGS]
    if len(templates) < 3:
        templates += [one.replace("{}", prompt, 1) for one in WRAPPED]
    probability = new_probability = steadiness = answer.probability
    needed, certainties = float("nan"), [float("nan")]
    if true and true != target_new:  # otherwise the model answers with the new target, or with nothing
        fact = Fact(subject=subject, prompt=prompt, target_true=true, target_new=target_new)
        peers = _peers(relation, subject, seed) if target_true is None else []
        answers = greedy_answers(model, [asked_of(prompt, name) for name in peers], batch_size=batch_size)
        others = [(name, one.text) for name, one in zip(peers, answers, strict=True) if one.says_something]
        probabilities, new_probability = _probabilities(model, fact, templates, others, batch_size)
        probability, steadiness = float(probabilities[0, 0]), float(np.median(probabilities[0]))
        needed = _needed(np.median(probabilities[1:], axis=1)) if target_true is None else needed
    if target_true is None:  # a user who names the answer knows that the model knows the subject
        else_asked = [with_article_of(prompt, one.templates[0]) for one in relations][:_RELATIONS]
        certainties = _certainties(model, subject, [*templates, *else_asked], seed, batch_size)
    found = Knowledge(
        answer=answer.text,
        answer_probability=answer.probability,
        entropy=answer.entropy,
        target_true=true,
        given=target_true is not None,
        true_probability=probability,
        new_probability=new_probability,
        wordings=len(templates),
        steadiness=steadiness,
        needed=needed,
        certainty=certainties[0],
        control_certainty=tuple(sorted(certainties[1:], reverse=True)),
        subject_kind=subject_kind,
        objection=None,
    )
    return replace(found, objection=_objection(found, answer, subject, text, target_new))


def _objection(found: Knowledge, answer: GreedyAnswer, subject: str, text: str, new: str) -> str | None:
    said = (
        f"the model goes on with {answer.continuation.strip()[:40]!r}"
        if not answer.says_something
        else (f"the model answers {found.answer!r} (probability {found.answer_probability:.2f})")
    )
    if says(answer.continuation, new):
        return f"the model already says {new!r} behind {text!r}: there is nothing to edit"
    if found.given:
        if says(answer.continuation, found.target_true) or found.true_probability >= ELICITED:
            return None
        return (
            f"the prompt {text!r} does not elicit {found.target_true!r} (probability {found.true_probability:.2f}): "
            f"{said}"
        )
    if not answer.says_something:
        return f"the prompt {text!r} elicits no answer: {said}; say with --true what holds"
    if found.as_sure_of > CONTROLS // 20:
        return (
            f"the model does not seem to know {subject!r}: it is as sure about {found.as_sure_of} of {CONTROLS} "
            f"invented names; {said}"
        )
    if found.steadiness < found.needed:
        return (
            f"the prompt {text!r} elicits a guess: {said}, but over {found.wordings} wordings that answer's median "
            f"probability is {found.steadiness:.2f}, where a known one has {found.needed:.2f}; say with --true what "
            "holds"
        )
    return None


def _peers(relation: Relation | None, subject: str, seed: int) -> list[str]:
    names = [name for name in (relation.subjects if relation else ()) if name != subject]
    return random.Random(f"driftlens peers {seed} {subject}").sample(names, min(PEERS, len(names)))


def _needed(steadiness: Sequence[float] | np.ndarray[Any, Any]) -> float:
    """The least steadiness of a known answer, derived from other subjects' answers."""
    if 2 * len(steadiness) < PEERS:
        return STEADY
    return float(np.clip(1 - LESS_STEADY * (1 - np.median(steadiness)), NEVER, ALWAYS))


def _probabilities(
    model: LensModel, fact: Fact, templates: Sequence[str], others: Sequence[tuple[str, str]], batch_size: int
) -> tuple[np.ndarray[Any, Any], float]:
    """Return the probabilities of answers over wordings, and P(o_edit) after the edit's prompt.

    The former are of ``o_true`` and of the other subjects' own answers, ``[subjects, wordings]``. They are
    probabilities of whole targets: with a mean over tokens, a guess at a long name would look known, because the tokens
    after its first are nearly certain.
    """
    asked = [Asked(one.replace("{}", fact.subject, 1), fact.target_true) for one in templates]
    asked += [Asked(asked_of(one, name), answer) for name, answer in others for one in templates]
    tasks = all_tasks(fact, {"neighborhood": asked})
    record = Record(index=0, fact=fact, tasks={**tasks, "distract_neighborhood": tuple[TaskPrompt, ...]()})
    # First, because a prompt that is too long is an error here.
    tokens = np.array([len(tokenize_prompt(model, one.text, one.answer).target_ids) for one in asked])
    table = evaluate(model, record, tasks=["neighborhood"], batch_size=batch_size)
    true = np.exp(-tokens * table["nll_true"].to_numpy())
    n_new = len(tokenize_prompt(model, fact.text, fact.target_new).target_ids)
    return true.reshape(1 + len(others), len(templates)), float(np.exp(-n_new * table["nll_new"].to_numpy()[0]))


@torch.no_grad()
def _certainties(model: LensModel, subject: str, templates: Sequence[str], seed: int, batch_size: int) -> list[float]:
    """The mean probability of the most probable next token, for the subject and for the invented names."""
    names = [subject, *invented_names(subject, CONTROLS, seed)]
    texts = [(one.replace("{}", name, 1), "") for name in names for one in templates]
    rows = [list(one.ids) for one in tokenize_prompts(model, texts)]

    def likeliest(batch: Sequence[list[int]]) -> list[float]:
        tokens, _ = pad_rows(model, batch)
        last = torch.tensor([len(row) - 1 for row in batch], device=model.device)
        resid = model.run(tokens)[torch.arange(len(batch), device=model.device), last]
        return model.unembed(resid).float().softmax(dim=-1).amax(dim=-1).tolist()

    values = torch.tensor(in_batches(rows, batch_size, likeliest)).view(len(names), len(templates))
    return values.double().mean(dim=1).tolist()


def invented_names(subject: str, count: int, seed: int = 0) -> list[str]:
    """Make names in the subject's shape: every vowel becomes another vowel, every consonant another consonant."""
    rng = random.Random(f"driftlens names {seed} {subject}")
    vowels, consonants = "aeiou", "bcdfghklmnprstvwz"

    def other(letter: str) -> str:
        if not letter.isalpha():
            return letter
        drawn = rng.choice(vowels if letter.lower() in vowels + "y" else consonants)
        return drawn.upper() if letter.isupper() else drawn

    return ["".join(map(other, subject)) for _ in range(count)]
