"""PMET, precise model editing in a transformer (paper, Appendix B), with any regulariser.

1. δ_m at the MLP's and δ_a at the attention's output projection of the last edited layer are optimised together, both
   at ``subject_last`` (:mod:`driftlens.editors.value`); each has a clamp of its own, their weight decays add up.
   Only δ_m is kept: z = MLP output of the bare prompt + δ_m.
2. While the new object is the arg max in every context, the likelihood counts a tenth in the next step, so that the
   other terms come to the fore; if the essence KL is small then too, the optimisation stops.
3. z is written into all edited layers as in MEMIT, but about the last layer's MLP output, and with the residual
   divided by the square root of the number of layers left (:mod:`driftlens.editors.spread`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from typing_extensions import override

from driftlens.editors.multilayer import LeastSquaresEditor
from driftlens.editors.objective import ValueSettings
from driftlens.editors.presets import PRESETS, Preset
from driftlens.editors.rows import Place
from driftlens.errors import DriftlensError
from driftlens.models import LensModel


@dataclass(frozen=True, kw_only=True, eq=False)
class PMET(LeastSquaresEditor):
    """Settings of PMET; :meth:`edit`, :meth:`edit_many` and :meth:`edit_together` do the work, and :meth:`for_model`
    gives the paper's presets.

    The settings that are not listed are those of :class:`driftlens.MEMIT`, with δ measured against the outputs of
    MLP and attention.  ``SADR(heads="all")`` restrains every head.  (The published MEMIT and PMET always select
    heads, whatever is asked.)

    Attributes:
        layers: the layers whose down-projections are edited, ascending; both δ stand in the last one.
        kl_factor: ω.  1 is the published setting for GPT-J; the paper's text gives 0.0625 for all models, which is
            what the published settings of the Llama models have.
        weight_decay: factor of ‖δ_m‖ / ‖MLP output‖² + ‖δ_a‖ / ‖attention output‖².
        clamp_norm_factor: each δ is projected onto ‖δ‖ ≤ this · ‖its output‖.
        certain_nll_factor: factor of the likelihood in the step after one in which the new object's every token was
            the arg max in every context; 1 turns this off.
        certain_stop_kl: a fact stops where the arg max is right and the KL term, with its factor, is at most this;
            ``None`` turns this off.

    Raises:
        DriftlensError: a setting out of range; no layers, or not in ascending order; a layer without second moment.
    """

    kl_factor: float = 1.0
    certain_nll_factor: float = 0.1
    certain_stop_kl: float | None = 0.01

    presets: ClassVar[Mapping[str, Preset]] = PRESETS["PMET"]

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(certain_nll_factor=0)
        if self.certain_stop_kl is not None and not self.certain_stop_kl >= 0:
            raise DriftlensError(f"certain_stop_kl is {self.certain_stop_kl}; expected at least 0, or None")

    @override
    def value_settings(self) -> ValueSettings:
        return replace(
            super().value_settings(),
            certain_nll_factor=self.certain_nll_factor,
            certain_stop_kl=self.certain_stop_kl,
        )

    @staticmethod
    @override
    def places(model: LensModel) -> tuple[Place, ...]:
        return ("mlp_out", "attn_out")

    @staticmethod
    @override
    def _share(layers_left: int) -> float:
        return math.sqrt(layers_left)
