"""Probes: prompts whose answers show what an edit does beside what it is meant to do.

==============  =====================================================================  ==========================
kind            prompt                                                                 after a good edit
==============  =====================================================================  ==========================
paraphrase      the edited fact in other words                                         the new answer
relation        the edited subject, another relation                                   the answer it had
neighbour       another subject, the edited relation                                   the answer it had
distractor      the same behind the edited sentence, "{prompt} {new}. …"               the answer it had
yours           what the user gives                                                    the answer it had, or given
==============  =====================================================================  ==========================

No ground truth is needed: a probe's answer is what the vanilla model itself says greedily, and a probe is kept where
the model is sure of it (:data:`SURE`).  What it was not sure of could change without an edit doing harm.

Half of the probes choose γ, the other half is kept for the report, so that what is reported was not chosen by.  All
wordings of one relation, and all prompts about one other subject, stand on the same side.
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
"""An answer counts when it is likelier than all other answers together."""

MOST: Mapping[str, int] = {"paraphrase": 8, "relation": 16, "neighbour": 12, "distractor": 12}
_ASKED = 3
"""So many candidates for each probe that is wanted: a model is sure of some only."""

OF_PLACES = (
    "{} is in the country of",
    "The country of {} is",
    "{} is on the continent of",
    "The language used in {} is",
    "{} is a city in",
)
"""What else is asked of an answer that is a place: an edit that moves something there moves this as well."""

_WORDINGS = 6
"""Wordings of a relation to draw from, its first: a data set's own stand before the general ones."""

# The evaluation knows its own tasks only; these carry the probes.
_TASK_OF = {
    "paraphrase": "paraphrase",
    "relation": "relation",
    "yours": "other_task",
    "neighbour": "neighborhood",
    "distractor": "distract_neighborhood",
}


@dataclass(frozen=True, kw_only=True)
class UserProbe:
    """A prompt to watch, as text or with ``{}`` for the subject, and its right answer, if anybody says so."""

    prompt: str
    answer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One probe.

    Attributes:
        kind: see the module.
        prompt: its text.
        before: the vanilla model's greedy answer.
        answer: what it is to answer after the edit.
        probability: the vanilla model's, of ``before``.
        group: the relation or the other subject it is about.
        held_out: for the report only, not for choosing γ.
        distractor: the edited sentence in front, if it is there.
        failed_before: the unedited model does not give the answer either, so that the edit cannot be blamed.
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
    """The probes that the vanilla model is sure of, each on its side.

    Args:
        model: the vanilla model.
        fact: the edit.
        relation: what its prompt is a template of, if known.
        others: what else can be asked of its subject.
        generated: what the model says by itself.
        peers: other subjects of the same kind, for a prompt that is no known relation's.
        given: the user's prompts.
        avoid: texts that must be no probe, because something else is measured on them.
        seed: of what is drawn.
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
        # A text once only, the first time it comes: what the model writes repeats templates.
        by_text = {normal(one[1]): one for one in reversed(candidates) if normal(one[1]) not in never}
        asked = [one for one in candidates if by_text.get(normal(one[1])) is one and len(kept[one[0]]) < MOST[one[0]]]
        answers = greedy_answers(model, [text for _, text, _ in asked], batch_size=batch_size) if asked else []
        for (kind, text, group), answer in zip(asked, answers, strict=True):
            probe = _probe(kind, text, group, answer, fact)
            if probe is None or len(kept[kind]) >= MOST[kind]:
                continue
            if kind == "relation" and any(says(answer.continuation, one) for one in entailed):
                continue  # it goes with the old answer, so that an edit which changes it is right
            about = fact.subject if kind == "relation" else group
            if _same(answer.text, about) or (kind == "neighbour" and group in {one.group for one in kept[kind]}):
                continue  # "The Colosseum is named after" the Colosseum: an echo
            kept[kind].append(probe)
    sides = {kind: _split(own) for kind, own in kept.items()}
    sides["distractor"] = _distracted(model, sides["neighbour"], fact, never, batch_size)
    sides["yours"] = _given(model, given, fact, batch_size)
    return [probe for kind in KINDS for probe in sides[kind]]


def probe_record(fact: Fact, probes: Sequence[Probe]) -> tuple[Record, dict[tuple[str, int], int]]:
    """The probes as a record that :func:`driftlens.evaluate` takes, and where each stands in it: the number of the
    probe by task and place, −1 for the edit's own prompt.
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
    """Kind, text and group of everything to be asked, what is wanted most first; and what to ask where too little of
    it is left: the neighbours in another wording.
    """
    found: list[tuple[Kind, str, str]] = []
    templates = [with_article_of(fact.prompt, one) for one in (relation.templates if relation else ())]
    wordings = [one for one in templates if normal(one) != normal(fact.prompt)]

    def add(kind: Kind, rows: Iterable[tuple[str, str]]) -> None:
        found.extend((kind, text, group) for text, group in rows)

    add("paraphrase", ((one.replace("{}", fact.subject, 1), f"wording {n}") for n, one in enumerate(wordings)))
    if not wordings:  # a frame around the prompt keeps its meaning; a sentence of the model's own may have another
        add("paraphrase", ((one.replace("{}", fact.text, 1), one) for one in WRAPPED))
    # A wording of each relation, then a second one: many relations tell more than many words for one.
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
    """Whether two names are one subject's: "The Eiffel Tower" is the Eiffel Tower."""
    return normal(name).removeprefix("the ") == normal(subject).removeprefix("the ")


def _entailed(model: LensModel, fact: Fact, relation: Relation | None, batch_size: int) -> set[str]:
    """What follows from the fact for other relations of its subject: ``o_true`` itself and, of a place, the country,
    the continent and the language that the model gives it.
    """
    found = {fact.target_true}
    if relation is not None and relation.object_kind in ("place", "country"):
        asked = [one.replace("{}", fact.target_true, 1) for one in OF_PLACES]
        answers = greedy_answers(model, asked, batch_size=batch_size)
        found |= {one.text for one in answers if one.says_something}
    return found


def _probe(kind: Kind, text: str, group: str, answer: GreedyAnswer, fact: Fact) -> Probe | None:
    """The candidate as a probe, or None where its answer is no ground to judge an edit on."""
    if kind == "paraphrase":
        if not says(answer.continuation, fact.target_true):
            return None
        wanted, before = fact.target_new, fact.target_true
    else:
        # Where the model says o_edit already, nothing can be told from its saying so after the edit.
        if not _sure(answer) or says(answer.continuation, fact.target_new):
            return None
        wanted = before = answer.text
    return Probe(kind=kind, prompt=text, before=before, answer=wanted, probability=answer.probability, group=group)


def _distracted(
    model: LensModel, neighbors: Sequence[Probe], fact: Fact, never: Collection[str], batch_size: int
) -> list[Probe]:
    """The neighbours behind the edited sentence, as long as the vanilla model is not distracted by it."""
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
    """Every second group is held out, the first one too: the verdict needs more of them than the choice."""
    groups = list(dict.fromkeys(probe.group for probe in probes))
    held_out = set(groups[::2])
    return [replace(probe, held_out=probe.group in held_out) for probe in probes]


def _sure(answer: GreedyAnswer) -> bool:
    return answer.says_something and answer.probability >= SURE
