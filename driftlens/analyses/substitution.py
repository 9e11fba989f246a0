"""Contaminating substitution: find the edited activations that make the unedited model fail (paper, 3.2 and D.1).

1. Record the outputs z of a module (the block, its MLP or its attention) in the *edited* model, at every token of the
   prompt and in every layer.
2. In the *vanilla* model, replace the module's output at one token t by z, in a window of layers around layer l
   (`driftlens.analyses.windows`), and read the probability of a target, exp(mean log-probability of its tokens).
3. The effect of the cell (t, l) is that probability minus the vanilla model's. Where P(o_true) falls, or P(o_edit)
   rises, the edit contaminates the flow of information through that cell (Figures 3 and 9).

To score a target of several tokens, all of its tokens but the last are appended to the prompt; these are never
substituted. `driftlens.analyses.cells` and `driftlens.analyses.substitution_cells` explain how few passes compute all
cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from typing_extensions import override

from driftlens.analyses.results import CellResult
from driftlens.errors import DriftlensError, unknown_name
from driftlens.progress import OnDone

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from driftlens.data import TaskPrompt
    from driftlens.edits import Edited
    from driftlens.models import LensModel

__all__ = ["MODULES", "Trace", "contaminating_substitution"]

Module: TypeAlias = Literal["resid", "mlp", "attn"]

MODULES: tuple[Module, ...] = ("resid", "mlp", "attn")
"""The block's output (hidden state), the MLP's output, the attention's output."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Trace(CellResult):
    """The effect of every substitution, for one prompt or many.

    Attributes:
        table: a row per case, target, module, token and layer: `case, target_name, target, module, token,
            token_text, role, layer, window, probability, effect, vanilla, edited`. `token` counts from 0 (a BOS
            token included), `role` is one of `driftlens.statistics.roles.ROLES`, `probability` is the target's with the
            substitution, `vanilla` and `edited` are the two models' own, and `effect` is `probability - vanilla`.
    """

    @override
    def _told(self) -> list[str]:
        cases, targets, *others = super()._told()
        return [cases, targets, ", ".join(map(str, self.table["module"].unique())), *others]

    def _repr_html_(self) -> str:
        from driftlens.display.cards import trace

        return trace(self)

    def by_role(self) -> pd.DataFrame:
        """Average over cases into role × layer grids (Figure 3); see `driftlens.statistics.roles.average_by_role`."""
        from driftlens.statistics.roles import average_by_role

        return average_by_role(self.table, ["target_name", "module"])

    def plot(self, *, title: str | None = None, note: str = "") -> go.Figure:
        """Plot heatmaps of the effect, one for each module and target.

        The rows are the tokens of a single case, or the token roles averaged over many. `title` describes the edit and
        the trace; by default it is the prompt of a single case. The model, the window and `note`, e.g. the editor's
        settings, are printed under it.
        """
        from driftlens.plots import plot_trace

        return plot_trace(self, title=title, note=note)


def contaminating_substitution(
    model: LensModel,
    edit: Edited | Sequence[Edited],
    prompt: str | TaskPrompt | Sequence[str | TaskPrompt],
    target: str | tuple[str, ...] | Sequence[str | tuple[str, ...]],
    module: Module | Sequence[Module] = "attn",
    window: int = 6,
    *,
    subject: str | Sequence[str | None] | None = None,
    templates: Sequence[str] = (),
    target_names: Sequence[str] | None = None,
    batch_size: int = 128,
    on_cells: OnDone | None = None,
) -> Trace:
    """Measure the effect of every cell (token × layer) on the targets, for one prompt or for many at once.

    Args:
        model: the vanilla model; it is not changed.
        edit: the edit whose activations are substituted, one for all prompts or one for each.
        prompt: the test prompt, without its target; or a list of them.
        target: the text whose probability is read; a tuple, such as `(o_true, o_edit)`, reads several in one run. A
            list gives each prompt its own.
        module: `"resid"`, `"mlp"` or `"attn"`, or several of them.
        window: how many layers a cell substitutes; the paper uses 6 of GPT-J's 28.
        subject: the edited subject, if the edit has none (`Edit.facts`) or another one; it affects only token roles.
        templates: texts with one `{}` that test prompts may follow besides the edit's own; they only help to find the
            test prompts' subjects.
        target_names: the targets' names; default `("o_true", "o_edit")` for two targets, `("target",)` for one.
        batch_size: rows of a pass. It changes the numbers by no more than float rounding and is halved when memory
            runs out.
        on_cells: called with the number of cells done and the total.

    Raises:
        DriftlensError: an unknown module, a window below 1, lists of different lengths, an empty target, a prompt that
            is too long for the model, or an edit of another model.
    """
    import numpy as np
    import pandas as pd

    from driftlens.analyses.case_tables import baselines_table, edited_layers, parts_of_cases, target_grids
    from driftlens.analyses.cases import make_cases
    from driftlens.analyses.substitution_cells import Substitution

    modules = _modules(module)
    cases = make_cases(model, edit, prompt, target)
    parts = parts_of_cases(cases, prompt, subject, templates)
    grids = target_grids(
        model, cases, Substitution(modules), window, target_names, batch_size=batch_size, on_cells=on_cells
    )
    tables: list[pd.DataFrame] = []
    for grid in grids:
        site, token, layer = grid.places
        columns = {
            **grid.named,
            "module": np.array(modules, dtype=object)[site],
            **grid.token_columns(model, parts[grid.case], token),
            "layer": layer,
            "window": window,
            **grid.measured(grid.vanilla),
            "vanilla": grid.vanilla,
            "edited": grid.edited,
        }
        tables.append(pd.DataFrame(columns))
    return Trace(
        table=pd.concat(tables, ignore_index=True),
        baselines=baselines_table(cases, grids),
        model=model.title,
        window=window,
        edited_layers=edited_layers(cases),
    )


def _modules(module: str | Sequence[str]) -> tuple[str, ...]:
    modules = (module,) if isinstance(module, str) else tuple(module)
    if not modules:
        raise DriftlensError(f"no module to trace; give one or more of {', '.join(MODULES)}")
    for name in modules:
        if name not in MODULES:
            raise unknown_name("module", name, MODULES)
    return tuple(dict.fromkeys(modules))
