"""`Editor`: the interface and the shared behaviour of every editing method.

To write your own editor, implement `edited_layers` and `edit_many`; the other methods have suitable defaults. An editor
that optimises a value, as ROME does, extends :class:`driftlens.editors.ValueEditor`.
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
    """Check that an editor has these settings.

    Raises:
        DriftlensError: a setting is unknown; the message suggests a similar one.
    """
    known = [item.name for item in fields(editor) if item.init]
    for name in changes:
        if name not in known:
            raise unknown_name(f"setting of {editor.__name__}", name, known)


_P = ParamSpec("_P")
_R = TypeVar("_R")


def undisturbed(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function that edits a model: PyTorch modes have no effect, and the weights are read once for the hash.

    A tensor made in inference mode can never take part in a gradient, and autocast would round the solution.
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

    # Whether the preset chose the number of steps. If so, the number depends on the regularizers; set by for_model.
    _steps_follow: bool = field(default=False, init=False, repr=False, compare=False)

    presets: ClassVar[Mapping[str, Preset]] = {}
    """Settings by the beginning of the last part of a model's name, in lower case; "demo" is the bundled model."""

    _not_described: ClassVar[tuple[str, ...]] = ("second_moment", "corpus", "regularizers", "_moments", "_steps_follow")

    def __post_init__(self) -> None:
        given: Any = self.regularizers  # a single regularizer is accepted
        object.__setattr__(self, "regularizers", tuple(given) if isinstance(given, Iterable) else (given,))

    @classmethod
    def for_model(cls, model: LensModel, **changes: Any) -> Self:
        """Make an editor with the settings for ``model``: its preset, or defaults by depth and scale.

        ``changes`` override them. If the number of steps is a setting, a preset has two values for it: with and without
        regularizers.

        Raises:
            DriftlensError: a setting is out of range, or the model does not have the layer.
        """
        check_loaded(model)
        check_settings(cls, changes)
        editor = cls(**(cls.preset(model, regularized=bool(changes.get("regularizers"))) | changes))
        editor.follow(follows=cls._has_steps() and "steps" not in changes)
        editor.check(model)  # a small model may share a large one's name
        return editor

    @classmethod
    def preset(cls, model: LensModel, *, regularized: bool = False) -> dict[str, Any]:
        """Keyword arguments for ``model``, from :attr:`presets` or else :meth:`scaled`.

        If the number of steps is a setting, it depends on whether there are regularizers.
        """
        chosen = known_preset(cls.presets, model)
        if chosen is None:
            return cls.scaled(model, regularized=regularized)
        steps = {"steps": chosen.sadr_steps if regularized else chosen.steps} if cls._has_steps() else {}
        return {**chosen.settings, **steps}

    @classmethod
    def scaled(cls, model: LensModel, *, regularized: bool) -> dict[str, Any]:
        """The settings for a model without a preset, including ``steps`` if that is a setting."""
        del regularized
        return by_depth(model, {item.name for item in fields(cls)})

    @classmethod
    def _has_steps(cls) -> bool:
        return any(item.name == "steps" and item.init for item in fields(cls))

    @property
    def most_steps(self) -> int:
        """The largest number of steps an edit can take (rows in its history); for progress displays."""
        return 1

    @property
    def steps_follow(self) -> bool:
        """Whether the number of steps comes from the preset rather than from the user."""
        return self._steps_follow

    def follow(self, *, follows: bool) -> None:
        """Record whether the number of steps comes from the preset."""
        object.__setattr__(self, "_steps_follow", follows)

    def changed(self, **changes: Any) -> Self:
        """Return a copy with other settings, as ``dataclasses.replace`` does.

        A number of steps that comes from the preset still counts as the preset's, unless it is among the changes.
        """
        found = replace(self, **changes)
        found.follow(follows=self.steps_follow and "steps" not in changes)
        return found

    def edit(self, model: LensModel, fact: Fact) -> EditResult:
        """Edit one fact; the model itself is not changed."""
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
        """Make a separate edit for each of ``facts``, optimising ``batch_size`` of them at a time.

        Each fact gets the same numbers as if edited alone, up to float rounding. When memory runs out, the batch is
        halved and the work continues.

        Args:
            model: the vanilla model; it is not changed.
            facts: the requests.  An empty list only checks the settings; runs use it to report errors before any work.
            batch_size: facts at a time; ``None`` means 16, or on CUDA as many as fit into free memory.
            on_step: called with the number of steps done in a batch and the largest possible number.
            on_facts: called with the number of facts done and the total.

        Raises:
            DriftlensError: a layer is out of range, or a regularizer's layers are not above the edit.
            EditError: raised at the end if some facts could not be edited (a prompt too long, the loss not finite); it
                carries the results of the others.
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
        """Edit as :meth:`edit_many` does, but return the reason in place of a fact that cannot be edited."""
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
        """The layer above which regularizers see attention: the last edited layer."""
        return self.edited_layers[-1]

    @classmethod
    def usual_gamma(cls, model: LensModel, **changes: Any) -> float:
        """The default weight of SADR: the preset's.  ``changes`` are those of :meth:`for_model`."""
        del changes
        return sadr_gamma(model, cls.presets)

    def gammas(self, model: LensModel) -> tuple[float, ...] | None:
        """The values of SADR's weight γ that this editor supports, ascending; None means any."""
        del model
        return None

    def with_regularizers(self, model: LensModel, regularizers: Sequence[Regularizer | HasParts]) -> Self:
        """Return the same editor with other regularizers.

        Raises:
            DriftlensError: the editor cannot edit ``model`` with them.
        """
        del model
        return self.changed(regularizers=tuple(regularizers))

    @property
    def missing_second_moments(self) -> tuple[int, ...]:
        """The layers whose second moments are needed but not given; they are computed over :meth:`moment_corpus`."""
        return ()

    def moment_corpus(self, model: LensModel) -> Corpus:
        """The texts over which missing second moments are computed: by default, those for ``model``."""
        return open_corpus(default_corpus(model))

    @property
    def moment_samples(self) -> int:
        """How many of these texts to use."""
        return SAMPLES

    @property
    def given_second_moments(self) -> Mapping[int, SecondMoment]:
        """The second moments that were given, by layer."""
        return {}

    def with_second_moments(self, moments: Mapping[int, SecondMoment]) -> Self:
        """Return the same editor with second moments by layer; it keeps those it needs."""
        del moments
        return self

    def settled(self, model: LensModel) -> Self:
        """Return the same editor with everything it takes from ``model`` as it is now, for edits on top."""
        missing = self.missing_second_moments
        if not missing:
            return self
        moments = second_moments(model, missing, self.moment_corpus(model), samples=self.moment_samples)
        return self.with_second_moments(moments)

    def check(self, model: LensModel) -> None:
        """Check that this editor can edit ``model``; editing does this as well.

        Raises:
            DriftlensError: the model does not have a layer, or a regularizer's layers are not above the edit.
        """
        check_loaded(model)
        for layer in self.edited_layers:
            if not 0 <= layer < model.n_layers:
                raise DriftlensError(
                    f"layer {layer} is out of range; {model.name} has layers 0 to {model.n_layers - 1}, choose of these"
                )
        above = range(self.restrained_above + 1, model.n_layers)
        for regularizer in self.regularizers:
            # There is no attention above the last layer; a sum over no layers is 0, and the user did nothing wrong.
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
            # The class's name, and for a class from outside driftlens also what it computes.
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
        """Check that the settings distinguish this editor from every other, as caches and runs require.

        Raises:
            UnidentifiedError: a setting, or part of a regularizer, has a type that cannot be identified; see
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
    """For display: an unidentifiable setting is still shown."""
    try:
        return identity(value)
    except UnidentifiedError:
        return repr(value)
