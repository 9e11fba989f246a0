"""Text to tokens, with the place in the text that every token came from.

Positions of words are found through these offsets, so a token never has to be searched for as a string. A BOS
token is added exactly when the tokenizer itself adds one; TransformerLens's own BOS handling takes no part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from driftlens.errors import DriftlensError

__all__ = ["Encoding", "adds_bos", "encode", "fast", "own_tokenizer", "special_tokens"]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Token ids and, for each, the range of characters that it stands for; (0, 0) for a BOS."""

    ids: list[int]
    offsets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)


def encode(tokenizer: Any, texts: Sequence[str], *, complete: bool = False) -> list[Encoding]:
    """Tokens of whole texts, never truncated; a closing EOS that some tokenizers append is left out.

    A text that begins with the BOS token, written out, gets no second one. Texts that are `complete`, as a chat
    template's are, get no special token that does not stand in them.
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
    """The tokenizer's special tokens, as they are written in a text."""
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
    """Whether this tokenizer puts a BOS, a token that stands for no text, in front of every text."""
    return encode(tokenizer, ["a"])[0].offsets[0] == (0, 0)


def own_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer as its checkpoint has it, given the one inside a TransformerLens model.

    TransformerLens reloads the tokenizer it is given with `add_bos_token=True`, so that GPT-2's would put a
    BOS in front of every text. The unchanged one is read again from where it came from, locally; where that
    place is gone, the model's tokenizer is used as it is.
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
