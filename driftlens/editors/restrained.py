"""An editor with another γ: what else follows from it follows as the presets say, unless somebody chose otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from driftlens.editors.base import Editor
from driftlens.editors.sadr import SADR
from driftlens.models import LensModel

__all__ = ["with_sadr"]


def with_sadr(model: LensModel, editor: Editor, gamma: float | None) -> Editor:
    """``editor`` with SADR at ``gamma`` in place of the SADR that it has, or, with None or 0, without.

    SADR needs more steps than the editor alone (paper, C.2).  Where the editor's number of steps is the preset's for
    the regularizers that it has, it becomes the preset's for those that it gets; any other number was chosen, and
    stays.
    """
    others = tuple(one for one in editor.regularizers if not isinstance(one, SADR))
    own = next((one for one in editor.regularizers if isinstance(one, SADR)), SADR())
    regularizers = (*others, replace(own, gamma=gamma)) if gamma else others
    given: Any = editor
    return replace(given, regularizers=regularizers, steps=_steps(model, editor, regularized=bool(regularizers)))


def _steps(model: LensModel, editor: Editor, *, regularized: bool) -> int:
    if editor.steps != editor.preset(model, regularized=bool(editor.regularizers))["steps"]:
        return editor.steps
    return int(editor.preset(model, regularized=regularized)["steps"])
