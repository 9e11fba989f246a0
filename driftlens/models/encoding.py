"""Tokenise text, with the character span of every token.

Positions of words are found through these spans, not by searching for token strings. A BOS token is added exactly if
the tokenizer itself adds one; TransformerLens's BOS handling is not used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from driftlens.errors import DriftlensError

__all__ = ["Encoding", "adds_bos", "encode", "fast", "own_tokenizer", "special_tokens"]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Token ids and the character span of each; (0, 0) for a BOS."""

    ids: list[int]
    offsets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)


def encode(tokenizer: Any, texts: Sequence[str], *, complete: bool = False) -> list[Encoding]:
    """Tokenise whole texts without truncation; an EOS that some tokenizers append is removed.

    A text that already begins with the BOS token gets no second one. Texts that are `complete`, such as those of a chat
    template, get no additional special tokens.
    """
    if not texts:
        return []
    # verbose=False: a long text is for the caller to judge, not a warning on the screen.
    encoded = tokenizer(
        list(texts),
        return_offsets_mapping=True,
        padding=False,
        truncation=False,
        verbose=False,
        add_special_tokens=not complete,
    )
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [
        _without_eos(*_with_one_bos(list(ids), list(offsets), tokenizer.bos_token_id), tokenizer.eos_token_id)
        for ids, offsets in pairs
    ]


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The texts of the tokenizer's special tokens."""
    return tuple(sorted({str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}))


def _with_one_bos(
    ids: list[int], offsets: list[tuple[int, int]], bos: int | None
) -> tuple[list[int], list[tuple[int, int]]]:
    added = len(ids) > 1 and ids[0] == bos and offsets[0][0] == offsets[0][1]
    return (ids[1:], offsets[1:]) if added and ids[1] == bos else (ids, offsets)


def _without_eos(ids: list[int], offsets: list[tuple[int, int]], eos: int | None) -> Encoding:
    while len(ids) > 1 and ids[-1] == eos and offsets[-1][0] == offsets[-1][1]:
        ids.pop()
        offsets.pop()
    return Encoding(ids=ids, offsets=offsets)


def adds_bos(tokenizer: Any) -> bool:
    """Whether this tokenizer begins every text with a BOS."""
    return encode(tokenizer, ["a"])[0].offsets[0] == (0, 0)


def own_tokenizer(tokenizer: Any) -> Any:
    """The checkpoint's own tokenizer, given the one inside a TransformerLens model.

    TransformerLens reloads its tokenizer with `add_bos_token=True`, so that GPT-2's adds a BOS to every text. The
    original is read again from its local source; if that no longer exists, the model's tokenizer is used unchanged.
    """
    if tokenizer is None:
        return None
    from transformers import AutoTokenizer

    try:
        original: Any = AutoTokenizer.from_pretrained(tokenizer.name_or_path, local_files_only=True)
    except (OSError, ValueError):
        original = tokenizer
    return fast(original)


def fast(tokenizer: Any) -> Any:
    """The tokenizer itself, if it can give offsets."""
    if not tokenizer.is_fast:
        raise DriftlensError(
            f"tokenizer {type(tokenizer).__name__} cannot say which characters a token stands for; "
            f"expected a fast one (a tokenizer.json beside the weights)"
        )
    return tokenizer
