"""Context prefixes x_j: texts put before the prompt so that a key and a value hold in more than one context.

ROME takes 21: the bare prompt, ten prefixes of five tokens and ten of ten; MEMIT and PMET take six.  Prefixes
are sampled from the vanilla model (top-5), starting from five common words, and joined as ``"{prefix}.
{prompt}"`` (as in the published code).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.models.prompts import pad_rows

STARTS = ("The", "Therefore", "Because", "I", "You")


@dataclass(frozen=True, kw_only=True)
class ContextSampling:
    """How context prefixes are sampled.

    Attributes:
        lengths: pairs (tokens per prefix, number of such prefixes).
        top_k: the model samples from the ``top_k`` most likely tokens.
        seed: the same seed and model give the same prefixes, on every device.
        starts: the beginnings of the prefixes, used in turn.
    """

    lengths: tuple[tuple[int, int], ...] = ((5, 10), (10, 10))
    top_k: int = 5
    seed: int = 0
    starts: tuple[str, ...] = STARTS


_sampled: WeakKeyDictionary[LensModel, dict[tuple[str, ContextSampling], tuple[str, ...]]] = WeakKeyDictionary()


def sample_contexts(model: LensModel, sampling: ContextSampling) -> tuple[str, ...]:
    """Sample templates with one ``{}`` for the prompt: the bare ``"{}"`` first, then the prefixes.

    Cached per model and its current weights, since an editor needs the same ones for every fact.
    """
    known, key = _sampled.setdefault(model, {}), (model.model_hash, sampling)
    if key not in known:
        prefixes = [prefix for length, count in sampling.lengths for prefix in _sample(model, sampling, length, count)]
        # Braces in a sampled text would be read as the slot; line breaks would start a new document.
        cleaned = [" ".join(prefix.replace("{", " ").replace("}", " ").split()) for prefix in prefixes]
        known[key] = ("{}", *(f"{prefix}. {{}}" for prefix in cleaned))
    return known[key]


def check_contexts(contexts: Sequence[str]) -> tuple[str, ...]:
    """Check the given templates.

    Raises:
        DriftlensError: there is none, or one does not contain exactly one ``{}``.
    """
    if not contexts:
        raise DriftlensError('contexts is empty; give at least the bare template "{}"')
    for context in contexts:
        if context.count("{}") != 1:
            raise DriftlensError(f'the context {context!r} must hold exactly one "{{}}", where the prompt goes')
    return tuple(contexts)


def _sample(model: LensModel, sampling: ContextSampling, length: int, count: int) -> list[str]:
    """Sample ``count`` continuations of the starts, ``length`` tokens long including the start."""
    # Drawn on the CPU, because generators of different devices would give different prefixes.
    generator = torch.Generator().manual_seed(sampling.seed * 1_000_003 + length)
    skip = 1 if model.adds_bos else 0
    starts = [list(model.encode(sampling.starts[i % len(sampling.starts)]).ids) for i in range(count)]
    rows = sample_tokens(model, starts, [skip + length] * count, top_k=sampling.top_k, generator=generator)
    return [model.tokenizer.decode(row[skip:], skip_special_tokens=True) for row in rows]


@torch.no_grad()
def sample_tokens(
    model: LensModel,
    starts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    *,
    top_k: int,
    generator: torch.Generator,
) -> list[list[int]]:
    """Continue every start with samples of ``model`` from the ``top_k`` most likely tokens.

    Args:
        model: the model that samples.
        starts: the tokens that each row begins with.
        lengths: the final number of tokens in each row, including its start; a start of that length is not continued.
        top_k: the number of tokens to sample from.
        generator: the random generator, on the CPU.
    """
    count = len(starts)
    rows = [list(start) for start in starts]
    while any(len(row) < length for row, length in zip(rows, lengths, strict=True)):
        batch, _ = pad_rows(model, rows)
        last = torch.tensor([len(row) - 1 for row in rows], device=model.device)
        resid = model.run(batch)
        logits = model.unembed(resid[torch.arange(count, device=model.device), last]).float().cpu()
        top = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        choice = torch.multinomial(top.values.softmax(dim=-1), 1, generator=generator)
        chosen: list[int] = top.indices.gather(1, choice).squeeze(1).tolist()
        rows = [
            [*row, token] if len(row) < length else row
            for row, token, length in zip(rows, chosen, lengths, strict=True)
        ]
    return rows
