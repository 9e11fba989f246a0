"""Tiny checkpoints as lens models, on the backend that this environment's transformer-lens has."""

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import hooked_transformer

BRIDGE = int(version("transformer-lens").split(".")[0]) >= 4

one_family = pytest.mark.parametrize("checkpoint_folder", ["gpt2"], indirect=True)
"""For what no family has a part in: messages, bookkeeping, identities."""

_loaded: dict[str, Any] = {}


def load_tiny(folder: Path, *, exact: bool = False) -> Any:
    """The checkpoint as a LensModel, in float64 where it is to be exact."""
    from driftlens.models import LensModel, load_model

    if BRIDGE:
        return load_model(folder, device="cpu", dtype="float64" if exact else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        hooked = hooked_transformer(folder)
        return LensModel(hooked.to(torch.float64, print_details=False) if exact else hooked)


def shared(folder: Path, *, exact: bool = False) -> Any:
    """:func:`load_tiny`, once a session for all tests: leave its weights as they were."""
    name = f"{folder.name} in float64" if exact else folder.name
    if name not in _loaded:
        _loaded[name] = load_tiny(folder, exact=exact)
    return _loaded[name]
