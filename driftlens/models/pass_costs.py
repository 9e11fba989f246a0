"""What a pass costs besides its tokens, as it was measured on a machine: kept in the cache, and found by later loads.

Rows share passes by this number (:mod:`driftlens.models.grouping`), so it changes how fast things are and nothing else
but float rounding.  ``driftlens profile`` measures it and keeps it for this kind of machine, device, precision, number
of threads and size of model.  Where none was measured, an estimate for the device is used.

The environment variable ``DRIFTLENS_PASS_COST`` says otherwise: ``estimate`` ignores what was measured, and a number of
tokens is used as it is.
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
    """What ``model.pass_cost`` begins with: what the user says, else what was measured, else an estimate.

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
    """The kept cost of a pass of this model on a machine like this one; None where there is none."""
    try:
        kept = json.loads(_path(model).read_text(encoding="utf-8"))["pass_cost"]
    except (OSError, ValueError, LookupError, TypeError, DriftlensError):
        return None
    return float(kept) if isinstance(kept, int | float) and 0 <= kept < math.inf else None


def keep_pass_cost(model: WrappedModel, tokens: float) -> Path:
    """Keep a measured cost for later loads, and use it from now on.

    Returns:
        The file that holds it; without it, the estimate is used again.

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
    """All that the cost depends on.  No host's name: machines of one kind are alike, and a container's name is new."""
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
