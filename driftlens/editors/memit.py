"""MEMIT, mass-editing memory in a transformer (paper, Appendix B, Eq. 4 and 5), with any regulariser.

1. δ is optimised at ``subject_last`` of the *layer output* (residual stream) of the last edited layer
   (:mod:`driftlens.editors.value`); z = layer output of the bare prompt + δ.
2. z is written into all edited layers in ascending order, each getting its part of what is still missing, the
   residual divided by the number of layers left (:mod:`driftlens.editors.spread`).

In families that put a norm behind the MLP (Gemma 2 and 3, OLMo 2), δ and z are about the down-projection's output, in
front of that norm: the weights cannot write a residual that the norm would rescale.

Several facts can be one update (:meth:`MEMIT.edit_together`), which is MEMIT's own point, or one each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from driftlens.editors.multilayer import LeastSquaresEditor
from driftlens.editors.presets import PRESETS, Preset
from driftlens.editors.rows import Place
from driftlens.models import LensModel


@dataclass(frozen=True, kw_only=True, eq=False)
class MEMIT(LeastSquaresEditor):
    """Settings of MEMIT; :meth:`edit`, :meth:`edit_many` and :meth:`edit_together` do the work, and
    :meth:`for_model` gives the paper's presets.

    Regularizers are taken as they are: ``SADR(heads="all")`` restrains every head.  (The published MEMIT and PMET
    always select heads, whatever is asked.)

    Attributes:
        layers: the layers whose down-projections are edited, ascending; δ stands at the last one's output.
        second_moment: C = E[k kᵀ] by layer, ``{layer: [d_mlp, d_mlp]}``; ``None`` takes them over ``corpus``, all
            layers in one pass.  Their Cholesky factors are kept in float64 on the device of the matrices: give them
            on the CPU where the device's memory is short.
        second_moment_weight: λ of λ C + K Kᵀ: the larger, the less is written and disturbed.  kᵀ C⁻¹ k is d_mlp on
            average, and a layer takes up kᵀ C⁻¹ k / (λ + kᵀ C⁻¹ k) of its residual.  15,000 is the published
            value, 20,000 TinyLlama's.
        steps: optimisation steps; the last one only measures, so n steps make at most n − 1 updates.
        lr: Adam's learning rate for δ.  0.5 in the published runs of all models; the paper's text gives 0.25 for
            GPT-J with SADR.
        weight_decay: factor of ‖δ‖ / ‖target_init‖² (not in the paper's objective; 1e-3 for Llama 2 and 3).
        kl_factor: ω, the weight of the essence KL on "{subject} is a", read at the subject's last token.
        clamp_norm_factor: δ is projected onto ‖δ‖ ≤ this · ‖layer output‖ after each step.
        contexts: templates with one ``{}`` for the prompt; ``None`` samples them from the model (``sampling``).  The
            bare prompt's key is always half of a fact's key, and the mean of the others' the other half.
        sampling: how contexts are sampled: six by default, the bare prompt and five prefixes of ten tokens.
        corpus: text for C: a known name, a text file, a list of texts; ``None``: the bundled model's own, or
            Wikipedia for a model from the hub.
        samples: how many texts of the corpus.
        early_stop_loss: a fact stops when its whole loss is below this.
        regularizers: added to the objective, e.g. ``(SADR(),)``.
        essence: the essence prompt's template.
        essence_kl: the KL's direction; ``"edited_from_vanilla"``, KL(edited ‖ vanilla), is the published code's,
            ``"vanilla_from_edited"`` the paper's Eq. 1.
        detach_attention: optimise δ without a gradient through attention weights (paper, D.4).

    Raises:
        DriftlensError: a setting out of range; no layers, or not in ascending order; a layer without second moment.
    """

    presets: ClassVar[Mapping[str, Preset]] = PRESETS["MEMIT"]

    @staticmethod
    @override
    def places(model: LensModel) -> tuple[Place, ...]:
        # A norm behind the down-projection gives its output a fixed length: no weight there could write a residual.
        return ("resid_post",) if model.adds_to_resid("mlp_out") else ("mlp_out",)

    @staticmethod
    @override
    def _share(layers_left: int) -> float:
        return float(layers_left)
