"""A benchmark record: an edit and the prompts that test it, by task.

Each test prompt has two targets. After a good edit, `target_new` is more probable in tasks that the new fact should
change (rewrite, paraphrase, alias, reasoning), and `target_true` in all others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import NoReturn

from driftlens.data.fact import Fact
from driftlens.data.joints import without_blanks
from driftlens.errors import DriftlensError, unknown_name

__all__ = ["TASKS", "Record", "TaskPrompt"]

TASKS = (
    "rewrite",
    "paraphrase",
    "alias",
    "reasoning",
    "neighborhood",
    "relation",
    "distract_neighborhood",
    "distract_relation",
    "other_task",
    "distract_other_task",
)


@dataclass(frozen=True, kw_only=True)
class TaskPrompt:
    """One test prompt and the pair of targets whose probabilities are compared on it.

    `group` is the dataset's own grouping of a task's prompts, if any ("same_type" and "other_type" relations).
    In the distract tasks, `text` begins with `distractor`: the edited sentence and a blank.
    """

    text: str
    target_true: str
    target_new: str
    group: str | None = None
    distractor: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", without_blanks(self.text))
        if not self.text.strip():
            raise DriftlensError("the prompt is empty; give at least one visible character")
        for name in ("target_true", "target_new"):
            value = getattr(self, name).strip()
            if not value:
                raise DriftlensError(f"{name} of prompt {self.text!r} is empty; give some visible text")
            object.__setattr__(self, name, value)
        if not self.text.startswith(self.distractor):
            raise DriftlensError(f"prompt {self.text!r} must begin with its distractor {self.distractor!r}")


class _Tasks(dict[str, tuple[TaskPrompt, ...]]):
    """A record's prompts by task; an unknown name raises an error that suggests similar ones."""

    def __missing__(self, name: str) -> NoReturn:
        raise unknown_name("task", name, TASKS)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One edit of a dataset with the prompts that test it.

    `index` is the record's place in its file, from 0. `tasks` has every name in `TASKS`, without prompts for tasks that
    the dataset lacks. `generation` holds the prompts for free generation (fluency). `split`, `relation_id` and
    `target_new_id` are the dataset's own, if any; the last two are Wikidata's names, which select the reference texts
    about the new fact.
    """

    index: int
    fact: Fact
    tasks: Mapping[str, tuple[TaskPrompt, ...]] = field(hash=False)
    generation: tuple[str, ...] = ()
    split: str | None = None
    relation_id: str | None = None
    target_new_id: str | None = None

    def __post_init__(self) -> None:
        if set(self.tasks) != set(TASKS):
            odd = sorted(set(self.tasks) ^ set(TASKS))
            raise DriftlensError(f"record {self.index}: missing or unknown tasks {odd}; expected {TASKS}")
        object.__setattr__(self, "tasks", _Tasks(self.tasks))

    def __repr__(self) -> str:
        fact, n_prompts = self.fact, sum(map(len, self.tasks.values()))
        asked = f"{fact.text!r}: {fact.target_true!r} → {fact.target_new!r}"
        return f"Record({self.index}, {asked}, {n_prompts} prompts)"

    def described(self) -> str:
        """Every field of the record as text, for fingerprints."""
        return f"Record({', '.join(f'{item.name}={getattr(self, item.name)!r}' for item in fields(self))})"

    def _repr_html_(self) -> str:
        from driftlens.display.cards import record

        return record(self)
