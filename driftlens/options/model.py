"""The model that a command's options name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from driftlens.models import LensModel

__all__ = ["ModelOptions", "load_chosen"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What the options of `add_model_options` and `add_chat_options` say; None where the model decides."""

    model: str
    device: str | None
    device_map: str | None
    dtype: str | None
    chat: bool
    system: str | None


def load_chosen(options: ModelOptions) -> LensModel:
    """Load it; see :func:`driftlens.load_model` for what is refused."""
    from driftlens.models import load_model

    return load_model(
        options.model,
        device=options.device,
        dtype=options.dtype,
        device_map=options.device_map,
        chat=options.chat,
        system=options.system,
    )
