"""Token roles: what a token of a test prompt is to the edit, so that different prompts can be averaged (Figure 3).

A prompt is read by characters first and its tokens get the role of the characters they cover:

1. **The edited subject** is looked for in the distractor (the edit sentence in front of a Distract prompt), without a
   distractor in the whole prompt. Its tokens are first, middle and last; the only token of a short one is the last,
   since that is where the edit and attention drift sit. What stands before and after it, up to the end of the
   distractor (o_edit and the full stop among it), is before and after the subject.
2. **The test prompt** is what follows the distractor. Its own subject is the edited subject again where that occurs
   there (Distract Relation), else what stands in the slot of the longest template that fits the text, the edit's own
   or one of those given. A prompt that does not name the edited subject is a test prompt from its first token on.
3. **The last token** of the prompt, the one that predicts the target, is that and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from driftlens.data import TaskPrompt
from driftlens.edits import Edit
from driftlens.prompts import TokenizedPrompt

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ROLES", "SUBJECT_ROLES", "PromptParts", "average_by_role", "prompt_parts", "token_roles"]

SUBJECT_ROLES = ("first subject token", "middle subject tokens", "last subject token")
ROLES = ("before subject", *SUBJECT_ROLES, "after subject", "test subject", "test prompt", "last token")
"""In the order in which they stand in a prompt; "subject" is the edited one, "test subject" the test prompt's own."""

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class PromptParts:
    """A prompt's parts as character spans; the test prompt goes from `test_start` to the end."""

    text: str
    test_start: int
    subject: Span | None
    test_subject: Span | None


def prompt_parts(
    prompt: str | TaskPrompt, edit: Edit, *, subject: str | None = None, templates: Sequence[str] = ()
) -> PromptParts:
    """Find the parts of a prompt; what it does not say itself is taken from the edit's provenance.

    `subject` is the edited subject, by default the edit's. `templates` are texts with one `{}` that the test prompt
    may follow, besides the edit's own.
    """
    text = prompt if isinstance(prompt, str) else prompt.text
    subject = subject or edit.provenance.get("subject")
    template = edit.provenance.get("prompt")
    start = len(prompt.distractor) if isinstance(prompt, TaskPrompt) else _distractor_length(text, edit)
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
    """The role of every prompt token; see the module docstring for the rule."""
    subject = prompt.tokens_of(*parts.subject) if parts.subject else range(0)
    test_subject = prompt.tokens_of(*parts.test_subject) if parts.test_subject else range(0)
    roles: list[str] = []
    for token, (_, stop) in enumerate(prompt.offsets[: prompt.n_prompt]):
        if token == prompt.last:
            role = "last token"
        elif token in subject:
            role = _place_in(subject, token)
        elif token in test_subject:
            role = "test subject"
        # The blank between distractor and test prompt belongs to the token behind it.
        elif stop > parts.test_start or not subject:
            role = "test prompt"
        else:
            role = "before subject" if token < subject[0] else "after subject"
        roles.append(role)
    return roles


def average_by_role(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Role × layer grids of a table's `effect`, averaged over cases, for each combination of `keys`.

    A role's tokens are averaged within each case first, so a case with a long subject counts once; then cases are
    averaged. `low` and `high` are the mean ∓ 1.96 standard errors over the cases that have the role (`cases`), NaN for
    a single one. `example` is the role's text in the first such case. The columns are `keys`, then `role, example,
    layer, effect, low, high, cases`; rows are in the order of a prompt.
    """
    groups = [*keys, "role", "layer"]
    cells: Any = table.groupby([*groups, "case"], sort=False)
    per_case = cells["effect"].mean().reset_index()
    grid: Any = per_case.groupby(groups, sort=False)["effect"].agg(effect="mean", cases="count", error="sem")
    grid = grid.reset_index()
    grid["low"], grid["high"] = grid["effect"] - 1.96 * grid["error"], grid["effect"] + 1.96 * grid["error"]
    grid["example"] = grid["role"].map(_examples(table))
    # Keys in the order in which they stand in the table.
    orders = {**{key: list(table[key].unique()) for key in keys}, "role": list(ROLES)}
    for key, order in orders.items():
        grid[f"{key} order"] = grid[key].map({name: at for at, name in enumerate(order)})
    grid = grid.sort_values([*(f"{key} order" for key in orders), "layer"], ignore_index=True)
    return grid[[*keys, "role", "example", "layer", "effect", "low", "high", "cases"]]


def _examples(table: Any) -> dict[str, str]:
    first = table[["role", "case", "token", "token_text"]].drop_duplicates(["role", "case", "token"])
    examples: dict[str, str] = {}
    for role, rows in first.groupby("role", sort=False):
        case = rows[rows["case"] == rows["case"].min()].sort_values("token")
        examples[str(role)] = "".join(case["token_text"]).strip()
    return examples


def _place_in(subject: range, token: int) -> str:
    first, middle, last = SUBJECT_ROLES
    if token == subject[-1]:
        return last
    return first if token == subject[0] else middle


def _distractor_length(text: str, edit: Edit) -> int:
    """Length of the edit sentence in front of a prompt, with its blank; 0 where there is none."""
    fact = edit.provenance
    if not {"subject", "prompt", "target_new"} <= fact.keys():
        return 0
    sentence = fact["prompt"].replace("{}", fact["subject"], 1) + f" {fact['target_new']}. "
    return len(sentence) if text.startswith(sentence) else 0


def _find(text: str, part: str, start: int, stop: int) -> Span | None:
    at = text.find(part, start, stop)
    return None if at < 0 else (at, at + len(part))


def _slot(text: str, start: int, templates: Sequence[str]) -> Span | None:
    """What the longest fitting template has in its slot."""
    for template in sorted(templates, key=len, reverse=True):
        before, _, after = template.partition("{}")
        span = start + len(before), len(text) - len(after)
        if span[0] < span[1] and text.startswith(before, start) and text.endswith(after) and template != "{}":
            return span
    return None
