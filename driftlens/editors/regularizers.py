"""Regularisers of the value optimisation: penalties on what the model does under the current δ.

A regulariser sees some *rows* in the unedited model and under δ, and returns one penalty per row.  The optimiser
averages the penalties of a fact's rows and adds the mean to its loss.

1. **Which rows.**  By default, the edit's own contexts.  A regulariser with a method ``prompts`` supplies its own
   prompts instead (:class:`BringsPrompts`). Each of them names the subject, and δ is added at the subject's last token.
2. **What it sees.**  By default, what the last prompt token attends to in every layer above the edit.  An attribute
   ``wants`` asks for more (:class:`Wants`): attention of other tokens, hidden states, next-token distributions.
   Nothing else is computed or stored.
3. **Its column** in the history is its ``name``, by default its class's name in lower case.

Tokens before ``subject_last`` and layers below the edit cannot change and are never computed. Columns are therefore
counted from ``subject_last``.
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
    """What a regulariser needs to see of its rows, in the unedited model and under δ.

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
        """Everything that at least one of the two asks for."""
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
    """What one model computes in some rows; fields that were not asked for are ``None``.

    Attributes:
        attention: attention of the last prompt token.
        patterns: attention of all tokens from ``subject_last`` on.
        hidden: the residual stream after the edit layer, then after every layer above it; column 0 is ``subject_last``.
        log_probabilities: log-probabilities of the token after the prompt.
        target: the mean log-probability of the new object's tokens after the prompt, as the benchmark scores it.
    """

    attention: Float[Tensor, "layers rows heads keys"] | None = None
    patterns: Float[Tensor, "layers rows heads queries keys"] | None = None
    hidden: Float[Tensor, "states rows queries d_model"] | None = None
    log_probabilities: Float[Tensor, "rows d_vocab"] | None = None
    target: Float[Tensor, "rows"] | None = None


@dataclass(frozen=True, kw_only=True)
class Seen(LastTokenAttention):
    """The rows that a regulariser is given.

    ``vanilla`` and ``edited`` hold the last token's attention, as in :class:`LastTokenAttention`.

    Attributes:
        before: everything that the regulariser asks for, in the unedited model, without a gradient.
        now: the same under the current δ, differentiable.
        last: per row, the column of the last prompt token, counted from ``subject_last``.  The key index of column
            ``c`` is ``subject + c``.
        mask: per row, which columns hold tokens; the others are padding.
    """

    before: Observed
    now: Observed
    last: Int[Tensor, "rows"]
    mask: Bool[Tensor, "rows queries"]


@runtime_checkable
class Regularizer(Protocol):
    """The protocol of everything that can be in an editor's ``regularizers``."""

    def penalty(self, seen: Seen, /) -> Float[Tensor, "rows"]:
        """Return the weighted penalty of every row, differentiable; it must be zero if nothing has drifted."""
        ...


@runtime_checkable
class ChoosesLayers(Protocol):
    """A regularizer that restrains chosen layers; editors ask it whether the model has them."""

    def check_layers(self, above: range) -> None:
        """Check that the regularizer can work with the layers ``above`` the edit, which go up to the model's last.

        Raises:
            DriftlensError: it cannot.
        """
        ...


@runtime_checkable
class BringsPrompts(Protocol):
    """A regularizer that supplies its own prompts as rows."""

    def prompts(self, model: LensModel, facts: Sequence[Fact]) -> Sequence[Sequence[str]]:
        """Return the prompts of each fact. Each names the fact's subject; δ is added at its first occurrence."""
        ...


@runtime_checkable
class SharesPrompts(BringsPrompts, Protocol):
    """A regularizer that can share its prompts: regularizers with equal ``source`` share their rows."""

    @property
    def source(self) -> object:
        """The object that makes the prompts."""
        ...


@runtime_checkable
class HasParts(Protocol):
    """A regularizer composed of several, each with its own rows and its own column in the history."""

    @property
    def parts(self) -> tuple[Regularizer, ...]:
        """The regularizers it is composed of; none of them is composed of others."""
        ...


@runtime_checkable
class SeesMore(Protocol):
    """A regularizer that declares what it needs to see."""

    @property
    def wants(self) -> Wants:
        """What it sees of its rows."""
        ...


def wants_of(regularizer: Regularizer) -> Wants:
    """What a regulariser sees of its rows: what it asks for, or by default the last token's attention."""
    return regularizer.wants if isinstance(regularizer, SeesMore) else Wants()


def parts_of(regularizers: Sequence[Regularizer | HasParts]) -> tuple[Regularizer, ...]:
    """Replace each composed regularizer by its parts."""
    found: list[Regularizer] = []
    for one in regularizers:
        found += one.parts if isinstance(one, HasParts) else (one,)
    return tuple(found)


def prompts_place(regularizers: Sequence[Regularizer], place: int) -> int:
    """The index of the regularizer whose prompts the one at ``place`` uses: itself, or an earlier one."""
    one = regularizers[place]
    if isinstance(one, SharesPrompts):
        for earlier, other in enumerate(regularizers[:place]):
            if isinstance(other, SharesPrompts) and other.source == one.source:
                return earlier
    return place


Brought: TypeAlias = tuple[str, str]
"""A prompt that a regulariser supplies, and the target to score after it ("" for none)."""


def own_prompts(
    regularizers: Sequence[Regularizer], model: LensModel, facts: Sequence[Fact]
) -> list[tuple[int, Sequence[Sequence[Brought]]]]:
    """Return each regulariser's own prompts for each fact, by the regulariser's index; shared prompts appear once.

    The fact's new object is the target if one of the regularisers that share the prompts asks for its probability.

    Raises:
        DriftlensError: a regulariser does not return a list of prompts for every fact.
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
    """Name the history's column of each regulariser: its ``name``, with a number if the name occurs again."""
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
