"""`Editor`: what every editing method has in common, and all that driftlens asks of one.

An editor of one's own fills in `edited_layers` and `edit_many`; the other methods have defaults that suit it.  One that
optimises a value, as ROME does, is a :class:`driftlens.editors.ValueEditor`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from typing import Any, ClassVar, ParamSpec, Self, TypeVar

import torch

from driftlens.data import Fact
from driftlens.editors.corpora import Corpus, open_corpus
from driftlens.editors.failures import EditError, Failure
from driftlens.editors.identity import UnidentifiedError, identity
from driftlens.editors.presets import Preset, by_depth, known_preset, sadr_gamma
from driftlens.editors.regularizers import ChoosesLayers, HasParts, Regularizer
from driftlens.editors.requests import check_facts
from driftlens.editors.second_moment import SAMPLES, SecondMoment, second_moments
from driftlens.editors.shipped import default_corpus
from driftlens.edits import EditResult
from driftlens.errors import DriftlensError, unknown_name
from driftlens.models import LensModel, check_loaded
from driftlens.progress import OnDone


def check_settings(editor: type[Editor], changes: Iterable[str]) -> None:
    """Whether an editor has these settings.

    Raises:
        DriftlensError: one is unknown; it says which was meant.
    """
    known = [item.name for item in fields(editor) if item.init]
    for name in changes:
        if name not in known:
            raise unknown_name(f"setting of {editor.__name__}", name, known)


_P = ParamSpec("_P")
_R = TypeVar("_R")


def undisturbed(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """For what edits a model: the same in every mode of PyTorch, and the model's weights read for its hash once.

    A tensor made in inference mode could never take part in a gradient, and autocast rounds what is solved for.
    """

    @wraps(method)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        model: Any = kwargs["model"] if "model" in kwargs else args[1]
        check_loaded(model)
        with model.unchanged(), torch.inference_mode(mode=False), torch.autocast(model.device.type, enabled=False):
            return method(*args, **kwargs)

    return run


@dataclass(frozen=True, kw_only=True, eq=False)
class Editor(ABC):
    """The settings that every editor has."""

    regularizers: tuple[Regularizer | HasParts, ...] = ()

    # Whether the preset chose the number of steps, which then follows the regularizers; for_model knows.
    _steps_follow: bool = field(default=False, init=False, repr=False, compare=False)

    presets: ClassVar[Mapping[str, Preset]] = {}
    """Settings for models by the beginning of the last part of their name, in lower case; "demo" is the bundled one."""

    _not_described: ClassVar[tuple[str, ...]] = ("second_moment", "corpus", "regularizers", "_moments", "_steps_follow")

    def __post_init__(self) -> None:
        given: Any = self.regularizers  # a single one is welcome
        object.__setattr__(self, "regularizers", tuple(given) if isinstance(given, Iterable) else (given,))

    @classmethod
    def for_model(cls, model: LensModel, **changes: Any) -> Self:
        """The settings for ``model``: its preset's, or defaults by depth and scale; ``changes`` override them.

        Where the number of steps is a setting, the preset has one with regularizers and one without.

        Raises:
            DriftlensError: a setting out of range, a layer that the model does not have.
        """
        check_loaded(model)
        check_settings(cls, changes)
        editor = cls(**(cls.preset(model, regularized=bool(changes.get("regularizers"))) | changes))
        editor.follow(follows=cls._has_steps() and "steps" not in changes)
        editor.check(model)  # a small model may have a large one's name
        return editor

    @classmethod
    def preset(cls, model: LensModel, *, regularized: bool = False) -> dict[str, Any]:
        """Keyword arguments for ``model``: of :attr:`presets`, else of :meth:`scaled`; with regularizers the number of
        steps, where that is a setting, is another.
        """
        chosen = known_preset(cls.presets, model)
        if chosen is None:
            return cls.scaled(model, regularized=regularized)
        steps = {"steps": chosen.sadr_steps if regularized else chosen.steps} if cls._has_steps() else {}
        return {**chosen.settings, **steps}

    @classmethod
    def scaled(cls, model: LensModel, *, regularized: bool) -> dict[str, Any]:
        """The settings for a model that has no preset, ``steps`` among them where that is one."""
        del regularized
        return by_depth(model, {item.name for item in fields(cls)})

    @classmethod
    def _has_steps(cls) -> bool:
        return any(item.name == "steps" and item.init for item in fields(cls))

    @property
    def most_steps(self) -> int:
        """How many steps an edit takes at most, a row of its history each; for displays of progress."""
        return 1

    @property
    def steps_follow(self) -> bool:
        """Whether the number of steps is the preset's, and not one that somebody gave."""
        return self._steps_follow

    def follow(self, *, follows: bool) -> None:
        """Note whether the number of steps is the preset's."""
        object.__setattr__(self, "_steps_follow", follows)

    def changed(self, **changes: Any) -> Self:
        """The same editor with other settings: ``dataclasses.replace``, but the number of steps goes on being the
        preset's, unless it is among the changes.
        """
        found = replace(self, **changes)
        found.follow(follows=self.steps_follow and "steps" not in changes)
        return found

    def edit(self, model: LensModel, fact: Fact) -> EditResult:
        """Edit one fact; the model itself stays as it is."""
        check_facts([fact])
        return self.edit_many(model, [fact])[0]

    @abstractmethod
    def edit_many(
        self,
        model: LensModel,
        facts: Sequence[Fact],
        *,
        batch_size: int | None = None,
        on_step: OnDone | None = None,
        on_facts: OnDone | None = None,
    ) -> list[EditResult]:
        """A separate edit for each of ``facts``, ``batch_size`` of them optimised at a time.

        Each fact gets the numbers it has alone, up to float rounding.  Out of memory halves the batch and
        goes on.

        Args:
            model: the vanilla model; it stays as it is.
            facts: the requests.  Runs first ask with none, so that what is wrong for all facts is told before any work.
            batch_size: facts at a time; ``None``: 16, on CUDA as many as the free memory holds.
            on_step: called with the number of a batch's steps done and the most there can be.
            on_facts: called with the number of facts done and the number of all.

        Raises:
            DriftlensError: a layer is out of range, a regularizer's layers are not above the edit.
            EditError: when all are done, if some could not be edited (a prompt too long, the loss not finite); with
                the results of the others.
        """

    def try_many(
        self,
        model: LensModel,
        facts: Sequence[Fact],
        *,
        batch_size: int | None = None,
        on_step: OnDone | None = None,
        on_facts: OnDone | None = None,
    ) -> list[EditResult | Failure]:
        """:meth:`edit_many`, but a fact that cannot be edited raises nothing: its place holds the reason."""
        try:
            return [*self.edit_many(model, facts, batch_size=batch_size, on_step=on_step, on_facts=on_facts)]
        except EditError as error:
            return [*error.outcomes]

    @property
    @abstractmethod
    def edited_layers(self) -> tuple[int, ...]:
        """The layers that an edit changes, ascending."""

    @property
    def restrained_above(self) -> int:
        """The layer above which regularizers see attention: the last that an edit changes."""
        return self.edited_layers[-1]

    @classmethod
    def usual_gamma(cls, model: LensModel, **changes: Any) -> float:
        """SADR's weight where nobody gives one: the preset's.  ``changes`` are those of :meth:`for_model`."""
        del changes
        return sadr_gamma(model, cls.presets)

    def gammas(self, model: LensModel) -> tuple[float, ...] | None:
        """The weights γ that SADR can have here, ascending; None: any."""
        del model
        return None

    def with_regularizers(self, model: LensModel, regularizers: Sequence[Regularizer | HasParts]) -> Self:
        """The same editor with other regularizers.

        Raises:
            DriftlensError: it cannot edit ``model`` with these.
        """
        del model
        return self.changed(regularizers=tuple(regularizers))

    @property
    def missing_second_moments(self) -> tuple[int, ...]:
        """The layers whose second moments it needs and was not given; it takes them over :meth:`moment_corpus`."""
        return ()

    def moment_corpus(self, model: LensModel) -> Corpus:
        """The texts that missing second moments are taken over: the default for ``model``."""
        return open_corpus(default_corpus(model))

    @property
    def moment_samples(self) -> int:
        """How many of these texts."""
        return SAMPLES

    @property
    def given_second_moments(self) -> Mapping[int, SecondMoment]:
        """Those that it was given, by layer."""
        return {}

    def with_second_moments(self, moments: Mapping[int, SecondMoment]) -> Self:
        """The same editor with second moments by layer, of which it keeps what it needs."""
        del moments
        return self

    def settled(self, model: LensModel) -> Self:
        """The same editor with all that it takes from ``model`` as it is now, to edit on top of others."""
        missing = self.missing_second_moments
        if not missing:
            return self
        moments = second_moments(model, missing, self.moment_corpus(model), samples=self.moment_samples)
        return self.with_second_moments(moments)

    def check(self, model: LensModel) -> None:
        """Whether ``model`` can be edited like this; editing asks it as well.

        Raises:
            DriftlensError: a layer that the model does not have; a regularizer whose layers are not above the edit.
        """
        check_loaded(model)
        for layer in self.edited_layers:
            if not 0 <= layer < model.n_layers:
                raise DriftlensError(
                    f"layer {layer} is out of range; {model.name} has layers 0 to {model.n_layers - 1}, choose of these"
                )
        above = range(self.restrained_above + 1, model.n_layers)
        for regularizer in self.regularizers:
            # Above the last layer there is no attention; a sum over no layers is 0, and nobody chose wrongly.
            if above and isinstance(regularizer, ChoosesLayers):
                regularizer.check_layers(above)

    def provenance(self, model: LensModel, *facts: Fact) -> dict[str, str]:
        """Where an edit of ``facts`` comes from, as flat strings."""
        from driftlens.version import __version__

        plain = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.init and item.name not in self._not_described
        }
        told = {
            name: " + ".join(getattr(fact, name) for fact in facts)
            for name in ("subject", "prompt", "target_true", "target_new")
        }
        return {
            "editor": type(self).__name__,
            # The class's name, and what it does where it is somebody else's.
            "settings": _identity_or_repr(plain) + identity(type(self)).removeprefix(type(self).__qualname__),
            "regularizers": _identity_or_repr(self.regularizers),
            "model": model.name,
            "model_source": model.source,
            "model_hash": model.model_hash,
            **told,
            **({"chat": model.frame.around("{}")} if model.frame else {}),
            "driftlens": __version__,
        }

    def check_identified(self) -> None:
        """Whether the settings tell this editor from every other, as caches and runs need.

        Raises:
            UnidentifiedError: a setting, or something in a regularizer, is none of what can be identified; see
                :mod:`driftlens.editors.identity`.
        """
        identity(type(self))
        for item in fields(self):
            if (item.init and item.name not in self._not_described) or item.name == "regularizers":
                identity(getattr(self, item.name))

    def _check_at_least(self, **least: float) -> None:
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise DriftlensError(f"{name} is {getattr(self, name)}; expected at least {bound}")

    def _check_above_zero(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise DriftlensError(f"{name} is {getattr(self, name)}; expected a number above 0")


def _identity_or_repr(value: object) -> str:
    """For reading: what cannot be identified is named all the same."""
    try:
        return identity(value)
    except UnidentifiedError:
        return repr(value)
