"""What a MEND hypernetwork is trained on: which records, and which prompts of them.

1. Records that something is measured on take no part, nor does any record with a subject of theirs: the data's own
   split "test", or, where the data has no splits, the first 400 records.
2. Whole subjects of the rest are held out for validation, unless the data itself has a training split.
3. Each record gives the edit prompt, its paraphrases that name the subject (the edit prompt itself where there are
   none), and neighbourhood prompts with their true targets, another record's where it has none.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from driftlens.data import Record
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.models.prompts import TokenizedPrompt, subject_last, tokenize_prompt

__all__ = ["MEASURED", "Example", "Split", "examples", "split_records"]

MEASURED = 400
"""Of data without splits, the first so many records are for measuring."""

_VALIDATION = 60
"""Validation records at most, and a fifth of the records at most."""
_WORDINGS = 2
"""Paraphrases, and locality prompts, of each record at most: what lies below the edit is kept for all of them."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which records train and which validate; their subjects are different ones."""

    train: tuple[Record, ...]
    validation: tuple[Record, ...]

    @property
    def digest(self) -> str:
        """What tells it from every other split."""
        texts = [record.described() for part in (self.train, self.validation) for record in part]
        return hashlib.sha256("\0".join([str(len(self.train)), *texts]).encode()).hexdigest()[:20]


def split_records(records: Sequence[Record], *, measured: int = MEASURED, seed: int = 0) -> Split:
    """The records that a hypernetwork is trained and validated on; see the module.

    Args:
        records: of a data set, all of them.
        measured: of data without splits, how many records, the first ones, are left for measuring.
        seed: of which subjects validate.

    Raises:
        DriftlensError: fewer than five records are left.
    """
    if any(record.split is not None for record in records):
        tested = [record for record in records if record.split == "test"]
        rest = [record for record in records if record.split != "test"]
        why = "of no test split"
    else:
        tested = [record for record in records if record.index < measured]
        rest = [record for record in records if record.index >= measured]
        why = f"above the first {measured}, which are for measuring"
    subjects = {record.fact.subject for record in tested}
    rest = [record for record in rest if record.fact.subject not in subjects]
    if len(rest) < 5:
        raise DriftlensError(
            f"{len(rest)} of {len(records)} records are {why}, and have a subject of their own; give more records, or "
            "say with measured (--measured) how many to leave out"
        )
    train = [record for record in rest if record.split == "train"]
    if train:
        taken = {record.fact.subject for record in train}
        validation = [record for record in rest if record.split != "train" and record.fact.subject not in taken]
    else:
        validation = []
    if not validation:
        train, validation = _by_subject(rest, min(_VALIDATION, max(1, len(rest) // 5)), seed)
    return Split(train=tuple(train), validation=tuple(validation[:_VALIDATION]))


def _by_subject(records: Sequence[Record], wanted: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Training and validation records, in their order; ``wanted`` of the latter, whole subjects of them."""
    subjects = list(dict.fromkeys(record.fact.subject for record in records))
    random.Random(f"driftlens MEND validation {seed}").shuffle(subjects)
    held_out: set[str] = set()
    for subject in subjects:
        if sum(record.fact.subject in held_out for record in records) >= wanted:
            break
        held_out.add(subject)
    train = [record for record in records if record.fact.subject not in held_out]
    return train, [record for record in records if record.fact.subject in held_out]


@dataclass(frozen=True, kw_only=True)
class Example:
    """The prompts of one record, as tokens.

    Attributes:
        edit: the edit prompt with the new target.
        rephrased: its paraphrases, at least one, with the new target.
        subjects: of each paraphrase, the index of the subject's last token.
        locality: token rows of unrelated statements, at least one.
        index: the record's.
    """

    edit: TokenizedPrompt
    rephrased: tuple[TokenizedPrompt, ...]
    subjects: tuple[int, ...]
    locality: tuple[tuple[int, ...], ...]
    index: int = 0

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Every token row that is run: the edit prompt's, the paraphrases', the locality prompts'."""
        return (self.edit.forced, *(prompt.forced for prompt in self.rephrased), *self.locality)


def examples(model: LensModel, records: Sequence[Record], *, rephrase: bool = True) -> list[Example]:
    """An example of each record.

    Raises:
        DriftlensError: no record has a neighbourhood prompt; a prompt is too long for the model.
    """
    locality = [_locality(model, record) for record in records]
    borrowed = [own for own in locality if own]
    if not borrowed:
        raise DriftlensError("no record has a neighborhood prompt to keep unchanged; give data that has some")
    found: list[Example] = []
    for number, (record, own) in enumerate(zip(records, locality, strict=True)):
        fact = record.fact
        edit = tokenize_prompt(model, fact.text, fact.target_new)
        wordings = [prompt.text for prompt in record.tasks["paraphrase"] if fact.subject in prompt.text][:_WORDINGS]
        if not wordings or not rephrase:
            wordings = [fact.text]
        rephrased = tuple(tokenize_prompt(model, text, fact.target_new) for text in wordings)
        found.append(
            Example(
                edit=edit,
                rephrased=rephrased,
                subjects=tuple(subject_last(prompt, fact.subject) for prompt in rephrased),
                locality=own or borrowed[number % len(borrowed)],
                index=record.index,
            )
        )
    return found


def _locality(model: LensModel, record: Record) -> tuple[tuple[int, ...], ...]:
    prompts = record.tasks["neighborhood"][:_WORDINGS]
    return tuple(tokenize_prompt(model, prompt.text, prompt.target_true).ids for prompt in prompts)
