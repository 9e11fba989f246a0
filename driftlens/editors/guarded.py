"""Guarded SADR: an edit restrained also on prompts that it should not change.

SADR restrains the last token's attention in the edit's own contexts. There the last token has to read the subject, or
the edit is not recalled. The answers to *other* prompts, about the subject or after the edited statement, should stay
the same. Such prompts, the *guards* Q, need neither labels nor data; :mod:`driftlens.editors.guards` makes them.

With H_l and KL as in :mod:`driftlens.editors.sadr` and δ at ``subject_last``, the objective gains

    γ · SADR(S_j)  +  γ_g · mean_q Σ_l Σ_{h ∈ H_l(q)} KL(W_{l,h}(q)[-1, :] ‖ W^δ_{l,h}(q)[-1, :])
                   +  μ · mean_q KL(P(· | q) ‖ P_δ(· | q))
                   +  ν · mean_q max(0, log P_δ(o_edit | q) − log P(o_edit | q)).

The third term preserves the answers. It hardly penalises a small rise of an unlikely object's probability, and
specificity failures begin with such a rise; the fourth term penalises it. There log P(o | q) is the mean over the
object's tokens, as in the benchmark's scores, so that the later tokens of a name are restrained as well as the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from driftlens.data import Fact
from driftlens.editors.guards import Guards
from driftlens.editors.regularizers import LastTokenAttention, Regularizer, Seen, Wants
from driftlens.editors.sadr import SADR
from driftlens.errors import DriftlensError
from driftlens.models import LensModel

__all__ = ["GuardedSADR", "usual_guards"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "demo": {"mu": 0.25, "nu": 0.25},
    "counterfact": {"mu": 0.25, "nu": 0.25, "asked": 0, "distracted": 6},
}
"""Settings chosen on validation records, by the beginning of a model's name; see ``docs/guarded-sadr.md``.

The defaults of :class:`GuardedSADR` are those of SmolLM2-135M.
"""


@dataclass(frozen=True, kw_only=True)
class _OnGuards:
    """Base of the terms on guards: they share the same guards."""

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
class _GuardTargets(_OnGuards):
    """ν · max(0, log P_δ(o_edit | q) − log P(o_edit | q)), the mean over the object's tokens."""

    nu: float
    name: ClassVar[str] = "guard_targets"
    wants: ClassVar[Wants] = Wants(attention=False, target=True)

    def penalty(self, attention: Seen) -> Float[Tensor, "rows"]:
        before, now = attention.before.target, attention.now.target
        assert before is not None
        assert now is not None
        return self.nu * (now - before).clamp_min(0)


@dataclass(frozen=True, kw_only=True)
class GuardedSADR(Guards):
    """SADR on the edit's own prompt, plus terms that preserve attention and answers on prompts that should not change.

    A term with weight 0 is neither computed nor listed in the history. If ``gamma_guards``, ``mu`` and ``nu`` are all
    0, no guards are made, and the regulariser equals :class:`SADR`. The history's columns are ``sadr``,
    ``guard_attention``, ``guard_answers`` and ``guard_targets``.

    Attributes:
        gamma: γ, the weight of SADR on the edit's own contexts.
        gamma_guards: γ_g, the weight of attention drift at the guards' last tokens.
        mu: μ, the weight of the KL divergence (nats) of the next token after the guards.
        nu: ν, the weight of the rise in the new object's log-probability (nats per token) after the guards.
        heads: as in :class:`SADR`, for the edit's own contexts.
        guard_heads: the same for the guards.
        layers: the layers whose attention is restrained, or ``None`` for all above the edit.
        eps: as in :class:`SADR`.
        asked: how many guards are questions about the subject.
        questions: the questions, with "{}" for the subject; default: :data:`driftlens.editors.guards.QUESTIONS`.
        subjects: other subjects that the edit's question can be asked about.  The edited subject is left out.
            Without any, the unedited model continues the edited statement.
        own_words: how many guards are continuations that the model writes about the subject.
        distracted: how many guards begin with the edited statement.
        tokens: how many tokens the model writes.
        top_k: the model samples from the ``top_k`` most likely tokens.
        seed: seed of the sampling and of the choice of subjects.

    Raises:
        DriftlensError: a weight is negative or not finite, a number of guards or tokens is out of range, a subject is
            empty, or :class:`SADR` refuses a setting.
    """

    gamma: float = 0.0
    gamma_guards: float = 0.0
    mu: float = 1.0
    nu: float = 1.0
    heads: Literal["selected", "all"] = "selected"
    guard_heads: Literal["selected", "all"] = "selected"
    layers: tuple[int, ...] | None = None
    eps: float = 1e-8

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "gamma_guards", "mu", "nu"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise DriftlensError(f"{name} is {getattr(self, name)}; expected a number ≥ 0, e.g. 0.005")
        if self.asked + self.own_words + self.distracted == 0 and (self.gamma_guards or self.mu or self.nu):
            raise DriftlensError(
                "asked, own_words and distracted are all 0; ask for a guard, or set gamma_guards, mu and nu to 0"
            )
        if self.guard_heads not in ("selected", "all"):
            raise DriftlensError(f"guard_heads is {self.guard_heads!r}; expected 'selected' or 'all'")
        object.__setattr__(self, "layers", self._sadr.layers)  # a range is accepted

    @property
    def _sadr(self) -> SADR:
        return SADR(gamma=self.gamma, heads=self.heads, layers=self.layers, eps=self.eps)

    @property
    def parts(self) -> tuple[Regularizer, ...]:
        """The terms with a nonzero weight, as regularizers; SADR alone if all weights are 0."""
        source, found = self.guards, list[Regularizer]()
        if self.gamma or not (self.gamma_guards or self.mu or self.nu):
            found.append(self._sadr)
        if self.gamma_guards:
            sadr = SADR(gamma=self.gamma_guards, heads=self.guard_heads, layers=self.layers, eps=self.eps)
            found.append(_GuardAttention(source=source, sadr=sadr))
        if self.mu:
            found.append(_GuardAnswers(source=source, mu=self.mu))
        if self.nu:
            found.append(_GuardTargets(source=source, nu=self.nu))
        return tuple(found)

    @property
    def guards(self) -> Guards:
        """How the guards are made."""
        return Guards(**{item.name: getattr(self, item.name) for item in fields(Guards)})

    @override
    def prompts(self, model: LensModel, facts: Sequence[Fact]) -> list[tuple[str, ...]]:
        """Return the guards of each fact for inspection; ``model`` is the unedited one."""
        return self.guards.prompts(model, facts)

    def check_layers(self, above: range) -> None:
        """Check that some layer is restrained; see :meth:`SADR.check_layers`."""
        self._sadr.check_layers(above)


def usual_guards(model: LensModel, **changes: Any) -> GuardedSADR:
    """Return the guards chosen for ``model``, or else the defaults; ``changes`` override them.

    Raises:
        DriftlensError: :class:`GuardedSADR` refuses a setting.
    """
    name = model.name.rpartition("/")[2].lower()
    chosen = next((preset for begin, preset in PRESETS.items() if name.startswith(begin)), {})
    return GuardedSADR(**{**chosen, **changes})
