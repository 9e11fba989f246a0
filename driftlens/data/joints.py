"""Join a prompt and its target: one rule for all of driftlens.

1. Trailing blanks and tabs of the prompt are dropped, and the target is stripped. The rule itself adds the blank; with
   two blanks, the tokens would differ from those of running text.
2. A prompt that ends in a line break keeps it, and the target follows directly. Chat templates end this way.
3. The target also follows directly if the prompt's script puts no blanks between words (Chinese, Japanese, Thai, …),
   and after a special token, where a new text begins.
4. Otherwise one blank joins the two, however the tokenizer splits it.
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
    """Strip trailing blanks and tabs from the prompt, but not line breaks."""
    end = len(prompt)
    while end and prompt[end - 1].isspace() and prompt[end - 1] not in _BREAKS:
        end -= 1
    return prompt[:end]


def join(prompt: str, target: str, *, special_tokens: Iterable[str] = ()) -> str:
    """Join prompt and target into one text, which begins with :func:`without_blanks` of the prompt.

    ``special_tokens`` are the texts of the tokenizer's special tokens; without them, rule 3 covers scripts only.
    """
    start, rest = without_blanks(prompt), target.strip()
    direct = not start or start[-1] in _BREAKS or _spaceless(start) or start.endswith(tuple(special_tokens))
    return f"{start}{rest}" if direct else f"{start} {rest}"


def distractor(prompt: str, target: str) -> str:
    """Return the distracting sentence before a prompt: the edited statement, a full stop and a blank."""
    return f"{join(prompt, target)}. "


def _spaceless(text: str) -> bool:
    """Whether the last letter belongs to a script without blanks; digits and punctuation after it are ignored."""
    for character in reversed(text):
        if unicodedata.category(character)[0] in "LM":
            at = bisect_right(_STARTS, ord(character)) - 1
            return at >= 0 and ord(character) <= _SPACELESS[at][1]
        if character.isspace():
            return False
    return False
