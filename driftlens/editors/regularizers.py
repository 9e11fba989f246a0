"""What a regulariser of the value optimisation is: a penalty on what the model does under the current δ.

A regulariser sees some *rows* in the unedited model and under δ, and gives one penalty a row.  The optimiser averages
a fact's rows and adds the sum to its loss.

1. **Which rows.**  By default the edit's own contexts.  A regulariser with a method ``prompts`` brings prompts of its
   own instead (:class:`BringsPrompts`), each of which names the subject, with δ at its last token.
2. **What of them.**  By default what the last prompt token attends to in every layer above the edit.  An attribute
   ``wants`` asks for more (:class:`Wants`): attention of the other tokens, hidden states, next-token distributions.
   Nothing else is computed or kept.
3. **Its column** in the history is its ``name``, by default its class's name in lower case.

What lies to the left of ``subject_last``, or at layers below the edit, cannot change and is never computed: columns
are counted from ``subject_last``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from driftlens.errors import DriftlensError

if TYPE_CHECKING:
    from driftlens.data import Fact
    from driftlens.models import LensModel

__all__ = [
    "BringsPrompts",
    "ChoosesLayers",
    "HasParts",
    "LastTokenAttention",
    "Observed",
    "Regularizer",
    "Seen",
    "SeesMore",
    "Wants",
    "column_names",
    "own_prompts",
    "parts_of",
    "prompts_place",
    "wants_of",
]


@dataclass(frozen=True, kw_only=True)
class Wants:
    """What a regulariser sees of its rows, in the unedited model and under δ.

    Attributes:
        attention: what the last prompt token attends to.
        patterns: what every token from ``subject_last`` on attends to.
        hidden: the residual stream after the edit layer and after every layer above it.
        next_tokens: the log-probabilities of the token after the prompt.
        target: the log-probability of the new object after the prompt.
    """

    attention: bool = True
    patterns: bool = False
    hidden: bool = False
    next_tokens: bool = False
    target: bool = False

    def __or__(self, other: Wants) -> Wants:
        """What at least one of the two wants."""
        return Wants(**{item.name: getattr(self, item.name) or getattr(other, item.name) for item in fields(self)})


@dataclass(frozen=True, kw_only=True)
class LastTokenAttention:
    """What the last prompt token attends to, before and during the edit.

    Attributes:
        layers: the layers of the first dimension.
        vanilla: ``[layers, rows, heads, keys]``, post-softmax, without a gradient.
        edited: the same with the current δ, differentiable.
        subject: per row, the key index of ``subject_last``.
    """

    layers: Sequence[int]
    vanilla: Float[Tensor, "layers rows heads keys"]
    edited: Float[Tensor, "layers rows heads keys"]
    subject: Int[Tensor, "rows"]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What one model does in some rows; ``None`` is what nobody wanted.

    Attributes:
        attention: of the last prompt token.
        patterns: of all tokens from ``subject_last`` on.
        hidden: the residual stream after the edit layer, then after every layer above it; column 0 is ``subject_last``.
        log_probabilities: of the token after the prompt.
        target: the mean log-probability of the new object's tokens after the prompt, as the benchmark scores it.
    """

    attention: Float[Tensor, "layers rows heads keys"] | None = None
    patterns: Float[Tensor, "layers rows heads queries keys"] | None = None
    hidden: Float[Tensor, "states rows queries d_model"] | None = None
    log_probabilities: Float[Tensor, "rows d_vocab"] | None = None
    target: Float[Tensor, "rows"] | None = None


@dataclass(frozen=True, kw_only=True)
class Seen(LastTokenAttention):
    """What a regulariser is given about its rows.

    ``vanilla`` and ``edited`` are the last token's attention, as in :class:`LastTokenAttention`.

    Attributes:
        before: everything that the regulariser wants, in the unedited model, without a gradient.
        now: the same under the current δ, differentiable.
        last: per row, the column of the last prompt token, counted from ``subject_last``.  The key index of column
            ``c`` is ``subject + c``.
        mask: per row, which columns hold tokens; the rest is padding.
    """

    before: Observed
    now: Observed
    last: Int[Tensor, "rows"]
    mask: Bool[Tensor, "rows queries"]


@runtime_checkable
class Regularizer(Protocol):
    """Anything that can be added to an editor's ``regularizers``."""

    def penalty(self, seen: Seen, /) -> Float[Tensor, "rows"]:
        """The weighted penalty of every row, differentiable; it must be zero where nothing has drifted."""
        ...


@runtime_checkable
class ChoosesLayers(Protocol):
    """A regularizer that is about layers of its choice; editors ask it whether they are there."""

    def check_layers(self, above: range) -> None:
        """Raise a :class:`~driftlens.errors.DriftlensError` unless it can work with the layers above the edit, which
        are ``above``, up to the model's last.
        """
        ...


@runtime_checkable
class BringsPrompts(Protocol):
    """A regularizer whose rows are prompts of its own."""

    def prompts(self, model: LensModel, facts: Sequence[Fact]) -> Sequence[Sequence[str]]:
        """The prompts of each fact, each of which names the fact's subject; δ stands at its first occurrence."""
        ...


@runtime_checkable
class SharesPrompts(BringsPrompts, Protocol):
    """One whose prompts others may bring as well: those with an equal ``source`` share their rows."""

    @property
    def source(self) -> object:
        """What makes the prompts."""
        ...


@runtime_checkable
class HasParts(Protocol):
    """A regularizer that stands for several, each with its own rows and its own column in the history."""

    @property
    def parts(self) -> tuple[Regularizer, ...]:
        """Those that it stands for; none of them stands for others."""
        ...


@runtime_checkable
class SeesMore(Protocol):
    """A regularizer that says what it wants to see."""

    @property
    def wants(self) -> Wants:
        """What of its rows it sees."""
        ...


def wants_of(regularizer: Regularizer) -> Wants:
    """What a regulariser sees of its rows: what it asks for, else the last token's attention."""
    return regularizer.wants if isinstance(regularizer, SeesMore) else Wants()


def parts_of(regularizers: Sequence[Regularizer | HasParts]) -> tuple[Regularizer, ...]:
    """The regularizers, with the parts of one that stands for several in its place."""
    found: list[Regularizer] = []
    for one in regularizers:
        found += one.parts if isinstance(one, HasParts) else (one,)
    return tuple(found)


def prompts_place(regularizers: Sequence[Regularizer], place: int) -> int:
    """Whose prompts the regularizer at ``place`` looks at: its own, or those of an earlier one that shares them."""
    one = regularizers[place]
    if isinstance(one, SharesPrompts):
        for earlier, other in enumerate(regularizers[:place]):
            if isinstance(other, SharesPrompts) and other.source == one.source:
                return earlier
    return place


Brought: TypeAlias = tuple[str, str]
"""A prompt that a regulariser brings, and the target that is read behind it; "" where none is."""


def own_prompts(
    regularizers: Sequence[Regularizer], model: LensModel, facts: Sequence[Fact]
) -> list[tuple[int, Sequence[Sequence[Brought]]]]:
    """For each regulariser that brings prompts, by its place, those of each fact; shared ones once.

    The fact's new object stands behind them if one of those that share them wants to know its probability.

    Raises:
        DriftlensError: it has not a list of prompts for every fact.
    """
    found: list[tuple[int, Sequence[Sequence[Brought]]]] = []
    scored = {prompts_place(regularizers, place) for place, one in enumerate(regularizers) if wants_of(one).target}
    for place, regularizer in enumerate(regularizers):
        if isinstance(regularizer, BringsPrompts) and prompts_place(regularizers, place) == place:
            texts = [tuple(own) for own in regularizer.prompts(model, facts)]
            if len(texts) != len(facts):
                raise DriftlensError(
                    f"{type(regularizer).__name__}.prompts has {len(texts)} lists for {len(facts)} facts; give one each"
                )
            targets = [fact.target_new if place in scored else "" for fact in facts]
            found.append(
                (place, [[(text, target) for text in own] for own, target in zip(texts, targets, strict=True)])
            )
    return found


def column_names(regularizers: Sequence[Regularizer]) -> list[str]:
    """The history's column of each regulariser: its ``name``, a second of the same name with a number."""
    names: list[str] = []
    for regularizer in regularizers:
        own = getattr(regularizer, "name", None)
        name = own if isinstance(own, str) else _snake(type(regularizer).__name__)
        taken = sum(other == name or other.startswith(f"{name}_") for other in names)
        names.append(name if name not in names else f"{name}_{taken + 1}")
    return names


def _snake(name: str) -> str:
    """``GuardedSADR`` → ``guarded_sadr``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
