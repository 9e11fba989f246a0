"""Training a side memory: the change of one down-projection that states a fact and stands apart from other prompts.

1. One vanilla pass records what goes into the map; each step runs the layers above (:mod:`driftlens.editors.side_rows`)
   and evaluates the loss (:mod:`driftlens.editors.side_objective`).
2. A step of gradient descent moves the entries of D that a random mask leaves free, and clamps each to ±c.
3. Regularisers see the contexts, or the prompts they bring, as in the value optimisation.  What they compare with is
   the unedited model, which is step 0's own pass where D is 0 there.

A fact whose loss has settled leaves; facts share passes but not losses, so each gets the numbers it has alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from driftlens.data import Fact
from driftlens.editors.failures import Failure
from driftlens.editors.objective import Reference
from driftlens.editors.regularizers import own_prompts
from driftlens.editors.side_objective import MemoryTerms, SideSettings, evaluate_memory, row_distances
from driftlens.editors.side_rows import FactRows, rows_of_facts, side_rows
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.models.grouping import group_by_width
from driftlens.models.sites import Site
from driftlens.progress import OnDone

__all__ = ["SideMemory", "memory_distances", "train_side_memories"]


@dataclass(frozen=True, kw_only=True)
class SideMemory:
    """The outcome for one fact.

    Attributes:
        delta: D = W' − W.
        history: a row per step, see :class:`driftlens.WISE`.
        smallest: the smallest distance of its contexts, under D.
        last_step: their mean distance during the last step.
    """

    delta: Float[Tensor, "d_mlp d_model"]
    history: pd.DataFrame
    smallest: float
    last_step: float


def train_side_memories(
    model: LensModel,
    facts: Sequence[Fact],
    *,
    layer: int,
    contexts: Sequence[str],
    irrelevant: Sequence[Sequence[str]],
    settings: SideSettings,
    mask: Bool[Tensor, "d_mlp d_model"],
    start: Float[Tensor, "d_mlp d_model"] | None = None,
    on_step: OnDone | None = None,
) -> list[SideMemory | Failure]:
    """A side memory for each of ``facts``, or why there is none.

    Args:
        model: the vanilla model.
        facts: the edit requests.
        layer: whose down-projection is copied.
        contexts: templates with one ``{}`` for the prompt.
        irrelevant: of each fact, texts that its memory must leave alone.
        settings: the objective and its optimiser.
        mask: the entries that may move.
        start: the memory that each of them starts from; ``None``: D = 0.
        on_step: called with the number of a pass's steps done and the most there can be.

    Returns:
        In the order of ``facts``; a :class:`~driftlens.editors.Failure` where a prompt is too long for the model or
        the loss is not finite.
    """
    whole = settings.conventions.tokens == "all"
    found, failures = rows_of_facts(
        model,
        facts,
        contexts=contexts,
        irrelevant=irrelevant,
        whole_target=whole,
        brought=own_prompts(settings.regularizers, model, facts),
    )
    outcomes: dict[int, SideMemory | Failure] = {**failures}
    readable = [(place, own) for place, own in enumerate(found) if own is not None]
    if readable:
        widths = [max(len(row.ids) for row in own) for _, own in readable]
        for members in group_by_width(widths, [len(own) for _, own in readable], model.pass_cost):
            group = [readable[n] for n in members]
            training = _Training(model, [own for _, own in group], layer, settings, mask, start)
            for (place, _), outcome in zip(group, training.run(on_step), strict=True):
                outcomes[place] = outcome if isinstance(outcome, SideMemory) else _failed(facts[place], outcome)
    return [outcomes[place] for place in range(len(facts))]


def _failed(fact: Fact, step: int) -> Failure:
    reason = (
        f"the loss of {fact.text!r} → {fact.target_new!r} is not finite at step {step}; lower lr, or load the model in "
        "float32"
    )
    return Failure(fact=fact, reason=reason)


class _Training:
    """The facts of a pass, and what they bring along from step to step."""

    def __init__(
        self,
        model: LensModel,
        by_fact: Sequence[FactRows],
        layer: int,
        settings: SideSettings,
        mask: Bool[Tensor, "d_mlp d_model"],
        start: Tensor | None,
    ) -> None:
        self.model, self.layer, self.settings = model, layer, settings
        self.rows = side_rows(model, by_fact, layer=layer, whole_target=settings.conventions.tokens == "all")
        precision, shape = self.rows.keys.dtype, (model.d_mlp, model.d_model)
        begin = torch.zeros(shape, dtype=precision) if start is None else start.to(precision)
        self.deltas = [begin.to(model.device).clone().requires_grad_() for _ in by_fact]
        self.mask = mask.to(model.device)
        self.running = list(range(len(by_fact)))
        self.histories: list[list[dict[str, float]]] = [[] for _ in by_fact]
        self.outcomes: dict[int, SideMemory | int] = {}
        self.vanilla: Reference | None = None
        if start is not None and settings.regularizers:
            nothing = [torch.zeros_like(delta) for delta in self.deltas]
            with model.exclusive(), torch.no_grad():
                seen = evaluate_memory(model, self.rows, nothing, layer=layer, settings=settings, vanilla=None)[1]
                self.vanilla = seen.detach()

    def run(self, on_step: OnDone | None) -> list[SideMemory | int]:
        """The memories; instead of one the step at which the fact's loss was not finite."""
        model, last = self.model, self.settings.steps - 1
        for step in range(self.settings.steps):
            # Forward and backward as one: a thread that writes an edit in between would spoil the graph.
            with model.exclusive(), torch.enable_grad():
                terms, now = evaluate_memory(
                    model, self.rows, self.deltas, layer=self.layer, settings=self.settings, vanilla=self.vanilla
                )
                if self.vanilla is None:  # D is 0 at step 0, so what was just computed is the vanilla model
                    self.vanilla = now.detach()
                finite = self._log(step, terms)
                settled = [self._settled(number) for number in self.running]
                staying = torch.tensor([ok and not done for ok, done in zip(finite, settled, strict=True)])
                if bool(staying.any()):
                    # The loss of a fact that stops here must not move its memory once more.
                    terms.loss[staying.to(model.device)].sum().backward()  # pyright: ignore[reportUnknownMemberType]
            for at, number in enumerate(self.running):
                if not finite[at]:
                    self.outcomes[number] = step
            self._leave([at for at, done in enumerate(settled) if done and finite[at]])
            self._keep(staying)
            self._descend()
            if step == last:
                self._leave(range(len(self.running)))
                break
            if not self.running:
                break
            if on_step is not None:
                on_step(step + 1, self.settings.steps)
        return [self.outcomes[number] for number in range(len(self.histories))]

    def _log(self, step: int, terms: MemoryTerms) -> list[bool]:
        table = torch.stack([column.detach() for column in terms.columns.values()]).double().cpu()
        for at, number in enumerate(self.running):
            values = dict(zip(terms.columns, table[:, at].tolist(), strict=True))
            self.histories[number].append({"step": step, **values})
        return table.isfinite().all(dim=0).tolist()

    def _settled(self, number: int) -> bool:
        """Whether a fact stops before this step's update; by the losses of the two steps before it, as published."""
        losses = [row["loss"] for row in self.histories[number][-3:-1]]
        settings = self.settings
        return (
            len(losses) == 2
            and abs(losses[1] - losses[0]) <= settings.early_stop_change
            and losses[1] <= settings.early_stop_loss
        )

    @torch.no_grad()
    def _leave(self, places: Sequence[int]) -> None:
        """Write the outcome of facts down as their memories are now."""
        if not places:
            return
        distances = row_distances(self.rows, self.deltas, self.settings)
        for at in places:
            number = self.running[at]
            own = distances[(self.rows.fact == at) & self.rows.is_context]
            history = pd.DataFrame(self.histories[number])
            self.outcomes[number] = SideMemory(
                delta=self.deltas[at].detach(),
                history=history,
                smallest=float(own.min()),
                last_step=float(history["distance_edited"].iloc[-1]),
            )

    def _keep(self, staying: Bool[Tensor, "facts"]) -> None:
        """Let the other facts go."""
        if bool(staying.all()):
            return
        keep = staying.to(self.model.device)
        if self.vanilla is not None:
            self.vanilla = self.vanilla.of(self.rows, self.settings.regularizers, keep)
        self.running = [number for number, stays in zip(self.running, staying.tolist(), strict=True) if stays]
        self.deltas = [delta for delta, stays in zip(self.deltas, staying.tolist(), strict=True) if stays]
        if self.running:
            self.rows = self.rows.of(keep)

    @torch.no_grad()
    def _descend(self) -> None:
        settings = self.settings
        weight = self.model.linear(Site(self.layer))[0].to(self.rows.keys.dtype)
        for delta in self.deltas:
            assert delta.grad is not None
            step = delta.grad.mul_(self.mask)
            if settings.weight_decay:
                decay = settings.weight_decay * (weight + delta)
                step += decay if settings.conventions.weight_decay == "all" else decay * self.mask
            delta.sub_(settings.lr * step).clamp_(-settings.norm_constraint, settings.norm_constraint)
            delta.grad = None


@torch.no_grad()
def memory_distances(
    model: LensModel,
    facts: Sequence[Fact],
    delta: Float[Tensor, "d_mlp d_model"],
    *,
    layer: int,
    contexts: Sequence[str],
    settings: SideSettings,
) -> list[float]:
    """The smallest distance of each fact's contexts under one memory.

    Raises:
        DriftlensError: a prompt is too long for the model.
    """
    whole = settings.conventions.tokens == "all"
    found, failures = rows_of_facts(model, facts, contexts=contexts, irrelevant=[()] * len(facts), whole_target=whole)
    for failure in failures.values():
        raise DriftlensError(failure.reason)
    smallest: list[float] = []
    for own in found:
        assert own is not None
        rows = side_rows(model, [own], layer=layer, whole_target=whole)
        smallest.append(float(row_distances(rows, [delta.to(rows.keys)], settings).min()))
    return smallest
