"""Attention drift: how far an edit moves what the last token attends to (paper, 3.3 and D.3).

For every prompt, one vanilla and one edited pass are compared.  W_{l,h} is the attention of the last prompt token in
layer l, head h, of the vanilla model, W*_{l,h} the same in the edited model, and s the edited subject's last token:

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

The paper prints the drift at s as before − after. The sign here is after − before, so that over-attention is positive,
as the paper's positive correlations require. ∖s denotes every other token of the prompt. h is the residual stream after
the edit layer at s; * marks the edited model. The sums run over ``layers``: in the paper, "the layers where attention
activations have a significant impact", which :func:`significant_layers` finds from a trace. By default they run over
all layers above the edit, the only ones that can drift.

:func:`driftlens.correlation` relates a factor to P(o_edit) over many prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from driftlens.data import TaskPrompt
from driftlens.editors.sadr import last_token_kl
from driftlens.edits import Edit, Edited, check_edits, edit_hooks, edits_of, routed
from driftlens.errors import DriftlensError
from driftlens.hooks import Hook, record
from driftlens.models import LensModel, check_loaded
from driftlens.models.grouping import passes
from driftlens.models.memory import in_groups
from driftlens.models.prompts import TokenizedPrompt, pad_rows, subject_last, tokenize_prompt
from driftlens.progress import OnDone

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "FACTORS",
    "AttentionDrift",
    "attention_drift",
    "significant_layers",
]

FACTORS = ("kl", "max_subject", "max_others", "sum_subject", "hidden_norm", "hidden_l2", "hidden_cosine")
"""The measured columns of :class:`AttentionDrift`'s table; see the module docstring."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionDrift:
    """Attention drift of one or several cases.

    Attributes:
        table: a row per case: ``case``, ``prompt``, ``subject`` and the columns of the module docstring.
        heads: a row per case, layer and head: ``case, layer, head, kl, drift_subject`` (after − before),
            ``drift_others`` (‖·‖₂), ``vanilla_subject, edited_subject`` (the weights at s).
        layers: the layers that were summed over.
        model: the model's name.
    """

    table: pd.DataFrame
    heads: pd.DataFrame
    layers: tuple[int, ...]
    model: str

    def __repr__(self) -> str:
        kl: Any = self.table["kl"]
        return f"AttentionDrift({len(self.table)} prompts, layers {list(self.layers)}, mean KL {kl.mean():.4g})"

    def _repr_html_(self) -> str:
        from driftlens.display.cards import attention_drift

        return attention_drift(self)

    def by_layer(self) -> pd.DataFrame:
        """``case, layer`` and the table's attention columns, before the sum over layers."""
        rows: Any = self.heads.groupby(["case", "layer"], sort=False)
        return rows.agg(
            kl=("kl", "sum"),
            max_subject=("drift_subject", "max"),
            max_others=("drift_others", "max"),
            sum_subject=("drift_subject", "sum"),
        ).reset_index()

    def plot(self, *, title: str | None = None, note: str = "") -> go.Figure:
        """Heatmap of the mean drift at the subject's last token, layer × head."""
        from driftlens.plots import plot_heads

        return plot_heads(self.heads, title=title, note=note or self.model)


def attention_drift(
    model: LensModel,
    edit: Edited | Sequence[Edited],
    prompt: str | TaskPrompt | Sequence[str | TaskPrompt],
    subject: str | Sequence[str],
    layers: Iterable[int] | None = None,
    *,
    batch_size: int = 64,
    on_cases: OnDone | None = None,
) -> AttentionDrift:
    """Measure the drift of the last token's attention in one prompt, or in many, each under its own edit.

    Args:
        model: the vanilla model; it is not changed.
        edit: one edit for all prompts, or one for each.
        prompt: the prompt or prompts; the edited subject must occur in each, and its first occurrence is s.
        subject: the edited subject, one for all prompts or one for each.
        layers: the layers to sum over; default: all above the lowest edited one.
        batch_size: prompts at a time.
        on_cases: called with the number of prompts done and the total.

    Raises:
        DriftlensError: no prompt, lists of different lengths, a subject that does not occur, a layer out of range.
    """
    given = [prompt] if isinstance(prompt, str | TaskPrompt) else list(prompt)
    check_loaded(model)
    edits = edits_of(edit, len(given))
    subjects = [subject] * len(given) if isinstance(subject, str) else list(subject)
    if not given:
        raise DriftlensError("no prompt to measure attention drift in; give at least one")
    if not len(given) == len(edits) == len(subjects):
        raise DriftlensError(
            f"{len(given)} prompts, {len(edits)} edits and {len(subjects)} subjects; give one of each for every case"
        )
    check_edits(model, edits)
    lowest = min((layer for each in edits for layer in each.layers), default=-1)
    chosen = tuple(range(lowest + 1, model.n_layers)) if layers is None else tuple(dict.fromkeys(layers))
    if not chosen and layers is None:
        raise DriftlensError(
            f"no layer lies above the edited layer {lowest}, so no attention can drift; edit a lower one"
        )
    if not chosen or not all(0 <= layer < model.n_layers for layer in chosen):
        raise DriftlensError(f"layers are {list(chosen)}; expected at least one of 0 to {model.n_layers - 1}")
    texts = [own.filled(each) if isinstance(each, str) else each.text for own, each in zip(edits, given, strict=True)]
    tokenized = [tokenize_prompt(model, text) for text in texts]
    at = [subject_last(one, name) for one, name in zip(tokenized, subjects, strict=True)]
    acting = [edit or Edit() for edit in routed(model, edits, [one.ids for one in tokenized])]
    behind = [max(edit.layers, default=model.n_layers - 1) for edit in edits]
    cases = list(zip(range(len(given)), tokenized, at, acting, behind, strict=True))
    groups = passes([len(one.ids) for one in tokenized], model.pass_cost, most=batch_size)
    measured = in_groups(cases, groups, batch_size, lambda batch: _measure(model, batch, chosen), on_done=on_cases)

    table = pd.DataFrame([summary for summary, _ in measured])
    table.insert(1, "prompt", [one.text for one in tokenized])
    table.insert(2, "subject", subjects)
    heads = pd.concat([heads for _, heads in measured], ignore_index=True)
    return AttentionDrift(table=table, heads=heads, layers=chosen, model=model.title)


@torch.no_grad()
def _measure(
    model: LensModel, cases: Sequence[tuple[int, TokenizedPrompt, int, Edit, int]], layers: tuple[int, ...]
) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Run a vanilla and an edited pass over a batch of cases and compute the numbers of each case."""
    batch, _ = pad_rows(model, [prompt.ids for _, prompt, *_ in cases])
    rows = torch.arange(len(cases), device=model.device)
    last = torch.tensor([prompt.last for _, prompt, *_ in cases], device=model.device)
    subject = torch.tensor([at for _, _, at, *_ in cases], device=model.device)
    edits = [edit for *_, edit, _ in cases]
    # After the last edited layer (MEMIT edits several); an empty edit has a hidden state all the same.
    behind = [layer for *_, layer in cases]

    def look(hooks: Sequence[Hook]) -> tuple[Tensor, Tensor]:
        """Return the last token's attention, [layers, rows, heads, keys], and [rows, d_model] after the edit."""
        seen: dict[int, Tensor] = {}
        hidden: dict[int, Tensor] = {}
        names: list[Hook] = [
            (model.hook_name("pattern", n), record(seen, n, lambda p: p[rows, :, last].float())) for n in layers
        ]
        names += [
            (model.hook_name("resid_post", n), record(hidden, n, lambda r: r[rows, subject].float()))
            for n in sorted(set(behind))
        ]
        model.run(batch, hooks=[*hooks, *names], stop=max(*layers, *behind) + 1)
        return torch.stack([seen[n] for n in layers]), torch.stack([hidden[n][i] for i, n in enumerate(behind)])

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


def significant_layers(grid: pd.DataFrame, *, share: float = 0.5, target_name: str = "o_true") -> tuple[int, ...]:
    """Find the layers where attention contaminates, for ``layers`` in :func:`attention_drift`.

    From a trace (:func:`driftlens.contaminating_substitution`) of module ``attn``, the effect of each layer's
    last-token cell is averaged over cases. A layer is significant if its mean effect has the same sign as the largest
    one and at least ``share`` of its size.

    Args:
        grid: a trace's table, or its ``by_role()``, with columns ``target_name, module, role, layer, effect``.
        share: the share of the largest effect that counts as significant.
        target_name: the target whose probability is used, if the trace has several.

    Raises:
        DriftlensError: no attention cell at the last token, or none with an effect.
    """
    last: Any = grid[(grid["module"] == "attn") & (grid["role"] == "last token")]
    if last["target_name"].nunique() > 1:
        last = last[last["target_name"] == target_name]
    if last.empty:
        raise DriftlensError("the trace has no attention cell at the last token; trace with module='attn' first")
    means = {int(layer): float(rows["effect"].mean()) for layer, rows in last.groupby("layer")}
    peak = max(means.values(), key=abs)
    if peak == 0:
        raise DriftlensError("no attention cell at the last token has an effect; choose the layers yourself")
    return tuple(layer for layer, effect in means.items() if effect / peak >= share)
