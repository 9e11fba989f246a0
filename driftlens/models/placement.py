"""Support models that Hugging Face's accelerate distributes over several GPUs, main memory and disk.

accelerate wraps the forward of each module that it places, in one of two ways:

- For a module **on another device**, it moves the inputs to that device.
- For an **offloaded** module, it loads the weights from main memory or the checkpoint's files to the computing device,
  and drops them afterwards. Between calls, these weights are empty, on the device "meta".

Three rules hide this from the rest of driftlens. Inputs and outputs of passes, and tensors in hooks, are on one device,
the **home**: that of the embeddings. A weight is **read** from wherever it is. A weight that may be **changed** stays
in main memory from then on and replaces the file's.
"""

from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from driftlens.errors import DriftlensError, unknown_name

__all__ = ["DeviceMap", "at_home", "check_device_map", "computes_on", "is_offloaded", "kept", "read"]

DeviceMap = str | Mapping[str, int | str | torch.device]
"""The placement of a model: a strategy of accelerate, or a device for each module by its Hugging Face name."""

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


def check_device_map(device_map: object) -> None:
    """Check a device map.

    Raises:
        DriftlensError: an unknown strategy, or neither a strategy nor a mapping.
    """
    if isinstance(device_map, Mapping):
        if not device_map:
            raise DriftlensError("device_map is empty; name a device for each module, or give 'auto'")
    elif not isinstance(device_map, str):
        raise DriftlensError(f"device_map is {device_map!r}; expected 'auto', or a device for each module by its name")
    elif device_map not in STRATEGIES:
        raise unknown_name("device map", device_map, STRATEGIES)


def computes_on(module: nn.Module, name: str = "weight") -> torch.device:
    """The device on which a module computes; `name` is one of its own weights."""
    hook = _offloading(module)
    device: Any = getattr(module, name).device if hook is None else hook.execution_device
    return torch.device(device)


def is_offloaded(module: nn.Module) -> bool:
    """Whether a module's weights are empty between its calls."""
    return _offloading(module) is not None


def read(module: nn.Module, name: str) -> Tensor:
    """Read a module's own weight or buffer from wherever it is; from a file, this is a copy."""
    hook = _offloading(module)
    value: Tensor = getattr(module, name)
    if hook is None or value.device.type != "meta":
        return value
    return hook.weights_map[name]


def kept(module: nn.Module, name: str) -> Tensor:
    """A module's own live weight: an in-place change of it changes the model.

    An offloaded weight is copied to main memory once, and every later call uses the copy.
    """
    hook = _offloading(module)
    value: Tensor = getattr(module, name)
    if hook is None or value.device.type != "meta":
        return value
    if not isinstance(hook.weights_map, ChainMap):
        hook.weights_map = ChainMap({}, hook.weights_map)
    first: MutableMapping[str, Tensor] = hook.weights_map.maps[0]
    if name not in first:
        first[name] = hook.weights_map[name].clone()  # what a file gives is a view of its pages
    return first[name]


def at_home(function: Callable[..., Any], home: torch.device) -> Callable[..., Any]:
    """Wrap a hook function so that it gets its tensor on the device `home`."""

    # TransformerLens keeps repr(function) as a label; that of an object which holds tensors would print them all.
    def hook_function(tensor: Tensor, hook: Any) -> Any:
        if tensor.device == home:
            return function(tensor, hook=hook)
        seen = tensor.to(home)
        returned = function(seen, hook=hook)
        # What the function changed in place is changed in the copy.
        return (seen if returned is None else returned).to(tensor.device)

    return hook_function


def _offloading(module: nn.Module) -> Any:
    """The hook of accelerate that loads a module's weights, or None if they are not offloaded."""
    pending: list[Any] = [getattr(module, "_hf_hook", None)]
    while pending:
        hook = pending.pop()
        if hasattr(hook, "hooks"):
            pending.extend(hook.hooks)
        elif getattr(hook, "offload", False) and hook.weights_map is not None:
            return hook
    return None
