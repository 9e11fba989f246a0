"""A model's own answers: its greedy continuation of a prompt, and how sure it is of it.

1. Every prompt is continued greedily by a few tokens; one more pass gives the probability of each.
2. The answer is the beginning of the continuation, up to the first mark that ends a phrase. Each further word belongs
   to it only if the model finds that word more probable than all other words together.  So "Paris, the capital of" is
   read as "Paris".
3. An answer is informative if it contains a word that is not a function word: a model that continues with "the" has not
   answered yet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from driftlens.edits import Edit, Edited, edit_hooks, edits_or_none, routed
from driftlens.evaluation.generation import Generation, generate
from driftlens.models import LensModel
from driftlens.models.memory import in_batches
from driftlens.models.prompts import pad_rows, tokenize_prompt

__all__ = ["FUNCTION_WORDS", "GreedyAnswer", "greedy_answers", "says"]

TOKENS = 7
"""The largest number of tokens in an answer; the longest names of benchmark objects have six."""

GOES_ON = 0.5
"""A further word belongs to the answer if it is more probable than all other words together."""

_END = re.compile(r"[.,;:!?()\[\]\"“”\n]")
FUNCTION_WORDS = frozenset(
    "a an and are as at be been being but by can did do does for from had has have he her his i if in into is it its "
    "just more most my no not now of on one only or our over she so some such than that the their them there they "
    "this to too up us very was we were what when where which who will with would you your".split()
)
"""Words that carry no information by themselves."""
_NOT = frozenset({"not", "never", "near", "than", "outside", "from", "without", "beside", "no", "nor", "or"})
"""Words before a name which show that the name is not the answer."""
LEADING = 4
"""The largest number of words before an answer."""
_WIDTH = 8
"""Prompts are continued together with others of similar length, within this many tokens."""


@dataclass(frozen=True, kw_only=True)
class GreedyAnswer:
    """A model's answer.

    Attributes:
        text: the answer; empty if the continuation contains none.
        probability: exp(mean log-probability of its tokens).
        entropy: entropy of the next token, in nats.
        continuation: the whole generated text.
    """

    text: str
    probability: float
    entropy: float
    continuation: str

    @property
    def says_something(self) -> bool:
        """Whether the answer contains a word that is not a function word."""
        return any(word.lower() not in FUNCTION_WORDS for word in re.findall(r"\w+", self.text))


def says(continuation: str, target: str) -> bool:
    """Whether a continuation answers with the target, as whole words.

    The target may be at the beginning or follow a few words that lead to it, as in "the heart of Paris". These words
    must be in the same phrase and must not contain another name.
    """
    text = " ".join(continuation.split())
    wanted = " ".join(target.split())
    found = re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text)
    if found is None:
        return False
    before = text[: found.start()]
    words = re.findall(r"\w+", before)
    leads = all(word.islower() for word in words) and len(words) <= LEADING and not _END.search(before.strip())
    return leads and not _NOT & set(words)


def greedy_answers(
    model: LensModel,
    prompts: Sequence[str],
    edits: Edited | Sequence[Edited | None] | None = None,
    *,
    batch_size: int = 64,
) -> list[GreedyAnswer]:
    """Return the answer to every prompt, under one edit, one edit per prompt, or none (the vanilla model).

    Raises:
        DriftlensError: a prompt is empty or too long for the model.
    """
    given = edits_or_none(edits, len(prompts))
    lengths = [len(tokenize_prompt(model, prompt).ids) for prompt in prompts]
    groups: dict[int, list[int]] = {}
    for at, length in enumerate(lengths):
        groups.setdefault(length // _WIDTH, []).append(at)
    found: dict[int, GreedyAnswer] = {}
    for members in groups.values():
        grown = generate(
            model,
            [prompts[at] for at in members],
            [given[at] for at in members],
            top_k=1,
            max_tokens=max(lengths[at] for at in members) + TOKENS,
            stop_at_eos=True,
            batch_size=batch_size,
        )
        rows = list(zip(grown, [given[at] for at in members], strict=True))
        read = in_batches(rows, batch_size, lambda batch: _read(model, batch))
        found |= dict(zip(members, read, strict=True))
    return [found[at] for at in range(len(prompts))]


@torch.no_grad()
def _read(model: LensModel, rows: Sequence[tuple[Generation, Edit | None]]) -> list[GreedyAnswer]:
    ids = [row.ids[: row.n_prompt + TOKENS] for row, _ in rows]
    batch, _ = pad_rows(model, ids)
    acting = routed(model, [edit for _, edit in rows], [row.ids[: row.n_prompt] for row, _ in rows])
    resid = model.run(batch, hooks=edit_hooks(model, acting))
    precision = torch.promote_types(model.dtype, torch.float32)
    answers: list[GreedyAnswer] = []
    for own, at, (row, _) in zip(ids, resid, rows, strict=True):
        logits = model.unembed(at[row.n_prompt - 1 : max(len(own) - 1, row.n_prompt)]).to(precision)
        logs = logits.log_softmax(dim=-1)
        entropy = float(-(logs[0].exp() * logs[0].clamp_min(-1e4)).sum())
        new = list(own[row.n_prompt :])
        chosen = logs[torch.arange(len(new)), torch.tensor(new, dtype=torch.long)].tolist() if new else []
        answers.append(_answer(model, new, chosen, entropy))
    return answers


def _answer(model: LensModel, ids: Sequence[int], logs: Sequence[float], entropy: float) -> GreedyAnswer:
    """Read the answer word by word; a word consists of the tokens up to the next blank."""
    texts: list[str] = [model.tokenizer.decode(list(ids[: n + 1]), skip_special_tokens=True) for n in range(len(ids))]
    whole = texts[-1] if texts else ""
    end = _END.search(whole.lstrip())
    limit = len(whole) if end is None else len(whole) - len(whole.lstrip()) + end.start()
    kept = 0
    for n in range(len(ids)):
        before = texts[n - 1] if n else ""
        piece = texts[n][len(before) :]
        if len(before) >= limit or (not piece.strip() and n > 0 and not before.strip()):
            break
        starts_word = n > 0 and piece[:1].isspace() and before.strip() != ""
        if starts_word and logs[n] < math.log(GOES_ON):
            break
        kept = n + 1
    text = (texts[kept - 1] if kept else "")[:limit].strip()
    # A function word at the end belongs to the text after the answer.
    words = text.split()
    while len(words) > 1 and words[-1].lower() in FUNCTION_WORDS:
        words.pop()
    while kept > 1 and len(texts[kept - 2].strip()) >= len(" ".join(words)):
        kept -= 1
    mean = sum(logs[:kept]) / kept if kept else 0.0
    return GreedyAnswer(
        text=" ".join(words), probability=math.exp(mean) if kept else 0.0, entropy=entropy, continuation=whole
    )
