"""The restraints that the clinic tries: none, SADR at several γ, and guards."""

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
"""The default path of γ, as multiples of the model's preset."""


@dataclass(frozen=True, kw_only=True)
class Restraint:
    """The restraint of an edit: SADR with weight ``gamma``, guards with weight ``guards`` (μ = ν), or neither."""

    gamma: float = 0.0
    guards: float = 0.0

    @property
    def name(self) -> str:
        """Its name in tables and reports."""
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
    """Make the editor with SADR or guards of the given weight, or without either.

    Args:
        model: the model to be edited.
        editor: "rome", "memit" or "pmet" with the model's presets; an editor, whose other regularizers are preserved;
            or a function from γ to an editor.
        restraint: the weight of SADR or of guards.
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
    """Return 0 and the weights to try, ascending: the given ones, those the editor supports, or five around its preset.

    Raises:
        DriftlensError: a weight is not a number above 0.
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
    """List the restraints to try: none, SADR at each γ of :func:`gamma_path`, then guards of each weight.

    By default there is one weight of guards, the model's; none for an editor whose SADR weights are set in training
    (MEND).

    Raises:
        DriftlensError: a weight is not a number above 0.
    """
    path = [Restraint(gamma=gamma) for gamma in gamma_path(model, editor, gammas)]
    if guards is None:
        guards = (usual_guards(model).mu,) if editor.gammas(model) is None else ()
    for weight in guards:
        if not 0 < weight < float("inf"):
            raise DriftlensError(f"a weight of guards is {weight}; expected numbers above 0, e.g. 2")
    return (*path, *(Restraint(guards=float(weight)) for weight in dict.fromkeys(guards)))


def guards_beside(model: LensModel, probes: Sequence[Probe], fact: Fact, peers: Sequence[str]) -> GuardedSADR:
    """The model's guards without any question or subject that the probes use."""
    told = "\n".join(probe.prompt for probe in probes)
    questions = tuple(one for one in QUESTIONS if one.replace("{}", fact.subject) not in told)
    return usual_guards(model, questions=questions, subjects=tuple(name for name in peers if name not in told))
