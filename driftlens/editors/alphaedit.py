"""AlphaEdit: MEMIT's update, projected onto the null space of what the model knows (Fang et al. 2025, Eq. 14).

1. P projects onto the eigenvectors of the layer's second moment C whose eigenvalue is below a threshold: directions
   that keys of ordinary text hardly have.
2. Value and residuals are MEMIT's; a layer's update X, ``W_out += X``, solves
   ``(P (K Kᵀ + K_p K_pᵀ) + λ I) X = P K Rᵀ``, with K_p the keys of earlier edits.
3. A sequence adds one update after another (:meth:`AlphaEdit.edit_after`): each sees the earlier ones in the weights,
   and their keys as K_p.  The state is the result: it goes in and comes out.

X lies in P's range, so that with K̃ = P K, A = [K̃, P K_p] and E the first columns of I it is
``A (Aᵀ A + λ I)⁻¹ E Rᵀ``: one small system, and an update of the facts' rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from driftlens.data import Fact
from driftlens.editors.base import undisturbed
from driftlens.editors.histories import joint_history
from driftlens.editors.memit import MEMIT
from driftlens.editors.multilayer import MultiLayerEditor
from driftlens.editors.presets import PRESETS, Preset
from driftlens.editors.requests import asked_together
from driftlens.editors.rows import Place
from driftlens.editors.second_moment import SecondMoment
from driftlens.editors.spread import Factors
from driftlens.edits import Edit, EditResult, JointEditResult
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.progress import OnDone


@dataclass(frozen=True, kw_only=True, eq=False)
class AlphaEdit(MultiLayerEditor):
    """Settings of AlphaEdit; call :meth:`edit`, :meth:`edit_many`, :meth:`edit_together` or :meth:`edit_after` to edit.

    :meth:`for_model` returns the published presets. Settings not listed here are those of :class:`driftlens.MEMIT`.

    Attributes:
        null_space_threshold: updates use only eigenvectors of C whose eigenvalue, the mean square of keys along the
            eigenvector, is below this.  0.02 is the published value of all models.  It scales with the keys: a model
            with larger keys needs a larger value, or no direction is left.  For an untuned model, ``for_model`` uses
            the mean square of a key's entries, and an error lists C's eigenvalues.
        ridge: λ; larger values edit more weakly.  A layer takes up ‖P k‖² / (λ + ‖P k‖²) of its residual; 10 is the
            published value.

    Raises:
        DriftlensError: a setting is out of range, ``layers`` is empty or not ascending, or a layer has no second
            moment.
    """

    null_space_threshold: float = 0.02
    ridge: float = 10.0

    presets: ClassVar[Mapping[str, Preset]] = PRESETS["AlphaEdit"]

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_above_zero("null_space_threshold", "ridge")
        if self.ridge == float("inf"):
            raise DriftlensError("ridge is inf; expected a finite number, e.g. 10")

    @staticmethod
    @override
    def places(model: LensModel) -> tuple[Place, ...]:
        return MEMIT.places(model)

    @staticmethod
    @override
    def _share(layers_left: int) -> float:
        return float(layers_left)

    @undisturbed
    def edit_after(
        self,
        model: LensModel,
        earlier: EditResult | JointEditResult,
        facts: Sequence[Fact],
        *,
        batch_size: int | None = None,
        on_step: OnDone | None = None,
        on_facts: OnDone | None = None,
    ) -> JointEditResult:
        """Write ``facts`` in one update on top of ``earlier``, preserving the earlier keys as far as λ allows.

        Args:
            model: the vanilla model, without ``earlier``; it is not changed.
            earlier: an earlier result of this editor, for one fact, several, or a sequence.
            facts: the new requests; one may revert an earlier one.
            batch_size: as in :meth:`edit_together`.
            on_step: as in :meth:`edit_together`.
            on_facts: as in :meth:`edit_together`.

        Returns:
            The result so far: facts, keys and values of ``earlier`` and the new ones, and one edit with the sum of
            their updates.  Pass it as ``earlier`` to the next call.

        Raises:
            DriftlensError: as :meth:`edit_together`; or ``earlier`` lacks the keys of a layer.
        """
        before, facts = _joint(earlier), asked_together(facts)
        if set(before.keys) != set(self.layers) or set(before.edit.updates) != set(self.layers):
            raise DriftlensError(
                f"the earlier edit is of layers {tuple(before.keys)}, this editor's are {self.layers}; "
                "give the editor the same layers"
            )
        moments, contexts = self._moments_for(model), self.contexts_for(model)
        factors = self._factors(moments, before.keys)
        with before.edit.applied(model):
            new = self._together(model, facts, moments, contexts, factors, batch_size, on_step, on_facts)
        history = new.history.assign(fact=new.history["fact"] + len(before.facts))
        total, sources = (*before.facts, *facts), new.edit.provenance["second_moment"]
        return JointEditResult(
            facts=total,
            edit=Edit(
                [before.edit.updates[n].plus(new.edit.updates[n]) for n in self.layers],
                facts=total,
                provenance=self.provenance(model, *total) | {"second_moment": sources},
            ),
            history=pd.concat([before.history, history], ignore_index=True),
            keys={n: torch.cat([before.keys[n], new.keys[n]]) for n in self.layers},
            values={n: torch.cat([before.values[n], new.values[n]]) for n in self.layers},
        )

    @override
    def _factors(
        self, moments: Mapping[int, SecondMoment], earlier: Mapping[int, Float[Tensor, "earlier d_mlp"]] | None = None
    ) -> Factors:
        def factors(layer: int, keys: Sequence[Tensor]) -> list[Tensor]:
            groups = keys if earlier is None else [torch.cat([k, earlier[layer].to(k)]) for k in keys]
            free = moments[layer].in_null_space(torch.cat([*groups]), self.null_space_threshold).to(keys[0].device)
            parts = free.split([len(group) for group in groups])
            return [null_space_factor(part, len(k), self.ridge) for part, k in zip(parts, keys, strict=True)]

        return factors


def null_space_factor(projected: Float[Tensor, "all d_mlp"], facts: int, ridge: float) -> Float[Tensor, "d_mlp facts"]:
    """Compute (A Aᵀ + λ I)⁻¹ K̃ = A (Aᵀ A + λ I)⁻¹ E in float64.

    ``projected`` holds the columns of A = [K̃, P K_p] as rows; the first ``facts`` rows are those of K̃.

    Raises:
        DriftlensError: λ is so small relative to the keys that the small system is singular.
    """
    identity = torch.eye(len(projected), device=projected.device, dtype=projected.dtype)
    system = projected @ projected.T + ridge * identity
    factor, info = torch.linalg.cholesky_ex(system)
    if int(info) and bool(system.isfinite().all()):  # non-finite values are reported for their own fact
        raise DriftlensError(
            f"the keys of {len(projected)} facts are too much alike for a ridge of {ridge}; "
            "give a larger one, or leave out facts that repeat others"
        )
    return projected.T @ torch.cholesky_solve(identity[:, :facts], factor)


def _joint(result: EditResult | JointEditResult) -> JointEditResult:
    if isinstance(result, JointEditResult):
        return result
    return JointEditResult(
        facts=(result.fact,),
        edit=result.edit,
        history=joint_history([result.history]),
        keys={layer: key[None] for layer, key in result.keys.items()},
        values={layer: value[None] for layer, value in result.values.items()},
    )
