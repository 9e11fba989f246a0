"""Whether a model knows the fact that is to be edited: looked at before anything is edited.

An edit of a fact that a model does not know changes a guess, and nothing can be said about what it breaks.  Asked are

1. **The prompt.**  Does it elicit ``o_true``?  It does when that is the greedy answer, or has at least
   :data:`ELICITED` of the probability.  Where nobody says what holds, the model's own greedy answer is taken.
2. **The answer**, where the model's own was taken.  A guess is unsteady: in other wordings and behind another
   subject's sentence it gives way.  A known answer keeps at least :data:`STEADY` in all of them.
3. **The subject**, likewise.  Names that nobody bears are made from its letters, and the same things are asked of
   them.  A model that is as sure about them as about the subject does not know it.

The thresholds were held against the bundled model, of which all is known: :data:`STEADY` is passed by all of 150 facts
that it was taught, and by one in six of those that it was not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from driftlens.clinics.answers import Answer, greedy_answers, says
from driftlens.clinics.templates import Relation
from driftlens.data import Fact, Record, TaskPrompt
from driftlens.data.tasks import Asked, all_tasks
from driftlens.evaluation import evaluate
from driftlens.models import LensModel
from driftlens.models.memory import in_batches
from driftlens.prompts import pad_rows

__all__ = ["Knowledge", "examine"]

ELICITED = 0.2
"""With a fifth of the probability, at most four other answers can be as likely."""

STEADY = 0.7
"""A known answer's probability in every wording, at least."""

CONTROLS = 20
"""So many invented names; at most one of them (5 %) may be asked about with as much certainty as the subject."""

WRAPPED = ("I know that {}", "I have read that {}", "The news is that {}")
"""Other wordings where the relation has none."""

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
        true_probability: its probability.
        new_probability: that of the target that is to be edited in.
        wordings: in how many wordings the answer was looked for.
        steadiness: the least probability it has in any of them.
        certainty: the mean probability of the likeliest token over everything asked about the subject; NaN where
            ``target_true`` was given, and nobody asked.
        control_certainty: the same of the invented names, most certain first; none where nobody asked.
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
    certainty: float
    control_certainty: tuple[float, ...]
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
    contexts: Sequence[str] = (),
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
        contexts: sentences about others, to be put in front.
        seed: of the invented names.
        batch_size: prompts at a time.

    Raises:
        DriftlensError: a prompt is too long for the model, or a target is empty.
    """
    text = prompt.replace("{}", subject, 1)
    (answer,) = greedy_answers(model, [text], batch_size=batch_size)
    true = target_true or answer.text
    templates = [prompt, *(one for one in (relation.templates if relation else ()) if one != prompt)][:_WORDINGS]
    if len(templates) < 3:
        templates += [one.replace("{}", prompt, 1) for one in WRAPPED]
    asked = [one.replace("{}", subject, 1) for one in templates]
    asked += [f"{context} {asked[0]}" for context in contexts]
    if true and true != target_new:
        fact = Fact(subject=subject, prompt=prompt, target_true=true, target_new=target_new)
        probability, new_probability, steadiness = _probabilities(model, fact, asked, batch_size)
    else:  # the model says what is to be edited in, or nothing
        probability, new_probability, steadiness = answer.probability, answer.probability, answer.probability
    certainties = [float("nan")]
    if target_true is None:  # who names the answer knows that the subject is known
        others = [one.templates[0] for one in relations][:_RELATIONS]
        certainties = _certainties(model, subject, [*templates, *others], seed, batch_size)
    found = Knowledge(
        answer=answer.text,
        answer_probability=answer.probability,
        entropy=answer.entropy,
        target_true=true,
        given=target_true is not None,
        true_probability=probability,
        new_probability=new_probability,
        wordings=len(asked),
        steadiness=steadiness,
        certainty=certainties[0],
        control_certainty=tuple(sorted(certainties[1:], reverse=True)),
        objection=None,
    )
    return replace(found, objection=_objection(found, answer, subject, text, target_new))


def _objection(found: Knowledge, answer: Answer, subject: str, text: str, new: str) -> str | None:
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
    if found.steadiness < STEADY:
        return (
            f"the prompt {text!r} elicits a guess: {said}, but in another wording that answer's probability is "
            f"{found.steadiness:.2f}; say with --true what holds"
        )
    return None


def _probabilities(model: LensModel, fact: Fact, asked: Sequence[str], batch_size: int) -> tuple[float, float, float]:
    """P(o_true) and P(o_edit) behind the first text, and the least P(o_true) behind any."""
    tasks = all_tasks(fact, {"neighborhood": [Asked(text, fact.target_true) for text in asked]})
    record = Record(index=0, fact=fact, tasks={**tasks, "distract_neighborhood": tuple[TaskPrompt, ...]()})
    table = evaluate(model, record, batch_size=batch_size)
    true, new = (torch.tensor(table[column].to_numpy()).neg().exp() for column in ("nll_true", "nll_new"))
    return float(true[0]), float(new[0]), float(true.min())


@torch.no_grad()
def _certainties(model: LensModel, subject: str, templates: Sequence[str], seed: int, batch_size: int) -> list[float]:
    """Of the subject and of the invented names: the mean probability of the likeliest next token."""
    names = [subject, *invented_names(subject, CONTROLS, seed)]
    rows = [list(model.encode(one.replace("{}", name, 1)).ids) for name in names for one in templates]

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
