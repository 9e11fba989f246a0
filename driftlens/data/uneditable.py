"""Records of a public dataset that no editor can take.

Their files were made for other programs: here and there a prompt names its subject twice or in other letters,
or the new target is the old one. Such a record breaks no schema, so it is left out and counted, where a broken
schema is an error.
"""

from driftlens.data.fact import Fact
from driftlens.data.reading import Node
from driftlens.errors import DriftlensError

__all__ = ["UneditableError", "fact_of"]


class UneditableError(DriftlensError):
    """The fact of one record cannot be edited; the message names file, record and field."""


def fact_of(prompt: Node, *, subject: str, target_true: str, target_new: str, template: bool = False) -> Fact:
    """The fact, its `prompt` a template with `{}` or a text with the subject in it."""
    text = prompt.text()
    try:
        if template:
            return Fact(subject=subject, prompt=text, target_true=target_true, target_new=target_new)
        return Fact.from_text(text, subject=subject, target_true=target_true, target_new=target_new)
    except DriftlensError as error:
        raise UneditableError(prompt.message(str(error))) from error
