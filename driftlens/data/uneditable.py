"""Recognise records of public datasets whose fact cannot be edited.

In some records the prompt names its subject twice or with another spelling, or the new target equals the old one. Such
records follow the schema, so they are left out and counted; a violated schema is an error.
"""

from driftlens.data.fact import Fact
from driftlens.data.reading import Node
from driftlens.errors import DriftlensError

__all__ = ["UneditableError", "fact_of"]


class UneditableError(DriftlensError):
    """The fact of one record cannot be edited; the message names file, record and field."""


def fact_of(prompt: Node, *, subject: str, target_true: str, target_new: str, template: bool = False) -> Fact:
    """Make the fact; `prompt` is a template with `{}` or a text that contains the subject."""
    text = prompt.text()
    try:
        if template:
            return Fact(subject=subject, prompt=text, target_true=target_true, target_new=target_new)
        return Fact.from_text(text, subject=subject, target_true=target_true, target_new=target_new)
    except DriftlensError as error:
        raise UneditableError(prompt.message(str(error))) from error
