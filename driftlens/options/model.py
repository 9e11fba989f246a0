"""The command-line options of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from driftlens.options.declaration import flag, option
from driftlens.options.parsing import any_text, name_of

if TYPE_CHECKING:
    from driftlens.models import LensModel

__all__ = ["MODEL", "ChatOptions", "ModelOptions"]

MODEL = "model"
"""The title of these options in the help."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, its device and its precision; None means the model's own default."""

    model: str = option(
        "demo", "demo (default), a Hugging Face name, a local folder or a .gguf file", "NAME", group=MODEL
    )
    device: str | None = option(
        None, "cpu, cuda, cuda:1 or mps; default: cuda if there is a GPU, else cpu", "D", group=MODEL
    )
    device_map: str | None = option(
        None,
        "for a model too big for one device: auto fills all GPUs, then main memory, then reads the rest from disk "
        "in each pass (also balanced and sequential, as in Hugging Face); default: one device",
        "MAP",
        name_of("device map", ("auto", "balanced", "sequential")),
        group=MODEL,
    )
    dtype: str | None = option(
        None,
        "float32, bfloat16 or float16; default: the checkpoint's. On a CPU, bfloat16 is faster only if the "
        "processor computes in it (AVX512-BF16, AMX), which driftlens profile tells",
        "D",
        group=MODEL,
    )

    def load(self) -> LensModel:
        """Load the model; see :func:`driftlens.load_model` for what is refused."""
        from driftlens.models import load_model

        return load_model(self.model, device=self.device, dtype=self.dtype, device_map=self.device_map)


@dataclass(frozen=True, kw_only=True)
class ChatOptions(ModelOptions):
    """As :class:`ModelOptions`, with the use of the model's chat template."""

    chat: bool = flag(
        "put the model's own chat template around every prompt: the prompt becomes the user's message, and the "
        "answer begins where the assistant's does",
        group=MODEL,
    )
    system: str | None = option(
        None,
        "the chat's system prompt; default: the template's own; '' for an empty one",
        "TEXT",
        any_text,
        group=MODEL,
    )

    def load(self) -> LensModel:
        """Load the model with its chat template, if wanted; see :func:`driftlens.load_model` for what is refused."""
        from driftlens.models import load_model

        return load_model(
            self.model,
            device=self.device,
            dtype=self.dtype,
            device_map=self.device_map,
            chat=self.chat,
            system=self.system,
        )
