"""Patching attention: restore vanilla attention in the edited model (paper, 3.4 and D.2).

If over-attention causes an edited model to fail, giving it the vanilla model's attention must cure it:

* :func:`patch_attention` replaces the attention weights of a window of layers (Figure 5): a curve over layers;
* :func:`patch_scores` replaces one number per head, the *pre*-softmax score of last token → token t, and lets the
  softmax renormalise (Figure 10): a grid of tokens × layers.

The vanilla attention is that of the same prompt. To score a target of several tokens, all of its tokens but the last
are appended to the prompt. Whole weights are replaced in every row of the pattern. Single scores are replaced in the
rows of the last prompt token and of the appended target tokens, which predict the target as well.
:mod:`driftlens.analyses.cells` and :mod:`driftlens.analyses.patch_cells` explain how few passes compute all cells.

The paper's window is 10 of GPT-J's 28 layers; :func:`driftlens.analyses.windows.scaled_window` scales it to another
depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from driftlens.analyses.case_tables import baselines_table, edited_layers, parts_of_cases, target_grids
from driftlens.analyses.cases import make_cases
from driftlens.analyses.patch_cells import PatternPatches, ScorePatches
from driftlens.analyses.results import CellResult
from driftlens.analyses.windows import window_layers
from driftlens.data import TaskPrompt
from driftlens.edits import Edited
from driftlens.models import LensModel
from driftlens.progress import OnDone
from driftlens.statistics.roles import average_by_role

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["AttentionPatch", "ScorePatch", "patch_attention", "patch_scores"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttentionPatch(CellResult):
    """The effect of patching whole attention patterns, per case, target and layer.

    Attributes:
        table: ``case, target_name, target, layer, first, last, probability, effect``.  ``layer`` (from 0) is the centre
            of the window ``first`` … ``last`` (clipped), and ``effect`` the probability minus the unpatched edited
            model's.
    """

    def _repr_html_(self) -> str:
        from driftlens.display.cards import attention_patch

        return attention_patch(self)

    def plot(self, *, title: str | None = None, note: str = "") -> go.Figure:
        """Plot the mean probability of each target over layers, next to the unpatched edited model (Figure 5)."""
        from driftlens.plots import plot_patch_curve

        return plot_patch_curve(self.table, self.baselines, self.window, title=title, note=_note(self.model, note))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ScorePatch(CellResult):
    """The effect of patching one pre-softmax score, per case, target, attended token and layer.

    Attributes:
        table: ``case, target_name, target, token, token_text, role, layer, probability, effect``; ``token`` is the
            index of the attended prompt token, ``role`` one of :data:`driftlens.statistics.roles.ROLES`, ``layer`` the
            window's 0-based centre, ``effect`` the change relative to the edited model.
    """

    def _repr_html_(self) -> str:
        from driftlens.display.cards import score_patch

        return score_patch(self)

    def plot(self, *, title: str | None = None, note: str = "") -> go.Figure:
        """Plot a heatmap of the effect: attended tokens (for many cases: token roles) × layers (Figure 10)."""
        from driftlens.plots import plot_score_grid

        return plot_score_grid(
            self.table, self.window, edited_layers=self.edited_layers, title=title, note=_note(self.model, note)
        )

    def by_role(self) -> pd.DataFrame:
        """Average over cases into role × layer grids; see :func:`driftlens.statistics.roles.average_by_role`."""
        return average_by_role(self.table, ["target_name"])


def patch_attention(
    model: LensModel,
    edit: Edited | Sequence[Edited],
    prompt: str | TaskPrompt | Sequence[str | TaskPrompt],
    target: str | tuple[str, ...] | Sequence[str | tuple[str, ...]],
    window: int = 10,
    *,
    target_names: Sequence[str] | None = None,
    batch_size: int = 64,
    on_cells: OnDone | None = None,
) -> AttentionPatch:
    """Patch vanilla attention weights into each window of ``window`` layers of the edited model (3.4).

    Args:
        model: the vanilla model; it is not changed.
        edit: one edit for all prompts, or one for each.
        prompt: one prompt or several.
        target: the text whose probability is read; a tuple, such as ``(o_true, o_edit)``, reads several.  A list gives
            each prompt its own.
        window: layers per window.
        target_names: the targets' names; default ``("o_true", "o_edit")`` for two targets, ``("target",)`` for one.
        batch_size: rows of a pass.  It changes the numbers by no more than float rounding and is halved when memory
            runs out.
        on_cells: called with the number of cells done and the total.

    Raises:
        DriftlensError: lists of different lengths, an empty target, a window below 1, a prompt too long.
    """
    cases = make_cases(model, edit, prompt, target)
    grids = target_grids(model, cases, PatternPatches(), window, target_names, batch_size=batch_size, on_cells=on_cells)
    windows = [window_layers(layer, window, model.n_layers) for layer in range(model.n_layers)]
    tables: list[pd.DataFrame] = []
    for grid in grids:
        _, _, layer = grid.places
        first, last = (np.array(ends)[layer] for ends in ([w.start for w in windows], [w.stop - 1 for w in windows]))
        place = {"layer": layer, "first": first, "last": last}
        tables.append(pd.DataFrame({**grid.named, **place, **grid.measured(grid.edited)}))
    return AttentionPatch(
        table=pd.concat(tables, ignore_index=True),
        baselines=baselines_table(cases, grids),
        window=window,
        model=model.title,
        edited_layers=edited_layers(cases),
    )


def patch_scores(
    model: LensModel,
    edit: Edited | Sequence[Edited],
    prompt: str | TaskPrompt | Sequence[str | TaskPrompt],
    target: str | tuple[str, ...] | Sequence[str | tuple[str, ...]],
    window: int = 10,
    *,
    subject: str | Sequence[str | None] | None = None,
    templates: Sequence[str] = (),
    target_names: Sequence[str] | None = None,
    batch_size: int = 64,
    on_cells: OnDone | None = None,
) -> ScorePatch:
    """Patch the vanilla pre-softmax score of last token → token t into ``window`` layers of the edited model (D.2).

    ``subject`` and ``templates`` affect only the tokens' roles, as in :func:`driftlens.contaminating_substitution`; the
    other arguments and the errors are those of :func:`patch_attention`.
    """
    cases = make_cases(model, edit, prompt, target)
    parts = parts_of_cases(cases, prompt, subject, templates)
    grids = target_grids(model, cases, ScorePatches(), window, target_names, batch_size=batch_size, on_cells=on_cells)
    tables: list[pd.DataFrame] = []
    for grid in grids:
        _, token, layer = grid.places
        place = {**grid.token_columns(model, parts[grid.case], token), "layer": layer}
        tables.append(pd.DataFrame({**grid.named, **place, **grid.measured(grid.edited)}))
    return ScorePatch(
        table=pd.concat(tables, ignore_index=True),
        baselines=baselines_table(cases, grids),
        window=window,
        model=model.title,
        edited_layers=edited_layers(cases),
    )


def _note(model: str, note: str) -> str:
    return " · ".join(part for part in (model, note) if part)
