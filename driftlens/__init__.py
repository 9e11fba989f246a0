"""Knowledge-editing interpretability on TransformerLens models.

The public names below are loaded when they are first used: `import driftlens` itself imports neither torch
nor transformer-lens, so the command line answers at once and a mistyped option costs no ten seconds.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from driftlens.version import __version__ as __version__

if TYPE_CHECKING:
    from driftlens.analyses.drift import attention_drift
    from driftlens.analyses.patch import patch_attention, patch_scores
    from driftlens.analyses.substitution import contaminating_substitution
    from driftlens.clinics import clinic
    from driftlens.data import Fact, Record, TaskPrompt, load_records
    from driftlens.editors import (
        MEMIT,
        MEND,
        PMET,
        ROME,
        SADR,
        WISE,
        AlphaEdit,
        GuardedSADR,
        edit_in_sequence,
        edit_together,
        train_mend,
    )
    from driftlens.edits import Edit, EditResult, EditSequence, JointEditResult
    from driftlens.errors import DriftlensError
    from driftlens.evaluation import evaluate, summarize
    from driftlens.evaluation.generation import generate
    from driftlens.explorer import explore
    from driftlens.models import Family, LensModel, load_model, register_family
    from driftlens.registry import register_editor
    from driftlens.statistics.correlations import correlation

# Public name -> the module that defines it. A new public name is one line here and one import above.
_HOMES = {
    "AlphaEdit": "driftlens.editors",
    "DriftlensError": "driftlens.errors",
    "Edit": "driftlens.edits",
    "EditResult": "driftlens.edits",
    "EditSequence": "driftlens.edits",
    "Fact": "driftlens.data",
    "Family": "driftlens.models",
    "GuardedSADR": "driftlens.editors",
    "JointEditResult": "driftlens.edits",
    "LensModel": "driftlens.models",
    "MEMIT": "driftlens.editors",
    "MEND": "driftlens.editors",
    "PMET": "driftlens.editors",
    "ROME": "driftlens.editors",
    "Record": "driftlens.data",
    "SADR": "driftlens.editors",
    "TaskPrompt": "driftlens.data",
    "WISE": "driftlens.editors",
    "attention_drift": "driftlens.analyses.drift",
    "clinic": "driftlens.clinics",
    "contaminating_substitution": "driftlens.analyses.substitution",
    "correlation": "driftlens.statistics.correlations",
    "edit_in_sequence": "driftlens.editors",
    "edit_together": "driftlens.editors",
    "evaluate": "driftlens.evaluation",
    "explore": "driftlens.explorer",
    "generate": "driftlens.evaluation.generation",
    "load_model": "driftlens.models",
    "load_records": "driftlens.data",
    "patch_attention": "driftlens.analyses.patch",
    "patch_scores": "driftlens.analyses.patch",
    "register_editor": "driftlens.registry",
    "register_family": "driftlens.models",
    "summarize": "driftlens.evaluation",
    "train_mend": "driftlens.editors",
}

__all__ = [
    "MEMIT",
    "MEND",
    "PMET",
    "ROME",
    "SADR",
    "WISE",
    "AlphaEdit",
    "DriftlensError",
    "Edit",
    "EditResult",
    "EditSequence",
    "Fact",
    "Family",
    "GuardedSADR",
    "JointEditResult",
    "LensModel",
    "Record",
    "TaskPrompt",
    "attention_drift",
    "clinic",
    "contaminating_substitution",
    "correlation",
    "edit_in_sequence",
    "edit_together",
    "evaluate",
    "explore",
    "generate",
    "load_model",
    "load_records",
    "patch_attention",
    "patch_scores",
    "register_editor",
    "register_family",
    "summarize",
    "train_mend",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'driftlens' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # the next look-up is an ordinary one
    return value


class _Face(ModuleType):
    """The package itself, whose public names its submodules cannot hide.

    Importing the command module `driftlens.evaluate` sets it as an attribute of the package; the function
    `driftlens.evaluate` must stay what it is.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
