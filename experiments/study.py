"""The starting point of every experiment: one model, one data set, one editor, and the edits.

1. Records are chosen per task: the first N that have a prompt of the task, from the test split if the data has splits
   (the others were used to choose settings). In the bundled world these are the same records for every task. In the
   paper's benchmark no record has both tasks, so two sets of facts are edited.
2. Edits come from a cache on disk that all experiments share (`driftlens.runs.edit_cache`).
3. A case is one test prompt under its record's edit. Relation prompts that name an alias instead of the edited subject
   are left out, since nothing could be measured at the subject's tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftlens.data import Record, TaskPrompt, load_records
from driftlens.data.templates import templates
from driftlens.display.terminal import Terminal, progress_bars, shown_warnings, while_shown
from driftlens.edits import Edit
from driftlens.errors import DriftlensError
from driftlens.files import cache_folder
from driftlens.models.names import resolve
from driftlens.options.editing import check_layers, editor_text, make_editor
from driftlens.options.moments import choose_corpus, with_second_moments
from driftlens.progress import OnDone
from driftlens.runs.edit_cache import cached_edits, editor_identity
from driftlens.runs.shards import settings_hash
from experiments.options import Options

if TYPE_CHECKING:
    from rich.progress import Progress

    from driftlens.editors.base import Editor
    from driftlens.models import LensModel

__all__ = ["TASK_NAMES", "EditedPrompt", "Study", "open_study"]

MOST_RECORDS = 120
TASK_NAMES = {"distract_neighborhood": "Distract Neighborhood", "relation": "Relation", "rewrite": "Rewrite"}


@dataclass(frozen=True, kw_only=True, eq=False)
class EditedPrompt:
    """A test prompt under its record's edit; `group` is the data set's own, such as "same type"."""

    record: Record
    prompt: TaskPrompt
    edit: Edit

    @property
    def group(self) -> str | None:
        """The group's name in a caption."""
        return None if self.prompt.group is None else self.prompt.group.replace("_", " ")

    @property
    def targets(self) -> tuple[str, str]:
        """o_true and o_edit."""
        return self.prompt.target_true, self.prompt.target_new


class Study:
    """Everything is created on first use, so a mistake in the options is reported at once."""

    def __init__(self, options: Options, bars: Progress) -> None:
        self.options = options
        self.bars = bars
        self.measured: dict[str, Any] = {}  # what experiments of one run share in memory
        self._edits: dict[tuple[bool, tuple[int, ...]], list[Edit]] = {}

    @cached_property
    def all_records(self) -> list[Record]:
        """The whole data set."""
        records = load_records(self.options.data)
        if not records:
            raise DriftlensError(f"{self.options.data} holds no records; choose another --data")
        return records

    @cached_property
    def records(self) -> list[Record]:
        """The records reserved for measuring."""
        test = [record for record in self.all_records if record.split == "test"]
        return test or [record for record in self.all_records if record.split is None] or self.all_records

    @cached_property
    def model(self) -> LensModel:
        """The vanilla model."""
        check_layers(self.options, self.options.model)
        with self.shown("load model"):
            return self.options.load()

    @cached_property
    def editor(self) -> Editor:
        """The editor with the model's preset, the options' changes, and its second moments."""
        model = self.model
        editor = make_editor(model, self.options)
        if editor.restrained_above >= model.n_layers - 1:
            raise DriftlensError(
                f"layer {editor.restrained_above} leaves no attention above the edit; {model.name} has layers 0 to "
                f"{model.n_layers - 1}, so choose --layers from 0 to {model.n_layers - 2}"
            )
        corpus = choose_corpus(
            self.options.model,
            self.options.corpus,
            self.all_records,
            given=self.options.second_moment,
            editor=self.options.editor,
        )
        with self.shown("second moment, texts") as done:
            return with_second_moments(model, editor, corpus, on_texts=done)

    def records_of(self, task: str, most: int | None = None) -> list[Record]:
        """The first records that have prompts of `task`."""
        most = self.most_records if most is None else min(most, self.most_records)
        chosen = [record for record in self.records if _usable(record, task)][:most]
        if not chosen:
            raise DriftlensError(
                f"no record of {self.options.data} has {TASK_NAMES.get(task, task)} prompts; choose other --data"
            )
        return chosen

    def edits(self, records: Sequence[Record], *, detached: bool = False) -> list[Edit]:
        """The edit of each record; `detached`: optimised without a gradient through attention (ROME-AWD)."""
        key = (detached, tuple(record.index for record in records))
        if key not in self._edits:
            editor = replace(self.editor, detach_attention=True) if detached else self.editor
            self._edits[key] = self.edits_by(editor, records, f"{self.editor_name}{'-AWD' if detached else ''}")
        return self._edits[key]

    def edits_by(self, editor: Editor, records: Sequence[Record], name: str) -> list[Edit]:
        """The edit of each record by any editor, from the cache on disk where it is there."""
        facts = [record.fact for record in records]
        with self.shown(f"{name}, facts") as done:
            return cached_edits(
                self.model,
                editor,
                facts,
                cache_folder() / "edits",
                batch_size=self.options.batch_size,
                on_facts=done,
            )

    def cases(
        self, task: str, *, prompts: int | None = None, records: Sequence[Record] | None = None
    ) -> list[EditedPrompt]:
        """The test prompts of `task`, of each record and group the first `prompts` of them (default: all)."""
        records = self.records_of(task) if records is None else records
        cases: list[EditedPrompt] = []
        for record, edit in zip(records, self.edits(records), strict=True):
            taken: dict[str | None, int] = {}
            for prompt in _usable(record, task):
                taken[prompt.group] = taken.get(prompt.group, 0) + 1
                if prompts is None or taken[prompt.group] <= prompts:
                    cases.append(EditedPrompt(record=record, prompt=prompt, edit=edit))
        return cases

    @cached_property
    def templates(self) -> tuple[str, ...]:
        """All texts with a slot that test prompts may follow; they help to find the test prompts' subjects."""
        return templates(self.all_records)

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """Everything that the numbers depend on and that is known before any is computed."""
        from driftlens.version import __version__

        options = self.options
        # Any fact will do: apart from the fact, the provenance depends only on the editor and the model.
        provenance = self.editor.provenance(self.model, self.records[0].fact)
        fact = ("subject", "prompt", "target_true", "target_new", "model")
        return {
            "model": self.model_name,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "editor": {name: text for name, text in provenance.items() if name not in fact},
            "second_moment": editor_identity(self.model, self.editor),
            "data": self.data_name,
            "data_hash": settings_hash([record.described() for record in self.records]),
            "records": self.most_records,
            "prompts": options.prompts,
            "seed": options.seed,
            "driftlens": __version__,
        }

    @property
    def most_records(self) -> int:
        """The largest number of records of a task for a figure of tokens or layers."""
        return self.options.records or MOST_RECORDS

    @property
    def data_name(self) -> str:
        """The data's name without its folder."""
        return Path(self.options.data).name

    @property
    def editor_name(self) -> str:
        """The editor's name in capitals."""
        return self.options.editor.upper()

    @property
    def model_name(self) -> str:
        """The model's name without its folder."""
        return Path(self.model.name).name

    @property
    def editing(self) -> str:
        """Describe the editing in a few words."""
        return f"{self.model.n_layers} layers, {self.configuration['dtype']}, {editor_text(self.editor)}"

    @property
    def about(self) -> str:
        """Describe model and editor in a few words."""
        return f"Model {self.model_name}, {self.editing}"

    def shown(self, text: str) -> AbstractContextManager[OnDone]:
        """Show a line of progress while the body runs; yields a function of the number done and the total."""
        return while_shown(self.bars, text)


def _usable(record: Record, task: str) -> tuple[TaskPrompt, ...]:
    """The prompts of a task that name the edited subject."""
    return tuple(prompt for prompt in record.tasks[task] if record.fact.subject in prompt.text)


@contextmanager
def open_study(options: Options, errors: Terminal) -> Generator[Study]:
    """Make a study whose progress and warnings go to `errors`."""
    with shown_warnings(errors), progress_bars(errors) as bars:
        study = Study(options, bars)
        resolve(options.model)  # an unknown name or empty data is reported at once
        if "," not in options.data and "+" not in options.data:  # Table 8 takes several data sets, and reads each
            study.all_records  # noqa: B018
        yield study
