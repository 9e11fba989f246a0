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

    SADR needs more steps than the editor alone (paper, C.2).  Where the preset chose the number of steps
    (``for_model``), it chooses again; a number that somebody gave stays.
    """
    others = tuple(one for one in editor.regularizers if not isinstance(one, SADR))
    own = next((one for one in editor.regularizers if isinstance(one, SADR)), SADR())
    regularizers = (*others, replace(own, gamma=gamma)) if gamma else others
    restrained: Any = editor.with_regularizers(model, regularizers)
    if not editor.steps_follow:
        return restrained
    steps = editor.preset(model, regularized=bool(regularizers))["steps"]
    found: Editor = replace(restrained, steps=steps)
    found.follow(follows=True)
    return found
