"""Probes in the model's own words: what it writes about the subject, and about others.

The unedited model continues a few beginnings.  In its texts,

- a sentence that names the subject and later another name (a capitalised word or a number) is cut before that name. The
  beginning becomes a prompt, which the model is asked again like any probe;
- if that name is ``o_true``, the beginning is a paraphrase of the edit's prompt;
- a sentence with the edit's words and another subject yields a neighbour.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from driftlens.clinics.relation import with_article_of
from driftlens.data import Fact
from driftlens.evaluation.generation import generate
from driftlens.models import LensModel

__all__ = ["Generated", "from_generations"]

_TEXTS, _TOKENS, _MOST = 4, 60, 8
_NAME = re.compile(r"(?<=\s)(?:[A-Z][\w'’-]*|\d[\d,.]*\d|\d)")


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Prompts about the subject, paraphrases of the edit's prompt, and neighbouring subjects."""

    statements: tuple[str, ...]
    paraphrases: tuple[str, ...]
    neighbors: tuple[str, ...]


def from_generations(model: LensModel, fact: Fact, *, seed: int = 0, batch_size: int = 64) -> Generated:
    """Extract prompts and subjects from the vanilla model's continuations.

    Args:
        model: the vanilla model.
        fact: the edit.
        seed: the same seed gives the same texts.
        batch_size: texts at a time.
    """
    named = with_article_of(fact.prompt, "{}").replace("{}", fact.subject, 1)
    beginnings = [named, f"{named} is", f"{fact.text} {fact.target_true}."]
    prompts = [beginning for beginning in beginnings for _ in range(_TEXTS)]
    texts = [row.text for row in generate(model, prompts, seed=seed, max_tokens=_TOKENS, batch_size=batch_size)]
    statements: dict[str, None] = {}
    paraphrases: dict[str, None] = {}
    neighbors: dict[str, None] = {}
    for text in texts:
        for sentence in _sentences(text):
            neighbor = _neighbor(sentence, fact)
            if neighbor:
                neighbors[neighbor] = None
            for prompt, name in _beginnings(sentence, fact.subject):
                if prompt != fact.text:
                    (paraphrases if fact.target_true.startswith(name) else statements)[prompt] = None
    return Generated(
        statements=tuple(statements)[:_MOST], paraphrases=tuple(paraphrases)[:_MOST], neighbors=tuple(neighbors)[:_MOST]
    )


def _sentences(text: str) -> Sequence[str]:
    # The last sentence is cut off by the token limit, so a name at its end may be incomplete.
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text)[:-1]]


def _beginnings(sentence: str, subject: str) -> list[tuple[str, str]]:
    """Return the sentence up to the first name after the subject, and that name."""
    at = sentence.find(subject)
    if at < 0 or sentence.count(subject) != 1:
        return []
    found = _NAME.search(sentence, at + len(subject))
    # At least one word must separate them: "Albert Einstein Street" says nothing about Albert Einstein.
    if found is None or not sentence[at + len(subject) : found.start()].strip():
        return []
    return [(sentence[: found.start()].rstrip(), found.group())]


def _neighbor(sentence: str, fact: Fact) -> str | None:
    before, after = fact.prompt.split("{}")
    found = re.match(re.escape(before) + r"(.{2,40}?)" + re.escape(after) + r"\s", sentence)
    if found is None or fact.subject in found.group(1) or not _NAME.match(f" {found.group(1)}", 1):
        return None
    return found.group(1)
