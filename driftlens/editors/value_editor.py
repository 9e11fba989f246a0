"""`ValueEditor`: the base of ROME, MEMIT, PMET and AlphaEdit.

It holds the settings of the value optimisation and supplies contexts and second moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any, Literal, Self

from typing_extensions import override

from driftlens.editors.base import Editor
from driftlens.editors.contexts import ContextSampling, check_contexts, sample_contexts
from driftlens.editors.corpora import Corpus, open_corpus
from driftlens.editors.objective import ValueSettings
from driftlens.editors.presets import by_scale
from driftlens.editors.regularizers import parts_of
from driftlens.editors.rows import Place
from driftlens.editors.second_moment import SAMPLES, SecondMoment, second_moments
from driftlens.errors import DriftlensError
from driftlens.models import LensModel

__all__ = ["ValueEditor"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueEditor(Editor):
    """An editor that optimises a value, δ added to an MLP's output; :class:`driftlens.ROME` explains each setting."""

    steps: int = 20
    lr: float = 0.5
    weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp_norm_factor: float = 4.0
    contexts: tuple[str, ...] | None = None
    sampling: ContextSampling = field(default_factory=ContextSampling)
    corpus: str | PathLike[str] | Sequence[str] | Corpus | None = None
    samples: int = SAMPLES
    early_stop_loss: float = 5e-2
    essence: str = "{} is a"
    essence_kl: Literal["edited_from_vanilla", "vanilla_from_edited"] = "edited_from_vanilla"
    detach_attention: bool = False
    _moments: dict[str, dict[int, SecondMoment]] = field(
        default_factory=dict[str, dict[int, SecondMoment]], init=False, repr=False, compare=False
    )

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(steps=1, weight_decay=0, kl_factor=0, samples=1)
        self._check_above_zero("lr", "clamp_norm_factor")
        if self.essence.count("{}") != 1:
            raise DriftlensError(f'essence is {self.essence!r}; it must hold exactly one "{{}}" for the subject')
        if self.essence_kl not in ("edited_from_vanilla", "vanilla_from_edited"):
            raise DriftlensError(
                f"essence_kl is {self.essence_kl!r}; expected 'edited_from_vanilla' or 'vanilla_from_edited'"
            )
        if self.contexts is not None:
            object.__setattr__(self, "contexts", check_contexts(self.contexts))

    @classmethod
    @override
    def scaled(cls, model: LensModel, *, regularized: bool) -> dict[str, Any]:
        settings = by_scale(model, {item.name for item in fields(cls)}, cls.places(model)[0])
        return settings | {"steps": 80 if regularized else 20}

    @property
    @override
    def most_steps(self) -> int:
        return self.steps

    @staticmethod
    def places(model: LensModel) -> tuple[Place, ...]:
        """The outputs in the last edited layer of ``model`` that δ is added to."""
        del model
        return ("mlp_out",)

    def contexts_for(self, model: LensModel) -> tuple[str, ...]:
        """The templates in which δ is optimised: the given ones, or else samples from ``model``."""
        return self.contexts if self.contexts is not None else sample_contexts(model, self.sampling)

    def value_settings(self) -> ValueSettings:
        """The settings that the value optimisation needs."""
        return ValueSettings(
            steps=self.steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
            kl_factor=self.kl_factor,
            clamp_norm_factor=self.clamp_norm_factor,
            early_stop_loss=self.early_stop_loss,
            essence=self.essence,
            essence_kl=self.essence_kl,
            detach_attention=self.detach_attention,
            regularizers=parts_of(self.regularizers),
        )

    @override
    def moment_corpus(self, model: LensModel) -> Corpus:
        """The texts over which missing second moments are computed: ``corpus``, or else the default for ``model``."""
        return super().moment_corpus(model) if self.corpus is None else open_corpus(self.corpus)

    @property
    @override
    def moment_samples(self) -> int:
        return self.samples

    @override
    def settled(self, model: LensModel) -> Self:
        """Return the same editor with contexts and second moments of ``model`` as it is now, for edits on top."""
        self.check(model)
        return super().settled(model).changed(contexts=self.contexts_for(model))

    def _second_moments(
        self, model: LensModel, layers: Sequence[int], given: Mapping[int, SecondMoment] | None
    ) -> Mapping[int, SecondMoment]:
        """Return C of every layer: given, or computed over the corpus in one pass for all layers."""
        self.check(model)
        if given is not None:
            for layer in layers:
                if given[layer].matrix.shape[0] != model.d_mlp:
                    raise DriftlensError(
                        f"the second moment is for d_mlp = {given[layer].matrix.shape[0]}, but "
                        f"{model.name} has {model.d_mlp}; give the one of layer {layer} of this model"
                    )
            return given
        # Cached by weights and texts, because one editor may serve several models, edited ones among them.
        corpus = self.moment_corpus(model)
        key = f"{model.model_hash} {corpus.digest}"
        if key not in self._moments:
            self._moments[key] = second_moments(model, layers, corpus, samples=self.samples)
        return self._moments[key]
