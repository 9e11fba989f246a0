"""Read a checkpoint from disk or from the hub: configuration, tokenizer and weights.

Hugging Face folders and GGUF files are handled alike.  Quantised tensors of a GGUF file are dequantised when they are
read.  The result is an ordinary full-precision model, which can be edited and exported.
"""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from driftlens.errors import DriftlensError
from driftlens.models.encoding import fast
from driftlens.models.families import Family, family_for, unsupported_architecture
from driftlens.models.names import suggestion
from driftlens.models.placement import DeviceMap
from driftlens.models.quantised import quantisation_of
from driftlens.models.weights import check_numbers, check_report, check_weights

__all__ = ["Checkpoint", "checkpoint", "one_line_errors", "read_config", "read_model", "read_tokenizer"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a checkpoint is: a local folder or GGUF file, or a name on the hub."""

    source: str
    """Folder, or name on the hub."""
    local: bool
    """Whether the network must not be used."""
    gguf: str | None = None
    """The GGUF file's name inside the folder."""

    def __str__(self) -> str:
        return self.source if self.gguf is None else str(Path(self.source) / self.gguf)

    @property
    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"local_files_only": self.local, "trust_remote_code": False}
        return options if self.gguf is None else {**options, "gguf_file": self.gguf}


def checkpoint(source: str, local: bool) -> Checkpoint:
    """The checkpoint at a place that :func:`driftlens.models.names.resolve` has found."""
    path = Path(source)
    if local and path.is_file():
        return Checkpoint(source=str(path.parent), local=True, gguf=path.name)
    return Checkpoint(source=source, local=local)


def read_config(of: Checkpoint, family: Family | None = None) -> tuple[Any, Family]:
    """Its configuration and family (the given one, if any); one that cannot be run or edited is an error."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config: Any = AutoConfig.from_pretrained(of.source, **of._options)  # pyright: ignore[reportPrivateUsage]
    if of.gguf is not None:  # such a file names the kind of model, not the class
        named: Any = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        config.architectures = [named[config.model_type]] if config.model_type in named else None
    architectures: list[str] = list(config.architectures or [])
    known = family or next(filter(None, map(family_for, architectures)), None)
    if known is None:
        raise unsupported_architecture(f"{', '.join(architectures) or config.model_type} in {of}")
    check_numbers(str(of), config)
    known.require_supported(config)
    return config, known


def read_tokenizer(of: Checkpoint) -> Any:
    """Its fast tokenizer."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(of.source, **of._options)  # pyright: ignore[reportPrivateUsage]
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        # Where there are no files of one, Hugging Face makes a tokenizer that knows no token.
        raise DriftlensError(f"{of} holds no tokenizer; expected a tokenizer.json beside the weights")
    return fast(tokenizer)


def read_model(of: Checkpoint, config: Any, dtype: torch.dtype | str, device_map: DeviceMap | None = None) -> Any:
    """Hugging Face's model with all of its weights, in eval mode; in main memory, or placed by `device_map`."""
    from transformers import AutoModelForCausalLM

    if of.local and of.gguf is None and quantisation_of(config) is None:
        check_weights(of.source, config)
    # The bar of the dequantising heeds none of the switches that turn off Hugging Face's bars.
    with redirect_stderr(StringIO()) if of.gguf is not None else nullcontext():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            of.source,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            device_map=device_map,
            output_loading_info=True,
            **of._options,  # pyright: ignore[reportPrivateUsage]
        )
    model, report = loaded
    check_report(str(of), report["missing_keys"], report["unexpected_keys"])
    if of.gguf is not None:
        _forget_quantisation(model)
    return model.eval()


def _forget_quantisation(model: Any) -> None:
    # Left in the configuration, it would refuse to be saved, and a saved folder would be taken for a quantised one.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.quantization_method = None
    model.is_quantized = False


@contextmanager
def one_line_errors(name: str, of: Checkpoint, *, placed: bool = False) -> Generator[None]:
    """Whatever Hugging Face raises on the way, as one line that ends with what to do."""
    try:
        yield
    except DriftlensError:
        raise
    except torch.OutOfMemoryError:
        advice = "another dtype" if placed else "another dtype or device, or device_map='auto'"
        raise DriftlensError(f"{name} does not fit into memory; try {advice}") from None
    except Exception as error:
        # A damaged file or an odd configuration ends in any kind of exception, somewhere deep in other people's code.
        lines = [line for line in str(error).splitlines() if line.strip()]
        if not lines or not isinstance(error, OSError | ValueError | RuntimeError | ImportError | SafetensorError):
            lines = [": ".join([type(error).__name__, *lines[:1]])]
        if of.gguf is not None:
            advice = "; give an undamaged GGUF file of a known family, or the full-precision checkpoint"
        elif isinstance(error, ImportError):
            advice = "; install what is missing, or use the full-precision checkpoint"
        elif placed and of.local:
            advice = "; see whether device_map names every module of the model once, and devices that are there"
        else:
            advice = "; the folder seems damaged, get it again" if of.local else suggestion(name)
        raise DriftlensError(f"cannot load {name}: {lines[0].rstrip('. ')}{advice}") from error
