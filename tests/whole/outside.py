"""An editor and a model family as somebody else's package would define them: with public names alone.

``test_outside.py`` offers both by entry points, as an installed package does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from driftlens import Edit, EditResult, Fact, Family, LensModel
from driftlens.editors import Editor
from driftlens.editors.keys import subject_keys
from driftlens.edits import LowRank, Site
from driftlens.progress import OnDone


class Granite(Family):
    """It multiplies its embeddings, the outputs of its sublayers and its logits."""

    def embed(self, bridge: Any, tokens: Tensor, positions: Tensor) -> Tensor:
        return super().embed(bridge, tokens, positions) * bridge.original_model.config.embedding_multiplier

    def unembed(self, bridge: Any, resid: Tensor) -> Tensor:
        return super().unembed(bridge, resid) / bridge.original_model.config.logits_scaling


GRANITE = Granite(name="granite", blocks="model.layers", down_projection="mlp.down_proj", rescaled_outputs=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class Nudge(Editor):
    """Adds one and the same vector wherever the subject's key stands: nothing is optimised."""

    layer: int
    strength: float = 3.0

    @property
    def edited_layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def edit_many(
        self,
        model: LensModel,
        facts: Sequence[Fact],
        *,
        batch_size: int | None = None,
        on_step: OnDone | None = None,
        on_facts: OnDone | None = None,
    ) -> list[EditResult]:
        self.check(model)
        if not facts:
            return []
        keys = subject_keys(model, facts, ("{}",), self.layer)[:, 0]
        vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)).to(keys)
        results: list[EditResult] = []
        for fact, key in zip(facts, keys, strict=True):
            left, right = (key / key.norm() ** 2)[:, None], self.strength * vector[None, :]
            edit = Edit(
                [LowRank(site=Site(self.layer), left=left, right=right)],
                facts=(fact,),
                provenance=self.provenance(model, fact),
            )
            history = pd.DataFrame({"step": [0], "loss": [0.0], "probability": [0.0]})
            results.append(EditResult(fact=fact, edit=edit, history=history, keys={self.layer: key}, values={}))
            if on_facts is not None:
                on_facts(len(results), len(facts))
        return results


@dataclass(frozen=True, kw_only=True, eq=False)
class Patient(Nudge):
    """One with a number of steps of its own, which no preset knows."""

    steps: int = 5
