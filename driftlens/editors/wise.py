"""WISE (Wang et al. 2024): a side memory that answers only the prompts that it was trained for.

1. **Side memory**: a copy W' of one down-projection, in a high layer, is trained to state the fact
   (:mod:`driftlens.editors.side_memory`).  A random mask leaves a share of its entries trainable.
2. **Gate**: Δ(x) is the mean over a prompt's tokens of ‖x (W' − W)‖₂.  W' answers the prompt if Δ(x) is above
   ``act_ratio`` times the smallest Δ of the edited prompts; otherwise W does.  Margins in the training separate the two
   kinds of prompts.
3. **Several facts** (:meth:`WISE.edit_together`) are trained one after another into one memory. After ``save_freq`` of
   them the next memory begins, with its own mask; after ``merge_freq`` of them the memories are merged.  Among several
   memories, the one with the largest Δ answers.

The result is an edit with gated changes (:class:`driftlens.edits.Gated`). It depends on the prompt, so it can be
evaluated, traced, generated from and saved, but not written into weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypedDict

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from driftlens.data import Fact
from driftlens.editors.base import Editor, undisturbed
from driftlens.editors.contexts import ContextSampling, check_contexts, sample_contexts
from driftlens.editors.failures import Failure, delivered, finite
from driftlens.editors.fitting import edit_batch_size
from driftlens.editors.histories import joint_history
from driftlens.editors.merging import Memory, merged_memories
from driftlens.editors.presets import Preset
from driftlens.editors.regularizers import parts_of
from driftlens.editors.requests import asked_together, check_facts
from driftlens.editors.side_memory import SideMemory, memory_distances, train_side_memories
from driftlens.editors.side_objective import SideSettings, WISEConventions
from driftlens.editors.wise_presets import WISE_PRESETS, side_layer, side_scale
from driftlens.edits import ActivatedNorm, AddedNorm, Edit, EditResult, Gated, JointEditResult, Router, Site, Sparse
from driftlens.edits.gated import ACTIVATIONS
from driftlens.errors import DriftlensError, unknown_name
from driftlens.models import LensModel
from driftlens.models.memory import in_batches
from driftlens.progress import OnDone


@dataclass(frozen=True, kw_only=True, eq=False)
class WISE(Editor):
    """Settings of WISE; :meth:`edit`, :meth:`edit_many` and :meth:`edit_together` do the work, and :meth:`for_model`
    gives the published presets.

    The history has a row per step: ``step, loss, nll, margin_gap, margin_irrelevant, margin_edited``, a column for each
    regulariser (``sadr``), ``probability``, and the mean distances ``distance_edited, distance_irrelevant``.

    Attributes:
        layer: the layer whose down-projection gets a side memory.
        steps: steps of gradient descent; each makes an update, the last one too.
        lr: its learning rate.
        weight_decay: of W', towards 0.
        mask_ratio: the share of W's entries that the memory may change; which ones is drawn by ``seed``.
        norm_constraint: no entry changes by more than this.
        alpha: α, irrelevant text is to have a distance below this.
        beta: β, edited prompts are to have one above this.
        gamma: γ, and one larger by this than irrelevant text.  (SADR's γ is a setting of the regulariser.)
        act_ratio: the gate opens above this share of the edited prompts' smallest distance.  The paper has no such
            factor, but at 1 float rounding would decide about the edited prompt itself.
        contexts: templates with one ``{}`` for the prompt; ``None`` samples them from the model (``sampling``).
        sampling: how contexts are sampled.
        locality: irrelevant texts; ``None`` samples them from the model (``locality_sampling``).
        locality_sampling: how they are sampled.
        early_stop_loss: a fact stops when its loss is at most this, and
        early_stop_change: changed by at most that in a step.
        regularizers: added to the loss, e.g. ``(SADR(),)``; they see the contexts, never the irrelevant texts.
        save_freq: facts of a memory, in :meth:`edit_together`.
        merge_freq: facts after which the memories are merged, a multiple of ``save_freq``.
        retrieve: whether each merge gives a memory of its own (WISE-Retrieve), or is merged into the one before
            (WISE-Merge), which then counts 0.6.
        density: the share of entries that Ties merging keeps of each memory.
        conventions: where the published code differs from the paper, the paper's by default;
            ``WISEConventions.published()`` reproduces the code.
        seed: of the masks.

    Raises:
        DriftlensError: a setting out of range.
    """

    # In this order, which names WISE's edits in caches.
    steps: int = 70
    lr: float = 1.0
    weight_decay: float = 1e-5
    contexts: tuple[str, ...] | None = None
    sampling: ContextSampling = field(default_factory=lambda: ContextSampling(lengths=((5, 5), (10, 5))))
    early_stop_loss: float = 0.02
    layer: int
    mask_ratio: float = 0.2
    norm_constraint: float = 1.0
    alpha: float = 5.0
    beta: float = 20.0
    gamma: float = 10.0
    act_ratio: float = 0.88
    locality: tuple[str, ...] | None = None
    locality_sampling: ContextSampling = field(
        default_factory=lambda: ContextSampling(lengths=((20, 1),), starts=("It",))
    )
    early_stop_change: float = 1e-4
    save_freq: int = 500
    merge_freq: int = 1000
    retrieve: bool = True
    density: float = 0.53
    conventions: WISEConventions = field(default_factory=WISEConventions)
    seed: int = 0

    presets: ClassVar[Mapping[str, Preset]] = WISE_PRESETS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(layer=0, steps=1, weight_decay=0, save_freq=1, merge_freq=1)
        self._check_above_zero("lr", "norm_constraint")
        if self.contexts is not None:
            object.__setattr__(self, "contexts", check_contexts(self.contexts))
        for name in ("mask_ratio", "density"):
            if not 0 < getattr(self, name) <= 1:
                raise DriftlensError(f"{name} is {getattr(self, name)}; expected a share, above 0 and at most 1")
        if not 0 < self.act_ratio < 1:
            raise DriftlensError(f"act_ratio is {self.act_ratio}; expected a number between 0 and 1, e.g. 0.88")
        for name in ("alpha", "beta", "gamma"):
            if not abs(getattr(self, name)) < float("inf"):
                raise DriftlensError(f"{name} is {getattr(self, name)}; expected a finite distance")
        if self.merge_freq % self.save_freq:
            raise DriftlensError(
                f"merge_freq is {self.merge_freq}, but a memory holds {self.save_freq} facts; give a multiple of that"
            )
        if self.locality is not None:
            given: Any = self.locality  # a single one is welcome
            texts = (given,) if isinstance(given, str) else tuple(given)
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise DriftlensError(f"locality is {given!r}; give at least one text that is not empty")
            object.__setattr__(self, "locality", texts)

    @classmethod
    @override
    def scaled(cls, model: LensModel, *, regularized: bool) -> dict[str, Any]:
        layer = side_layer(model)
        return {"layer": layer, "steps": cls.steps, **side_scale(model, layer)}

    @property
    @override
    def edited_layers(self) -> tuple[int, ...]:
        return (self.layer,)

    @property
    @override
    def most_steps(self) -> int:
        return self.steps

    def contexts_for(self, model: LensModel) -> tuple[str, ...]:
        """The templates that the memory is trained in: those given, else sampled from ``model``."""
        return self.contexts if self.contexts is not None else sample_contexts(model, self.sampling)

    def locality_for(self, model: LensModel, fact: Fact) -> tuple[str, ...]:  # noqa: ARG002 (a subclass may go by it)
        """The irrelevant texts: those given, else sampled from ``model``; the same for every ``fact``."""
        if self.locality is not None:
            return self.locality
        sampled = sample_contexts(model, self.locality_sampling)[1:]
        return tuple(template.removesuffix(" {}") for template in sampled)

    def mask(self, model: LensModel, memory: int = 0) -> Bool[Tensor, "d_mlp d_model"]:
        """The entries that a memory may change; ``memory`` counts the memories of :meth:`edit_together`."""
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * memory)
        return torch.rand(model.d_mlp, model.d_model, generator=generator) < self.mask_ratio

    def side_settings(self, model: LensModel) -> SideSettings:
        """What the training is given of the settings.

        Raises:
            DriftlensError: the conventions ask for an activation function that is unknown.
        """
        activation = str(model.model.cfg.act_fn)
        if self.conventions.distance == "activated" and activation not in ACTIVATIONS:
            raise unknown_name("activation", activation, list(ACTIVATIONS))
        return SideSettings(
            steps=self.steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
            norm_constraint=self.norm_constraint,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            early_stop_loss=self.early_stop_loss,
            early_stop_change=self.early_stop_change,
            conventions=self.conventions,
            activation=activation,
            regularizers=parts_of(self.regularizers),
        )

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
        self.check(model)
        how = self._training(model)
        if batch_size is None:
            batch_size = self._batch_size(model, facts, how["contexts"])

        def edit_batch(batch: Sequence[Fact]) -> list[EditResult | Failure]:
            outcomes = self._train(model, batch, self.mask(model), how, on_step)
            return [
                outcome if isinstance(outcome, Failure) else finite(self._result(model, fact, outcome))
                for fact, outcome in zip(batch, outcomes, strict=True)
            ]

        return delivered(in_batches(facts, batch_size, edit_batch, on_done=on_facts))

    @undisturbed
    def edit_together(
        self,
        model: LensModel,
        facts: Sequence[Fact],
        *,
        on_step: OnDone | None = None,
        on_facts: OnDone | None = None,
    ) -> JointEditResult:
        """All of ``facts`` as one edit, trained one after the other into memories that are merged as they fill.

        Args:
            model: the vanilla model; it stays as it is.
            facts: the requests, in the order in which they are learnt.
            on_step: called with the number of a fact's steps done and the most there can be.
            on_facts: called with the number of facts that are learnt and the number of all.

        Raises:
            DriftlensError: no fact, two facts that contradict each other, the layer is out of range, or one of the
                facts cannot be edited (a prompt too long, the loss not finite).
        """
        facts = asked_together(facts)
        self.check(model)
        how = self._training(model)
        memories: list[Memory] = []  # merged ones, then full ones
        filling, histories = Memory(), list[pd.DataFrame]()
        for number, fact in enumerate(facts):
            mask = self.mask(model, number // self.save_freq)
            (outcome,) = self._train(model, [fact], mask, how, on_step, start=filling.delta)
            if isinstance(outcome, Failure):
                raise DriftlensError(f"{outcome.reason}; or leave this fact out")
            histories.append(outcome.history)
            filling = Memory(outcome.delta, (*filling.facts, fact), min(filling.last_step, outcome.last_step))
            if (number + 1) % self.save_freq == 0:
                memories.append(filling)
                filling = Memory()
            if (number + 1) % self.merge_freq == 0:
                memories = merged_memories(memories, retrieve=self.retrieve, density=self.density)
            if on_facts is not None:
                on_facts(number + 1, len(facts))
        if filling.delta is not None:
            memories.append(filling)
        return JointEditResult(
            facts=facts,
            edit=Edit(
                [self._gate(model, memory, how) for memory in memories],
                facts=facts,
                provenance=self.provenance(model, *facts),
            ),
            history=joint_history(histories),
            keys={},
            values={},
        )

    def _training(self, model: LensModel) -> _How:
        return _How(layer=self.layer, contexts=self.contexts_for(model), settings=self.side_settings(model))

    def _train(
        self,
        model: LensModel,
        facts: Sequence[Fact],
        mask: Bool[Tensor, "d_mlp d_model"],
        how: _How,
        on_step: OnDone | None,
        start: Float[Tensor, "d_mlp d_model"] | None = None,
    ) -> list[SideMemory | Failure]:
        irrelevant = [self.locality_for(model, fact) for fact in facts]
        return train_side_memories(model, facts, irrelevant=irrelevant, mask=mask, start=start, on_step=on_step, **how)

    def _batch_size(self, model: LensModel, facts: Sequence[Fact], contexts: tuple[str, ...]) -> int:
        read = (*contexts, *(self.locality_for(model, facts[0]) if facts else ()))
        # A memory, its gradient, and a step's two intermediate results, in float32.
        kept = 4 * 4 * model.d_mlp * model.d_model
        return edit_batch_size(model, facts, read, self.layer, rows=len(read), kept=kept)

    def _result(self, model: LensModel, fact: Fact, memory: SideMemory) -> EditResult:
        smallest = memory.smallest if self.conventions.threshold == "final" else memory.last_step
        change = Sparse.of(Site(self.layer), memory.delta)
        gate = Gated(change=change, router=self._router(model, smallest))
        return EditResult(
            fact=fact,
            edit=Edit([gate], facts=(fact,), provenance=self.provenance(model, fact)),
            history=memory.history,
            keys={},
            values={},
        )

    def _router(self, model: LensModel, smallest: float) -> Router:
        threshold = self.act_ratio * smallest
        if self.conventions.distance == "added":
            return AddedNorm(threshold=threshold)
        return ActivatedNorm(threshold=threshold, activation=str(model.model.cfg.act_fn))

    def _gate(self, model: LensModel, memory: Memory, how: _How) -> Gated:
        assert memory.delta is not None
        smallest = memory.last_step
        if self.conventions.threshold == "final":
            smallest = min(memory_distances(model, memory.facts, memory.delta, **how))
        return Gated(change=Sparse.of(Site(self.layer), memory.delta), router=self._router(model, smallest))


class _How(TypedDict):
    """What every training of a call has in common."""

    layer: int
    contexts: tuple[str, ...]
    settings: SideSettings
