"""Knowledge-editing interpretability on TransformerLens models.

The public names below are loaded when they are first used: `import driftlens` itself imports neither torch
nor transformer-lens, so the command line answers at once and a mistyped option costs no ten seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from driftlens.clinics import clinic
    from driftlens.correlations import correlation
    from driftlens.data import Fact, Record, TaskPrompt, load_records
    from driftlens.drift import attention_drift
    from driftlens.editors import MEMIT, PMET, ROME, SADR
    from driftlens.edits import Edit, EditResult, JointEditResult
    from driftlens.errors import DriftlensError
    from driftlens.evaluation import evaluate, summarize
    from driftlens.explorer import explore
    from driftlens.generation import generate
    from driftlens.models import LensModel, load_model
    from driftlens.patch import patch_attention, patch_scores
    from driftlens.trace import contaminating_substitution

__version__ = "0.1.0"

# Public name -> the module that defines it. A new public name is one line here and one import above.
_HOMES = {
    "DriftlensError": "driftlens.errors",
    "Edit": "driftlens.edits",
    "EditResult": "driftlens.edits",
    "Fact": "driftlens.data",
    "JointEditResult": "driftlens.edits",
    "LensModel": "driftlens.models",
    "MEMIT": "driftlens.editors",
    "PMET": "driftlens.editors",
    "ROME": "driftlens.editors",
    "Record": "driftlens.data",
    "SADR": "driftlens.editors",
    "TaskPrompt": "driftlens.data",
    "attention_drift": "driftlens.drift",
    "clinic": "driftlens.clinics",
    "contaminating_substitution": "driftlens.trace",
    "correlation": "driftlens.correlations",
    "evaluate": "driftlens.evaluation",
    "explore": "driftlens.explorer",
    "generate": "driftlens.generation",
    "load_model": "driftlens.models",
    "load_records": "driftlens.data",
    "patch_attention": "driftlens.patch",
    "patch_scores": "driftlens.patch",
    "summarize": "driftlens.evaluation",
}

__all__ = [
    "MEMIT",
    "PMET",
    "ROME",
    "SADR",
    "DriftlensError",
    "Edit",
    "EditResult",
    "Fact",
    "JointEditResult",
    "LensModel",
    "Record",
    "TaskPrompt",
    "attention_drift",
    "clinic",
    "contaminating_substitution",
    "correlation",
    "evaluate",
    "explore",
    "generate",
    "load_model",
    "load_records",
    "patch_attention",
    "patch_scores",
    "summarize",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'driftlens' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # the next look-up is an ordinary one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
