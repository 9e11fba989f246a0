"""Models: loading, partial passes with hooks, and everything that differs between families and backends."""

from driftlens.models.batch import Batch
from driftlens.models.chat import RAW, ChatFrame
from driftlens.models.encoding import Encoding
from driftlens.models.families import Family, register_family
from driftlens.models.key_values import KeyValues
from driftlens.models.lens_model import LensModel, check_loaded
from driftlens.models.loading import load_model

__all__ = [
    "RAW",
    "Batch",
    "ChatFrame",
    "Encoding",
    "Family",
    "KeyValues",
    "LensModel",
    "check_loaded",
    "load_model",
    "register_family",
]
