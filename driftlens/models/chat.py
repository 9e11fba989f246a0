"""Chat models: the text that the tokenizer's chat template puts around a prompt.

The template is applied once to a placeholder message and split there, so that the positions of a prompt's characters,
and of its subject, are known. The text after the prompt ends where the assistant's answer begins.
"""

from dataclasses import dataclass
from typing import Any

from driftlens.errors import DriftlensError

__all__ = ["RAW", "ChatFrame", "chat_frame"]


@dataclass(frozen=True, kw_only=True)
class ChatFrame:
    """The text `before` and `after` a prompt.

    If `complete`, the text already contains all special tokens, and the tokenizer adds none.
    """

    before: str = ""
    after: str = ""
    complete: bool = False

    def __bool__(self) -> bool:
        """Whether there is anything around a prompt."""
        return self.complete

    def around(self, prompt: str) -> str:
        """The text that the model reads for `prompt`."""
        return f"{self.before}{prompt}{self.after}"


RAW = ChatFrame()
"""No template: the prompt alone."""

_STAND_INS = ("the-message-of-the-user-stands-here", "another-message-stands-here")


def chat_frame(tokenizer: Any, system: str | None = None) -> ChatFrame:
    """The frame of the tokenizer's chat template around a single message of the user, after `system` if given.

    None leaves the system prompt to the template, which may have a default of its own; "" is an empty one, as Hugging
    Face renders it.

    Raises:
        DriftlensError: the tokenizer has no template, or one that takes no system prompt or changes the message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DriftlensError(
            "this model's tokenizer has no chat template, so it is no chat model; leave chat out, and it reads the "
            "prompts as plain text"
        )
    if system and not system.strip():
        raise DriftlensError(f"the system prompt {system!r} is blank; give some visible text, or '' for an empty one")
    frames = {_split(tokenizer, system, stand_in) for stand_in in _STAND_INS}
    frame = frames.pop()
    if frames or (system is not None and system.strip() not in frame.before):
        raise DriftlensError(
            "the tokenizer's chat template changes with the message or drops the system prompt; write the prompts "
            "with the template's words yourself, as plain text"
        )
    return frame


def _split(tokenizer: Any, system: str | None, stand_in: str) -> ChatFrame:
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": stand_in}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        given = "with a system prompt; leave that out" if system is not None else "a single message of the user"
        raise DriftlensError(f"the tokenizer's chat template does not take {given} ({error})") from None
    before, found, after = text.partition(stand_in)
    if not found or stand_in in after:
        raise DriftlensError(
            "the tokenizer's chat template does not hold the user's message once; write the prompts with the "
            "template's words yourself, as plain text"
        )
    return ChatFrame(before=before, after=after, complete=True)
