"""What stands between a prompt and its target: one rule, for every part of driftlens and every way to call it.

1. Blanks and tabs at the end of a prompt are dropped, and a target is stripped. The joint supplies the blank; with two
   of them a tokenizer would make other tokens than running text has.
2. A prompt that ends in a line break keeps it, and the target follows directly. Chat templates end so.
3. The target also follows directly where the prompt's script puts no blanks between words (Chinese, Japanese, Thai, …),
   and after a special token, where text begins anew.
4. Anywhere else one blank joins the two, whatever the tokenizer makes of it.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable

__all__ = ["distractor", "join", "without_blanks"]

_BREAKS = "\n\r\v\f\x85\u2028\u2029"

# First and last character of the blocks whose scripts separate no words: Thai and Lao; Tibetan and Myanmar; Khmer;
# New Tai Lue, Khmer symbols and Tai Tham; CJK radicals to Bopomofo; CJK strokes to Yi; Javanese and Myanmar Extended-B;
# Myanmar Extended-A and Tai Viet; CJK compatibility ideographs and forms; halfwidth Katakana; kana and ideographs
# beyond the basic plane. Hangul is not among them: Korean has blanks.
_SPACELESS = (
    (0x0E00, 0x0EFF), (0x0F00, 0x109F), (0x1780, 0x17FF), (0x1980, 0x1AAF), (0x2E80, 0x312F), (0x3190, 0x3247),
    (0x3280, 0x4DBF), (0x4E00, 0xA4CF), (0xA980, 0xA9FF), (0xAA60, 0xAADF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F),
    (0xFF01, 0xFF9F), (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
_STARTS = [first for first, _ in _SPACELESS]


def without_blanks(prompt: str) -> str:
    """The prompt without the blanks and tabs at its end; line breaks stay."""
    end = len(prompt)
    while end and prompt[end - 1].isspace() and prompt[end - 1] not in _BREAKS:
        end -= 1
    return prompt[:end]


def join(prompt: str, target: str, *, special_tokens: Iterable[str] = ()) -> str:
    """The prompt with its target, as one text; the prompt's own part of it is :func:`without_blanks` of it.

    ``special_tokens`` are the tokenizer's, as text; where nobody knows them, no prompt ends in one.
    """
    start, rest = without_blanks(prompt), target.strip()
    direct = not start or start[-1] in _BREAKS or _spaceless(start) or start.endswith(tuple(special_tokens))
    return f"{start}{rest}" if direct else f"{start} {rest}"


def distractor(prompt: str, target: str) -> str:
    """The sentence that is put before a prompt to distract: the edited statement, its full stop, and a blank."""
    return f"{join(prompt, target)}. "


def _spaceless(text: str) -> bool:
    """Whether the last letter belongs to a script without blanks; digits and punctuation behind it do not tell."""
    for character in reversed(text):
        if unicodedata.category(character)[0] in "LM":
            at = bisect_right(_STARTS, ord(character)) - 1
            return at >= 0 and ord(character) <= _SPACELESS[at][1]
        if character.isspace():
            return False
    return False
