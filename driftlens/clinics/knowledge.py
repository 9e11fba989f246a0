"""Whether a model knows the fact that is to be edited: looked at before anything is edited.

An edit of a fact that a model does not know changes a guess, and nothing can be said about what it breaks.  Asked are

1. **The prompt.**  Does it elicit ``o_true``?  It does when that is the greedy answer, or has at least
   :data:`ELICITED` of the probability.  Where nobody says what holds, the model's own greedy answer is taken.
2. **The answer**, where the model's own was taken.  A guess is unsteady: in other wordings it gives way.  Its
   probability, the median over the wordings, may lack at most :data:`LESS_STEADY` times as much to 1 as that of other
   subjects asked the same, of which most are known.  How steady a known answer is depends on the model and on the
   wordings, so no fixed bound would do.
3. **The subject**, likewise.  Names that nobody bears are made from its letters, and the same things are asked of
   them.  A model that is as sure about them as about the subject does not know it.

Held against facts of two models of which all is known, some that they were taught and some that they were not: the
bundled model passes all of the former and one in ten of the latter, a model of the real benchmark's statements two
thirds and one in twenty.
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
"""With a fifth of the probability, at most four other answers can be as likely."""

LESS_STEADY = 3.0
"""So many times as unsteady as other subjects' answers may a known one be."""

STEADY = 0.7
"""The least steadiness where there are no other subjects to compare with."""

ALWAYS, NEVER = 0.95, 0.5
"""Steadiness that is always enough, and that never is."""

PEERS = 12
"""So many other subjects; with fewer than half of them nothing is compared."""

CONTROLS = 20
"""So many invented names; at most one of them (5 %) may be asked about with as much certainty as the subject."""

_WORDINGS, _RELATIONS = 6, 8


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What was found.

    Attributes:
        answer: the model's greedy answer to the prompt.
        answer_probability: its probability.
        entropy: of the next token, in nats.
        target_true: what holds: as given, or the model's answer.
        given: whether it was given.
        true_probability: its probability, of all its tokens.
        new_probability: that of the target that is to be edited in.
        wordings: in how many wordings the answer was looked for.
        steadiness: the median of its probabilities in them.
        needed: the least steadiness that a known answer has; NaN where ``target_true`` was given.
        certainty: the mean probability of the likeliest token over everything asked about the subject; NaN where
            ``target_true`` was given, and nobody asked.
        control_certainty: the same of the invented names, most certain first; none where nobody asked.
        subject_kind: what the subject is taken for ("person"), and so what else it is asked; None: nobody knows.
        objection: why nothing should be edited, in a sentence; None where there is no reason.
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
        """How many invented names the model is as certain about."""
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
    """Ask the vanilla model.

    Args:
        model: the vanilla model.
        subject: the fact's subject.
        prompt: its template.
        target_new: what is to be edited in.
        target_true: what holds, if anybody says so.
        relation: what the prompt is a template of, if known.
        relations: other things to ask of the same subject.
        subject_kind: what the subject is, if known.
        seed: of the invented names.
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
    if true and true != target_new:  # else the model says what is to be edited in, or nothing
        fact = Fact(subject=subject, prompt=prompt, target_true=true, target_new=target_new)
        peers = _peers(relation, subject, seed) if target_true is None else []
        answers = greedy_answers(model, [asked_of(prompt, name) for name in peers], batch_size=batch_size)
        others = [(name, one.text) for name, one in zip(peers, answers, strict=True) if one.says_something]
        probabilities, new_probability = _probabilities(model, fact, templates, others, batch_size)
        probability, steadiness = float(probabilities[0, 0]), float(np.median(probabilities[0]))
        needed = _needed(np.median(probabilities[1:], axis=1)) if target_true is None else needed
    if target_true is None:  # who names the answer knows that the subject is known
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
    """The least steadiness of a known answer, by that of other subjects' answers."""
    if 2 * len(steadiness) < PEERS:
        return STEADY
    return float(np.clip(1 - LESS_STEADY * (1 - np.median(steadiness)), NEVER, ALWAYS))


def _probabilities(
    model: LensModel, fact: Fact, templates: Sequence[str], others: Sequence[tuple[str, str]], batch_size: int
) -> tuple[np.ndarray[Any, Any], float]:
    """Of ``o_true`` behind every wording, and so of the others' own answers, ``[subjects, wordings]``; P(o_edit)
    behind the edit's prompt.  Of whole targets: a mean over tokens would make a guess at a long name look known, since
    behind its first token the others are certain.
    """
    asked = [Asked(one.replace("{}", fact.subject, 1), fact.target_true) for one in templates]
    asked += [Asked(asked_of(one, name), answer) for name, answer in others for one in templates]
    tasks = all_tasks(fact, {"neighborhood": asked})
    record = Record(index=0, fact=fact, tasks={**tasks, "distract_neighborhood": tuple[TaskPrompt, ...]()})
    # First, since a prompt that is too long is an error here.
    tokens = np.array([len(tokenize_prompt(model, one.text, one.answer).target_ids) for one in asked])
    table = evaluate(model, record, tasks=["neighborhood"], batch_size=batch_size)
    true = np.exp(-tokens * table["nll_true"].to_numpy())
    n_new = len(tokenize_prompt(model, fact.text, fact.target_new).target_ids)
    return true.reshape(1 + len(others), len(templates)), float(np.exp(-n_new * table["nll_new"].to_numpy()[0]))


@torch.no_grad()
def _certainties(model: LensModel, subject: str, templates: Sequence[str], seed: int, batch_size: int) -> list[float]:
    """Of the subject and of the invented names: the mean probability of the likeliest next token."""
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
    """Names in the subject's shape: every vowel another vowel, every consonant another consonant."""
    rng = random.Random(f"driftlens names {seed} {subject}")
    vowels, consonants = "aeiou", "bcdfghklmnprstvwz"

    def other(letter: str) -> str:
        if not letter.isalpha():
            return letter
        drawn = rng.choice(vowels if letter.lower() in vowels + "y" else consonants)
        return drawn.upper() if letter.isupper() else drawn

    return ["".join(map(other, subject)) for _ in range(count)]
