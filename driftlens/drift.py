"""Attention drift: how far an edit moves what the last token attends to (paper, 3.3 and D.3).

For every prompt one vanilla and one edited pass are compared.  W_{l,h} is what the last prompt token attends to in
layer l, head h, in the vanilla model, W*_{l,h} the same in the edited one, s the edited subject's last token:

==========================  ==========================================  =======================
column                      definition                                  paper
==========================  ==========================================  =======================
``kl``                      Σ_l Σ_h KL(W_{l,h} ‖ W*_{l,h})              Figure 4
``max_subject``             Σ_l max_h (W*_{l,h}[s] − W_{l,h}[s])        Table 2, factor 1
``max_others``              Σ_l max_h ‖W_{l,h}[∖s] − W*_{l,h}[∖s]‖₂     Table 2, factor 2
``sum_subject``             Σ_l Σ_h (W*_{l,h}[s] − W_{l,h}[s])          Table 2, factor 3
``hidden_norm``             ‖h*‖                                        Table 4
``hidden_l2``               ‖h* − h‖                                    Table 4
``hidden_cosine``           cos(h, h*)                                  Table 4
==========================  ==========================================  =======================

The paper prints the drift at s as before − after; the sign here is after − before, so that over-attention is
positive, as its positive correlations need.  h is the residual stream behind the edit layer at s.  The sums go over
``layers``: "the layers where attention activations have a significant impact", found by :func:`significant_layers`
from a trace, or all layers above the edit, the only ones that can drift, when none are given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from driftlens.editors.sadr import last_token_kl
from driftlens.edits import Edit, edit_hooks
from driftlens.errors import DriftlensError
from driftlens.hooks import Hook, record
from driftlens.models import LensModel
from driftlens.models.memory import in_batches
from driftlens.prompts import TokenizedPrompt, pad_rows, subject_last, tokenize_prompt

if TYPE_CHECKING:
    import plotly.graph_objects as go

FACTORS = ("kl", "max_subject", "max_others", "sum_subject", "hidden_norm", "hidden_l2", "hidden_cosine")


@dataclass(frozen=True, kw_only=True)
class AttentionDrift:
    """Attention drift of one or several cases.

    Attributes:
        table: a row per case: ``case``, ``prompt``, ``subject`` and the columns of the module docstring.
        heads: a row per case, layer and head: ``kl``, ``drift_subject`` (after − before), ``drift_others`` (‖·‖₂),
            ``vanilla_subject``, ``edited_subject``: the weights at s.
        layers: the layers that were summed over.
    """

    table: pd.DataFrame
    heads: pd.DataFrame
    layers: tuple[int, ...]

    def plot(self) -> go.Figure:
        """Mean drift at the subject's last token per layer and head."""
        from driftlens.plots import plot_heads

        return plot_heads(self.heads)


def attention_drift(
    model: LensModel,
    edit: Edit | Sequence[Edit],
    prompt: str | Sequence[str],
    subject: str | Sequence[str],
    layers: Iterable[int] | None = None,
    *,
    batch_size: int = 64,
    on_cases: Callable[[int], None] | None = None,
) -> AttentionDrift:
    """Drift of the last token's attention in one prompt, or in many, each under its own edit.

    Args:
        model: the vanilla model.
        edit: one edit for all prompts, or one for each.
        prompt: the prompt or prompts; the edited subject must occur, its first occurrence is s.
        subject: the edited subject, one for all prompts or one for each.
        layers: the layers to sum over; default all above the lowest edited one.
        batch_size: prompts at a time.
        on_cases: called with the number of prompts done.

    Raises:
        DriftlensError: lists of different lengths, a subject that does not occur, a layer out of range.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    edits = [edit] * len(prompts) if isinstance(edit, Edit) else list(edit)
    subjects = [subject] * len(prompts) if isinstance(subject, str) else list(subject)
    if not len(prompts) == len(edits) == len(subjects):
        raise DriftlensError(
            f"{len(prompts)} prompts, {len(edits)} edits and {len(subjects)} subjects; give one of each for every case"
        )
    lowest = min((layer for each in edits for layer in each.updates), default=0)
    chosen = tuple(range(lowest + 1, model.n_layers)) if layers is None else tuple(layers)
    if not chosen or not all(0 <= layer < model.n_layers for layer in chosen):
        raise DriftlensError(
            f"layers are {list(chosen)}; expected at least one of 0 to {model.n_layers - 1}, above the edited layer"
        )
    tokenized = [tokenize_prompt(model, text) for text in prompts]
    at = [subject_last(one, name) for one, name in zip(tokenized, subjects, strict=True)]
    cases = list(zip(range(len(prompts)), tokenized, at, edits, strict=True))
    measured = in_batches(cases, batch_size, lambda batch: _measure(model, batch, chosen), on_done=on_cases)

    table = pd.DataFrame([summary for summary, _ in measured])
    table.insert(1, "prompt", prompts)
    table.insert(2, "subject", subjects)
    return AttentionDrift(
        table=table, heads=pd.concat([heads for _, heads in measured], ignore_index=True), layers=chosen
    )


@torch.no_grad()
def _measure(
    model: LensModel, cases: Sequence[tuple[int, TokenizedPrompt, int, Edit]], layers: tuple[int, ...]
) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Vanilla and edited passes of a batch of cases, and the numbers of each case."""
    batch, _ = pad_rows(model, [prompt.ids for _, prompt, _, _ in cases])
    rows = torch.arange(len(cases), device=model.device)
    last = torch.tensor([prompt.last for _, prompt, _, _ in cases], device=model.device)
    subject = torch.tensor([at for _, _, at, _ in cases], device=model.device)
    edits = [edit for *_, edit in cases]

    def look(hooks: Sequence[Hook]) -> tuple[Tensor, Tensor]:
        """[layers, rows, heads, keys] attention of the last token, and [rows, d_model] behind the edit."""
        seen: dict[int, Tensor] = {}
        hidden: dict[int, Tensor] = {}
        names: list[Hook] = [
            (model.hook_name("pattern", n), record(seen, n, lambda p: p[rows, :, last].float())) for n in layers
        ]
        names += [
            (model.hook_name("resid_post", n), record(hidden, n, lambda r: r[rows, subject].float()))
            for n in sorted({max(edit.updates) for edit in edits})
        ]
        model.run(batch, hooks=[*hooks, *names])
        # Several layers' edits (MEMIT): behind the last of them.
        behind = torch.stack([hidden[max(edit.updates)][i] for i, edit in enumerate(edits)])
        return torch.stack([seen[n] for n in layers]), behind

    vanilla, h = look([])
    edited, h_edited = look(edit_hooks(model, edits))
    kl = last_token_kl(vanilla, edited)
    index = subject.view(1, -1, 1, 1).expand(*vanilla.shape[:-1], 1)
    before, after = (weights.gather(-1, index).squeeze(-1) for weights in (vanilla, edited))
    others = (edited - vanilla).scatter(-1, index, 0.0).norm(dim=-1)
    at_subject = after - before
    per_case = {
        "kl": kl.sum(dim=(0, 2)),
        "max_subject": at_subject.amax(dim=2).sum(dim=0),
        "max_others": others.amax(dim=2).sum(dim=0),
        "sum_subject": at_subject.sum(dim=(0, 2)),
        "hidden_norm": h_edited.norm(dim=-1),
        "hidden_l2": (h_edited - h).norm(dim=-1),
        "hidden_cosine": torch.cosine_similarity(h, h_edited, dim=-1),
    }
    numbers = {name: values.double().cpu().tolist() for name, values in per_case.items()}
    detail = {
        "kl": kl,
        "drift_subject": at_subject,
        "drift_others": others,
        "vanilla_subject": before,
        "edited_subject": after,
    }
    arrays = {name: values.double().cpu().numpy() for name, values in detail.items()}
    grid = pd.MultiIndex.from_product([layers, range(model.n_heads)], names=["layer", "head"])
    results: list[tuple[dict[str, Any], pd.DataFrame]] = []
    for i, (case, *_) in enumerate(cases):
        heads = pd.DataFrame({name: array[:, i].ravel() for name, array in arrays.items()}, index=grid).reset_index()
        heads.insert(0, "case", case)
        results.append(({"case": case, **{name: values[i] for name, values in numbers.items()}}, heads))
    return results


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Pearson's ρ with its p-value and two 95 % intervals.

    Attributes:
        rho, p, n: as of :func:`scipy.stats.pearsonr` over all points.
        low, high: Fisher's interval, which takes the points as independent.
        cluster_low, cluster_high: percentile bootstrap that resamples whole groups (records), since prompts of one
            record share an edit and are not independent; NaN without groups.
    """

    rho: float
    p: float
    n: int
    low: float
    high: float
    cluster_low: float
    cluster_high: float


def correlation(
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """Pearson correlation of a drift factor with P(o_edit) (paper, 3.3).

    Raises:
        DriftlensError: fewer than three points, or a constant variable.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(a) != len(b) or len(a) < 3:
        raise DriftlensError(f"a correlation needs at least three pairs; got {len(a)} and {len(b)} values")
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        raise DriftlensError("one of the two variables is constant, so it correlates with nothing; look at its values")
    result = stats.pearsonr(a, b)
    interval = result.confidence_interval(0.95)
    cluster = (float("nan"), float("nan"))
    if groups is not None:
        cluster = _cluster_interval(a, b, pd.factorize(np.asarray(groups))[0], resamples, seed)
    return Correlation(
        rho=float(result.statistic),
        p=float(result.pvalue),
        n=len(a),
        low=float(interval.low),
        high=float(interval.high),
        cluster_low=cluster[0],
        cluster_high=cluster[1],
    )


def _cluster_interval(
    a: np.ndarray, b: np.ndarray, group: np.ndarray, resamples: int, seed: int
) -> tuple[float, float]:
    """Bootstrap over groups: each resample is a weight per group, so ρ comes from weighted sums."""
    n_groups = int(group.max()) + 1
    draws = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples)
    moments = (np.ones_like(a), a, b, a * a, b * b, a * b)
    sums = np.stack([np.bincount(group, weights=values, minlength=n_groups) for values in moments])
    n, sa, sb, saa, sbb, sab = (draws @ sums.T).T
    variance = (saa - sa**2 / n) * (sbb - sb**2 / n)
    rhos = (sab - sa * sb / n)[variance > 0] / np.sqrt(variance[variance > 0])
    low, high = np.percentile(rhos, [2.5, 97.5])
    return float(low), float(high)


def significant_layers(grid: pd.DataFrame, *, share: float = 0.5) -> tuple[int, ...]:
    """The layers where attention contaminates: the rule for ``layers`` in :func:`attention_drift`.

    From a trace of module ``attn``: average the effect on each layer's last-token cell over cases; keep the layers
    whose mean effect has at least ``share`` of the largest one's size, and the same sign.

    Args:
        grid: a trace's table, with columns ``module, role, layer, effect``.
        share: how much of the largest effect counts as significant.
    """
    last = grid[(grid["module"] == "attn") & (grid["role"] == "last token")]
    if last.empty:
        raise DriftlensError("the trace has no attention cell at the last token; trace with module='attn' first")
    effect = last.groupby("layer")["effect"].mean()
    peak = effect.loc[effect.abs().idxmax()]
    return tuple(int(layer) for layer in effect.index[effect / peak >= share])
