"""MEMIT and PMET on plain Hugging Face: values by the naive loop of `naive.py`, and weights written layer by layer.

Keys and outputs are read one prompt at a time from a model whose lower layers have really been changed; the solve is
the explicit inverse of the whole d_mlp × d_mlp matrix.  Nothing of driftlens takes part.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.support.naive import NaiveValue
from tests.support.plain import Edit, PlainModel


@dataclass(kw_only=True)
class NaiveMemitValue(NaiveValue):
    """δ at the layer output."""

    def __post_init__(self) -> None:
        super().__post_init__()  # with δ = 0, whose place does not matter
        bare = torch.tensor([self.ids(self.text)])
        at = self.subject_last(self.text, 0)
        self.target_init = self.plain.value("resid_post", self.layer, bare)[0, at]

    def _edits(self, at: int, delta: Tensor, patterns: dict[int, Tensor]) -> list[Edit]:
        return [("resid_post", self.layer, adding(at, delta)), *super()._edits(at, delta, patterns)[1:]]


@dataclass(kw_only=True)
class NaivePmetValue(NaiveValue):
    """δ = (δ_m, δ_a) at the outputs of MLP and attention, with PMET's stopping rules."""

    certain_nll_factor: float = 0.1
    certain_stop_kl: float | None = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        bare = torch.tensor([self.ids(self.text)])
        at = self.subject_last(self.text, 0)
        sites = ("mlp_out", "attn_out")
        self.target_init = torch.stack([self.plain.value(site, self.layer, bare)[0, at] for site in sites])

    def _edits(self, at: int, delta: Tensor, patterns: dict[int, Tensor]) -> list[Edit]:
        mlp, attention = delta.expand(2, -1)
        above = super()._edits(at, mlp, patterns)[1:]
        return [
            ("attn_out", self.layer, adding(at, attention)),
            ("mlp_out", self.layer, adding(at, mlp)),
            *above,
        ]

    def terms(self, delta: Tensor, *, fixed_selection: bool = False) -> dict[str, Tensor]:
        terms: Any = super().terms(delta, fixed_selection=fixed_selection)
        terms["weight_decay"] = self.weight_decay * sum(
            d.norm() / init.norm() ** 2 for d, init in zip(delta, self.target_init, strict=True)
        )
        return terms

    def certain(self, delta: Tensor) -> bool:
        """Whether each token of the target is the arg max, in every context."""
        for j, text in enumerate(self.rows):
            prompt, whole = self.ids(text), self.ids(f"{text} {self.target}")
            edits = self._edits(self.subject_last(text, self.start_of(j)), delta, {})
            logits = self.plain.run(torch.tensor([whole]), edits=edits)[1][0]
            if any(int(logits[k - 1].argmax()) != whole[k] for k in range(len(prompt), len(whole))):
                return False
        return True

    def optimize(
        self, *, steps: int, lr: float, clamp: float, early_stop_loss: float
    ) -> tuple[Tensor, list[dict[str, float]]]:
        """The published loop, line by line."""
        delta_mlp = torch.zeros_like(self.target_init[0]).requires_grad_()
        delta_attn = torch.zeros_like(self.target_init[1]).requires_grad_()
        optimizer = torch.optim.Adam([delta_mlp, delta_attn], lr=lr)
        nll_factor = 1.0
        history: list[dict[str, float]] = []
        for step in range(steps):
            optimizer.zero_grad()
            delta = torch.stack([delta_mlp, delta_attn])
            terms = self.terms(delta)
            terms["nll"] = nll_factor * terms["nll"]
            loss = terms["nll"] + terms["kl"] + terms["weight_decay"] + terms["sadr"]
            history.append({"loss": loss.item(), **{name: term.item() for name, term in terms.items()}})
            if loss < early_stop_loss:
                break
            if self.certain(delta.detach()):
                nll_factor = self.certain_nll_factor
                if self.certain_stop_kl is not None and terms["kl"] <= self.certain_stop_kl:
                    break
            else:
                nll_factor = 1.0
            if step == steps - 1:
                break
            loss.backward()
            optimizer.step()
            for part, init in ((delta_mlp, self.target_init[0]), (delta_attn, self.target_init[1])):
                if part.norm() > clamp * init.norm():
                    with torch.no_grad():
                        part[...] = part * clamp * init.norm() / part.norm()
        return torch.stack([delta_mlp, delta_attn]).detach(), history


def adding(at: int, delta: Tensor) -> Any:
    def add(output: Tensor) -> Tensor:
        here = torch.zeros_like(output)
        here[:, at] = 1
        return output + here * delta

    return add


def write_layer_by_layer(
    plain: PlainModel,
    values: Sequence[NaiveValue],
    targets: Sequence[Tensor],
    *,
    method: str,
    layers: Sequence[int],
    moments: Mapping[int, Tensor],
    weight: float,
) -> dict[int, Tensor]:
    """Algorithm 1 for the facts of `values` together; Δ [d_mlp, d_model] by layer. The weights are put back."""
    changes: dict[int, Tensor] = {}
    site = {"MEMIT": "resid_post", "PMET": "mlp_out"}[method]
    with weights_put_back(plain, layers), torch.no_grad():
        for i, layer in enumerate(layers):
            left = len(layers) - i
            keys, residuals = [], []
            for value, target in zip(values, targets, strict=True):
                bare = at_subject(value, "mlp_post", layer, value.text, 0)
                prefixed = [
                    at_subject(value, "mlp_post", layer, row, value.start_of(j))
                    for j, row in enumerate(value.rows)
                    if row != value.text
                ]
                keys.append((bare + torch.stack(prefixed).mean(0)) / 2 if prefixed else bare)
                now = at_subject(value, site, layers[-1], value.text, 0)
                residuals.append((target - now) / (left if method == "MEMIT" else math.sqrt(left)))
            K, R = torch.stack(keys, dim=1), torch.stack(residuals, dim=1)
            update = R @ K.T @ torch.linalg.inv(weight * moments[layer] + K @ K.T)
            changes[layer] = update.T
            weight_of, transposed = down_projection(plain, layer)
            weight_of += update if transposed else update.T
    return changes


def at_subject(value: NaiveValue, site: str, layer: int, text: str, start: int) -> Tensor:
    return value.plain.value(site, layer, torch.tensor([value.ids(text)]))[0, value.subject_last(text, start)]


def down_projection(plain: PlainModel, layer: int) -> tuple[Tensor, bool]:
    """The weight, and whether it is stored as [d_model, d_mlp]."""
    module: Any = plain.blocks[layer].get_submodule(plain.paths[3])
    return module.weight, isinstance(module, torch.nn.Linear)


@contextmanager
def weights_put_back(plain: PlainModel, layers: Sequence[int]) -> Iterator[None]:
    before = {layer: down_projection(plain, layer)[0].clone() for layer in layers}
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, weight in before.items():
                down_projection(plain, layer)[0].copy_(weight)
