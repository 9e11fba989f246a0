"""Probes: prompts whose answers show the side effects of an edit.

==============  =====================================================================  ==========================
kind            prompt                                                                 after a good edit
==============  =====================================================================  ==========================
paraphrase      the edited fact in other words                                         the new answer
relation        the edited subject, another relation                                   its previous answer
neighbour       another subject, the edited relation                                   its previous answer
distractor      the same after the edited sentence, "{prompt} {new}. …"                its previous answer
yours           the user's prompts                                                     its previous or given answer
==============  =====================================================================  ==========================

No ground truth is needed: a probe's answer is the vanilla model's greedy answer, and a probe is used only if the model
is sure of it (:data:`SURE`).  An unsure answer could change without any harm by the edit.

Half of the probes are used to choose γ; the others are held out for the report, so that its numbers are independent of
the choice.  All wordings of one relation, and all prompts about one other subject, are in the same half.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from driftlens.clinics.answers import GreedyAnswer, greedy_answers, says
from driftlens.clinics.english import asked_of
from driftlens.clinics.generated import Generated
from driftlens.clinics.relation import WRAPPED, Relation, normal, with_article_of
from driftlens.data import TASKS, Fact, Record, TaskPrompt
from driftlens.data.joints import distractor
from driftlens.models import LensModel

__all__ = ["KINDS", "SURE", "Probe", "UserProbe", "build_probes", "probe_record"]

Kind = Literal["paraphrase", "relation", "neighbour", "distractor", "yours"]

KINDS: tuple[Kind, ...] = ("paraphrase", "relation", "neighbour", "distractor", "yours")

SURE = 0.5
"""An answer counts if it is more probable than all other answers together."""

MOST: Mapping[str, int] = {"paraphrase": 8, "relation": 16, "neighbour": 12, "distractor": 12}
_ASKED = 3
"""The number of candidates for each probe that is needed: a model is sure of only some."""

OF_PLACES = (
    "{} is in the country of",
    "The country of {} is",
    "{} is on the continent of",
    "The language used in {} is",
    "{} is a city in",
)
"""Questions about an answer that is a place: an edit of a subject's place also changes its country, for example."""

_WORDINGS = 6
"""The number of wordings of a relation to draw from, in order: a data set's own come before the general ones."""

# The evaluation accepts only its own tasks; these stand in for the kinds of probes.
_TASK_OF = {
    "paraphrase": "paraphrase",
    "relation": "relation",
    "yours": "other_task",
    "neighbour": "neighborhood",
    "distractor": "distract_neighborhood",
}


@dataclass(frozen=True, kw_only=True)
class UserProbe:
    """A prompt to watch, as text or with ``{}`` for the subject, and its right answer, if known."""

    prompt: str
    answer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One probe.

    Attributes:
        kind: see the module.
        prompt: its text.
        before: the vanilla model's greedy answer.
        answer: the answer it should have after the edit.
        probability: the vanilla model's probability of ``before``.
        group: the relation or the other subject it is about.
        held_out: whether it is only for the report, not for choosing γ.
        distractor: the edited sentence at the beginning, if there is one.
        failed_before: the unedited model does not give the answer either, so the edit is not to blame.
    """

    kind: Kind
    prompt: str
    before: str
    answer: str
    probability: float
    group: str
    held_out: bool = False
    distractor: str = ""
    failed_before: bool = False


def build_probes(
    model: LensModel,
    fact: Fact,
    *,
    relation: Relation | None,
    others: Sequence[Relation],
    generated: Generated,
    peers: Sequence[str] = (),
    given: Sequence[UserProbe] = (),
    avoid: Collection[str] = (),
    seed: int = 0,
    batch_size: int = 64,
) -> list[Probe]:
    """Make the probes that the vanilla model is sure of, and assign each to a half.

    Args:
        model: the vanilla model.
        fact: the edit.
        relation: the relation whose template the edit's prompt is, if known.
        others: other relations to ask of its subject.
        generated: prompts from the model's own generations.
        peers: other subjects of the same kind, for a prompt of no known relation.
        given: the user's prompts.
        avoid: texts that must not be probes, because something else is measured on them.
        seed: seed of all random choices.
        batch_size: prompts at a time.

    Raises:
        DriftlensError: a given prompt is empty or too long for the model.
    """
    rng = random.Random(f"driftlens probes {seed} {fact.text}")
    never = {normal(text) for text in (*avoid, fact.text)}
    entailed = _entailed(model, fact, relation, batch_size)
    first, second = _candidates(fact, relation, others, peers, generated, rng)
    kept: dict[Kind, list[Probe]] = {kind: [] for kind in KINDS}
    for candidates in (first, second):
        # Each text only once, at its first occurrence: the model's own texts repeat templates.
        by_text = {normal(one[1]): one for one in reversed(candidates) if normal(one[1]) not in never}
        asked = [one for one in candidates if by_text.get(normal(one[1])) is one and len(kept[one[0]]) < MOST[one[0]]]
        answers = greedy_answers(model, [text for _, text, _ in asked], batch_size=batch_size) if asked else []
        for (kind, text, group), answer in zip(asked, answers, strict=True):
            probe = _probe(kind, text, group, answer, fact)
            if probe is None or len(kept[kind]) >= MOST[kind]:
                continue
            if kind == "relation" and any(says(answer.continuation, one) for one in entailed):
                continue  # it depends on the old answer, so an edit that changes it is right
            about = fact.subject if kind == "relation" else group
            if _same(answer.text, about) or (kind == "neighbour" and group in {one.group for one in kept[kind]}):
                continue  # "The Colosseum is named after" the Colosseum: an echo
            kept[kind].append(probe)
    sides = {kind: _split(own) for kind, own in kept.items()}
    sides["distractor"] = _distracted(model, sides["neighbour"], fact, never, batch_size)
    sides["yours"] = _given(model, given, fact, batch_size)
    return [probe for kind in KINDS for probe in sides[kind]]


def probe_record(fact: Fact, probes: Sequence[Probe]) -> tuple[Record, dict[tuple[str, int], int]]:
    """Put the probes into a record that :func:`driftlens.evaluate` accepts, and map places in it to probes.

    The map gives the number of the probe by task and place, −1 for the edit's own prompt.
    """
    own = TaskPrompt(text=fact.text, target_true=fact.target_true, target_new=fact.target_new)
    tasks: dict[str, tuple[TaskPrompt, ...]] = {**dict.fromkeys(TASKS, ()), "rewrite": (own,)}
    places = {("rewrite", 0): -1}
    for number, probe in enumerate(probes):
        task = _TASK_OF[probe.kind]
        places[(task, len(tasks[task]))] = number
        true = fact.target_true if probe.answer == fact.target_new else probe.answer
        prompt = TaskPrompt(
            text=probe.prompt, target_true=true, target_new=fact.target_new, distractor=probe.distractor
        )
        tasks[task] = (*tasks[task], prompt)
    return Record(index=0, fact=fact, tasks=tasks), places


def _candidates(
    fact: Fact,
    relation: Relation | None,
    others: Sequence[Relation],
    peers: Sequence[str],
    generated: Generated,
    rng: random.Random,
) -> tuple[list[tuple[Kind, str, str]], list[tuple[Kind, str, str]]]:
    """List kind, text and group of all questions, the most important first, and those to ask if too few remain.

    The latter are the neighbours in another wording.
    """
    found: list[tuple[Kind, str, str]] = []
    templates = [with_article_of(fact.prompt, one) for one in (relation.templates if relation else ())]
    wordings = [one for one in templates if normal(one) != normal(fact.prompt)]

    def add(kind: Kind, rows: Iterable[tuple[str, str]]) -> None:
        found.extend((kind, text, group) for text, group in rows)

    add("paraphrase", ((one.replace("{}", fact.subject, 1), f"wording {n}") for n, one in enumerate(wordings)))
    if not wordings:  # a frame preserves the prompt's meaning; a sentence of the model's own may not
        add("paraphrase", ((one.replace("{}", fact.text, 1), one) for one in WRAPPED))
    # One wording of each relation, then a second one: many relations are more informative than many wordings of one.
    drawn = [(one, rng.sample(one.templates[:_WORDINGS], min(2, len(one.templates)))) for one in others]
    rows = [
        (with_article_of(fact.prompt, texts[turn]).replace("{}", fact.subject, 1), one.id)
        for turn in range(2)
        for one, texts in drawn
        if turn < len(texts)
    ]
    add("relation", rows[: _ASKED * MOST["relation"]])
    add("relation", ((text, text) for text in generated.statements))
    names = [name for name in (relation.subjects if relation else peers) if not _same(name, fact.subject)]
    rng.shuffle(names)
    names = [*names[: _ASKED * MOST["neighbour"]], *generated.neighbors]
    templates = [fact.prompt, *wordings]
    first = [rng.choice(templates) for _ in names]
    add("neighbour", ((asked_of(one, name), name) for one, name in zip(first, names, strict=True)))
    if not wordings:
        return found, []
    second = [rng.choice([each for each in templates if each != one]) for one in first]
    return found, [("neighbour", asked_of(one, name), name) for one, name in zip(second, names, strict=True)]


def _same(name: str, subject: str) -> bool:
    """Whether two names denote the same subject: "The Eiffel Tower" is the Eiffel Tower."""
    return normal(name).removeprefix("the ") == normal(subject).removeprefix("the ")


def _entailed(model: LensModel, fact: Fact, relation: Relation | None, batch_size: int) -> set[str]:
    """Answers that the fact entails for other relations of its subject.

    These are ``o_true`` itself and, for a place, the country, the continent and the language that the model gives for
    it.
    """
    found = {fact.target_true}
    if relation is not None and relation.object_kind in ("place", "country"):
        asked = [one.replace("{}", fact.target_true, 1) for one in OF_PLACES]
        answers = greedy_answers(model, asked, batch_size=batch_size)
        found |= {one.text for one in answers if one.says_something}
    return found


def _probe(kind: Kind, text: str, group: str, answer: GreedyAnswer, fact: Fact) -> Probe | None:
    """Make the candidate a probe; None if its answer is not suitable for judging an edit."""
    if kind == "paraphrase":
        if not says(answer.continuation, fact.target_true):
            return None
        wanted, before = fact.target_new, fact.target_true
    else:
        # If the model already answers o_edit, that answer shows nothing after the edit.
        if not _sure(answer) or says(answer.continuation, fact.target_new):
            return None
        wanted = before = answer.text
    return Probe(kind=kind, prompt=text, before=before, answer=wanted, probability=answer.probability, group=group)


def _distracted(
    model: LensModel, neighbors: Sequence[Probe], fact: Fact, never: Collection[str], batch_size: int
) -> list[Probe]:
    """The neighbours after the edited sentence, provided that the vanilla model is not distracted by it."""
    before = distractor(fact.text, fact.target_new)
    rows = [replace(one, kind="distractor", prompt=before + one.prompt, distractor=before) for one in neighbors]
    rows = [one for one in rows if normal(one.prompt) not in never]
    answers = greedy_answers(model, [one.prompt for one in rows], batch_size=batch_size) if rows else []
    return [
        replace(one, probability=answer.probability)
        for one, answer in zip(rows, answers, strict=True)
        if says(answer.continuation, one.answer)
    ]


def _given(model: LensModel, given: Sequence[UserProbe], fact: Fact, batch_size: int) -> list[Probe]:
    texts = [one.prompt.replace("{}", fact.subject, 1) for one in given]
    answers = greedy_answers(model, texts, batch_size=batch_size) if texts else []
    probes: list[Probe] = []
    for one, text, answer in zip(given, texts, answers, strict=True):
        before = answer.text or answer.continuation.strip() or "…"
        wanted = (one.answer or before).strip()
        failed = not says(answer.continuation, wanted) and wanted != fact.target_new
        probes.append(
            Probe(
                kind="yours",
                prompt=text,
                before=before,
                answer=wanted,
                probability=answer.probability,
                group=text,
                failed_before=failed and wanted != before,
            )
        )
    return probes


def _split(probes: Sequence[Probe]) -> list[Probe]:
    """Hold out every second group, starting with the first: the verdict needs more of them than the choice."""
    groups = list(dict.fromkeys(probe.group for probe in probes))
    held_out = set(groups[::2])
    return [replace(probe, held_out=probe.group in held_out) for probe in probes]


def _sure(answer: GreedyAnswer) -> bool:
    return answer.says_something and answer.probability >= SURE
