"""The common base of MEMIT, PMET and AlphaEdit: one value at the last layer, written into all edited layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from driftlens.data import Fact
from driftlens.editors.base import undisturbed
from driftlens.editors.contexts import ContextSampling
from driftlens.editors.failures import Failure, delivered, finite
from driftlens.editors.fitting import edit_batch_size
from driftlens.editors.histories import joint_history
from driftlens.editors.requests import asked_together, check_facts
from driftlens.editors.second_moment import SecondMoment
from driftlens.editors.spread import Factors, SpreadUpdate, least_squares_factor, spread
from driftlens.editors.value import OptimizedValue, optimize_values
from driftlens.editors.value_editor import ValueEditor
from driftlens.edits import Edit, EditResult, JointEditResult
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.models.memory import in_batches
from driftlens.progress import OnDone

PREFIXES = ContextSampling(lengths=((10, 5),))
"""The bare prompt and five prefixes of ten tokens, as in the published settings."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiLayerEditor(ValueEditor):
    """One value at the last layer, written into all edited layers; see :class:`driftlens.MEMIT` for the settings."""

    layers: tuple[int, ...]
    clamp_norm_factor: float = 0.75
    sampling: ContextSampling = field(default_factory=lambda: PREFIXES)
    second_moment: Mapping[int, Float[Tensor, "d_mlp d_mlp"] | SecondMoment] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Iterable[int] = self.layers  # a range is accepted
        layers = tuple(given)
        object.__setattr__(self, "layers", layers)
        if not layers:
            raise DriftlensError("layers is empty; give at least one, e.g. (3, 4, 5)")
        if list(layers) != sorted(set(layers)) or layers[0] < 0:
            raise DriftlensError(f"layers is {layers}; expected different layers from 0 on, in ascending order")
        if self.second_moment is not None:
            missing = [layer for layer in layers if layer not in self.second_moment]
            if missing:
                raise DriftlensError(
                    f"second_moment lacks layer {missing[0]} of {layers}; give a matrix for each of them, or none"
                )
            # Wrapped once, so that they are factorised once for all edits.
            moments = {
                layer: moment if isinstance(moment, SecondMoment) else SecondMoment(moment)
                for layer, moment in self.second_moment.items()
            }
            object.__setattr__(self, "second_moment", moments)

    @property
    @override
    def edited_layers(self) -> tuple[int, ...]:
        return self.layers

    @property
    @override
    def missing_second_moments(self) -> tuple[int, ...]:
        return () if self.second_moment is not None else self.layers

    @property
    @override
    def given_second_moments(self) -> Mapping[int, SecondMoment]:
        given = self.second_moment or {}
        return {layer: moment for layer, moment in given.items() if isinstance(moment, SecondMoment)}

    @override
    def with_second_moments(self, moments: Mapping[int, SecondMoment]) -> Self:
        return self.changed(second_moment={layer: moments[layer] for layer in self.layers})

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
        moments, contexts = self._moments_for(model), self.contexts_for(model)
        factors = self._factors(moments)
        if batch_size is None:
            batch_size = edit_batch_size(model, facts, contexts, self.layers[-1])

        def edit_batch(batch: Sequence[Fact]) -> list[EditResult | Failure]:
            outcomes = self._values(model, batch, contexts, on_step)
            values = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
            groups = [(f,) for f, outcome in zip(batch, outcomes, strict=True) if not isinstance(outcome, Failure)]
            updates = iter(self._spread(model, groups, values, contexts, factors, len(batch)) if groups else ())

            def result(fact: Fact, value: OptimizedValue) -> EditResult:
                update = next(updates)
                return EditResult(
                    fact=fact,
                    edit=self._edit(model, (fact,), update, moments),
                    history=value.history,
                    keys={layer: keys[0] for layer, keys in update.keys.items()},
                    values={layer: wanted[0] for layer, wanted in update.values.items()},
                )

            return [
                outcome if isinstance(outcome, Failure) else finite(result(fact, outcome))
                for fact, outcome in zip(batch, outcomes, strict=True)
            ]

        return delivered(in_batches(facts, batch_size, edit_batch, on_done=on_facts))

    @undisturbed
    def edit_together(
        self,
        model: LensModel,
        facts: Sequence[Fact],
        *,
        batch_size: int | None = None,
        on_step: OnDone | None = None,
        on_facts: OnDone | None = None,
    ) -> JointEditResult:
        """Write all of ``facts`` in one update, solved jointly.

        Args:
            model: the vanilla model; it is not changed.
            facts: the requests.
            batch_size: facts optimised at a time, also for the passes that compute their keys; ``None`` means 16, or on
                CUDA as many as fit into free memory.
            on_step: called with the number of steps done in a batch and the largest possible number.
            on_facts: called with the number of facts whose value is optimised, and the total.

        Raises:
            DriftlensError: there is no fact, two facts contradict each other, a layer is out of range, or a fact cannot
                be edited (a prompt too long, the loss not finite), because there is no update without it.
        """
        facts = asked_together(facts)
        moments, contexts = self._moments_for(model), self.contexts_for(model)
        return self._together(model, facts, moments, contexts, self._factors(moments), batch_size, on_step, on_facts)

    def _together(
        self,
        model: LensModel,
        facts: tuple[Fact, ...],
        moments: Mapping[int, SecondMoment],
        contexts: tuple[str, ...],
        factors: Factors,
        batch_size: int | None,
        on_step: OnDone | None,
        on_facts: OnDone | None,
    ) -> JointEditResult:
        if batch_size is None:
            batch_size = edit_batch_size(model, facts, contexts, self.layers[-1])

        def optimize_batch(batch: Sequence[Fact]) -> list[OptimizedValue]:
            values: list[OptimizedValue] = []
            for outcome in self._values(model, batch, contexts, on_step):
                if isinstance(outcome, Failure):
                    raise DriftlensError(f"{outcome.reason}; or leave this fact out")
                values.append(outcome)
            return values

        values = in_batches(facts, batch_size, optimize_batch, on_done=on_facts)
        (update,) = self._spread(model, [facts], values, contexts, factors, batch_size)
        return JointEditResult(
            facts=facts,
            edit=self._edit(model, facts, update, moments),
            history=joint_history([value.history for value in values]),
            keys=update.keys,
            values=update.values,
        )

    @staticmethod
    @abstractmethod
    def _share(layers_left: int) -> float:
        """The divisor of the residual, given the number of layers still to be written."""

    @abstractmethod
    def _factors(self, moments: Mapping[int, SecondMoment]) -> Factors:
        """The solve of a layer's update."""

    def _values(
        self,
        model: LensModel,
        facts: Sequence[Fact],
        contexts: tuple[str, ...],
        on_step: OnDone | None,
    ) -> list[OptimizedValue | Failure]:
        return optimize_values(
            model,
            facts,
            layer=self.layers[-1],
            places=self.places(model),
            contexts=contexts,
            settings=self.value_settings(),
            on_step=on_step,
        )

    def _spread(
        self,
        model: LensModel,
        groups: Sequence[Sequence[Fact]],
        values: Sequence[OptimizedValue],
        contexts: tuple[str, ...],
        factors: Factors,
        batch_size: int,
    ) -> list[SpreadUpdate]:
        return spread(
            model,
            groups,
            torch.stack([value.target for value in values]),
            layers=self.layers,
            site=self.places(model)[0],
            share=self._share,
            contexts=contexts,
            factors=factors,
            batch_size=batch_size,
        )

    def _moments_for(self, model: LensModel) -> Mapping[int, SecondMoment]:
        return self._second_moments(model, self.layers, self.given_second_moments or None)

    def _edit(
        self,
        model: LensModel,
        facts: Sequence[Fact],
        update: SpreadUpdate,
        moments: Mapping[int, SecondMoment],
    ) -> Edit:
        sources = dict.fromkeys(moments[layer].source for layer in self.layers)
        return Edit(
            updates=update.updates,
            facts=facts,
            provenance=self.provenance(model, *facts) | {"second_moment": ", ".join(sources)},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LeastSquaresEditor(MultiLayerEditor):
    """MEMIT and PMET: C has weight λ relative to the facts' keys."""

    second_moment_weight: float = 15000.0

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.second_moment_weight < float("inf"):
            raise DriftlensError(
                f"second_moment_weight is {self.second_moment_weight}; expected a number above 0, e.g. 15000"
            )

    @override
    def _factors(self, moments: Mapping[int, SecondMoment]) -> Factors:
        def factors(layer: int, keys: Sequence[Tensor]) -> list[Tensor]:
            solved = moments[layer].solve(torch.cat([*keys])).to(keys[0].device)
            parts = solved.split([len(k) for k in keys])
            return [least_squares_factor(k, s, self.second_moment_weight) for k, s in zip(keys, parts, strict=True)]

        return factors
