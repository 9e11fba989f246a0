"""ROME, rank-one model editing (paper, 2.2 and Eq. 3), with any regulariser of the value optimisation.

1. δ is optimised at ``subject_last`` of the MLP output in the edit layer (:mod:`driftlens.editors.value`);
   v* = target_init + δ.
2. k₀ is the input of the down-projection at ``subject_last`` of the bare prompt; k̄ is its mean over contexts.
3. ``W_out += left @ right`` with left = C⁻¹k̄ / ‖C⁻¹k̄‖ and right = (v* − W k₀) / (k₀ · left). Then Ŵ k₀ = v*, and
   keys that are C-orthogonal to k̄ are unchanged.

The paper's Eq. 3 uses a single key throughout. The published code, which produced the paper's numbers, uses the bare
prompt's key in the residual. ``residual_key="mean"`` selects the paper's form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from driftlens.data import Fact
from driftlens.editors.base import undisturbed
from driftlens.editors.failures import Failure, delivered, finite
from driftlens.editors.fitting import edit_batch_size
from driftlens.editors.presets import PRESETS, Preset
from driftlens.editors.requests import check_facts
from driftlens.editors.second_moment import SecondMoment
from driftlens.editors.value import OptimizedValue, optimize_values
from driftlens.editors.value_editor import ValueEditor
from driftlens.edits import Edit, EditResult, LowRankUpdate
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.models.memory import in_batches
from driftlens.progress import OnDone


@dataclass(frozen=True, kw_only=True, eq=False)
class ROME(ValueEditor):
    """Settings of ROME; call :meth:`edit` or :meth:`edit_many` to edit, and :meth:`for_model` for the paper's presets.

    Attributes:
        layer: the layer whose down-projection is edited.
        steps: optimisation steps; the last one only measures, so n steps make at most n − 1 updates.
        lr: Adam's learning rate for δ.
        weight_decay: factor of ‖δ‖ / ‖target_init‖² (not in the paper's objective; 0.5 for GPT-J, 1e-3 for
            Llama).
        kl_factor: ω, the weight of the essence KL on "{subject} is a", read at the subject's last token.
        clamp_norm_factor: upper bound on ‖δ‖ as a multiple of ‖target_init‖; δ is projected onto it after each step.
        contexts: templates with one ``{}`` for the prompt; ``None`` samples them from the model
            (``sampling``).
        sampling: how contexts are sampled.
        second_moment: C = E[k kᵀ], ``[d_mlp, d_mlp]``; ``None`` computes it over ``corpus``.
        corpus: text for C: the name of a known corpus, a text file or a list of texts. ``None`` uses the bundled
            model's own corpus, or Wikipedia for a model from the hub.
        samples: how many texts of the corpus to use.
        early_stop_loss: the optimisation of a fact stops when its whole loss is below this.
        regularizers: terms added to the objective, e.g. ``(SADR(),)``.
        essence: the template of the essence prompt.
        essence_kl: direction of the essence KL: ``"edited_from_vanilla"``, KL(edited ‖ vanilla), as in the published
            code, or ``"vanilla_from_edited"``, as in the paper's Eq. 1.
        residual_key: ``"bare"`` (published code) or ``"mean"`` (the paper's Eq. 3).
        detach_attention: optimise δ without a gradient through attention weights (ROME-AWD; paper, D.4).

    Raises:
        DriftlensError: a setting is out of range.
    """

    layer: int
    second_moment: Float[Tensor, "d_mlp d_mlp"] | SecondMoment | None = None
    residual_key: Literal["bare", "mean"] = "bare"

    presets: ClassVar[Mapping[str, Preset]] = PRESETS["ROME"]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(layer=0)
        if self.residual_key not in ("bare", "mean"):
            raise DriftlensError(f"residual_key is {self.residual_key!r}; expected 'bare' or 'mean'")
        if isinstance(self.second_moment, Tensor):
            # Wrapped once, so that its Cholesky factor is computed once for all edits.
            object.__setattr__(self, "second_moment", SecondMoment(self.second_moment))

    @property
    @override
    def edited_layers(self) -> tuple[int, ...]:
        return (self.layer,)

    @property
    @override
    def missing_second_moments(self) -> tuple[int, ...]:
        return () if self.second_moment is not None else (self.layer,)

    @property
    @override
    def given_second_moments(self) -> Mapping[int, SecondMoment]:
        return {self.layer: self.second_moment} if isinstance(self.second_moment, SecondMoment) else {}

    @override
    def with_second_moments(self, moments: Mapping[int, SecondMoment]) -> Self:
        return self.changed(second_moment=moments[self.layer])

    @override
    @undisturbed
    def edit_many(
        self,
        model: LensModel,
        facts: Sequence[Fact],
        *,
        batch_size: int | None = None,
        on_step: OnDone | None = None,
        on_facts: OnDone | None = None,
    ) -> list[EditResult]:
        check_facts(facts)
        moments = self._second_moments(model, [self.layer], self.given_second_moments or None)
        contexts, settings = self.contexts_for(model), self.value_settings()
        if batch_size is None:
            batch_size = edit_batch_size(model, facts, contexts, self.layer)

        def edit_batch(batch: Sequence[Fact]) -> list[EditResult | Failure]:
            outcomes = optimize_values(
                model,
                batch,
                layer=self.layer,
                places=self.places(model),
                contexts=contexts,
                settings=settings,
                on_step=on_step,
            )
            return [
                outcome
                if isinstance(outcome, Failure)
                else finite(self._result(model, fact, outcome, moments[self.layer]))
                for fact, outcome in zip(batch, outcomes, strict=True)
            ]

        return delivered(in_batches(facts, batch_size, edit_batch, on_done=on_facts))

    def _result(
        self,
        model: LensModel,
        fact: Fact,
        value: OptimizedValue,
        moment: SecondMoment,
    ) -> EditResult:
        """Apply Eq. 3 in float64."""
        bare, contexts = value.keys[0].double(), value.keys[1:].double()
        mean = contexts.mean(dim=0)
        left = moment.solve(mean.unsqueeze(0))[0].to(mean.device)
        left = left / left.norm()
        if self.residual_key == "bare":
            # v* − (W k₀ + b) is δ itself, since target_init is the MLP's output at k₀.
            key, residual = bare, value.delta.double()
        else:
            with model.exclusive():  # another thread's edit is in the weights only while that thread holds the model
                W_out, bias = model.down_projection(self.layer)
                written = mean @ W_out.to(mean)
            written = written if bias is None else written + bias.to(mean)
            key, residual = mean, value.target_init.double() + value.delta.double() - written
        right = residual / (key @ left)
        precision = torch.promote_types(model.dtype, torch.float32)
        update = LowRankUpdate(left=left.unsqueeze(1).to(precision), right=right.unsqueeze(0).to(precision))
        return EditResult(
            fact=fact,
            edit=Edit(
                updates={self.layer: update},
                facts=(fact,),
                provenance=self.provenance(model, fact) | {"second_moment": moment.source},
            ),
            history=value.history,
            keys={self.layer: key.to(precision)},
            values={self.layer: value.target.to(precision)},
        )
