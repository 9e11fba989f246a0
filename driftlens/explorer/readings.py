"""The numbers that the explorer shows for one prompt under one edit.

A *reading* compares the vanilla and the edited model: the probabilities of both answers and of the most probable next
tokens, and the last token's attention in every head. A *grid* is contaminating substitution of all modules with one
window, for the same answers and tokens. All of them are read from the same passes, so the table of next tokens costs no
more than the heatmap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from driftlens.analyses.cases import Case, make_cases, token_texts
from driftlens.analyses.cells import cell_effects
from driftlens.analyses.roles import prompt_parts, token_roles
from driftlens.analyses.substitution import MODULES
from driftlens.analyses.substitution_cells import Substitution
from driftlens.data import TaskPrompt
from driftlens.edits import Edit, edit_hooks, routed
from driftlens.hooks import Hook, record
from driftlens.models import LensModel
from driftlens.models.prompts import pad_rows
from driftlens.progress import OnDone

__all__ = ["Floats", "Reading", "grids", "read"]

Floats: TypeAlias = npt.NDArray[np.float32]

_TOP = 5
"""How many of each model's most probable next tokens are shown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """One prompt in both models.

    Attributes:
        prompt: the prompt with its two answers.
        tokens, roles: each prompt token's text and role (`driftlens.statistics.roles.ROLES`).
        subject: index of the edited subject's last token; -1 if the prompt does not contain the subject.
        candidates: texts of the most probable next tokens of both models, the vanilla model's first.
        vanilla, edited: the probabilities of o_true, of o_edit (each exp of the mean log-probability of its tokens) and
            of every candidate as the next token.
        attention: the last token's attention in the vanilla and in the edited model.
    """

    prompt: TaskPrompt
    tokens: tuple[str, ...]
    roles: tuple[str, ...]
    subject: int
    candidates: tuple[str, ...]
    vanilla: Floats  # [2 + candidates]
    edited: Floats  # [2 + candidates]
    attention: Floats  # [2, layers, heads, tokens]
    case: Case
    candidate_ids: tuple[int, ...]


@torch.no_grad()
def read(model: LensModel, edit: Edit, prompt: TaskPrompt, *, templates: Sequence[str] = ()) -> Reading:
    """Run both models on a prompt; `templates` only help to find the test prompt's subject."""
    case = make_cases(model, edit, prompt, (prompt.target_true, prompt.target_new))[0]
    tokenized = case.tokenized[0]
    ids = tokenized.ids[: tokenized.n_prompt]
    # One pass with two rows, of which only the second is edited.
    batch, _ = pad_rows(model, [ids, ids])
    patterns: dict[int, torch.Tensor] = {}
    hooks: list[Hook] = edit_hooks(model, [None, *routed(model, [edit], [ids])])
    hooks += [
        (model.hook_name("pattern", n), record(patterns, n, lambda p: p[:, :, -1].float()))
        for n in range(model.n_layers)
    ]
    logits = model.unembed(model.run(batch, hooks=hooks)[:, -1])
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
    likeliest = probabilities.topk(min(_TOP, model.d_vocab)).indices
    candidates = tuple(dict.fromkeys(int(token) for token in likeliest.flatten()))
    # The probabilities of the answers, over all their tokens, are computed together with those of the candidates.
    case = _with_candidates(case, candidates)
    seen = cell_effects(model, case.passages, Substitution(()), 1, batch_size=8)
    roles = token_roles(tokenized, prompt_parts(prompt, edit, templates=templates))
    last_of_subject = [at for at, role in enumerate(roles) if role == "last subject token"]
    return Reading(
        prompt=prompt,
        tokens=tuple(token_texts(model, tokenized)),
        roles=tuple(roles),
        subject=last_of_subject[0] if last_of_subject else -1,
        candidates=tuple(str(model.tokenizer.decode([token])) for token in candidates),
        vanilla=_values(case, [one.vanilla for one in seen]),
        edited=_values(case, [one.edited for one in seen]),
        attention=torch.stack([patterns[n] for n in range(model.n_layers)], dim=1).cpu().numpy(),
        case=case,
        candidate_ids=candidates,
    )


def grids(
    model: LensModel,
    readings: Sequence[Reading],
    window: int,
    *,
    batch_size: int = 128,
    on_cells: OnDone | None = None,
) -> list[Floats]:
    """Compute for each reading `[modules, tokens, layers, 2 + candidates]`: the probabilities with the substitution.

    If memory runs out, `batch_size` is halved.
    """
    passages = [passage for reading in readings for passage in reading.case.passages]
    effects = iter(
        cell_effects(model, passages, Substitution(MODULES), window, batch_size=batch_size, on_cells=on_cells)
    )
    found: list[Floats] = []
    for reading in readings:
        parts = [next(effects).grid for _ in reading.case.passages]
        # If the answers' passages differ in their last prompt token, only their common cells are shown.
        n_tokens = min(part.shape[1] for part in parts)
        grid = _values(reading.case, [part[:, :n_tokens] for part in parts])
        missing = len(reading.tokens) - n_tokens
        found.append(np.pad(grid, ((0, 0), (0, missing), (0, 0), (0, 0)), mode="edge") if missing > 0 else grid)
    return found


def _with_candidates(case: Case, candidates: Sequence[int]) -> Case:
    """The case with the candidates, single tokens, as further targets of its first passage."""
    first, *others = case.passages
    more = tuple((token,) for token in candidates)
    read = replace(first, targets=first.targets + more, columns=first.columns + ((first.last,),) * len(more))
    return replace(case, passages=(read, *others))


def _values(case: Case, by_passage: Sequence[torch.Tensor]) -> Floats:
    """Reorder […, targets] of each passage to […, o_true, o_edit, candidates]."""
    n_own = sum(passage == 0 for passage, _ in case.read)
    answers = [by_passage[passage][..., place] for passage, place in case.read]
    candidates = list(by_passage[0][..., n_own:].unbind(-1))
    return torch.stack([*answers, *candidates], dim=-1).float().numpy()
