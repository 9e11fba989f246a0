"""Gated changes: a change that acts for only some prompts, as WISE's side memory does.

A *router* decides by the prompt.  It sees the input of the changed map at every token of the prompt, its output, and
what the change would add there, and gives the prompt a score. The gate is open if the score is above the threshold.  Of
several gated changes of one site, only the one with the highest score acts (WISE's retrieval from several memories).

The decision depends on the prompt only, not on the targets or generated tokens after it, so one model answers one
prompt.  :func:`driftlens.edits.routed` makes the decision once, in a pass up to the gate's layer. The result is an edit
without gates, which every partial pass can run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from driftlens.edits.changes import Change, change_kind
from driftlens.errors import DriftlensError, unknown_name
from driftlens.hooks import Hook
from driftlens.models.sites import Site

if TYPE_CHECKING:
    from driftlens.models import LensModel

__all__ = ["ACTIVATIONS", "ActivatedNorm", "AddedNorm", "Gated", "Router"]

_ROUTERS: dict[str, type[Router]] = {}

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), partial(F.gelu, approximate="tanh")),
}
"""Activation functions of MLPs, by their names in model configurations."""


class Router(ABC):
    """Decides for which prompts a change acts.

    To define your own router, write a frozen dataclass with a new ``kind`` whose fields are plain numbers and texts.
    """

    kind: ClassVar[str]
    """The name of this kind of router in files."""
    threshold: float
    """The gate is open if the score is above it."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "kind" in cls.__dict__:
            _ROUTERS[cls.kind] = cls

    @abstractmethod
    def scores(
        self,
        inputs: Float[Tensor, "rows seq d_in"],
        outputs: Float[Tensor, "rows seq d_out"],
        added: Float[Tensor, "rows seq d_out"],
        mask: Bool[Tensor, "rows seq"],
    ) -> Float[Tensor, "rows"]:
        """Score each prompt.

        Args:
            inputs: the map's input at every token.
            outputs: the map's output there without the change.
            added: what the change would add to the output there.
            mask: which tokens belong to the prompt.
        """


@dataclass(frozen=True, kw_only=True)
class AddedNorm(Router):
    """Scores a prompt by the size of what the change would add, ``‖x ΔW‖₂``, over its tokens (WISE's Δ_act).

    Attributes:
        threshold: ε.
        over: the mean over the prompt's tokens, or the largest of them.
    """

    kind: ClassVar[str] = "added_norm"

    threshold: float
    over: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        if self.over not in ("mean", "max"):
            raise unknown_name("average", self.over, ["mean", "max"])

    @override
    def scores(
        self,
        inputs: Float[Tensor, "rows seq d_in"],
        outputs: Float[Tensor, "rows seq d_out"],
        added: Float[Tensor, "rows seq d_out"],
        mask: Bool[Tensor, "rows seq"],
    ) -> Float[Tensor, "rows"]:
        norms = added.norm(dim=-1) * mask
        return norms.sum(dim=1) / mask.sum(dim=1) if self.over == "mean" else norms.amax(dim=1)


@dataclass(frozen=True, kw_only=True)
class ActivatedNorm(Router):
    """As :class:`AddedNorm`, but after applying a function f to the output y: ``‖f(y) − f(y + x ΔW)‖₂``.

    WISE's published code measures this, although the model applies no activation there.  For a prompt of more than
    ``most`` tokens it takes the largest value instead of the mean.

    Attributes:
        threshold: ε.
        activation: f, one of :data:`ACTIVATIONS`.
        most: the longest prompt for which the mean is taken.
    """

    kind: ClassVar[str] = "activated_norm"

    threshold: float
    activation: str
    most: int = 100

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise unknown_name("activation", self.activation, list(ACTIVATIONS))

    @override
    def scores(
        self,
        inputs: Float[Tensor, "rows seq d_in"],
        outputs: Float[Tensor, "rows seq d_out"],
        added: Float[Tensor, "rows seq d_out"],
        mask: Bool[Tensor, "rows seq"],
    ) -> Float[Tensor, "rows"]:
        f, y = ACTIVATIONS[self.activation], outputs.to(added.dtype)
        norms, length = (f(y + added) - f(y)).norm(dim=-1) * mask, mask.sum(dim=1)
        return torch.where(length > self.most, norms.amax(dim=1), norms.sum(dim=1) / length)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gated(Change):
    """``change`` if ``router`` opens the gate, otherwise nothing."""

    kind: ClassVar[str] = "gated"
    is_weights: ClassVar[bool] = False

    change: Change
    router: Router

    def __post_init__(self) -> None:
        if not self.change.is_weights:
            raise DriftlensError(f"a gate holds a change of weights, not a {self.change.kind} one; unwrap it first")
        object.__setattr__(self, "site", self.change.site)

    def __repr__(self) -> str:
        return f"Gated({self.change!r}, {self.router!r})"

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return self.change.shape

    @property
    @override
    def tensors(self) -> Mapping[str, Tensor]:
        return self.change.tensors

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        inner = {"kind": self.change.kind, "settings": dict(self.change.settings)}
        return {"change": inner, "router": {"kind": self.router.kind, **_fields(self.router)}}

    @property
    @override
    def summary(self) -> str:
        return f"{self.change.summary}, gated"

    @classmethod
    @override
    def restored(cls, site: Site, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        inner, router = settings["change"], dict(settings["router"])
        kind = router.pop("kind")
        if kind not in _ROUTERS:
            raise unknown_name("kind of router", kind, list(_ROUTERS))
        change = change_kind(inner["kind"]).restored(site, tensors, inner["settings"])
        return cls(change=change, router=_ROUTERS[kind](**router))

    @classmethod
    @override
    def batch_hooks(cls, model: LensModel, changes: Sequence[Any], rows: Int[Tensor, "rows"] | None) -> list[Hook]:
        raise DriftlensError(
            "a gated edit decides by the prompt; let driftlens.edits.routed decide for each prompt, then ask for hooks"
        )

    def score(
        self,
        model: LensModel,
        inputs: Float[Tensor, "rows seq d_in"],
        outputs: Float[Tensor, "rows seq d_out"],
        mask: Bool[Tensor, "rows seq"],
    ) -> Float[Tensor, "rows"]:
        """The router's score of each prompt, in float32 or better."""
        precision = torch.promote_types(model.dtype, torch.float32)
        x = inputs.to(precision)
        tensors = {
            name: tensor.to(x.device, precision if tensor.is_floating_point() else None)
            for name, tensor in self.change.tensors.items()
        }
        moved = type(self.change).restored(self.site, tensors, self.change.settings)
        return self.router.scores(x, outputs, moved.added(x), mask)


def _fields(router: Router) -> dict[str, Any]:
    return asdict(router)  # pyright: ignore[reportArgumentType, reportCallIssue, reportUnknownVariableType]
