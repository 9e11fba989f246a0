"""The prompts that a value optimisation reads for a fact, as rows of tokens.

Each fact has a row for every distinct context, one for the essence prompt, one for every prompt of a regulariser, and
one for the bare prompt if the contexts do not contain it.  If the bare prompt begins with the same tokens as the
essence prompt ("Paris is the capital of", "Paris is a"), its row is read instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from driftlens.data import Fact
from driftlens.editors.regularizers import Brought
from driftlens.models import LensModel
from driftlens.models.prompts import TokenizedPrompt, subject_last, tokenize_prompt

__all__ = ["PromptRow", "brought_rows", "prompt_rows", "share_of"]

BARE = "{}"


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A row of the vanilla pass.

    Those of a fact come in this order: its different contexts, essence, prompts of regularisers, bare prompt.
    """

    kind: Literal["context", "essence", "brought", "bare", "irrelevant"]
    prompt: TokenizedPrompt
    ids: tuple[int, ...]  # with its target, if it has one; of essence and bare prompt, up to subject_last
    subject: int  # of irrelevant text, which a side memory must leave alone, its last token
    weight: float = 0.0
    bare: bool = False  # the prompt is the bare one, as a context or not
    essence: bool = False  # its column 0 is the essence prompt's
    owner: int = -1  # the place of the regulariser that brought it
    context: int | None = None  # the number of its context among the different ones


def prompt_rows(
    model: LensModel,
    fact: Fact,
    contexts: Sequence[str],
    distinct: Sequence[str],
    essence: str | None,
    brought: Sequence[tuple[int, Sequence[Brought]]],
) -> list[PromptRow]:
    """The rows of one fact.

    Raises:
        DriftlensError: one of them is too long for the model.
    """

    def row(kind: Literal["context", "essence", "bare"], template: str, text: str, target: str = "") -> PromptRow:
        prompt = tokenize_prompt(model, template.replace(BARE, text), target)
        # A sampled prefix may contain the subject too; the edit refers to its occurrence in the prompt.
        subject = subject_last(prompt, fact.subject, start=template.index(BARE))
        ids = prompt.forced if kind == "context" else prompt.ids[: subject + 1]
        bare = template == BARE and kind != "essence"
        return PromptRow(kind=kind, prompt=prompt, ids=ids, subject=subject, bare=bare)

    rows: list[PromptRow] = []
    for number, context in enumerate(distinct):
        rows.append(
            replace(
                row("context", context, fact.text, fact.target_new), weight=share_of(context, contexts), context=number
            )
        )
    bare = next((at for at, own in enumerate(rows) if own.bare), None)
    if essence is not None:
        read = replace(row("essence", essence, fact.subject), essence=True)
        if bare is not None and rows[bare].ids[: rows[bare].subject + 1] == read.ids:
            rows[bare] = replace(rows[bare], essence=True)
        else:
            rows.append(read)
    rows += brought_rows(model, fact, brought)
    return rows if bare is not None else [*rows, row("bare", BARE, fact.text)]


def brought_rows(model: LensModel, fact: Fact, brought: Sequence[tuple[int, Sequence[Brought]]]) -> list[PromptRow]:
    """The prompts of each regulariser that brings some, by its place; each stands for its share of them."""
    rows: list[PromptRow] = []
    for owner, texts in brought:
        for text, target in texts:
            prompt = tokenize_prompt(model, text, target)
            subject, share = subject_last(prompt, fact.subject), 1 / len(texts)
            rows.append(
                PromptRow(kind="brought", prompt=prompt, ids=prompt.forced, subject=subject, weight=share, owner=owner)
            )
    return rows


def share_of(context: str, contexts: Sequence[str]) -> float:
    """A context that occurs twice counts twice."""
    return sum(context == other for other in contexts) / len(contexts)
