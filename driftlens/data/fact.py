"""The edit request: subject, prompt template, the current target and the new one."""

import re
from dataclasses import dataclass
from typing import Self

from driftlens.data.joints import without_blanks
from driftlens.errors import DriftlensError

__all__ = ["Fact"]

_SLOT = "{}"
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: JSON and shells can produce one, and no tokenizer accepts it."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One edit request, (s, r, o_true) -> (s, r, o_edit) in the paper, e.g. `prompt="{} is located in"`.

    `prompt` marks the subject's place with exactly one `{}`; other braces are ordinary characters. Subject and targets
    are stripped. The prompt loses its trailing blanks but not its line breaks; `driftlens.data.joints` decides what
    separates it from a target. The subject must not occur a second time in the text, because it would be unclear which
    occurrence is edited.
    """

    subject: str
    prompt: str
    target_true: str
    target_new: str

    def __post_init__(self) -> None:
        for name in ("subject", "prompt", "target_true", "target_new"):
            if half := _HALF.search(getattr(self, name)):
                raise DriftlensError(f"{name} holds {half[0]!r}, half of a surrogate pair; give whole characters")
        for name in ("subject", "target_true", "target_new"):
            value = getattr(self, name).strip()
            if not value:
                raise DriftlensError(f"{name} is empty; give at least one visible character")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "prompt", without_blanks(self.prompt))

        if (slots := self.prompt.count(_SLOT)) != 1:
            raise DriftlensError(
                f"prompt {self.prompt!r} holds {slots} places {_SLOT!r} for the subject; write it exactly "
                f"once, e.g. '{_SLOT} is located in'"
            )
        if (places := _occurrences(self.text, self.subject)) != 1:
            raise DriftlensError(
                f"subject {self.subject!r} occurs {places} times in {self.text!r}; it must occur only where "
                f"{_SLOT!r} stands, so reword the prompt"
            )
        if self.target_new == self.target_true:
            raise DriftlensError(f"target_new {self.target_new!r} equals target_true; name another target")

    @classmethod
    def from_text(cls, text: str, *, subject: str, target_true: str, target_new: str) -> Self:
        """Make a fact from a full prompt that contains the subject, as in benchmark files."""
        subject = subject.strip()
        if subject and (places := _occurrences(text, subject)) != 1:
            found = "does not occur" if places == 0 else f"occurs {places} times"
            raise DriftlensError(f"subject {subject!r} {found} in {text!r}; it must occur exactly once")
        prompt = text.replace(subject, _SLOT, 1) if subject else text
        return cls(subject=subject, prompt=prompt, target_true=target_true, target_new=target_new)

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.filled(self.prompt)

    def filled(self, text: str) -> str:
        """Replace the `{}` of another prompt, if it has one, with the subject."""
        return text.replace(_SLOT, self.subject, 1)


def _occurrences(text: str, part: str) -> int:
    """Count `part` in `text`, overlaps included: "aa" occurs twice in "aaa", where `str.count` returns 1."""
    return sum(text.startswith(part, start) for start in range(len(text) - len(part) + 1))
