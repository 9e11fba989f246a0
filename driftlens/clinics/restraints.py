"""What the clinic tries: the editor as it is, with SADR at a few γ, and with guards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from driftlens.clinics.probes import Probe
from driftlens.data import Fact
from driftlens.editors import SADR, sadr_gamma
from driftlens.editors.base import Editor
from driftlens.editors.guarded import GuardedSADR, usual_guards
from driftlens.editors.guards import QUESTIONS
from driftlens.editors.restrained import with_guards, with_sadr
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.registry import EDITORS

__all__ = [
    "FACTORS",
    "PLAIN",
    "Restraint",
    "editor_for",
    "gamma_path",
    "guards_beside",
    "restraints",
]

FACTORS = (0.2, 0.4, 1.0, 2.0, 4.0)
"""The path of γ, in units of the model's preset."""


@dataclass(frozen=True, kw_only=True)
class Restraint:
    """How an edit is restrained: by SADR of weight ``gamma``, by guards of weight ``guards`` (μ = ν), or not at all."""

    gamma: float = 0.0
    guards: float = 0.0

    @property
    def name(self) -> str:
        """As it is written in tables and reports."""
        if self.guards:
            return f"guards μ = ν = {self.guards:g}"
        return f"SADR γ = {self.gamma:g}" if self.gamma else "plain"


PLAIN = Restraint()


def editor_for(
    model: LensModel,
    editor: str | Editor | Callable[[float], Editor],
    restraint: Restraint = PLAIN,
    guards: GuardedSADR | None = None,
) -> Editor:
    """The editor with SADR or guards of a weight, or without either.

    Args:
        model: the model to be edited.
        editor: "rome", "memit" or "pmet" with the model's presets; an editor, whose other regularizers stay; or a
            function from γ to an editor.
        restraint: SADR's weight, or that of guards.
        guards: the guards, whatever their weights; default: the model's.

    Raises:
        DriftlensError: an unknown name.
    """
    if restraint.guards:
        weighted = replace(guards or usual_guards(model), mu=restraint.guards, nu=restraint.guards)
        return with_guards(model, editor_for(model, editor), weighted)
    gamma = restraint.gamma
    if isinstance(editor, str):
        return EDITORS.find(editor).for_model(model, regularizers=(SADR(gamma=gamma),) if gamma else ())
    if isinstance(editor, Editor):
        return with_sadr(model, editor, gamma)
    return editor(gamma)


def gamma_path(model: LensModel, editor: Editor, gammas: Sequence[float] | None) -> tuple[float, ...]:
    """0 and the weights to try, ascending: those given, those that the editor has, or five around its preset.

    Raises:
        DriftlensError: a weight that is no number above 0.
    """
    if gammas is None and (known := editor.gammas(model)) is not None:
        return (0.0, *known)
    if gammas is None:
        centre = sadr_gamma(model, editor.presets)
        return (0.0, *(float(f"{centre * factor:.6g}") for factor in FACTORS))
    for gamma in gammas:
        if not 0 <= gamma < float("inf"):
            raise DriftlensError(f"gamma is {gamma}; expected numbers above 0, e.g. 0.005")
    return (0.0, *sorted({float(gamma) for gamma in gammas if gamma > 0}))


def restraints(
    model: LensModel, editor: Editor, gammas: Sequence[float] | None, guards: Sequence[float] | None
) -> tuple[Restraint, ...]:
    """What is tried: nothing, SADR at each γ of :func:`gamma_path`, then guards of each weight.

    Without ``guards`` it is one weight, the model's; none for an editor that takes SADR's weights by training (MEND).

    Raises:
        DriftlensError: a weight that is no number above 0.
    """
    path = [Restraint(gamma=gamma) for gamma in gamma_path(model, editor, gammas)]
    if guards is None:
        guards = (usual_guards(model).mu,) if editor.gammas(model) is None else ()
    for weight in guards:
        if not 0 < weight < float("inf"):
            raise DriftlensError(f"a weight of guards is {weight}; expected numbers above 0, e.g. 2")
    return (*path, *(Restraint(guards=float(weight)) for weight in dict.fromkeys(guards)))


def guards_beside(model: LensModel, probes: Sequence[Probe], fact: Fact, peers: Sequence[str]) -> GuardedSADR:
    """The model's guards, which share nothing with the probes: no question of theirs, no subject that stands in one."""
    told = "\n".join(probe.prompt for probe in probes)
    questions = tuple(one for one in QUESTIONS if one.replace("{}", fact.subject) not in told)
    return usual_guards(model, questions=questions, subjects=tuple(name for name in peers if name not in told))
