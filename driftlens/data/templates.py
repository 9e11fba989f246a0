"""The prompt templates of a dataset."""

from collections.abc import Sequence

from driftlens.data.record import Record

__all__ = ["templates"]


def templates(records: Sequence[Record]) -> tuple[str, ...]:
    """Return every prompt template of a dataset: those of the edits and of their paraphrases."""
    found: dict[str, None] = {}
    for record in records:
        fact = record.fact
        found[fact.prompt] = None
        for prompt in record.tasks["paraphrase"]:
            if prompt.text.count(fact.subject) == 1 and "{}" not in prompt.text:
                found[prompt.text.replace(fact.subject, "{}")] = None
    return tuple(found)
