"""PMET, precise model editing in a transformer (paper, Appendix B), with any regulariser.

1. In the last edited layer, δ_m at the MLP output and δ_a at the attention's output projection are optimised together,
   both at ``subject_last`` (:mod:`driftlens.editors.value`). Each has its own clamp; their weight decays add up.
   Only δ_m is used: z = MLP output of the bare prompt + δ_m.
2. While the new object is the arg max in every context, the next step weights the likelihood by a tenth, so that the
   other terms take effect. If the essence KL is small as well, the optimisation stops.
3. z is written into all edited layers as in MEMIT, with two differences: it refers to the MLP output of the last layer,
   and the residual is divided by the square root of the number of layers left (:mod:`driftlens.editors.spread`).
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
    """Settings of PMET; call :meth:`edit`, :meth:`edit_many` or :meth:`edit_together` to edit.

    :meth:`for_model` returns the paper's presets. Settings not listed here are those of :class:`driftlens.MEMIT`, with
    δ measured against the MLP and attention outputs. ``SADR(heads="all")`` restrains every head. (The published MEMIT
    and PMET ignore this setting and always select heads.)

    Attributes:
        layers: the layers whose down-projections are edited, ascending; both δ are added in the last one.
        kl_factor: ω.  The published setting for GPT-J is 1; the paper's text gives 0.0625 for all models, which is
            also the published setting for the Llama models.
        weight_decay: factor of ‖δ_m‖ / ‖MLP output‖² + ‖δ_a‖ / ‖attention output‖².
        clamp_norm_factor: upper bound on each ‖δ‖ as a multiple of the norm of the output it is added to.
        certain_nll_factor: factor of the likelihood in the step after one in which every token of the new object was
            the arg max in every context; 1 turns this off.
        certain_stop_kl: a fact stops when the arg max is right and the KL term, with its factor, is at most this;
            ``None`` turns this off.

    Raises:
        DriftlensError: a setting is out of range, ``layers`` is empty or not ascending, or a layer has no second
            moment.
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
