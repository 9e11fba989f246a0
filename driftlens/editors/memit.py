"""MEMIT, mass-editing memory in a transformer (paper, Appendix B, Eq. 4 and 5), with any regulariser.

1. δ is optimised at ``subject_last`` of the *layer output* (residual stream) of the last edited layer
   (:mod:`driftlens.editors.value`); z = layer output of the bare prompt + δ.
2. z is written into all edited layers in ascending order. Each layer takes a share of the remaining residual: the
   residual divided by the number of layers left (:mod:`driftlens.editors.spread`).

In families with a norm after the MLP (Gemma 2 and 3, OLMo 2), δ and z refer to the output of the down-projection,
before that norm: the norm would rescale any residual that the weights write.

Several facts can be written in one update (:meth:`MEMIT.edit_together`), MEMIT's original purpose, or in one update
each.
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
    """Settings of MEMIT; call :meth:`edit`, :meth:`edit_many` or :meth:`edit_together` to edit.

    :meth:`for_model` returns the paper's presets. ``SADR(heads="all")`` restrains every head. (The published MEMIT and
    PMET ignore this setting and always select heads.)

    Attributes:
        layers: the layers whose down-projections are edited, ascending; δ is added to the output of the last one.
        second_moment: C = E[k kᵀ] by layer, ``{layer: [d_mlp, d_mlp]}``; ``None`` computes them over ``corpus``, all
            layers in one pass.  Their Cholesky factors are kept in float64 on the device of the matrices; pass CPU
            matrices if the device is short of memory.
        second_moment_weight: λ in λ C + K Kᵀ; larger values edit more weakly and disturb less.  kᵀ C⁻¹ k is d_mlp on
            average, and a layer takes up kᵀ C⁻¹ k / (λ + kᵀ C⁻¹ k) of its residual.  The published value is 15,000;
            TinyLlama's is 20,000.
        steps: optimisation steps; the last one only measures, so n steps make at most n − 1 updates.
        lr: Adam's learning rate for δ.  0.5 in the published runs of all models; the paper's text gives 0.25 for
            GPT-J with SADR.
        weight_decay: factor of ‖δ‖ / ‖target_init‖² (not in the paper's objective; 1e-3 for Llama 2 and 3).
        kl_factor: ω, the weight of the essence KL on "{subject} is a", read at the subject's last token.
        clamp_norm_factor: upper bound on ‖δ‖ as a multiple of ‖layer output‖; δ is projected onto it after each step.
        contexts: templates with one ``{}`` for the prompt; ``None`` samples them from the model (``sampling``).  A
            fact's key is the average of the bare prompt's key and the mean key of the other contexts.
        sampling: how contexts are sampled; by default six: the bare prompt and five prefixes of ten tokens.
        corpus: text for C: the name of a known corpus, a text file or a list of texts.  ``None`` uses the bundled
            model's own corpus, or Wikipedia for a model from the hub.
        samples: how many texts of the corpus to use.
        early_stop_loss: the optimisation of a fact stops when its whole loss is below this.
        regularizers: terms added to the objective, e.g. ``(SADR(),)``.
        essence: the template of the essence prompt.
        essence_kl: direction of the essence KL: ``"edited_from_vanilla"``, KL(edited ‖ vanilla), as in the published
            code, or ``"vanilla_from_edited"``, as in the paper's Eq. 1.
        detach_attention: optimise δ without a gradient through attention weights (paper, D.4).

    Raises:
        DriftlensError: a setting is out of range, ``layers`` is empty or not ascending, or a layer has no second
            moment.
    """

    presets: ClassVar[Mapping[str, Preset]] = PRESETS["MEMIT"]

    @staticmethod
    @override
    def places(model: LensModel) -> tuple[Place, ...]:
        # A norm after the down-projection fixes the length of its output, so no weight there could write a residual.
        return ("resid_post",) if model.adds_to_resid("mlp_out") else ("mlp_out",)

    @staticmethod
    @override
    def _share(layers_left: int) -> float:
        return float(layers_left)
