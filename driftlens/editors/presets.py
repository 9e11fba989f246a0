"""Settings by model: the paper's (C.2), the bundled model's, and defaults by depth and scale for any other.

The published runs used a learning rate of 0.5 whatever the setting files say (note 14), which is also C.2's.
"""

from __future__ import annotations

from typing import Any

import torch

from driftlens.hooks import record
from driftlens.models import LensModel
from driftlens.prompts import pad_rows

GPT = {"weight_decay": 0.5}
LLAMA = {"weight_decay": 1e-3}

ROME_PRESETS: dict[str, dict[str, Any]] = {
    "gpt2-xl": {"layer": 17, **GPT},
    "gpt-j-6b": {"layer": 5, **GPT},
    "meta-llama-3-8b": {"layer": 5, **LLAMA},
    "llama-2-13b-hf": {"layer": 15, **LLAMA},
    "gpt-neox-20b": {"layer": 5, **GPT},
    "tinyllama-1.1b": {"layer": 4, "clamp_norm_factor": 2.0, **LLAMA},
}
"""By the end of the model's name, in lower case.  GPT-2 XL is not in C.2; its layer is ROME's own."""

SADR_GAMMA: dict[str, float] = {
    "gpt2-xl": 1e-2,
    "gpt-j-6b": 1e-2,
    "meta-llama-3-8b": 4e-2,
    "llama-2-13b-hf": 1e-2,
    "gpt-neox-20b": 1e-2,
    "tinyllama-1.1b": 8e-2,
    "demo": 3e-2,
}
"""C.2's controlling weight for ROME by model; the bundled model's was chosen on its validation records."""


def rome_preset(model: LensModel, *, regularized: bool) -> dict[str, Any]:
    """Keyword arguments of :class:`driftlens.ROME` for ``model``."""
    if model.name == "demo":
        return {
            "layer": 2,
            "lr": 2.5,
            "weight_decay": 0.1,
            "clamp_norm_factor": 20.0,
            "steps": 60 if regularized else 25,
        }
    steps = {"steps": 80 if regularized else 20}
    name = known_name(model)
    if name is not None:
        return ROME_PRESETS[name] | steps
    return {"layer": default_layer(model), **scaled_to(model), **steps}


def sadr_gamma(model: LensModel) -> float:
    """The paper's γ for ``model`` with ROME, its middle value (1e-2) for any other."""
    return SADR_GAMMA.get("demo" if model.name == "demo" else known_name(model) or "", 1e-2)


def known_name(model: LensModel) -> str | None:
    """The preset that ``model`` goes by, found in the last part of its name."""
    last = model.name.rstrip("/").split("/")[-1].lower()
    return next((name for name in ROME_PRESETS if last.startswith(name)), None)


def default_layer(model: LensModel) -> int:
    """An early-middle layer: about a fifth of the depth, where C.2's choices for GPT-J, Llama-3 and TinyLlama
    lie.
    """
    return min(max(1, round(model.n_layers / 5)), model.n_layers - 1)


@torch.no_grad()
def scaled_to(model: LensModel) -> dict[str, float]:
    """Learning rate and clamp for a model nobody has tuned, from the size of its residual stream.

    An Adam step moves δ by about lr · √d_model.  What matters is that length against the residual stream it
    is added to, and small models trained without weight decay can have residuals a hundred times GPT-J's.
    The rate is set to a tenth of the residual's norm at the edit layer, the clamp to one and a half times it,
    and neither below the paper's 0.5 and 4.
    """
    layer = default_layer(model)
    batch, _ = pad_rows(model, [list(model.encode("The name of the capital of the country is").ids)])
    store: dict[str, torch.Tensor] = {}
    hooks = [(model.hook_name(site, layer), record(store, site)) for site in ("resid_post", "mlp_out")]
    model.run(batch, hooks=hooks, stop=layer + 1)
    # The first token's residual is an outlier in most models.
    resid, mlp_out = (
        float(store[site][0, 1:].float().norm(dim=-1).mean()) for site in ("resid_post", "mlp_out")
    )
    return {
        "lr": max(0.5, 0.1 * resid / model.d_model**0.5),
        "clamp_norm_factor": max(4.0, 1.5 * resid / mlp_out),
        "weight_decay": 0.1,
    }
