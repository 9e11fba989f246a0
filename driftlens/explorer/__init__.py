"""The explorer: an interactive view of what an edit does to one prompt.

1. `readings`: the probabilities and attention of both models on a prompt, and contaminating substitution.
2. `bench`: edits, readings and grids for each choice, computed on demand and cached.
3. `view`: the data that the front end draws (`view.html`, `view.css`, `view.js`), which page and notebook share.
4. `page`: the front end and all its data in one HTML file without Python or network (`driftlens trace --explore`).
5. `notebook`: the front end as a widget in Jupyter, with data computed on demand: `driftlens.explore(model, record)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from driftlens.data import Record
from driftlens.editors.base import Editor
from driftlens.errors import DriftlensError
from driftlens.explorer.bench import (
    Bench,
    Exhibit,
    checked_gammas,
    checked_windows,
    default_windows,
    editors_by_gamma,
    exhibits,
)
from driftlens.explorer.page import explorer_page
from driftlens.models import LensModel

if TYPE_CHECKING:
    from driftlens.explorer.notebook import Explorer

__all__ = ["Bench", "Exhibit", "default_windows", "exhibits", "explore", "explorer_page"]


def explore(
    model: LensModel,
    record: Record | Sequence[Record],
    *,
    editor: Editor | None = None,
    gammas: Sequence[float | None] | None = None,
    windows: Sequence[int] | None = None,
    batch_size: int = 128,
) -> Explorer:
    """Explore an edit in a notebook: a cell that ends in `explore(model, record)` shows the widget.

    You choose the record, task, prompt, editor (with or without SADR), substituted module, window, and the answer whose
    probability is drawn. The widget shows the heatmap, the attention of every head before and after the edit, and the
    most probable next tokens. Each result is computed when it is first selected, and cached.

    Args:
        model: the vanilla model; it is not changed.
        record: a benchmark record, or several to choose from.
        editor: the editor; default ROME with the presets for the model. Each of `gammas` replaces its SADR.
        gammas: values of SADR's γ to choose from; None is without SADR. Default: None and the model's preset.
        windows: numbers of layers to choose from; default 1, the paper's window scaled to the model, and twice that.
        batch_size: rows of a pass; it is halved if memory runs out.

    Returns:
        A widget (anywidget); its `save(path)` writes the page that needs no Python.

    Raises:
        DriftlensError: anywidget is not installed, no record, a negative γ, a window below 1.
    """
    try:
        from driftlens.explorer.notebook import Explorer
    except ImportError as error:
        raise DriftlensError(
            f"the explorer needs anywidget ({error}); pip install 'driftlens[notebook]', or write a page instead: "
            "python -m driftlens.trace --explore"
        ) from error
    bench = Bench(model, exhibits(record), editors_by_gamma(model, editor), batch_size=batch_size)
    name = "ROME" if editor is None else type(editor).__name__
    return Explorer(
        bench, checked_gammas(model, gammas, editor or "ROME"), checked_windows(model, windows), editor=name
    )
