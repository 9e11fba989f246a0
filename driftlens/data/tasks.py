"""Build a record's tasks from a dataset's prompts and answers.

`target_new` and `target_true` of each task's prompts are:

| tasks | target_new | target_true |
| --- | --- | --- |
| rewrite, paraphrase, alias, reasoning | the prompt's own answer | the edit's old target |
| neighborhood, relation | the edit's new target | the prompt's own answer |
| other_task | the wrong one of the prompt's two | the right one |

The three distract tasks repeat the prompts of neighborhood, relation and other_task after the sentence
"{rewrite prompt} {target_new}. ".
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from driftlens.data.fact import Fact
from driftlens.data.joints import distractor
from driftlens.data.record import TASKS, TaskPrompt

__all__ = ["Asked", "all_tasks"]

_RISING = ("rewrite", "paraphrase", "alias", "reasoning")
_STAYING = ("neighborhood", "relation")
_DISTRACTED = {
    "distract_neighborhood": "neighborhood",
    "distract_relation": "relation",
    "distract_other_task": "other_task",
}


class Asked(NamedTuple):
    """A prompt with the answer that its dataset gives, and the dataset's own grouping."""

    text: str
    answer: str
    group: str | None = None


def all_tasks(
    fact: Fact, asked: Mapping[str, Sequence[Asked]], other_task: Sequence[TaskPrompt] = ()
) -> dict[str, tuple[TaskPrompt, ...]]:
    """Return every task of `TASKS`, in that order; tasks that the dataset lacks are empty."""
    tasks: dict[str, tuple[TaskPrompt, ...]] = {"other_task": tuple(other_task)}
    for task in _RISING:
        tasks[task] = tuple(
            TaskPrompt(text=text, target_true=fact.target_true, target_new=answer, group=group)
            for text, answer, group in asked.get(task, ())
        )
    for task in _STAYING:
        tasks[task] = tuple(
            TaskPrompt(text=text, target_true=answer, target_new=fact.target_new, group=group)
            for text, answer, group in asked.get(task, ())
        )
    for task, plain in _DISTRACTED.items():
        tasks[task] = tuple(_distracted(prompt, fact) for prompt in tasks[plain])
    return {task: tasks[task] for task in TASKS}


def _distracted(prompt: TaskPrompt, fact: Fact) -> TaskPrompt:
    before = distractor(fact.text, fact.target_new)
    return replace(prompt, text=before + prompt.text, distractor=before)
