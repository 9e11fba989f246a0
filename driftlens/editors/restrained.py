"""Change an editor's restraint; settings that depend on it follow the presets unless the user chose them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from driftlens.editors.base import Editor
from driftlens.editors.guarded import GuardedSADR
from driftlens.editors.regularizers import HasParts, Regularizer
from driftlens.editors.sadr import SADR
from driftlens.models import LensModel

__all__ = ["with_guards", "with_sadr"]

E = TypeVar("E", bound=Editor)


def with_sadr(model: LensModel, editor: E, gamma: float | None) -> E:
    """Return ``editor`` with SADR at ``gamma`` in place of its own SADR; None or 0 means without.

    A restrained edit needs more steps than a plain one (paper, C.2).  If the number of steps comes from the preset
    (``for_model``), it is updated; a number that the user gave stays.
    """
    own = next((one for one in editor.regularizers if isinstance(one, SADR)), SADR())
    return _with(model, editor, (*_others(editor), replace(own, gamma=gamma)) if gamma else _others(editor))


def with_guards(model: LensModel, editor: E, guards: GuardedSADR) -> E:
    """Return ``editor`` with ``guards`` in place of its SADR, and with as many steps as :func:`with_sadr` gives.

    With fewer steps, edits protect about as much but are recalled less well (``docs/guarded-sadr.md``).
    """
    return _with(model, editor, (*_others(editor), guards))


def _with(model: LensModel, editor: E, regularizers: Sequence[Regularizer | HasParts]) -> E:
    restrained = editor.with_regularizers(model, regularizers)
    chosen = editor.preset(model, regularized=bool(regularizers)) if editor.steps_follow else {}
    if "steps" not in chosen:
        return restrained
    found = restrained.changed(steps=chosen["steps"])
    found.follow(follows=True)
    return found


def _others(editor: Editor) -> tuple[Regularizer | HasParts, ...]:
    return tuple(one for one in editor.regularizers if not isinstance(one, SADR | GuardedSADR))
