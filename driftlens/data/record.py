"""A benchmark record: the edit, and per task the prompts that show what the edit did.

Each test prompt carries two targets. After a good edit `target_new` wins where the new fact should show
(rewrite, paraphrase, alias, reasoning) and `target_true` wins where nothing should have changed (all other
tasks).
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

    `group` tells apart the prompts of one task where a dataset does ("same_type" and "other_type" relations).
    In the distract tasks `text` begins with `distractor`, which is the edited sentence with its trailing
    blank.
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
    """A record's prompts by task; a name that is none is told with those that are near."""

    def __missing__(self, name: str) -> NoReturn:
        raise unknown_name("task", name, TASKS)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One edit of a dataset with the prompts that test it.

    `index` is the record's place in its file, from 0. `tasks` has every name of `TASKS`, with no prompts
    where the dataset has none. `generation` are prompts to be continued freely (fluency). `split` is the
    dataset's own, if any; so are `relation_id` and `target_new_id`, Wikidata's names, which lead to reference
    texts about the new fact.
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
        """Everything in the record as text, for fingerprints: what differs in any field differs here."""
        return f"Record({', '.join(f'{item.name}={getattr(self, item.name)!r}' for item in fields(self))})"

    def _repr_html_(self) -> str:
        from driftlens.display.cards import record

        return record(self)
