"""Value optimisation: the δ that makes the model predict the new object (paper, Eq. 1 and 2).

For every fact, δ is added at ``subject_last`` to the output of one layer and optimised with Adam on

    mean_j −log P(o_edit | x_j ⊕ p)  +  ω · KL  +  λ · ‖δ‖ / ‖target_init‖²  +  Σ regularisers (SADR)

1. **One vanilla pass** over all rows (contexts of all facts, and the essence prompt "{subject} is a"),
   aligned so that ``subject_last`` stands in one column.  It gives the residual stream at the edit layer's
   output from that column on, and, run on above the edit for the columns left of it, their keys and values.
2. **Each step** adds δ to that residual stream and runs only the layers above the edit, only from that column
   on: nothing else can have changed.  The head sees only the positions that predict target tokens.
3. **After each step** δ is projected onto ‖δ‖ ≤ clamp · ‖target_init‖.  A fact that has converged keeps its δ
   and leaves the batch.

Facts share passes but not losses, so each gets the numbers it has alone (up to float rounding).  The order
within a step is the published code's: forward, stop if the loss is low or it is the last step, backward,
Adam, project; so n steps make at most n − 1 updates (note 6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.data import Fact
from driftlens.editors.regularizers import LastTokenAttention, Regularizer
from driftlens.errors import DriftlensError
from driftlens.hooks import Hook, detach_pattern, record
from driftlens.models import Batch, KeyValues, LensModel
from driftlens.prompts import (
    TokenizedPrompt,
    pad_rows,
    subject_last,
    target_positions,
    tokenize_prompt,
)


@dataclass(frozen=True, kw_only=True)
class ValueSettings:
    """What every editor's value optimisation has in common; see :class:`driftlens.ROME` for the meanings."""

    steps: int
    lr: float
    weight_decay: float
    kl_factor: float
    clamp_norm_factor: float
    early_stop_loss: float
    essence: str
    essence_kl: Literal["edited_from_vanilla", "vanilla_from_edited"]
    detach_attention: bool
    regularizers: tuple[Regularizer, ...]


@dataclass(frozen=True, kw_only=True)
class OptimizedValue:
    """The outcome for one fact.

    Attributes:
        delta: δ, ``[d_model]``.
        target_init: the optimised output at ``subject_last`` of the bare prompt, ``[d_model]``; v* =
            target_init + δ.
        history: a row per step, see :class:`driftlens.edits.EditResult`.
    """

    delta: Float[Tensor, "d_model"]
    target_init: Float[Tensor, "d_model"]
    history: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows of several facts, after the vanilla pass: all that the steps need.  Columns count from
    subject_last.
    """

    fact: Int[Tensor, "rows"]
    is_context: Tensor  # [rows] bool; the others are essence prompts
    batch: Batch
    resid: Float[Tensor, "rows columns d_model"]
    past: KeyValues | None
    last: Int[Tensor, "rows"]  # column of the last prompt token, before any target token
    weight: Float[Tensor, "rows"]  # 1 / (contexts of the row's fact)
    target_row: Int[Tensor, "targets"]
    target_column: Int[Tensor, "targets"]
    target_id: Int[Tensor, "targets"]
    target_length: Float[Tensor, "rows"]
    subject_key: int  # key index of subject_last, the same in all rows

    def of(self, facts: Tensor) -> _Rows:
        """Only the rows of ``facts`` (a mask over facts); fact numbers are made consecutive again."""
        keep = facts[self.fact]
        rows = keep.nonzero().squeeze(1)
        new_fact = torch.cumsum(facts.long(), 0) - 1
        new_row = torch.cumsum(keep.long(), 0) - 1
        kept_target = keep[self.target_row]
        return _Rows(
            fact=new_fact[self.fact[rows]],
            is_context=self.is_context[rows],
            batch=Batch(tokens=self.batch.tokens[rows], mask=self.batch.mask[rows]),
            resid=self.resid[rows],
            past=None if self.past is None else self.past.select(rows),
            last=self.last[rows],
            weight=self.weight[rows],
            target_row=new_row[self.target_row[kept_target]],
            target_column=self.target_column[kept_target],
            target_id=self.target_id[kept_target],
            target_length=self.target_length[rows],
            subject_key=self.subject_key,
        )


def optimize_values(
    model: LensModel,
    facts: Sequence[Fact],
    *,
    layer: int,
    site: Literal["mlp_out", "resid_post"],
    contexts: tuple[str, ...],
    settings: ValueSettings,
    on_step: Callable[[int, int], None] | None = None,
) -> list[OptimizedValue]:
    """δ for each of ``facts``, optimised together.

    Args:
        model: the vanilla model.
        facts: the edit requests.
        layer: the layer whose output δ is added to.
        site: what δ is measured against: ``"mlp_out"`` (ROME) or ``"resid_post"`` (MEMIT).
        contexts: templates with one ``{}`` for the prompt.
        settings: the objective and its optimiser.
        on_step: called with (step, facts still running).

    Raises:
        DriftlensError: the loss is not finite; a prompt is too long for the model.
    """
    rows, target_init = _vanilla_pass(model, facts, layer, site, contexts, settings)
    n_facts = len(facts)
    precision = torch.promote_types(model.dtype, torch.float32)
    target_norm = target_init.to(precision).norm(dim=-1)
    delta = torch.zeros(n_facts, model.d_model, device=model.device, dtype=precision, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=settings.lr)
    final = delta.detach().clone()
    histories: list[list[dict[str, float]]] = [[] for _ in facts]
    running = torch.arange(n_facts, device=model.device)
    vanilla: _Vanilla | None = None

    for step in range(settings.steps):
        with torch.enable_grad():
            terms, now = _forward(model, rows, delta[running], layer, settings, vanilla, target_norm[running])
            loss = torch.stack([terms["nll"], terms["kl"], terms["weight_decay"], terms["sadr"]]).sum(dim=0)
        if vanilla is None:  # δ is zero at step 0, so what was just computed is the vanilla model
            vanilla = now.detach()
        _log(histories, facts, running.tolist(), step, loss, terms)
        final[running] = delta.detach()[running]
        stopped = loss.detach() < settings.early_stop_loss
        if step == settings.steps - 1 or bool(stopped.all()):
            break
        if on_step is not None:
            on_step(step + 1, int((~stopped).sum()))
        optimizer.zero_grad()
        # The loss of a fact that stops here must not move its δ once more; no other loss depends on it.
        loss[~stopped].sum().backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        with torch.no_grad():
            limit = settings.clamp_norm_factor * target_norm
            delta.mul_((limit / delta.norm(dim=-1).clamp_min(1e-30)).clamp(max=1.0).unsqueeze(-1))
        if bool(stopped.any()):
            staying = ~stopped
            vanilla = vanilla.of(rows, staying)
            rows, running = rows.of(staying), running[staying]

    return [
        OptimizedValue(delta=final[i], target_init=target_init[i], history=pd.DataFrame(histories[i]))
        for i in range(n_facts)
    ]


@dataclass(frozen=True)
class _Vanilla:
    """What the steps compare with: last-token attention above the edit, and the essence prompts'
    log-probabilities.
    """

    attention: Tensor | None  # [layers, context rows, heads, keys]
    essence: Tensor | None  # [essence rows, d_vocab]

    def detach(self) -> _Vanilla:
        return _Vanilla(*(None if t is None else t.detach() for t in (self.attention, self.essence)))

    def of(self, rows: _Rows, facts: Tensor) -> _Vanilla:
        attention, essence = self.attention, self.essence
        if attention is not None:
            attention = attention[:, facts[rows.fact[rows.is_context]]]
        if essence is not None:
            essence = essence[facts[rows.fact[~rows.is_context]]]
        return _Vanilla(attention, essence)


@torch.no_grad()
def _vanilla_pass(
    model: LensModel,
    facts: Sequence[Fact],
    layer: int,
    site: str,
    contexts: tuple[str, ...],
    settings: ValueSettings,
) -> tuple[_Rows, Float[Tensor, "facts d_model"]]:
    """Step 1 of the module docstring; also target_init, read in the bare prompt."""
    prompts: list[TokenizedPrompt] = []
    subject: list[int] = []
    fact_of: list[int] = []
    kind: list[str] = []

    def add(number: int, role: str, text: str, target: str, start: int) -> None:
        prompt = tokenize_prompt(model, text, target)
        prompts.append(prompt)
        subject.append(subject_last(prompt, facts[number].subject, start=start))
        fact_of.append(number)
        kind.append(role)

    for number, fact in enumerate(facts):
        for context in contexts:
            # A sampled prefix may name the subject too: the edit belongs to the one in the prompt.
            add(number, "context", context.replace("{}", fact.text), fact.target_new, context.index("{}"))
        if settings.kl_factor:
            add(
                number,
                "essence",
                settings.essence.replace("{}", fact.subject),
                "",
                settings.essence.index("{}"),
            )
        add(number, "bare", fact.text, "", 0)

    batch, shifts = pad_rows(model, [prompt.forced for prompt in prompts], align=subject)
    column = int(shifts[0]) + subject[0]
    store: dict[str, Tensor] = {}
    target: Hook = (model.hook_name(site, layer), record(store, "target", lambda out: out[:, column]))
    resid = model.run(batch, hooks=[target], stop=layer + 1)
    device, precision = model.device, torch.promote_types(model.dtype, torch.float32)
    fact = torch.tensor(fact_of, device=device)
    is_bare = torch.tensor([role == "bare" for role in kind], device=device)
    is_context = torch.tensor([role == "context" for role in kind], device=device)
    # The steps need no bare row: where the contexts hold the bare prompt it is among them.
    used = (~is_bare).nonzero().squeeze(1)
    past = None
    if column and layer + 1 < model.n_layers:
        prefix = Batch(tokens=batch.tokens[used, :column], mask=batch.mask[used, :column])
        past = model.keys_values(prefix, start=layer + 1, resid=resid[used, :column], columns=column)[1]
    used_prompts = [prompts[i] for i in used.tolist()]
    target_row, target_column, target_id = target_positions(used_prompts, shifts[used] - column)
    last = torch.tensor([p.last for p in used_prompts], device=device) + shifts[used] - column
    # The essence prompt is read at subject_last itself (note 3), which is column 0 now.
    last = last.where(is_context[used], torch.zeros_like(last))
    rows = _Rows(
        fact=fact[used],
        is_context=is_context[used],
        batch=Batch(tokens=batch.tokens[used, column:], mask=batch.mask[used, column:]),
        resid=resid[used, column:],
        past=past,
        last=last,
        # The optimiser's precision: a float32 third is off by 1e-8, which a float64 model would show.
        weight=torch.full((len(used),), 1 / len(contexts), device=device, dtype=precision),
        target_row=target_row,
        target_column=target_column,
        target_id=target_id,
        target_length=torch.tensor([max(len(p.target_ids), 1) for p in used_prompts], device=device),
        subject_key=column,
    )
    return rows, store["target"][is_bare]


def _forward(
    model: LensModel,
    rows: _Rows,
    delta: Float[Tensor, "facts d_model"],
    layer: int,
    settings: ValueSettings,
    vanilla: _Vanilla | None,
    target_norm: Float[Tensor, "facts"],
) -> tuple[dict[str, Float[Tensor, "facts"]], _Vanilla]:
    """One pass with δ: the terms of the loss per fact, and what this pass saw (the vanilla model's at step
    0).
    """
    n_facts, precision = delta.shape[0], delta.dtype
    above = range(layer + 1, model.n_layers)
    n_rows = torch.arange(rows.fact.shape[0], device=delta.device)
    patterns: dict[int, Tensor] = {}
    hooks: list[Hook] = []
    for upper in above:
        # Recorded first: a regulariser keeps its gradient even where the likelihood's is cut.
        if settings.regularizers:
            pick = record(patterns, upper, lambda pattern: pattern[n_rows, :, rows.last][rows.is_context])
            hooks.append((model.hook_name("pattern", upper), pick))
        if settings.detach_attention:
            hooks.append((model.hook_name("pattern", upper), detach_pattern()))

    # δ stands in column 0; it is added in its own precision, then rounded once to the model's.
    shifted = (rows.resid[:, 0].to(precision) + delta[rows.fact]).to(rows.resid.dtype)
    resid = torch.cat([shifted.unsqueeze(1), rows.resid[:, 1:]], dim=1)
    resid = model.run(rows.batch, hooks=hooks, start=layer + 1, resid=resid, past=rows.past)

    def per_fact(values: Tensor, fact: Tensor) -> Tensor:
        return torch.zeros(n_facts, device=delta.device, dtype=precision).index_add(
            0, fact, values.to(precision)
        )

    logits = model.unembed(resid[rows.target_row, rows.target_column]).to(precision)
    token_nll = torch.nn.functional.cross_entropy(logits, rows.target_id, reduction="none")
    row_nll = torch.zeros(len(n_rows), device=delta.device, dtype=precision)
    row_nll = row_nll.index_add(0, rows.target_row, token_nll) / rows.target_length
    context_fact = rows.fact[rows.is_context]
    context_nll, context_weight = row_nll[rows.is_context], rows.weight[rows.is_context]
    terms = {
        "nll": per_fact(context_nll * context_weight, context_fact),
        "probability": per_fact((-context_nll.detach()).exp() * context_weight, context_fact),
        "kl": torch.zeros(n_facts, device=delta.device, dtype=precision),
        "sadr": torch.zeros(n_facts, device=delta.device, dtype=precision),
        # sqrt of a clamped square: the norm's own gradient at δ = 0 is undefined.
        "weight_decay": settings.weight_decay
        * delta.square().sum(-1).clamp_min(1e-30).sqrt()
        / target_norm.square(),
    }

    essence = None
    if settings.kl_factor:
        essence_rows = (~rows.is_context).nonzero().squeeze(1)
        essence = model.unembed(resid[essence_rows, 0]).to(precision).log_softmax(dim=-1)
        before = essence.detach() if vanilla is None or vanilla.essence is None else vanilla.essence
        kl = _essence_kl(before, essence, settings.essence_kl)
        terms["kl"] = settings.kl_factor * per_fact(kl, rows.fact[essence_rows])

    attention = None
    if settings.regularizers and patterns:
        attention = torch.stack([patterns[upper] for upper in above])
        subject = torch.full_like(context_fact, rows.subject_key)
        seen = LastTokenAttention(
            layers=tuple(above),
            vanilla=attention.detach() if vanilla is None or vanilla.attention is None else vanilla.attention,
            edited=attention,
            subject=subject,
        )
        for regularizer in settings.regularizers:
            penalty = regularizer.penalty(seen).to(precision)
            terms["sadr"] = terms["sadr"] + per_fact(penalty * context_weight, context_fact)
    return terms, _Vanilla(attention, essence)


def _essence_kl(
    before: Float[Tensor, "rows d_vocab"], now: Float[Tensor, "rows d_vocab"], direction: str
) -> Float[Tensor, "rows"]:
    """KL between next-token distributions given as log-probabilities; the published code's direction is
    edited ‖ vanilla.
    """
    p, q = (now, before) if direction == "edited_from_vanilla" else (before, now)
    return (p.exp() * (p - q)).sum(dim=-1)


def _log(
    histories: list[list[dict[str, float]]],
    facts: Sequence[Fact],
    running: list[int],
    step: int,
    loss: Tensor,
    terms: dict[str, Tensor],
) -> None:
    names = ("nll", "kl", "weight_decay", "sadr", "probability")
    table = torch.stack([loss.detach(), *(terms[name].detach() for name in names)]).double().cpu()
    for at, number in enumerate(running):
        values = table[:, at].tolist()
        if not all(abs(value) < float("inf") for value in values):
            raise DriftlensError(
                f"the loss of {facts[number].text!r} → {facts[number].target_new!r} is not finite at step "
                f"{step}; lower lr, or load the model in float32"
            )
        histories[number].append({"step": step, **dict(zip(("loss", *names), values, strict=True))})
