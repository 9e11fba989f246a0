"""Guarded SADR: attention drift restrained on prompts that the unedited model writes about the subject.

SADR restrains the last token's attention in the edit's own contexts, where it has to read the subject if the edit is
to be recalled.  The attention that should stay is that of *other* prompts about the subject.  Such prompts, the
*guards* Q, need neither labels nor data:

1. **own words**: what the unedited model writes behind "{s}", "{s} is", "{s} was" and "{s}'s";
2. **distracted**: the edited statement, then the same question about another subject, where some are given; else the
   statement and what the unedited model writes behind it.

To the objective it adds, with H_l and KL as in :mod:`driftlens.editors.sadr` and δ at ``subject_last``,

    γ · SADR(S_j)  +  γ_g · mean_q Σ_l Σ_{h ∈ H_l(q)} KL(W_{l,h}(q)[-1, :] ‖ W^δ_{l,h}(q)[-1, :])
                   +  μ · mean_q KL(P(· | q) ‖ P_δ(· | q)).

A text that states the edited relation is no guard, since the edit has to change what follows from it:
:func:`states_relation`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from driftlens.data import Fact
from driftlens.data.joints import distractor
from driftlens.editors.contexts import sample_tokens
from driftlens.editors.regularizers import LastTokenAttention, Regularizer, Seen, Wants
from driftlens.editors.sadr import SADR
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.models.prompts import try_tokenize_prompts

__all__ = ["STARTS", "GuardedSADR", "Guards", "states_relation"]

STARTS = ("{}", "{} is", "{} was", "{}'s")
"""What the model continues, in turn."""

TRIES = 3
"""How often a text is sampled anew that states the edited relation; then it is left out."""


@dataclass(frozen=True, kw_only=True)
class Guards:
    """How guards are made; the same settings, model and fact give the same guards, on every device.

    Attributes:
        subjects: other subjects that the edit's question can be asked about, as many as there are.
        own_words: how many continuations of :data:`STARTS`.
        distracted: how many texts behind the edited statement.
        tokens: how many tokens the model writes, fewer where it ends its text.
        top_k: sampling is among the ``top_k`` most likely tokens.
        seed: of the sampling, and of which subjects are chosen.
    """

    subjects: tuple[str, ...] = ()
    own_words: int = 4
    distracted: int = 4
    tokens: int = 16
    top_k: int = 10
    seed: int = 0

    def prompts(self, model: LensModel, facts: Sequence[Fact]) -> list[tuple[str, ...]]:
        """The guards of each fact; none where every text states the edited relation.

        Kept per model and its weights as they are.  Each fact has those that it has alone.
        """
        known = _made.setdefault(model, {})
        state = model.model_hash
        found: list[tuple[str, ...]] = []
        for fact in facts:
            key = (state, self, fact)
            if key not in known:
                known[key] = self._make(model, fact)
            found.append(known[key])
        return found

    def _make(self, model: LensModel, fact: Fact) -> tuple[str, ...]:
        own = [STARTS[at % len(STARTS)].replace("{}", fact.subject) for at in range(self.own_words)]
        statement = distractor(fact.text, fact.target_new)
        others = self._others(fact)
        behind = [f"{statement}{fact.prompt.replace('{}', other)}" for other in others]
        if not others:
            statement = statement.rstrip()  # the model writes the blank
            behind = self._written(model, fact, [statement] * self.distracted, begin=len(statement))
        return tuple(dict.fromkeys([*self._written(model, fact, own, begin=len(fact.subject)), *behind]))

    def _others(self, fact: Fact) -> list[str]:
        """The subjects to ask about: never the edited one, by whatever longer or shorter name."""
        mine = fact.subject.casefold()
        others = [one for one in self.subjects if mine not in one.casefold() and one.casefold() not in mine]
        return random.Random(_seed(self.seed, fact)).sample(others, min(self.distracted, len(others)))

    def _written(self, model: LensModel, fact: Fact, starts: Sequence[str], *, begin: int) -> list[str]:
        """The starts with what the model writes behind them, where that, from ``begin`` on, may be a guard."""
        kept: dict[int, str] = {}
        for attempt in range(TRIES):
            missing = [at for at in range(len(starts)) if at not in kept]
            if not missing:
                break
            generator = torch.Generator().manual_seed(_seed(self.seed, fact, attempt))
            texts = self._continued(model, [starts[at] for at in missing], generator)
            readable = try_tokenize_prompts(model, [(text, "") for text in texts])
            for at, text, prompt in zip(missing, texts, readable, strict=True):
                wrote = len(text) > len(starts[at]) and not isinstance(prompt, DriftlensError)
                if wrote and not states_relation(fact, text[begin:]):
                    kept[at] = text
        return [kept[at] for at in sorted(kept)]

    def _continued(self, model: LensModel, starts: Sequence[str], generator: torch.Generator) -> list[str]:
        rows = [list(model.encode(start).ids) for start in starts]
        lengths = [max(len(row), min(len(row) + self.tokens, model.n_ctx)) for row in rows]
        written = sample_tokens(model, rows, lengths, top_k=self.top_k, generator=generator)
        ends = set(model.tokenizer.all_special_ids)
        texts: list[str] = []
        for start, row, ids in zip(starts, rows, written, strict=True):
            # Another document begins behind a special token.
            stop = next((at for at in range(len(row), len(ids)) if ids[at] in ends), len(ids))
            # By the difference of two texts: alone, a token may lose the blank in front of it.
            whole, given = (model.tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:stop], row))
            texts.append(start + re.sub(r"\s+", " ", whole[len(given) :]).rstrip())
        return texts


_made: WeakKeyDictionary[LensModel, dict[tuple[str, Guards, Fact], tuple[str, ...]]] = WeakKeyDictionary()


def states_relation(fact: Fact, text: str) -> bool:
    """Whether a text behind the subject states the edited relation.

    It does where it holds, as whole words and in any case, the fact's old or new object, or the prompt's own words
    behind its subject.  Where these are none, or only what a guard may begin with ("The mother tongue of {} is"), they
    tell no relation, and the objects alone do.
    """
    wording = fact.prompt.partition("{}")[2].strip(" \t\n.,;:?!")
    told = (fact.target_true, fact.target_new, "" if f"{{}} {wording}" in STARTS else wording)
    return any(_holds(text, words) for words in told)


def _holds(text: str, words: str) -> bool:
    text, words = (" ".join(each.casefold().split()) for each in (text, words))
    if not any(each.isalnum() for each in words):
        return False
    # Only letters that are written with blanks between words bound a word: no Chinese word would be a whole one.
    before, after = (r"(?<!\w)" if words[0].isalnum() else ""), (r"(?!\w)" if words[-1].isalnum() else "")
    return re.search(before + re.escape(words) + after, text, re.ASCII) is not None


def _seed(seed: int, fact: Fact, attempt: int = 0) -> int:
    """A seed of its own for every subject, so that guards do not depend on which facts are edited beside it."""
    told = f"{seed} {attempt} {fact.subject}"
    return int.from_bytes(hashlib.sha256(told.encode("utf-8", "surrogatepass")).digest()[:7], "big")


@dataclass(frozen=True, kw_only=True)
class _OnGuards:
    """What the terms on guards have in common: the guards, which they share."""

    source: Guards

    def prompts(self, model: LensModel, facts: Sequence[Fact]) -> list[tuple[str, ...]]:
        return self.source.prompts(model, facts)


@dataclass(frozen=True, kw_only=True)
class _GuardAttention(_OnGuards):
    """SADR at the guards' last tokens."""

    sadr: SADR
    name: ClassVar[str] = "guard_attention"
    wants: ClassVar[Wants] = Wants()

    def penalty(self, attention: LastTokenAttention) -> Float[Tensor, "rows"]:
        return self.sadr.penalty(attention)


@dataclass(frozen=True, kw_only=True)
class _GuardAnswers(_OnGuards):
    """μ · KL(P(· | q) ‖ P_δ(· | q))."""

    mu: float
    name: ClassVar[str] = "guard_answers"
    wants: ClassVar[Wants] = Wants(attention=False, next_tokens=True)

    def penalty(self, attention: Seen) -> Float[Tensor, "rows"]:
        before, now = attention.before.log_probabilities, attention.now.log_probabilities
        assert before is not None
        assert now is not None
        return self.mu * (before.exp() * (before - now)).sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class GuardedSADR:
    """SADR on the edit's own prompt and, on prompts that the unedited model writes, restraint of attention and answers.

    A term with weight 0 is neither computed nor listed in the history; without ``gamma_guards`` and ``mu`` no guard is
    made, and what is left is :class:`SADR`.  The history's columns are ``sadr``, ``guard_attention`` and
    ``guard_answers``.

    Attributes:
        gamma: γ, the weight of SADR on the edit's own contexts.
        gamma_guards: γ_g, the weight of attention drift at the guards' last tokens.
        mu: μ, the weight of the KL divergence (nats) of the next token after the guards.
        heads: as in :class:`SADR`, on the edit's own contexts.
        guard_heads: the same on the guards.
        layers: the layers whose attention is restrained, or ``None`` for all above the edit.
        eps: as in :class:`SADR`.
        subjects: other subjects that the edit's question can be asked about.  The edited one is left out.
            Without any, the unedited model continues the edited statement.
        own_words: how many guards are the model's own words about the subject.
        distracted: how many guards begin with the edited statement.
        tokens: how many tokens the model writes.
        top_k: sampling is among the ``top_k`` most likely tokens.
        seed: of the sampling, and of which subjects are chosen.

    Raises:
        DriftlensError: a weight negative or not finite, a number of guards or tokens out of range, an empty subject,
            or what :class:`SADR` refuses.
    """

    gamma: float = 0.0
    gamma_guards: float = 5e-3
    mu: float = 0.0
    heads: Literal["selected", "all"] = "selected"
    guard_heads: Literal["selected", "all"] = "selected"
    layers: tuple[int, ...] | None = None
    eps: float = 1e-8
    subjects: tuple[str, ...] = ()
    own_words: int = 4
    distracted: int = 4
    tokens: int = 16
    top_k: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gamma", "gamma_guards", "mu"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise DriftlensError(f"{name} is {getattr(self, name)}; expected a number ≥ 0, e.g. 0.005")
        for name, least in (("own_words", 0), ("distracted", 0), ("tokens", 1), ("top_k", 1)):
            given = getattr(self, name)
            if not isinstance(given, int) or given < least:
                raise DriftlensError(f"{name} is {given!r}; expected a whole number of at least {least}")
        if self.own_words + self.distracted == 0 and (self.gamma_guards or self.mu):
            raise DriftlensError(
                "own_words and distracted are both 0; ask for a guard, or set gamma_guards and mu to 0"
            )
        if self.guard_heads not in ("selected", "all"):
            raise DriftlensError(f"guard_heads is {self.guard_heads!r}; expected 'selected' or 'all'")
        subjects: Any = self.subjects  # a single one is welcome
        names: tuple[Any, ...] = (subjects,) if isinstance(subjects, str) else tuple(subjects)
        for name in names:
            if not isinstance(name, str) or not name.strip():
                raise DriftlensError(f"subjects holds {name!r}; expected names, e.g. ('Paris', 'Rome')")
        object.__setattr__(self, "subjects", tuple(dict.fromkeys(name.strip() for name in names)))
        object.__setattr__(self, "layers", self._sadr.layers)  # a range is welcome

    @property
    def _sadr(self) -> SADR:
        return SADR(gamma=self.gamma, heads=self.heads, layers=self.layers, eps=self.eps)

    @property
    def parts(self) -> tuple[Regularizer, ...]:
        """The terms with a weight, as regularizers; SADR alone where none has any."""
        source, found = self.guards, list[Regularizer]()
        if self.gamma or not (self.gamma_guards or self.mu):
            found.append(self._sadr)
        if self.gamma_guards:
            sadr = SADR(gamma=self.gamma_guards, heads=self.guard_heads, layers=self.layers, eps=self.eps)
            found.append(_GuardAttention(source=source, sadr=sadr))
        if self.mu:
            found.append(_GuardAnswers(source=source, mu=self.mu))
        return tuple(found)

    @property
    def guards(self) -> Guards:
        """How its guards are made."""
        return Guards(**{item.name: getattr(self, item.name) for item in fields(Guards)})

    def prompts(self, model: LensModel, facts: Sequence[Fact]) -> list[tuple[str, ...]]:
        """The guards of each fact, to be looked at; ``model`` is the unedited one."""
        return self.guards.prompts(model, facts)

    def check_layers(self, above: range) -> None:
        """Whether there is anything to restrain with an edit below ``above``; see :meth:`SADR.check_layers`."""
        self._sadr.check_layers(above)
