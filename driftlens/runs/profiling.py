"""Measure time and memory on this machine.

1. **Phases**: loading, context prefixes, the second moment, the parts of an edit (the vanilla pass, a step forward, a
   step backward, the solve), a trace, the evaluation, generation.  Each is run once to warm up and then timed.
2. **Editors**: an edit takes a + b · steps seconds.  Two short runs without early stopping give a and b.  The preset's
   number of steps gives the greatest cost of an edit; facts that converge early cost less.

:func:`driftlens.runs.estimate.estimate` estimates a full run from both. :mod:`driftlens.models.timing` measures seconds
and memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch

from driftlens.data import Record
from driftlens.edits import Edit
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.models.timing import Phase, measured
from driftlens.progress import OnProgress, unseen

__all__ = [
    "EditorCost",
    "ProfiledEditor",
    "profile_model",
]

STEPS = (3, 7)
"""The numbers of steps of the two short runs that determine an edit's cost per step."""


@dataclass(frozen=True, kw_only=True)
class EditorCost:
    """The cost of an edit: ``fixed + per_step · steps`` seconds, with ``facts`` edited side by side."""

    editor: str
    steps: int
    facts: int
    fixed: float
    per_step: float

    @property
    def seconds(self) -> float:
        """Seconds of an edit that takes all steps."""
        return self.fixed + self.per_step * self.steps


class ProfiledEditor(Protocol):
    """What profiling needs of an editor; all of driftlens's editors have it."""

    @property
    def most_steps(self) -> int:
        """How many steps an edit takes at most."""
        ...

    @property
    def edited_layers(self) -> tuple[int, ...]:
        """The layers it writes to."""
        ...

    def edit_many(self, model: LensModel, facts: Sequence[Any], *, batch_size: int | None = None) -> Sequence[Any]:
        """A separate edit for each fact."""
        ...


def profile_model(
    model: LensModel,
    records: Sequence[Record],
    editors: dict[str, ProfiledEditor],
    *,
    batch_size: int,
    generate: bool,
    on_progress: OnProgress = unseen,
) -> tuple[list[Phase], list[EditorCost]]:
    """Time the phases of edits, traces and evaluations of ``records``, and measure the cost of each editor.

    Args:
        model: the model.
        records: the records, processed side by side.
        editors: the editors by name.  The phases of the first are timed, and its edits are traced and evaluated.
        batch_size: facts edited side by side, and a quarter of a pass's rows.
        generate: whether to time the continuations of the fluency score too.
        on_progress: called with the name of the next phase, 0 and 0, because phases are not counted.

    Raises:
        DriftlensError: no record, no editor, or an error of an editor.
    """
    if not records or not editors:
        raise DriftlensError(f"{len(records)} records and {len(editors)} editors to profile; give at least one of each")
    from driftlens.analyses.substitution import contaminating_substitution
    from driftlens.analyses.windows import default_window
    from driftlens.evaluation import continuations, evaluate

    facts = [record.fact for record in records]
    phases: list[Phase] = []

    def timed(name: str, work: Callable[[], object], per: str, share: int = 1) -> None:
        on_progress(name, 0, 0)
        phases.append(measured(name, work, model.device, per=per, share=share))

    first, *_ = editors.values()
    on_progress("warm up", 0, 0)
    results = replace_steps(first, 2).edit_many(model, facts, batch_size=batch_size)
    edits: list[Edit] = [result.edit for result in results]
    phases += _edit_phases(model, first, facts[:batch_size], on_progress)

    prompt = next((p for task in records[0].tasks.values() for p in task), None)
    if prompt is not None:
        targets = (prompt.target_true, prompt.target_new)
        window = default_window(model.n_layers)

        def trace() -> object:
            modules = ("resid", "mlp", "attn")
            return contaminating_substitution(
                model, edits[0], prompt, targets, modules, window, batch_size=8 * batch_size
            )

        timed("trace, all cells", trace, "prompt")
    timed("evaluation", lambda: evaluate(model, records, edits, batch_size=4 * batch_size), "record", len(records))
    if generate:
        timed(
            "generation",
            lambda: continuations(model, records, edits, batch_size=4 * batch_size),
            "record",
            len(records),
        )
    costs: list[EditorCost] = []
    for name, editor in editors.items():
        on_progress(f"edits, {name}", 0, 0)
        costs.append(_editor_cost(model, name, editor, facts, batch_size))
    return phases, costs


def replace_steps(editor: Any, steps: int) -> Any:
    """The editor with this number of steps and without early stopping; unchanged if it has no steps."""
    if not _has(editor, "steps"):
        return editor
    never = {"early_stop_loss": -math.inf} if _has(editor, "early_stop_loss") else {}
    return replace(editor, steps=steps, **never)


def _editor_cost(
    model: LensModel, name: str, editor: ProfiledEditor, facts: Sequence[Any], batch_size: int
) -> EditorCost:
    seconds: list[float] = []
    replace_steps(editor, 1).edit_many(model, facts[:1])  # first-call costs, Cholesky factors
    for steps in STEPS:
        short = replace_steps(editor, steps)
        phase = measured(
            name, lambda short=short: short.edit_many(model, facts, batch_size=batch_size), model.device, per=""
        )
        seconds.append(phase.seconds / len(facts))
    # Noise must not make a step, or the fixed part, cost less than nothing.
    per_step = max(0.0, (seconds[1] - seconds[0]) / (STEPS[1] - STEPS[0]))
    fixed = max(0.0, seconds[0] - per_step * STEPS[0])
    return EditorCost(
        editor=name, steps=editor.most_steps, facts=min(batch_size, len(facts)), fixed=fixed, per_step=per_step
    )


def _has(editor: Any, setting: str) -> bool:
    return any(item.name == setting and item.init for item in fields(editor))


def _edit_phases(model: LensModel, editor: Any, facts: Sequence[Any], on_progress: OnProgress) -> list[Phase]:
    """Time the parts of a value optimisation of ``facts`` side by side, per fact; other editors as a whole."""
    from driftlens.editors import ValueEditor

    if not isinstance(editor, ValueEditor):
        on_progress("edit", 0, 0)
        whole = measured("edit", lambda: editor.edit_many(model, facts), model.device, per="edit", share=len(facts))
        return [whole]
    from driftlens.editors.objective import evaluate_delta
    from driftlens.editors.vanilla_rows import Vanilla, vanilla_rows

    layer, places = editor.edited_layers[-1], editor.places(model)
    contexts, settings = editor.contexts_for(model), editor.value_settings()
    kept: list[Vanilla] = []
    losses: list[torch.Tensor] = []
    essence = settings.essence if settings.kl_factor else None

    def before() -> None:
        kept[:] = [vanilla_rows(model, facts, layer=layer, places=places, contexts=contexts, essence=essence)]

    def forward() -> None:
        target_init = kept[0].target_init
        precision = torch.promote_types(model.dtype, torch.float32)
        delta = torch.zeros(target_init.shape, device=model.device, dtype=precision, requires_grad=True)
        norm = target_init.to(precision).norm(dim=-1)
        losses[:] = [
            evaluate_delta(
                model,
                rows,
                delta[members],
                layer=layer,
                places=places,
                settings=settings,
                vanilla=None,
                target_norm=norm[members],
                nll_factor=delta.new_ones(len(members)),
            )[0].loss.sum()
            for members, rows in kept[0].groups
        ]

    def backward() -> None:
        torch.stack(losses).sum().backward()  # pyright: ignore[reportUnknownMemberType]

    found: list[Phase] = []
    for name, work in (
        ("edit: vanilla pass", before),
        ("edit: a step forward", forward),
        ("edit: a step backward", backward),
    ):
        on_progress(name, 0, 0)
        found.append(measured(name, work, model.device, per="fact", share=len(facts)))
    return found
