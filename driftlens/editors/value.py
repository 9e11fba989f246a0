"""Value optimisation: find the δ that makes the model predict the new object (paper, Eq. 1 and 2).

For every fact, δ is added at ``subject_last`` to an output of one layer and optimised with Adam.

1. **One vanilla pass** over all rows (the contexts of all facts, and the essence prompt "{subject} is a") computes
   everything that δ does not change: :mod:`driftlens.editors.rows`.
2. **Each step** adds δ and runs only the layers above the edit, from ``subject_last`` on, because nothing else can
   change.  The head sees only the positions that predict target tokens: :mod:`driftlens.editors.objective`.
   Facts of similar width share a forward and backward pass; a group's graph is freed before the next group's begins.
3. **After each step** δ is projected onto ‖δ‖ ≤ clamp · ‖target_init‖.  A fact that has converged keeps its δ and
   leaves its group.  On a GPU the host synchronises once per step, to read which facts have converged.

PMET optimises two δ at once, each with its own weight decay and clamp: a fact has one δ per *place*.

Facts share passes but not losses, so each fact gets the same numbers as alone, up to float rounding. A fact whose
prompts the model cannot read, or whose loss is not finite, leaves without affecting the others. The order within a step
is that of the published code: forward, stop if the loss is low or it is the last step, backward, Adam, project. So n
steps make at most n − 1 updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.data import Fact
from driftlens.editors.failures import Failure
from driftlens.editors.objective import Reference, Terms, ValueSettings, evaluate_delta, together
from driftlens.editors.regularizers import Regularizer, own_prompts
from driftlens.editors.rows import Place, Rows
from driftlens.editors.strips import strips_of
from driftlens.editors.vanilla_rows import vanilla_rows
from driftlens.models import LensModel
from driftlens.progress import OnDone


@dataclass(frozen=True, kw_only=True)
class OptimizedValue:
    """The result of the value optimisation for one fact.

    Attributes:
        delta: δ at the first place, ``[d_model]``.
        target_init: the output there at ``subject_last`` of the bare prompt, ``[d_model]``; v* = target_init + δ.
        history: a row per step, see :class:`driftlens.edits.EditResult`.
        keys: inputs of the layer's down-projection at ``subject_last`` in the vanilla model: for the bare prompt, then
            for every context.
        side_delta: δ at the second place (PMET's attention output), which is not written into any weight.
    """

    delta: Float[Tensor, "d_model"]
    target_init: Float[Tensor, "d_model"]
    history: pd.DataFrame
    keys: Float[Tensor, "prompts d_mlp"]
    side_delta: Float[Tensor, "d_model"] | None = None

    @property
    def target(self) -> Float[Tensor, "d_model"]:
        """v*, in δ's precision."""
        return self.target_init.to(self.delta.dtype) + self.delta


def optimize_values(
    model: LensModel,
    facts: Sequence[Fact],
    *,
    layer: int,
    places: Sequence[Place],
    contexts: Sequence[str],
    settings: ValueSettings,
    on_step: OnDone | None = None,
) -> list[OptimizedValue | Failure]:
    """Optimise δ for each of ``facts`` together; return the value or the reason why there is none.

    Args:
        model: the vanilla model.
        facts: the edit requests.
        layer: the layer in which δ is added.
        places: the outputs that δ is added to and measured against: ``("mlp_out",)`` (ROME), ``("resid_post",)``
            (MEMIT) or ``("mlp_out", "attn_out")`` (PMET).
        contexts: templates with one ``{}`` for the prompt.
        settings: the objective and its optimiser.
        on_step: called with the number of steps done and the largest possible number.

    Returns:
        One entry per fact, in order; a :class:`~driftlens.editors.Failure` if a prompt is too long for the model or the
        loss is not finite.
    """
    vanilla = vanilla_rows(
        model,
        facts,
        layer=layer,
        places=places,
        contexts=contexts,
        essence=settings.essence if settings.kl_factor else None,
        brought=own_prompts(settings.regularizers, model, facts),
    )
    target_init = vanilla.target_init
    precision = torch.promote_types(model.dtype, torch.float32)
    target_norm = target_init.to(precision).norm(dim=-1)
    delta = torch.zeros(target_init.shape, device=model.device, dtype=precision, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=settings.lr)
    final = delta.detach().clone()
    histories: list[list[dict[str, float]]] = [[] for _ in vanilla.facts]
    overflown: dict[int, int] = {}  # the step at which a fact's loss stopped being finite, by fact
    groups = [
        _Group(
            [_Strip(rows) for rows in strips_of(whole, model.pass_cost)],
            members,
            members.tolist(),
            delta.new_ones(len(members)),
        )
        for members, whole in vanilla.groups
    ]

    for step in range(settings.steps if groups else 0):
        optimizer.zero_grad()
        measured: list[Tensor] = []
        names: tuple[str, ...] = ()
        for group in groups:
            # Forward and backward must not be separated: an edit that another thread writes in between would spoil the
            # graph.
            with model.exclusive(), torch.enable_grad():
                parts: list[Terms] = []
                for strip in group.strips:
                    part, now = evaluate_delta(
                        model,
                        strip.rows,
                        delta[group.running],
                        layer=layer,
                        places=places,
                        settings=settings,
                        vanilla=strip.vanilla,
                        target_norm=target_norm[group.running],
                        nll_factor=group.nll_factor,
                    )
                    if strip.vanilla is None:  # δ is zero at step 0, so this pass is the vanilla model
                        strip.vanilla = now.detach()
                    parts.append(part)
                terms = together(parts)
                loss = terms.loss
                told = {"loss": loss, **_columns(terms)}
                names = tuple(told)
                columns = torch.stack([column.detach() for column in told.values()])
                final[group.running] = delta.detach()[group.running]
                finite = columns.isfinite().all(dim=0)
                stopped = (loss.detach() < settings.early_stop_loss) | ~finite
                if settings.certain_stop_kl is not None:
                    stopped |= terms.certain & (terms.kl.detach() <= settings.certain_stop_kl)
                staying = ~stopped
                # If no fact stays, no backward pass is needed; on a GPU, finding out would cost more than it saves.
                if step < settings.steps - 1 and (model.device.type != "cpu" or bool(staying.any())):
                    # The loss of a fact that stops here must not update its δ again; no other loss depends on it.
                    torch.where(staying, loss, 0.0).sum().backward()  # pyright: ignore[reportUnknownMemberType]
            # For the next steps; this step's loss uses the factor of the previous one, as in the published code.
            group.nll_factor = torch.where(terms.certain, settings.certain_nll_factor, torch.ones_like(loss))
            measured.append(torch.cat([columns, torch.stack([finite, staying]).to(columns.dtype)]))
        # The only point in a step where the host waits for the device.
        read = torch.cat(measured, dim=1).cpu().double().split([len(group.running) for group in groups], dim=1)
        for group, table in zip(groups, read, strict=True):
            for number, line, is_finite in group.settled(table, settings.regularizers):
                histories[number].append({"step": step, **dict(zip(names, line, strict=True))})
                if not is_finite:
                    overflown[number] = step
        groups = [group for group in groups if group.numbers]
        if step == settings.steps - 1 or not groups:
            break
        if on_step is not None:
            on_step(step + 1, settings.steps)
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        with torch.no_grad():
            limit = settings.clamp_norm_factor * target_norm
            delta.mul_((limit / delta.norm(dim=-1).clamp_min(1e-30)).clamp(max=1.0).unsqueeze(-1))

    def outcome(number: int, fact: Fact) -> OptimizedValue | Failure:
        if number in overflown:
            reason = (
                f"the loss of {fact.text!r} → {fact.target_new!r} is not finite at step {overflown[number]}; lower lr, "
                "or load the model in float32"
            )
            return Failure(fact=fact, reason=reason)
        return OptimizedValue(
            delta=final[number, 0],
            target_init=target_init[number, 0],
            history=pd.DataFrame(histories[number]),
            keys=vanilla.keys[number],
            side_delta=final[number, 1] if len(places) > 1 else None,
        )

    readable = (outcome(number, fact) for number, fact in enumerate(vanilla.facts))
    return [vanilla.failures.get(place) or next(readable) for place in range(len(facts))]


@dataclass
class _Strip:
    """Rows of a group that share a pass, and their reference values."""

    rows: Rows
    vanilla: Reference | None = None


@dataclass
class _Group:
    """The facts of a group that are still running: their rows, their numbers and their state between steps."""

    strips: list[_Strip]
    running: Int[Tensor, "facts"]
    numbers: list[int]  # the same on the host
    nll_factor: Float[Tensor, "facts"]

    def settled(
        self, table: Float[Tensor, "measurements facts"], regularizers: Sequence[Regularizer]
    ) -> list[tuple[int, list[float], bool]]:
        """Remove the facts that have converged or failed.

        ``table`` is on the CPU; its last two rows hold whether all of a fact's measurements are finite, and whether the
        fact continues.

        Returns:
            For each fact that ran: its number, its measurements, and whether they are finite.
        """
        *measured, finite, staying = table.tolist()
        told = [(number, [row[at] for row in measured], finite[at] > 0) for at, number in enumerate(self.numbers)]
        if not all(staying):
            stays = table[-1].bool().to(self.running.device)
            self.running, self.nll_factor = self.running[stays], self.nll_factor[stays]
            self.numbers = [number for number, stay in zip(self.numbers, staying, strict=True) if stay]
            # A fact may have no row in a strip, and a strip may become empty.
            self.strips = [strip for strip in self.strips if bool(stays[strip.rows.fact].any())]
            for strip in self.strips:
                if strip.vanilla is not None:
                    strip.vanilla = strip.vanilla.of(strip.rows, regularizers, stays)
                strip.rows = strip.rows.of(stays)
        return told


def _columns(terms: Terms) -> dict[str, Float[Tensor, "facts"]]:
    """The history's columns of a step, except the whole loss."""
    return {
        "nll": terms.nll,
        "kl": terms.kl,
        "weight_decay": terms.weight_decay,
        **terms.penalties,
        "probability": terms.probability,
    }
