"""Cases: the input of an analysis, namely a prompt, the targets scored after it and the edit.

To score a target of several tokens, all of its tokens but the last are appended to the prompt.  The targets of a prompt
share a :class:`Passage`, and thus the rows of a pass, as branches after the prompt. A target that changes the prompt's
own last token, because the joint falls inside a token, has its own passage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from driftlens.data import TaskPrompt
from driftlens.edits import Edit, Edited, check_edits, edits_of, routed
from driftlens.errors import DriftlensError
from driftlens.models import LensModel, check_loaded
from driftlens.models.prompts import TokenizedPrompt, branched, mean_log_probabilities, tokenize_prompt


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A prompt, the target tokens that are read after it, and the edit.

    ``ids`` are the prompt's tokens (the first ``n_prompt``) and those appended to score the targets. ``until`` encodes
    the branches (see :class:`BranchedRow`). ``columns[n][k]`` is the column whose logits predict token ``k`` of target
    ``n``.
    """

    edit: Edit
    ids: tuple[int, ...]
    until: tuple[int, ...]
    n_prompt: int
    targets: tuple[tuple[int, ...], ...]
    columns: tuple[tuple[int, ...], ...]

    @property
    def last(self) -> int:
        """Index of the last prompt token."""
        return self.n_prompt - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A prompt with its targets: ``read[i]`` gives the passage of target *i* and its index there."""

    edit: Edit
    prompt: str
    targets: tuple[str, ...]
    tokenized: tuple[TokenizedPrompt, ...]
    passages: tuple[Passage, ...]
    read: tuple[tuple[int, int], ...]


def make_cases(
    model: LensModel,
    edit: Edited | Sequence[Edited],
    prompt: str | TaskPrompt | Sequence[str | TaskPrompt],
    target: str | tuple[str, ...] | Sequence[str | tuple[str, ...]],
) -> list[Case]:
    """Make one case, or one per prompt from lists of equal length; a single edit or target serves all prompts.

    Raises:
        DriftlensError: lists of different lengths, different numbers of targets, an empty target, a prompt that is
            too long for the model, or an edit of another model.
    """
    prompts = [prompt] if isinstance(prompt, str | TaskPrompt) else list(prompt)
    check_loaded(model)
    edits = edits_of(edit, len(prompts))
    single = isinstance(prompt, str | TaskPrompt) or isinstance(target, str | tuple)
    given: list[Any] = [target] * len(prompts) if single else list(target)
    targets: list[tuple[str, ...]] = [(each,) if isinstance(each, str) else tuple(each) for each in given]
    if not prompts:
        raise DriftlensError("no prompt to read; give at least one")
    if not len(prompts) == len(edits) == len(targets):
        raise DriftlensError(
            f"{len(prompts)} prompts, {len(edits)} edits and {len(targets)} targets; "
            "give one of each for every prompt, or one for all"
        )
    for own in targets:
        if len(own) != len(targets[0]) or not own:
            raise DriftlensError(
                f"targets {targets[0]!r} and {own!r} differ in number; give every prompt the same number of targets"
            )
        for one in own:
            if not one.strip():
                raise DriftlensError(f"the target {one!r} is empty; give some visible text")
    check_edits(model, edits)
    texts = [
        own_edit.filled(each) if isinstance(each, str) else each.text
        for own_edit, each in zip(edits, prompts, strict=True)
    ]
    tokenized = [
        tuple(tokenize_prompt(model, text, target) for target in own) for text, own in zip(texts, targets, strict=True)
    ]
    acting = routed(model, edits, [first.prompt_ids for first, *_ in tokenized])
    return [
        _case(edit, own_acting or edit, own, own_tokenized)
        for edit, own_acting, own, own_tokenized in zip(edits, acting, targets, tokenized, strict=True)
    ]


def _case(edit: Edit, acting: Edit, targets: tuple[str, ...], tokenized: tuple[TokenizedPrompt, ...]) -> Case:
    alike: dict[tuple[int, ...], list[int]] = {}
    for at, own in enumerate(tokenized):
        alike.setdefault(own.ids[: own.n_prompt], []).append(at)
    passages = tuple(_passage(acting, [tokenized[at] for at in members]) for members in alike.values())
    place = {at: (n, k) for n, members in enumerate(alike.values()) for k, at in enumerate(members)}
    read = tuple(place[at] for at in range(len(targets)))
    return Case(edit=edit, prompt=tokenized[0].text, targets=targets, tokenized=tokenized, passages=passages, read=read)


def _passage(edit: Edit, tokenized: Sequence[TokenizedPrompt]) -> Passage:
    row = branched([own.forced for own in tokenized])
    last = tokenized[0].last
    return Passage(
        edit=edit,
        ids=row.ids,
        until=row.until,
        n_prompt=tokenized[0].n_prompt,
        targets=tuple(own.target_ids for own in tokenized),
        columns=tuple(columns[last:] for columns in row.columns),
    )


def name_targets(given: Sequence[str] | None, n_targets: int) -> tuple[str, ...]:
    """Choose the targets' names in a table: the given ones, or `o_true` and `o_edit` for two targets.

    Raises:
        DriftlensError: the number of names differs from that of the targets, or a name occurs twice.
    """
    if given is None:
        usual = {1: ("target",), 2: ("o_true", "o_edit")}
        return usual.get(n_targets, tuple(f"target {at + 1}" for at in range(n_targets)))
    if isinstance(given, str) or len(given) != n_targets or len(set(given)) != n_targets:
        raise DriftlensError(f"target_names is {given!r}; expected {n_targets} different names, one for each target")
    return tuple(given)


def token_texts(model: LensModel, prompt: TokenizedPrompt) -> list[str]:
    """The prompt's text of each token; a token without text (BOS) is represented by its name.

    A blank belongs to the token after it, even if the tokenizer's offsets omit it, so that texts can be joined.
    """
    texts: list[str] = []
    done = 0
    for token, (start, stop) in zip(prompt.ids[: prompt.n_prompt], prompt.offsets, strict=False):
        # Tokens that split a character overlap.
        text = prompt.read[min(done, start) if stop > done else start : stop]
        texts.append(text if stop > start else str(model.tokenizer.convert_ids_to_tokens(token)))
        done = max(done, stop)
    return texts


def target_probabilities(
    model: LensModel,
    resid: Float[Tensor, "rows columns d_model"],
    passages: Sequence[Passage],
    first_column: Sequence[int],
) -> Float[Tensor, "rows targets"]:
    """Return the probability of each target, exp(mean log-probability of its tokens).

    It is NaN if a row has fewer targets. ``first_column`` is the index of the passage's token in a row's column 0
    (negative: column 0 is padding).  The head runs only at the positions that are read.
    """
    n_targets = max(len(passage.targets) for passage in passages)
    slots: list[int] = []  # (row, target) as one number
    read: list[tuple[int, list[int], tuple[int, ...]]] = []
    for row, (passage, shift) in enumerate(zip(passages, first_column, strict=True)):
        for number, (target, columns) in enumerate(zip(passage.targets, passage.columns, strict=True)):
            slots.append(row * n_targets + number)
            read.append((row, [column - shift for column in columns], target))
    probabilities = mean_log_probabilities(model, resid, read).exp()
    found = probabilities.new_full((len(passages) * n_targets,), torch.nan)
    found[torch.tensor(slots, device=found.device)] = probabilities
    return found.view(len(passages), n_targets)
