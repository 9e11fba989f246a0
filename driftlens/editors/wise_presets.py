"""WISE's settings by model: the published ones, those of the small models, and a default by scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from driftlens.editors.contexts import ContextSampling
from driftlens.editors.presets import Preset
from driftlens.hooks import record
from driftlens.models import LensModel
from driftlens.models.prompts import pad_rows

__all__ = ["WISE_PRESETS", "side_layer", "side_scale"]


def _preset(
    layer: int, margins: tuple[float, float, float], lr: float, *, steps: int = 70, sadr: float = 1e-2, **more: Any
) -> Preset:
    alpha, beta, gamma = margins
    settings = {"layer": layer, "alpha": alpha, "beta": beta, "gamma": gamma, "lr": lr, **more}
    return Preset(settings=settings, steps=steps, sadr_steps=steps, gamma=sadr)


_LLAMA = (5.0, 20.0, 10.0)

WISE_PRESETS: Mapping[str, Preset] = {
    "demo": _preset(5, (4.0, 16.0, 8.0), 0.3, steps=40, sadr=0.1),
    "gpt-j-6b": _preset(21, (15.0, 40.0, 20.0), 1.0),
    "llama-2-7b": _preset(27, _LLAMA, 1.0),
    "meta-llama-3-8b": _preset(29, (2.0, 20.0, 10.0), 0.9, steps=30),
    "mistral-7b": _preset(27, _LLAMA, 1.0),
    "qwen2.5-7b": _preset(23, _LLAMA, 1.0),
    "smollm2-135m": _preset(20, _LLAMA, 0.7, steps=40, sadr=4.0, sampling=ContextSampling(lengths=((10, 5),))),
}
"""By the beginning of the last part of the model's name, in lower case; "demo" is the bundled model.  Settings of the
large models are those of the published files.  Their γ of SADR is the middle one of the paper's, which does not name
the one that it used with WISE.  The others' were chosen on validation records (`benchmarks/results/wise-settings.md`).
"""

REACH = 0.3
"""β by scale, in norms of the down-projection's output.  Trained without margins, memories of two small models moved
edited prompts by about this much, and irrelevant text by a quarter to a half of it."""

PULL = 3.5
"""How far the margins move an edited prompt in a step, in β, where all keys were alike.  They are not, and the step is
about one β."""

_MASK_RATIO = 0.2


def side_layer(model: LensModel) -> int:
    """Four fifths of the depth, where the published layers of GPT-J, Llama and Qwen lie, and below the last layer."""
    return max(0, min(round(0.8 * model.n_layers), model.n_layers - 2))


@torch.no_grad()
def side_scale(model: LensModel, layer: int) -> dict[str, float]:
    """Margins and learning rate for a model that nobody has tuned, from its own activations in a sentence.

    A distance is a change of the down-projection's output, so β is :data:`REACH` of that output's norm; α and γ are a
    quarter and a half of β, as in the published settings of Llama.  A step of the margins moves an edited prompt by
    about lr · mask_ratio · ‖key‖², and lr makes that :data:`PULL` · β.
    """
    batch, _ = pad_rows(model, [list(model.encode("The name of the capital of the country is").ids)])
    store: dict[str, torch.Tensor] = {}
    hooks = [(model.hook_name(site, layer), record(store, site)) for site in ("mlp_post", "mlp_out")]
    model.run(batch, hooks=hooks, stop=layer + 1)
    # The first token is an outlier in most models.
    key = float(store["mlp_post"][0, 1:].float().square().sum(dim=-1).mean())
    output = float(store["mlp_out"][0, 1:].float().norm(dim=-1).mean())
    beta = float(f"{REACH * output:.2g}")
    return {"alpha": beta / 4, "beta": beta, "gamma": beta / 2, "lr": float(f"{PULL * beta / (_MASK_RATIO * key):.2g}")}
