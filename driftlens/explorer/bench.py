"""Compute edits, readings and grids for each choice on demand, and cache them.

The notebook's explorer and the page both query a `Bench` by record, prompt, γ and window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from driftlens.analyses.windows import default_window
from driftlens.data import Fact, Record, TaskPrompt
from driftlens.editors import ROME, SADR, sadr_gamma
from driftlens.editors.base import Editor
from driftlens.editors.restrained import with_sadr
from driftlens.edits import Edit
from driftlens.errors import DriftlensError
from driftlens.explorer.readings import Floats, Reading, grids, read
from driftlens.models import LensModel
from driftlens.progress import OnDone

__all__ = ["Bench", "Exhibit", "checked_gammas", "checked_windows", "default_windows", "editors_by_gamma", "exhibits"]

EditorFor = Callable[[float | None], Editor]


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A fact and its prompts, by task."""

    name: str
    fact: Fact
    tasks: Mapping[str, tuple[TaskPrompt, ...]]

    @property
    def prompts(self) -> list[tuple[str, TaskPrompt]]:
        """Every prompt with its task, in order."""
        return [(task, prompt) for task, prompts in self.tasks.items() for prompt in prompts]


class Bench:
    """One model, some facts, and an editor for every γ (None: without SADR)."""

    def __init__(
        self,
        model: LensModel,
        exhibits: Sequence[Exhibit],
        editor_for: EditorFor,
        *,
        templates: Sequence[str] = (),
        batch_size: int = 128,
    ) -> None:
        if batch_size < 1:
            raise DriftlensError(f"batch_size is {batch_size}; expected at least 1")
        self.model = model
        self.exhibits = tuple(exhibits)
        self.editor_for = editor_for
        self.templates = tuple(templates)
        self.batch_size = batch_size
        # Each key begins with the model's hash, because its weights may change between two queries.
        self._edits: dict[tuple[str, int, float | None], Edit] = {}
        self._readings: dict[tuple[str, int, int, float | None], Reading] = {}
        self._grids: dict[tuple[str, int, int, float | None, int], Floats] = {}

    def keep(self, exhibit: int, gamma: float | None, edit: Edit) -> None:
        """Cache an edit that was made elsewhere."""
        self._edits[self.model.model_hash, exhibit, gamma] = edit

    def label(self, editor: str, gamma: float | None) -> str:
        """The label of the edits with a γ: the editor's name, γ, and the number of steps."""
        restrained = editor if gamma is None else f"{editor} + SADR γ = {gamma:g}"
        steps = self.editor_for(gamma).most_steps
        return f"{restrained}, {steps} {'step' if steps == 1 else 'steps'}"

    def edit(self, exhibit: int, gamma: float | None) -> Edit:
        """The fact's edit with SADR's γ, or without it."""
        with self.model.unchanged():
            key = self.model.model_hash, exhibit, gamma
            if key not in self._edits:
                fact = self.exhibits[exhibit].fact
                self._edits[key] = self.editor_for(gamma).edit(self.model, fact).edit
            return self._edits[key]

    def reading(self, exhibit: int, prompt: int, gamma: float | None) -> Reading:
        """The reading of a prompt, whose index counts over all tasks."""
        with self.model.unchanged():
            key = self.model.model_hash, exhibit, prompt, gamma
            if key not in self._readings:
                asked = self.exhibits[exhibit].prompts[prompt][1]
                self._readings[key] = read(self.model, self.edit(exhibit, gamma), asked, templates=self.templates)
            return self._readings[key]

    def grid(self, exhibit: int, prompt: int, gamma: float | None, window: int) -> Floats:
        """Contaminating substitution of all modules: `[modules, tokens, layers, 2 + candidates]`."""
        with self.model.unchanged():
            key = self.model.model_hash, exhibit, prompt, gamma, window
            if key not in self._grids:
                self.fill(exhibit, [prompt], gamma, window)
            return self._grids[key]

    def fill(
        self,
        exhibit: int,
        prompts: Sequence[int],
        gamma: float | None,
        window: int,
        *,
        on_cells: OnDone | None = None,
    ) -> None:
        """Compute the grids of several prompts side by side, which is cheaper than one after another."""
        with self.model.unchanged():
            model_hash = self.model.model_hash
            readings = [self.reading(exhibit, prompt, gamma) for prompt in prompts]
            found = grids(self.model, readings, window, batch_size=self.batch_size, on_cells=on_cells)
            for prompt, grid in zip(prompts, found, strict=True):
                self._grids[model_hash, exhibit, prompt, gamma, window] = grid


def exhibits(records: Record | Sequence[Record], *, most: int | None = None) -> list[Exhibit]:
    """The exhibits of benchmark records: their tasks with prompts, at most `most` prompts of each task.

    Raises:
        DriftlensError: no record.
    """
    given = [records] if isinstance(records, Record) else list(records)
    if not given:
        raise DriftlensError("no record to explore; give one or more, e.g. load_records('demo')[0]")
    found: list[Exhibit] = []
    for one in given:
        own = TaskPrompt(text=one.fact.text, target_true=one.fact.target_true, target_new=one.fact.target_new)
        tasks = {**one.tasks, "rewrite": one.tasks["rewrite"] or (own,)}
        chosen = {task: prompts[:most] for task, prompts in tasks.items() if prompts}
        found.append(Exhibit(name=f"record {one.index}", fact=one.fact, tasks=chosen))
    return found


def editors_by_gamma(model: LensModel, editor: Editor | None) -> EditorFor:
    """Return a function from γ to `editor` with that SADR, or without SADR for None.

    Any SADR of `editor` is replaced; None for `editor` means ROME's presets. The number of steps depends on γ as in the
    presets, unless it was set explicitly.
    """

    def choose(gamma: float | None) -> Editor:
        return with_sadr(model, ROME.for_model(model) if editor is None else editor, gamma)

    return choose


def checked_gammas(
    model: LensModel, gammas: Sequence[float | None] | None, editor: str | Editor = "ROME"
) -> tuple[float | None, ...]:
    """The given γ, with None for 0; by default None (no SADR) and the γ of the editor or of the preset."""
    if gammas is None and isinstance(editor, Editor) and (known := editor.gammas(model)) is not None:
        return (None, *known)
    if gammas is None:
        return (None, sadr_gamma(model, editor if isinstance(editor, str) else editor.presets))
    for gamma in gammas:
        SADR(gamma=gamma or 0.0)  # complains
    if not gammas:
        raise DriftlensError("no γ to explore; give one or more, e.g. (None, 0.01); None is without SADR")
    return tuple(dict.fromkeys(gamma or None for gamma in gammas))


def default_windows(n_layers: int) -> tuple[int, ...]:
    """One layer, the paper's window scaled to the model's depth, and twice that."""
    usual = default_window(n_layers)
    return tuple(sorted({1, usual, min(2 * usual, n_layers)}))


def checked_windows(model: LensModel, windows: Sequence[int] | None) -> tuple[int, ...]:
    """The windows to choose from, in ascending order."""
    chosen = default_windows(model.n_layers) if windows is None else tuple(sorted(set(windows)))
    for window in chosen:
        if window < 1:
            raise DriftlensError(f"window is {window}; expected at least 1 layer")
    if not chosen:
        raise DriftlensError("no window to explore; give one or more, e.g. (1, 6)")
    return chosen
