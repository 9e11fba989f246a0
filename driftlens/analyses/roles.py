"""Token roles: assign each token of a test prompt its role, so that different prompts can be averaged (Figure 3).

A prompt is first split by characters; each token then gets the role of the characters it covers:

1. **The edited subject** is searched in the distractor (the edit sentence before a Distract prompt), or in the whole
   prompt if there is no distractor. Its tokens are first, middle and last. A single token counts as last, because the
   edit and attention drift are located there. The text before and after it, up to the end of the distractor (including
   o_edit and the full stop), is before and after the subject.
2. **The test prompt** is what follows the distractor. Its own subject is the edited subject if that occurs again
   (Distract Relation). Otherwise it is the text in the slot of the longest template that fits: the edit's own or a
   given one. A prompt without the edited subject is a test prompt from its first token on.
3. **The last token** of the prompt predicts the target; it has this role only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from driftlens.data import Fact, TaskPrompt
from driftlens.data.joints import distractor
from driftlens.edits import Edit
from driftlens.models.prompts import TokenizedPrompt
from driftlens.statistics.roles import SUBJECT_ROLES

__all__ = ["PromptParts", "prompt_parts", "token_roles"]

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class PromptParts:
    """A prompt's parts as character spans; the test prompt extends from `test_start` to the end."""

    text: str
    test_start: int
    subject: Span | None
    test_subject: Span | None


def prompt_parts(
    prompt: str | TaskPrompt, edit: Edit, *, subject: str | None = None, templates: Sequence[str] = ()
) -> PromptParts:
    """Find the parts of a prompt, with the help of the edit's facts.

    `subject` is the edited subject, by default the edit's. `templates` are texts with one `{}` that the test prompt may
    follow, besides the edit's own.
    """
    text = prompt if isinstance(prompt, str) else prompt.text
    fact = _named(text, edit.facts)
    subject = subject or (fact.subject if fact else edit.provenance.get("subject"))
    template = fact.prompt if fact else edit.provenance.get("prompt")
    start = len(prompt.distractor) if isinstance(prompt, TaskPrompt) else _distractor_length(text, edit.facts)
    subject_span = _find(text, subject, 0, start or len(text)) if subject else None
    test_subject = None
    if start and subject:
        test_subject = _find(text, subject, start, len(text))
    if test_subject is None and (start or subject_span is None):
        test_subject = _slot(text, start, [*templates, *([template] if template else [])])
    if subject_span is None:
        start = 0
    elif not start:
        start = len(text)
    return PromptParts(text=text, test_start=start, subject=subject_span, test_subject=test_subject)


def token_roles(prompt: TokenizedPrompt, parts: PromptParts) -> list[str]:
    """Return the role of every prompt token; see the module docstring for the rule."""
    subject = prompt.tokens_of(*parts.subject) if parts.subject else range(0)
    test_subject = prompt.tokens_of(*parts.test_subject) if parts.test_subject else range(0)
    roles: list[str] = []
    for token, (_, end) in enumerate(prompt.spans()[: prompt.n_prompt]):
        stop = min(end, len(prompt.text))  # text that a chat template adds after the prompt belongs to its end
        if token == prompt.last:
            role = "last token"
        elif token in subject:
            role = _place_in(subject, token)
        elif token in test_subject:
            role = "test subject"
        # The blank between distractor and test prompt belongs to the token after it.
        elif stop > parts.test_start or not subject:
            role = "test prompt"
        else:
            role = "before subject" if token < subject[0] else "after subject"
        roles.append(role)
    return roles


def _place_in(subject: range, token: int) -> str:
    first, middle, last = SUBJECT_ROLES
    if token == subject[-1]:
        return last
    return first if token == subject[0] else middle


def _named(text: str, facts: Sequence[Fact]) -> Fact | None:
    """The first fact whose subject occurs in the prompt; the first of all if none does."""
    return next((fact for fact in facts if fact.subject in text), facts[0] if facts else None)


def _distractor_length(text: str, facts: Sequence[Fact]) -> int:
    """Length of the edit sentence at the start of a prompt, with its blank; 0 if there is none."""
    sentences = (distractor(fact.text, fact.target_new) for fact in facts)
    return next((len(sentence) for sentence in sentences if text.startswith(sentence)), 0)


def _find(text: str, part: str, start: int, stop: int) -> Span | None:
    at = text.find(part, start, stop)
    return None if at < 0 else (at, at + len(part))


def _slot(text: str, start: int, templates: Sequence[str]) -> Span | None:
    """The text in the slot of the longest fitting template."""
    for template in sorted(templates, key=len, reverse=True):
        before, _, after = template.partition("{}")
        span = start + len(before), len(text) - len(after)
        if span[0] < span[1] and text.startswith(before, start) and text.endswith(after) and template != "{}":
            return span
    return None
