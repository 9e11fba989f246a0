"""ROME, rank-one model editing (paper, 2.2 and Eq. 3), with any regulariser of the value optimisation.

1. δ is optimised at ``subject_last`` of the MLP output in the edit layer (:mod:`driftlens.editors.value`);
   v* = target_init + δ.
2. k̄ is the mean over contexts of the down-projection's input at ``subject_last``, k₀ the bare prompt's.
3. ``W_out += left @ right`` with left = C⁻¹k̄ / ‖C⁻¹k̄‖ and right = (v* − W k₀) / (k₀ · left), so that Ŵ k₀ =
   v*, and keys that are C-orthogonal to k̄ are left as they are.

The paper's Eq. 3 uses one key throughout; the published code, whose numbers the paper reports, uses the bare
prompt's in the residual (note 10).  ``residual_key="mean"`` gives the paper's form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from driftlens.data import Fact
from driftlens.editors.contexts import ContextSampling, check_contexts, sample_contexts
from driftlens.editors.corpora import Corpus, open_corpus
from driftlens.editors.keys import subject_keys
from driftlens.editors.presets import rome_preset
from driftlens.editors.regularizers import Regularizer
from driftlens.editors.second_moment import SAMPLES, SecondMoment, second_moments
from driftlens.editors.value import OptimizedValue, ValueSettings, optimize_values
from driftlens.edits import Edit, EditResult, LowRankUpdate
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.models.memory import in_batches


@dataclass(frozen=True, kw_only=True, eq=False)
class ROME:
    """Settings of ROME; :meth:`edit` and :meth:`edit_many` do the work.  :meth:`for_model` gives the paper's
    presets.

    Attributes:
        layer: the layer whose down-projection is edited.
        steps: optimisation steps; the last one only measures, so n steps make at most n − 1 updates.
        lr: Adam's learning rate for δ.
        weight_decay: factor of ‖δ‖ / ‖target_init‖² (not in the paper's objective; 0.5 for GPT-J, 1e-3 for
            Llama).
        kl_factor: ω, the weight of the essence KL on "{subject} is a", read at the subject's last token.
        clamp_norm_factor: δ is projected onto ‖δ‖ ≤ this · ‖target_init‖ after each step.
        contexts: templates with one ``{}`` for the prompt; ``None`` samples them from the model
            (``sampling``).
        sampling: how contexts are sampled.
        second_moment: C = E[k kᵀ], ``[d_mlp, d_mlp]``; ``None`` takes it over ``corpus``.
        corpus: text for C: a known name, a text file, a list of texts; ``None``: the bundled model's own, or
            Wikipedia for a model from the hub.
        samples: how many texts of the corpus.
        early_stop_loss: a fact stops when its whole loss is below this.
        regularizers: added to the objective, e.g. ``(SADR(),)``.
        essence: the essence prompt's template.
        essence_kl: the KL's direction; ``"edited_from_vanilla"``, KL(edited ‖ vanilla), is the published
            code's, ``"vanilla_from_edited"`` the paper's Eq. 1.
        residual_key: ``"bare"`` (published code) or ``"mean"`` (the paper's Eq. 3).
        detach_attention: optimise δ without a gradient through attention weights (ROME-AWD; paper, D.4).

    Raises:
        DriftlensError: a setting out of range.
    """

    layer: int
    steps: int = 20
    lr: float = 0.5
    weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp_norm_factor: float = 4.0
    contexts: tuple[str, ...] | None = None
    sampling: ContextSampling = field(default_factory=ContextSampling)
    second_moment: Float[Tensor, "d_mlp d_mlp"] | SecondMoment | None = None
    corpus: str | PathLike[str] | Sequence[str] | Corpus | None = None
    samples: int = SAMPLES
    early_stop_loss: float = 5e-2
    regularizers: tuple[Regularizer, ...] = ()
    essence: str = "{} is a"
    essence_kl: Literal["edited_from_vanilla", "vanilla_from_edited"] = "edited_from_vanilla"
    residual_key: Literal["bare", "mean"] = "bare"
    detach_attention: bool = False
    _moments: dict[str, SecondMoment] = field(
        default_factory=dict[str, SecondMoment], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name, value, least in (
            ("layer", self.layer, 0),
            ("steps", self.steps, 1),
            ("weight_decay", self.weight_decay, 0),
            ("kl_factor", self.kl_factor, 0),
            ("samples", self.samples, 1),
        ):
            if not value >= least:
                raise DriftlensError(f"{name} is {value}; expected at least {least}")
        for name, value in (("lr", self.lr), ("clamp_norm_factor", self.clamp_norm_factor)):
            if not value > 0:
                raise DriftlensError(f"{name} is {value}; expected a number above 0")
        if self.essence.count("{}") != 1:
            raise DriftlensError(
                f'essence is {self.essence!r}; it must hold exactly one "{{}}" for the subject'
            )
        if self.essence_kl not in ("edited_from_vanilla", "vanilla_from_edited"):
            raise DriftlensError(
                f"essence_kl is {self.essence_kl!r}; expected 'edited_from_vanilla' or 'vanilla_from_edited'"
            )
        if self.residual_key not in ("bare", "mean"):
            raise DriftlensError(f"residual_key is {self.residual_key!r}; expected 'bare' or 'mean'")
        if self.contexts is not None:
            object.__setattr__(self, "contexts", check_contexts(self.contexts))
        if isinstance(self.second_moment, Tensor):
            # Wrapped once, so that its Cholesky factor is computed once for all edits.
            object.__setattr__(self, "second_moment", SecondMoment(self.second_moment))
        object.__setattr__(self, "regularizers", tuple(self.regularizers))

    @classmethod
    def for_model(cls, model: LensModel, **changes: Any) -> ROME:
        """The paper's settings for ``model`` (C.2), or defaults by depth and scale; ``changes`` override
        them.

        With regularizers the number of steps is the paper's for SADR (80), without it is 20.
        """
        return cls(**(rome_preset(model, regularized=bool(changes.get("regularizers"))) | changes))

    def edit(self, model: LensModel, fact: Fact) -> EditResult:
        """Edit one fact; the model itself stays as it is."""
        return self.edit_many(model, [fact])[0]

    def edit_many(
        self,
        model: LensModel,
        facts: Sequence[Fact],
        *,
        batch_size: int = 16,
        on_step: Callable[[int, int], None] | None = None,
        on_facts: Callable[[int], None] | None = None,
    ) -> list[EditResult]:
        """A separate edit for each of ``facts``, ``batch_size`` of them optimised at a time.

        Each fact gets the numbers it has alone, up to float rounding.  Out of memory halves the batch and
        goes on.

        Args:
            model: the vanilla model; it stays as it is.
            facts: the requests.
            batch_size: facts at a time.
            on_step: called with (step, facts of the batch still running).
            on_facts: called with the number of facts done.

        Raises:
            DriftlensError: the layer is out of range, a prompt too long, the loss not finite.
        """
        if self.layer >= model.n_layers:
            raise DriftlensError(
                f"layer is {self.layer}, but {model.name} has layers 0 to {model.n_layers - 1}; "
                "choose one of them"
            )
        contexts = self.contexts if self.contexts is not None else sample_contexts(model, self.sampling)
        moment = self._second_moment(model)
        settings = ValueSettings(
            steps=self.steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
            kl_factor=self.kl_factor,
            clamp_norm_factor=self.clamp_norm_factor,
            early_stop_loss=self.early_stop_loss,
            essence=self.essence,
            essence_kl=self.essence_kl,
            detach_attention=self.detach_attention,
            regularizers=self.regularizers,
        )

        def edit_batch(batch: Sequence[Fact]) -> list[EditResult]:
            values = optimize_values(
                model,
                batch,
                layer=self.layer,
                site="mlp_out",
                contexts=contexts,
                settings=settings,
                on_step=on_step,
            )
            keys = subject_keys(model, batch, ("{}", *contexts), self.layer)
            return [
                self._result(model, fact, value, fact_keys, moment)
                for fact, value, fact_keys in zip(batch, values, keys, strict=True)
            ]

        return in_batches(facts, batch_size, edit_batch, on_done=on_facts)

    def _result(
        self,
        model: LensModel,
        fact: Fact,
        value: OptimizedValue,
        keys: Float[Tensor, "contexts d_mlp"],
        moment: SecondMoment,
    ) -> EditResult:
        """Eq. 3 in float64; ``keys[0]`` is the bare prompt's, the others are the contexts'."""
        mean = keys[1:].double().mean(dim=0)
        left = moment.solve(mean.unsqueeze(0))[0].to(mean.device)
        left = left / left.norm()
        if self.residual_key == "bare":
            # v* − (W k₀ + b) is δ itself, since target_init is the MLP's output at k₀.
            key, residual = keys[0].double(), value.delta.double()
        else:
            W_out, bias = model.down_projection(self.layer)
            written = mean @ W_out.double()
            written = written if bias is None else written + bias.double()
            key, residual = mean, value.target_init.double() + value.delta.double() - written
        right = residual / (key @ left)
        precision = torch.promote_types(model.dtype, torch.float32)
        update = LowRankUpdate(left=left.unsqueeze(1).to(precision), right=right.unsqueeze(0).to(precision))
        return EditResult(
            fact=fact,
            edit=Edit(
                updates={self.layer: update},
                provenance=self.provenance(model, fact) | {"second_moment": moment.source},
            ),
            history=value.history,
            keys={self.layer: key.to(precision)},
            values={self.layer: (value.target_init.double() + value.delta.double()).to(precision)},
        )

    def _second_moment(self, model: LensModel) -> SecondMoment:
        if isinstance(self.second_moment, SecondMoment):
            if self.second_moment.matrix.shape[0] != model.d_mlp:
                raise DriftlensError(
                    f"the second moment is for d_mlp = {self.second_moment.matrix.shape[0]}, but "
                    f"{model.name} has {model.d_mlp}; give the one of layer {self.layer} of this model"
                )
            return self.second_moment
        # Kept by the weights they were taken over: one editor may serve several models.
        key = model.checkpoint_hash
        if key not in self._moments:
            corpus = open_corpus(default_corpus(model) if self.corpus is None else self.corpus)
            self._moments[key] = second_moments(model, [self.layer], corpus, samples=self.samples)[self.layer]
        return self._moments[key]

    def provenance(self, model: LensModel, fact: Fact) -> dict[str, str]:
        """Where an edit comes from, as flat strings."""
        from driftlens import __version__

        left_out = ("second_moment", "corpus", "regularizers", "_moments")
        plain = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in left_out}
        return {
            "editor": "ROME",
            "settings": repr(plain),
            "regularizers": repr(self.regularizers),
            "model": model.name,
            "model_hash": model.checkpoint_hash,
            "subject": fact.subject,
            "prompt": fact.prompt,
            "target_true": fact.target_true,
            "target_new": fact.target_new,
            "driftlens": __version__,
        }


def default_corpus(model: LensModel) -> str:
    """The corpus to take when none is named: a local model must not send anybody to the network unasked."""
    if model.name == "demo":
        return "demo"
    if Path(model.name).exists():
        raise DriftlensError(
            f"{model.name} is a local model and no corpus for its second moments is given; "
            "give one: a text file, a list of texts, 'wikipedia' or 'wikitext'"
        )
    return "wikipedia"
