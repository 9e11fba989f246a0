"""The texts that a data set words its facts by."""

from collections.abc import Sequence

from driftlens.data.record import Record

__all__ = ["templates"]


def templates(records: Sequence[Record]) -> tuple[str, ...]:
    """Every template that a data set words its facts by: the edits' own and those of their paraphrases."""
    found: dict[str, None] = {}
    for record in records:
        fact = record.fact
        found[fact.prompt] = None
        for prompt in record.tasks["paraphrase"]:
            if prompt.text.count(fact.subject) == 1 and "{}" not in prompt.text:
                found[prompt.text.replace(fact.subject, "{}")] = None
    return tuple(found)
