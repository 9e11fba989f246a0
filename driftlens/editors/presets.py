"""Settings by editor and model: the paper's (C.2), the bundled model's, and defaults by depth and scale for any other.

The published runs used a learning rate of 0.5 whatever the setting files say, which is also C.2's, but for
MEMIT with SADR on GPT-J, where C.2 has 0.25.  Clamps, weight decays and λ are those of the published settings; C.2
does not name them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from driftlens.editors.contexts import ContextSampling
from driftlens.hooks import record
from driftlens.models import LensModel
from driftlens.models.prompts import pad_rows


@dataclass(frozen=True, kw_only=True)
class Preset:
    """An editor's settings for one model, its number of steps without and with SADR, and SADR's γ."""

    settings: Mapping[str, Any]
    steps: int = 20
    sadr_steps: int = 80
    gamma: float


def _layers(first: int, last: int, **settings: Any) -> dict[str, Any]:
    return {"layers": tuple(range(first, last + 1)), **settings}


GPT = {"weight_decay": 0.5}
LLAMA = {"weight_decay": 1e-3}
# Eleven contexts do on the bundled model what 21 do, in half the time; on SmolLM2, six.
_FEWER = ContextSampling(lengths=((5, 5), (10, 5)))
_FEWEST = ContextSampling(lengths=((10, 5),))
# As MEMIT's own settings for the GPT models; the published ones of the Llama models allow δ more.
NEAR, WIDE = {"clamp_norm_factor": 0.75}, {"clamp_norm_factor": 4.0}
TEXT_KL = {"kl_factor": 0.0625}

_PAPER: Mapping[str, Mapping[str, Preset]] = {
    "ROME": {
        "gpt2-xl": Preset(settings={"layer": 17, **GPT}, gamma=1e-2),
        "gpt-j-6b": Preset(settings={"layer": 5, **GPT}, gamma=1e-2),
        "meta-llama-3-8b": Preset(settings={"layer": 5, **LLAMA}, gamma=4e-2),
        "llama-2-13b-hf": Preset(settings={"layer": 15, **LLAMA}, gamma=1e-2),
        "gpt-neox-20b": Preset(settings={"layer": 5, **GPT}, gamma=1e-2),
        "tinyllama-1.1b": Preset(settings={"layer": 4, "clamp_norm_factor": 2.0, **LLAMA}, gamma=8e-2),
        "smollm2-135m": Preset(
            settings={"layer": 6, "clamp_norm_factor": 2.0, "sampling": _FEWEST, **LLAMA}, sadr_steps=40, gamma=4.0
        ),
    },
    "MEMIT": {
        "gpt2-xl": Preset(settings=_layers(13, 17, second_moment_weight=20000.0, **GPT, **NEAR), gamma=1e-2),
        "gpt-j-6b": Preset(settings=_layers(3, 8, **GPT, **NEAR), sadr_steps=20, gamma=5e-3),
        "meta-llama-3-8b": Preset(settings=_layers(4, 8, **LLAMA, **WIDE), gamma=1e-2),
        "llama-2-13b-hf": Preset(settings=_layers(5, 9, **LLAMA, **WIDE), gamma=4e-2),
        "gpt-neox-20b": Preset(settings=_layers(13, 16, **GPT, **NEAR), gamma=5e-3),
        "tinyllama-1.1b": Preset(
            settings=_layers(3, 5, second_moment_weight=20000.0, clamp_norm_factor=8.0, **GPT), gamma=8e-2
        ),
        "smollm2-135m": Preset(
            settings=_layers(4, 8, second_moment_weight=200.0, **GPT, **NEAR), sadr_steps=30, gamma=4.0
        ),
    },
    "AlphaEdit": {
        "gpt2-xl": Preset(settings=_layers(13, 17, **GPT, **NEAR), gamma=1e-2),
        "gpt-j-6b": Preset(settings=_layers(3, 8, **GPT, **NEAR), steps=25, gamma=5e-3),
        "meta-llama-3-8b": Preset(settings=_layers(4, 8, lr=0.1, **GPT, **NEAR), steps=25, gamma=1e-2),
        "smollm2-135m": Preset(
            settings=_layers(4, 8, null_space_threshold=0.02, ridge=1.0, **GPT, **NEAR), sadr_steps=30, gamma=4.0
        ),
    },
    "MEND": {
        "smollm2-135m": Preset(settings={}, steps=2, sadr_steps=2, gamma=1.0),
    },
    "PMET": {
        "gpt2-xl": Preset(settings=_layers(13, 17, second_moment_weight=20000.0, **GPT, **NEAR), gamma=1e-2),
        "gpt-j-6b": Preset(settings=_layers(3, 8, **GPT, **NEAR), sadr_steps=40, gamma=8e-2),
        "meta-llama-3-8b": Preset(settings=_layers(4, 8, **TEXT_KL, **GPT, **WIDE), gamma=1e-2),
        "llama-2-13b-hf": Preset(settings=_layers(7, 9, **TEXT_KL, **GPT, **WIDE), sadr_steps=20, gamma=5e-3),
        "gpt-neox-20b": Preset(settings=_layers(13, 16, **GPT, **NEAR), sadr_steps=20, gamma=2e-3),
        "tinyllama-1.1b": Preset(
            settings=_layers(3, 5, second_moment_weight=20000.0, **TEXT_KL, **GPT, **WIDE), sadr_steps=40, gamma=8e-2
        ),
        "smollm2-135m": Preset(
            settings=_layers(4, 8, second_moment_weight=200.0, **LLAMA, **WIDE), sadr_steps=30, gamma=1.0
        ),
    },
}
"""By the beginning of the last part of the model's name, in lower case.  GPT-2 XL is not in C.2: its layers and λ are
ROME's and MEMIT's own.  C.2's layers for GPT-NeoX have no published settings file; the rest is as for GPT-J.
SmolLM2 is not in the paper: its settings were chosen on validation records of the paper's benchmark
(`benchmarks/results/smollm2-settings.md`)."""

_SMALL: Mapping[str, Any] = {"lr": 2.5, "weight_decay": 0.1}

DEMO: Mapping[str, Preset] = {
    "ROME": Preset(
        settings={"layer": 1, "clamp_norm_factor": 20.0, "sampling": _FEWER, **_SMALL},
        steps=25,
        sadr_steps=60,
        gamma=5e-3,
    ),
    "MEMIT": Preset(
        settings=_layers(1, 3, second_moment_weight=100.0, clamp_norm_factor=1.5, **_SMALL),
        steps=25,
        sadr_steps=60,
        gamma=2e-2,
    ),
    "AlphaEdit": Preset(
        settings=_layers(1, 3, null_space_threshold=0.3, ridge=1.0, clamp_norm_factor=1.5, **_SMALL),
        steps=25,
        sadr_steps=60,
        gamma=2e-2,
    ),
    "MEND": Preset(settings={}, steps=2, sadr_steps=2, gamma=0.1),
    "PMET": Preset(
        settings=_layers(1, 3, second_moment_weight=100.0, clamp_norm_factor=20.0, **_SMALL),
        steps=25,
        sadr_steps=60,
        gamma=5e-2,
    ),
}
"""The bundled model's, chosen on its validation records.  λ goes with kᵀ C⁻¹ k, and so with d_mlp: 768 here."""


PRESETS: Mapping[str, Mapping[str, Preset]] = {
    editor: {"demo": DEMO[editor], **presets} for editor, presets in _PAPER.items()
}
"""Of each editor, by the beginning of the last part of the model's name; "demo" is the bundled model."""

STEP = 0.2
"""How far an optimisation step moves δ, in norms of the residual stream, in a model that nobody has tuned."""

REACH = 3.0
"""How far δ may go, in the same norms: between MEMIT's published 0.75 for the GPT models and 4 for the Llama models."""

WRITTEN = 0.9
"""The share of what is missing that MEMIT's layers write, for a key of average length."""


def sadr_gamma(model: LensModel, editor: str | Mapping[str, Preset] = "ROME") -> float:
    """The paper's γ for ``model`` with ``editor`` (its registered name, or its presets); its middle value (1e-2) for a
    model or an editor that the paper does not have.

    Raises:
        DriftlensError: an unknown name.
    """
    from driftlens.registry import EDITORS

    presets: Mapping[str, Preset] = EDITORS.find(editor.lower()).presets if isinstance(editor, str) else editor
    chosen = known_preset(presets, model)
    return 1e-2 if chosen is None else chosen.gamma


def known_preset(presets: Mapping[str, Preset], model: LensModel) -> Preset | None:
    """The preset for a model by its name; None where nobody has tuned it."""
    if model.name == "demo":
        return presets.get("demo")
    last = model.name.rstrip("/").split("/")[-1].lower()
    return next((known for name, known in presets.items() if name != "demo" and last.startswith(name)), None)


def default_layer(model: LensModel) -> int:
    """An early-middle layer: about a fifth of the depth, where C.2's choices for GPT-J, Llama-3 and TinyLlama lie."""
    return min(max(1, round(model.n_layers / 5)), model.n_layers - 1)


def default_layers(model: LensModel) -> tuple[int, ...]:
    """From an eighth to a quarter of the depth, where C.2's choices for GPT-J and the Llama models lie."""
    first = min(max(1, round(model.n_layers / 8)), model.n_layers - 1)
    return tuple(range(first, max(first, round(model.n_layers / 4)) + 1))


@torch.no_grad()
def scaled_to(model: LensModel, layer: int) -> dict[str, float]:
    """Learning rate and clamp for a model nobody has tuned, from the size of its residual stream.

    An Adam step moves δ by about lr · √d_model.  What matters is that length against the residual stream it is added
    to, and small models trained without weight decay can have residuals a hundred times GPT-J's.  The rate moves δ by
    a fifth of the residual's norm at the edit layer, the clamp (in norms of the MLP's output) lets it grow to
    three times that norm, and neither is below the paper's 0.5 and 4.

    Where a norm follows the MLP (Gemma, OLMo 2), only δ's length against what goes into that norm matters: the rate and
    the weight decay go with it, and a δ of four times its length is nearly all that comes out.
    """
    batch, _ = pad_rows(model, [list(model.encode("The name of the capital of the country is").ids)])
    store: dict[str, torch.Tensor] = {}
    hooks = [(model.hook_name(site, layer), record(store, site)) for site in ("resid_post", "mlp_out")]
    model.run(batch, hooks=hooks, stop=layer + 1)
    # The first token's residual is an outlier in most models.
    resid, mlp_out = (float(store[site][0, 1:].float().norm(dim=-1).mean()) for site in ("resid_post", "mlp_out"))
    if not model.adds_to_resid("mlp_out"):
        return {
            "lr": STEP * mlp_out / model.d_model**0.5,
            "clamp_norm_factor": 4.0,
            "weight_decay": 0.01 * mlp_out,
        }
    return {
        "lr": max(0.5, STEP * resid / model.d_model**0.5),
        "clamp_norm_factor": max(4.0, REACH * resid / mlp_out),
        "weight_decay": 0.1,
    }


@torch.no_grad()
def mean_square_key(model: LensModel, layer: int) -> float:
    """The mean square of the entries of a layer's keys, over a sentence's tokens but the first."""
    batch, _ = pad_rows(model, [list(model.encode("The name of the capital of the country is").ids)])
    store: dict[str, torch.Tensor] = {}
    model.run(batch, hooks=[(model.hook_name("mlp_post", layer), record(store, "key"))], stop=layer + 1)
    return float(store["key"][0, 1:].float().square().mean())


def second_moment_weight_for(d_mlp: int, n_layers: int) -> float:
    """λ for MEMIT and PMET such that ``n_layers`` layers together write :data:`WRITTEN` of what is missing.

    A layer takes up ρ = kᵀ C⁻¹ k / (λ + kᵀ C⁻¹ k) of its part, one k-th of what is missing with k layers left, so
    the product of 1 − ρ/k stays unwritten.  Over the corpus that C is taken from, the mean of kᵀ C⁻¹ k is the trace of
    C⁻¹ C, d_mlp, whatever the model; edited subjects' keys lie around it (on two small models at 0.5 to 1.2 of it).
    With fewer layers each has to take up more.  GPT-J's six layers and 16,384 dimensions would get half the published
    15,000, with which they write 0.79 of it.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        unwritten = math.prod(1 - share / left for left in range(1, n_layers + 1))
        low, high = (share, high) if unwritten > 1 - WRITTEN else (low, share)
    return float(f"{d_mlp * (1 - low) / low:.2g}")


def by_depth(model: LensModel, names: Collection[str]) -> dict[str, Any]:
    """The layers to edit, for an editor with settings of these ``names``."""
    if "layers" in names:
        return {"layers": default_layers(model)}
    return {"layer": default_layer(model)} if "layer" in names else {}


def by_scale(model: LensModel, names: Collection[str], place: str) -> dict[str, Any]:
    """Settings of the value optimisation for a model that nobody has tuned, for an editor with settings of these
    ``names``.

    ``place`` is where its δ stands first.
    """
    settings = by_depth(model, names)
    if not settings:
        return {}
    last: int = settings["layers"][-1] if "layers" in settings else settings["layer"]
    settings |= scaled_to(model, last)
    if "second_moment_weight" in names:
        settings["second_moment_weight"] = second_moment_weight_for(model.d_mlp, len(settings.get("layers", (0,))))
    if "null_space_threshold" in names:
        # The mean square of a key's entries is the mean eigenvalue of C.
        keys = mean_square_key(model, last)
        settings |= {"null_space_threshold": keys, "ridge": 0.01 * keys * model.d_mlp}
    if place == "resid_post":
        # There the clamp counts in norms of the residual stream itself.
        settings["clamp_norm_factor"] = REACH
    return settings
