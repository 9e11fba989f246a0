"""The dataset filter of the paper (C.1, Figure 8), for a judge model of your own.

A specificity prompt is fair only if the edit does not imply a new answer. After "Carl Bosch is a citizen of Canada", a
birthplace in Canada is not a failure, but another gender is. The authors asked GPT-4 whether each neighborhood and
relation prompt is related to the edit, and kept the unrelated ones.

1. `judge_requests` returns the questions, word for word those of Figure 8.
2. Ask any model and collect its answers.
3. `keep_unrelated` returns the records without the related prompts.

    requests = judge_requests(records)
    answers = {request.key: ask_my_model(request.text) for request in requests}
    records = keep_unrelated(records, answers)
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from driftlens.data.fact import Fact
from driftlens.data.record import Record
from driftlens.errors import DriftlensError

__all__ = ["JudgeRequest", "judge_requests", "keep_unrelated", "neighborhood_question", "relation_question"]

Key = tuple[int, str, int]
"""Identifies a prompt: the record's index, the task, the prompt's index in the task."""

_DISTRACTED = {"neighborhood": "distract_neighborhood", "relation": "distract_relation"}


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """One question for the judge, and the key of the prompt that it is about."""

    key: Key
    text: str


def neighborhood_question(fact: Fact, prompt: str) -> str:
    """Ask whether the subject of `prompt` is related to the edited subject."""
    return (
        "Determine the subjects in the following two sentences is related or unrelated.\n"
        "- Neighborhood subjects in the same field without direct collaboration or interaction are considered "
        "unrelated.\n"
        f"Sentence 1: {_edit(fact)}\n"
        f"Sentence 2: {prompt}\n"
        "Expected answer: Related or Unrelated."
    )


def relation_question(fact: Fact, prompt: str) -> str:
    """Ask whether the relation of `prompt` is related to the edited one."""
    return (
        "Determine the factual relationships in the following two sentences is related or unrelated:\n"
        f"Sentence 1: {_edit(fact)}\n"
        f"Sentence 2: {prompt}\n"
        "Expected answer: Related or Unrelated."
    )


def judge_requests(records: Iterable[Record]) -> list[JudgeRequest]:
    """Make one question for every neighborhood and relation prompt of the records."""
    questions = {"neighborhood": neighborhood_question, "relation": relation_question}
    return [
        JudgeRequest(key=(record.index, task, at), text=question(record.fact, prompt.text))
        for record in records
        for task, question in questions.items()
        for at, prompt in enumerate(record.tasks[task])
    ]


def keep_unrelated(records: Sequence[Record], answers: Mapping[Key, str]) -> list[Record]:
    """Return the records with only the neighborhood and relation prompts that the judge called unrelated.

    A distracted prompt is kept if its plain prompt is. An answer may be a sentence, but it must contain exactly one of
    the two words.

    Raises:
        DriftlensError: a prompt has no answer, or an answer is neither or both of the two words.
    """
    return [_filtered(record, answers) for record in records]


def _filtered(record: Record, answers: Mapping[Key, str]) -> Record:
    tasks = dict(record.tasks)
    for task, distracted in _DISTRACTED.items():
        kept = [at for at in range(len(tasks[task])) if _is_unrelated((record.index, task, at), answers)]
        for name in (task, distracted):
            tasks[name] = tuple(record.tasks[name][at] for at in kept)
    return replace(record, tasks=tasks)


def _is_unrelated(key: Key, answers: Mapping[Key, str]) -> bool:
    record, task, at = key
    answer = answers.get(key)
    if answer is None:
        raise DriftlensError(f"no answer for record {record}, {task} prompt {at}; ask the judge about every prompt")
    words = {word.lower() for word in re.findall(r"\b(?:un)?related\b", answer, flags=re.IGNORECASE)}
    if len(words) != 1:
        raise DriftlensError(
            f"the answer {answer!r} for record {record}, {task} prompt {at} is neither Related nor Unrelated; ask again"
        )
    return words == {"unrelated"}


def _edit(fact: Fact) -> str:
    return f"{fact.text} → {fact.target_new}"
