"""Cache the measured fixed cost of a pass for later loads.

This cost determines how rows are grouped into passes (:mod:`driftlens.models.grouping`), so it affects only speed and
float rounding.  ``driftlens profile`` measures and stores it for this kind of machine, device, precision, number of
threads and model size.  Without a measurement, an estimate for the device is used.

The environment variable ``DRIFTLENS_PASS_COST`` overrides it: ``estimate`` ignores measurements, and a number is the
cost in tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from driftlens.errors import DriftlensError
from driftlens.files import atomic_path, cache_folder, writable_folder
from driftlens.models.grouping import pass_cost

if TYPE_CHECKING:
    from driftlens.models.wrapped import WrappedModel

__all__ = ["initial_pass_cost", "keep_pass_cost", "measured_before"]

VARIABLE = "DRIFTLENS_PASS_COST"


def initial_pass_cost(model: WrappedModel) -> float:
    """The initial ``model.pass_cost``: the user's value, else a measured one, else an estimate.

    Raises:
        DriftlensError: the environment variable is neither ``estimate`` nor a number of tokens.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if given and given != "estimate":
        try:
            tokens = float(given)
        except ValueError:
            tokens = math.nan
        if not 0 <= tokens < math.inf:
            raise DriftlensError(f"{VARIABLE} is {given!r}; expected a number of tokens, e.g. 32, or 'estimate'")
        return tokens
    measured = None if given else measured_before(model)
    return pass_cost(model.device) if measured is None else measured


def measured_before(model: WrappedModel) -> float | None:
    """The stored cost of a pass of this model on a machine like this one, or None."""
    try:
        kept = json.loads(_path(model).read_text(encoding="utf-8"))["pass_cost"]
    except (OSError, ValueError, LookupError, TypeError, DriftlensError):
        return None
    return float(kept) if isinstance(kept, int | float) and 0 <= kept < math.inf else None


def keep_pass_cost(model: WrappedModel, tokens: float) -> Path:
    """Store a measured cost for later loads, and use it from now on.

    Returns:
        The file with the cost; if it is deleted, the estimate is used again.

    Raises:
        DriftlensError: the cache cannot be written.
    """
    path = _path(model)
    writable_folder(path.parent)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"pass_cost": tokens, **_key(model)}, indent=2) + "\n", encoding="utf-8")
    model.pass_cost = tokens
    return path


def _path(model: WrappedModel) -> Path:
    digest = hashlib.sha256(json.dumps(_key(model), sort_keys=True).encode()).hexdigest()[:20]
    return cache_folder() / "pass-costs" / f"{digest}.json"


def _key(model: WrappedModel) -> dict[str, Any]:
    """Everything that the cost depends on.

    The host's name is not part of it, because equal machines share the cost, and every container has a new name.
    """
    on_gpu = model.device.type == "cuda"
    return {
        "device": model.device.type,
        "processor": torch.cuda.get_device_name(model.device) if on_gpu else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "backend": model.backend,
        "family": model.family,
        "quantisation": model.quantisation,
        "sizes": [model.n_layers, model.n_heads, model.d_model, model.d_mlp, model.d_vocab],
    }


def _processor() -> str:
    """The processor's kind, as far as the system tells it."""
    told = ("vendor_id", "cpu family", "model", "model name", "stepping", "cpu implementer", "cpu part")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    found = [value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() in told]
    return " ".join([platform.machine(), *(found or [platform.processor()])])
