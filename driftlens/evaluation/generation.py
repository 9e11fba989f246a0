"""Continue many prompts at once, each under its own edit, with a key-value cache.

1. Rows are sorted by length and padded on the left, so that the newest token of every row is in the same column.
2. One pass over the prompts caches all keys and values; every further step runs one column and extends the cache.
3. Different edits are rows of one batch, through hooks; rows that have ended leave the batch.
4. Each row has its own random stream, made on the CPU from the seed and the row's key.  Up to float rounding, its text
   is therefore the same in every batch, in every order and on every device.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.edits import Edit, Edited, check_edits, edit_hooks, edits_or_none, routed
from driftlens.errors import DriftlensError
from driftlens.models import Batch, KeyValues, LensModel, check_loaded
from driftlens.models.memory import in_batches
from driftlens.models.prompts import pad_rows, tokenize_prompts
from driftlens.progress import OnDone

Key = str | int | tuple[str | int, ...]
"""Identifies a row's random stream."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A prompt and its continuation.

    ``ids`` are the prompt's tokens (with BOS if the tokenizer adds one) followed by the new tokens, without an EOS that
    ended the text.
    """

    prompt: str
    continuation: str
    ids: tuple[int, ...]
    n_prompt: int
    chat: bool = False

    @property
    def text(self) -> str:
        """Prompt and continuation; a chat's answer begins on its own line."""
        return f"{self.prompt}\n{self.continuation}" if self.chat else self.prompt + self.continuation


@dataclass(frozen=True, kw_only=True)
class _Row:
    prompt: str
    ids: tuple[int, ...]
    edit: Edit | None
    key: Key


def generate(
    model: LensModel,
    prompts: Sequence[str],
    edits: Edited | Sequence[Edited | None] | None = None,
    *,
    top_k: int = 5,
    seed: int = 0,
    keys: Sequence[Key] | None = None,
    max_tokens: int = 100,
    stop_at_eos: bool | None = None,
    batch_size: int = 64,
    on_rows: OnDone | None = None,
) -> list[Generation]:
    """Continue every prompt until it has ``max_tokens`` tokens.

    Args:
        model: the vanilla model.
        prompts: the texts to continue.
        edits: one edit for all prompts or one for each; ``None`` is the vanilla model.
        top_k: each token is drawn from the ``top_k`` most probable ones, by their probabilities; 1 is greedy.
        seed: the seed of the random streams.
        keys: identify each row's random stream beside the seed.  Default: the prompt and the number of its earlier
            occurrences in the list, so that a repeated prompt gets different continuations.
        max_tokens: the length of the whole text in tokens, prompt and BOS included, as in the published code; at most
            the model's context.  A prompt of that length or more is returned unchanged.
        stop_at_eos: whether a text ends at the model's EOS.  Default: a chat does, and a plain text goes on, as in the
            published code.  EOS is never part of the text.
        batch_size: rows at a time.
        on_rows: called with (rows done, rows in all).

    Raises:
        DriftlensError: a prompt is empty or too long for the model, ``top_k`` or ``max_tokens`` is below 1, or
            the numbers of edits, keys and prompts differ.
    """
    if top_k < 1 or max_tokens < 1:
        raise DriftlensError(f"top_k is {top_k} and max_tokens {max_tokens}; expected 1 or more of each")
    check_loaded(model)
    edit_list = edits_or_none(edits, len(prompts))
    key_list = _occurrences(prompts) if keys is None else list(keys)
    for name, found in (("edits", len(edit_list)), ("keys", len(key_list))):
        if found != len(prompts):
            raise DriftlensError(f"{len(prompts)} prompts but {found} {name}; give one for each prompt")
    check_edits(model, edit_list)
    tokenized = tokenize_prompts(model, [(prompt, "") for prompt in prompts])
    acting = routed(model, edit_list, [prompt.ids for prompt in tokenized])
    rows = [
        _Row(prompt=prompt.text, ids=prompt.ids, edit=edit, key=key)
        for prompt, edit, key in zip(tokenized, acting, key_list, strict=True)
    ]
    # By length, for little padding; among equal lengths by edit, for few different edits in a batch.
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), id(rows[i].edit)))
    limit = min(max_tokens, model.n_ctx)
    stop = bool(model.frame) if stop_at_eos is None else stop_at_eos
    eos: int | None = model.tokenizer.eos_token_id if stop else None
    grown = in_batches(
        [rows[i] for i in order],
        batch_size,
        lambda batch: _continue(model, batch, limit=limit, top_k=top_k, seed=seed, eos=eos),
        on_done=on_rows,
    )
    results: dict[int, Generation] = {}
    for i, ids in zip(order, grown, strict=True):
        results[i] = Generation(
            prompt=rows[i].prompt,
            continuation=_continuation(model, ids, len(rows[i].ids)),
            ids=tuple(ids),
            n_prompt=len(rows[i].ids),
            chat=bool(model.frame),
        )
    return [results[i] for i in range(len(rows))]


def _occurrences(prompts: Sequence[str]) -> list[Key]:
    seen: Counter[str] = Counter()
    keys: list[Key] = []
    for prompt in prompts:
        keys.append((prompt, seen[prompt]))
        seen[prompt] += 1
    return keys


@torch.no_grad()
def _continue(
    model: LensModel, rows: Sequence[_Row], *, limit: int, top_k: int, seed: int, eos: int | None
) -> list[list[int]]:
    """Continue one batch, column by column."""
    grown = [list(row.ids) for row in rows]
    draws = torch.stack([_draws(row.key, seed, limit) for row in rows])
    active = [i for i, row in enumerate(rows) if len(row.ids) < limit]
    if not active:
        return grown
    past: KeyValues | None = None
    prompts = [rows[i].ids for i in active]
    batch = pad_rows(model, prompts, align=[len(ids) - 1 for ids in prompts])[0]
    hooks = edit_hooks(model, [rows[i].edit for i in active])
    while active:
        resid, past = model.keys_values(batch, hooks=hooks, columns=batch.shape[1], past=past)
        at = torch.tensor([len(grown[i]) for i in active])
        chosen = _choose(model.unembed(resid[:, -1]), draws[active, at], top_k)
        kept: list[int] = []
        for place, (i, token) in enumerate(zip(active, chosen, strict=True)):
            if token == eos:
                continue
            grown[i].append(token)
            if len(grown[i]) < limit:
                kept.append(place)
        if len(kept) < len(active):
            active = [active[place] for place in kept]
            past = past.select(torch.tensor(kept, dtype=torch.long, device=model.device))
            hooks = edit_hooks(model, [rows[i].edit for i in active])
        newest = torch.tensor([grown[i][-1] for i in active], dtype=torch.long, device=model.device)[:, None]
        batch = Batch(newest, torch.ones_like(newest, dtype=torch.bool))
    return grown


def _draws(key: Key, seed: int, count: int) -> Float[Tensor, "count"]:
    """Draw one number for every place of the row; hashing makes streams of similar seeds and keys independent."""
    digest = hashlib.sha256(f"{seed} {key!r}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _choose(logits: Float[Tensor, "rows d_vocab"], draws: Float[Tensor, "rows"], top_k: int) -> list[int]:
    """Choose each row's first token at which the cumulative probability of the top tokens exceeds the draw."""
    values, candidates = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    cumulated = values.cpu().double().softmax(dim=-1).cumsum(dim=-1)
    # The last sum is 1 up to rounding, and a draw is below 1.
    place = (cumulated[:, :-1] <= draws[:, None]).sum(dim=-1, keepdim=True)
    chosen: Int[Tensor, "rows"] = candidates.cpu().gather(1, place).squeeze(1)
    return chosen.tolist()


def _continuation(model: LensModel, ids: Sequence[int], n_prompt: int) -> str:
    """Decode the new tokens.

    The whole text is decoded and the prompt's part removed, because a tokenizer may drop the leading blank of the first
    token that it decodes.
    """
    tokenizer = model.tokenizer

    def decode(tokens: Sequence[int]) -> str:
        return tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    whole, before = decode(ids), decode(ids[:n_prompt])
    return whole[len(before) :]
