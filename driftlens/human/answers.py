"""Annotators' answers, and their unblinding with the study's key.

An answer records which text was on which side (``shown``) and the choice ("A", "B" or "tie") as the annotator saw it.
Only :func:`judgements` uses the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from driftlens.errors import DriftlensError
from driftlens.human.comparison import CRITERIA, Comparison, Item

__all__ = ["CHOICES", "FORMAT", "Answer", "AnswerSheet", "checks", "judgements"]

FORMAT = "driftlens-answers-1"
CHOICES = ("A", "B", "tie")
_NAMES = tuple(criterion.name for criterion in CRITERIA)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An annotator's answer to one item.

    Attributes:
        item: the item's identifier.
        shown: the indexes of the texts on side A and on side B.
        choices: "A", "B" or "tie" by criterion, without criteria that are not answered yet.
        seconds: how long the item was on the screen; NaN if not measured.
    """

    item: str
    shown: tuple[int, int]
    choices: Mapping[str, str]
    seconds: float

    @classmethod
    def read(cls, told: Any, *, item: str | None = None) -> Answer:
        """From JSON.

        Raises:
            ValueError: something in it is not as expected; the message says what.
        """
        if not isinstance(told, dict):
            raise ValueError(f"an answer is {told!r}; expected an object")
        found: dict[str, Any] = told
        name, shown, choices = item or found.get("item"), found.get("shown"), found.get("choices")
        if not isinstance(name, str):
            raise ValueError(f"an answer is about the item {name!r}; expected its identifier")
        if shown not in ([0, 1], [1, 0]):
            raise ValueError(f"item {name}: shown is {shown!r}; expected [0, 1] or [1, 0]")
        if not isinstance(choices, dict) or not set(choices) <= set(_NAMES):  # pyright: ignore[reportUnknownArgumentType]
            raise ValueError(f"item {name}: choices are {choices!r}; expected an object with {', '.join(_NAMES)}")
        answers: dict[str, Any] = choices
        odd = next((choice for choice in answers.values() if choice not in CHOICES), None)
        if odd is not None:
            raise ValueError(f"item {name}: the choice {odd!r} is unknown; expected {', '.join(CHOICES)}")
        seconds = found.get("seconds")
        measured = isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds >= 0
        return cls(
            item=name,
            shown=(shown[0], shown[1]),
            choices=dict(answers),
            seconds=float(seconds) if measured else float("nan"),  # pyright: ignore[reportArgumentType]
        )


@dataclass(frozen=True, kw_only=True)
class AnswerSheet:
    """All answers of one annotator to one study.

    Attributes:
        study: the study's hash.
        annotator: a name or code.
        session: distinguishes annotators with the same name.
        answers: one for each item that was viewed.
        exported: when the file was made; of two files of one session, the later one counts.
        comment: the annotator's comment.
        source: the file it was read from.
    """

    study: str
    annotator: str
    session: str
    answers: tuple[Answer, ...]
    exported: str = ""
    comment: str = ""
    source: str = ""

    @classmethod
    def read(cls, told: Any, source: str) -> AnswerSheet:
        """From JSON.

        Raises:
            DriftlensError: it is not a sheet of answers.
        """
        try:
            if not isinstance(told, dict) or told.get("format") != FORMAT:  # pyright: ignore[reportUnknownMemberType]
                raise ValueError("expected a file that the page of a comparison downloaded")
            found: dict[str, Any] = told
            answers = tuple(Answer.read(answer) for answer in found["answers"])
            texts = {name: found.get(name, "") for name in ("study", "annotator", "session", "exported", "comment")}
            odd = next((name for name, text in texts.items() if not isinstance(text, str)), None)
            if odd is not None or not texts["study"] or not texts["annotator"]:
                raise ValueError(f"{odd or 'study or annotator'} is missing or no text")
            if len({answer.item for answer in answers}) < len(answers):
                raise ValueError("it answers an item twice")
        except (ValueError, KeyError, TypeError) as error:
            raise DriftlensError(f"{source} holds no answers ({error})") from error
        return cls(answers=answers, source=source, **texts)

    def told(self) -> dict[str, Any]:
        """For JSON, as the page writes it."""
        return {
            "format": FORMAT,
            "study": self.study,
            "annotator": self.annotator,
            "session": self.session,
            "exported": self.exported,
            "comment": self.comment,
            "answers": [
                {
                    "item": answer.item,
                    "shown": list(answer.shown),
                    "choices": dict(answer.choices),
                    "seconds": None if answer.seconds != answer.seconds else answer.seconds,
                }
                for answer in self.answers
            ],
        }


def judgements(comparisons: Sequence[Comparison], sheets: Sequence[AnswerSheet]) -> pd.DataFrame:
    """Unblind all answers about pairs: a row per annotator, pair and criterion.

    Returns:
        Columns ``setting, pair`` (with the study's hash, so that studies can be merged), ``annotator,
        criterion, outcome`` ("win", "loss" or "tie" of the challenger), ``side`` ("A", "B" or "tie"), ``seconds``
        (of the whole pair).

    Raises:
        DriftlensError: an answer's study or item is not in ``comparisons``.
    """
    rows: list[dict[str, Any]] = []
    for sheet, answer, item in _answered(comparisons, sheets):
        if item.kind != "pair":
            continue
        for criterion in _NAMES:
            choice = answer.choices.get(criterion)
            if choice is None:
                continue
            text = _text_of(answer, choice)
            rows.append(
                {
                    "setting": item.setting,
                    "pair": f"{sheet.study}/{item.id}",
                    "annotator": sheet.annotator,
                    "criterion": criterion,
                    "outcome": "tie" if text == "tie" else "win" if text == item.challenger else "loss",
                    "side": choice,
                    "seconds": answer.seconds,
                }
            )
    columns = ["setting", "pair", "annotator", "criterion", "outcome", "side", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def checks(comparisons: Sequence[Comparison], sheets: Sequence[AnswerSheet]) -> pd.DataFrame:
    """The results of attention checks: a row per annotator and completely answered check.

    Returns:
        Columns ``annotator, check`` (its kind), ``item, passed``.
    """
    rows = [
        {
            "annotator": sheet.annotator,
            "check": item.kind,
            "item": item.id,
            "passed": all(_text_of(answer, answer.choices[name]) == right for name, right in item.expected.items()),
        }
        for sheet, answer, item in _answered(comparisons, sheets)
        if item.kind != "pair" and set(item.expected) <= set(answer.choices)
    ]
    return pd.DataFrame(rows, columns=["annotator", "check", "item", "passed"])


def _text_of(answer: Answer, choice: str) -> int | str:
    """The index of the chosen text, or "tie"."""
    return "tie" if choice == "tie" else answer.shown["AB".index(choice)]


def _answered(
    comparisons: Sequence[Comparison], sheets: Sequence[AnswerSheet]
) -> list[tuple[AnswerSheet, Answer, Item]]:
    items = {comparison.id: {item.id: item for item in comparison.items} for comparison in comparisons}
    found: list[tuple[AnswerSheet, Answer, Item]] = []
    for sheet in sheets:
        if sheet.study not in items:
            raise DriftlensError(
                f"{sheet.source or sheet.annotator} answers the study {sheet.study}, whose key is not given; name the "
                "key.json that `driftlens compare` wrote for it"
            )
        for answer in sheet.answers:
            if answer.item not in items[sheet.study]:
                raise DriftlensError(
                    f"{sheet.source or sheet.annotator} answers the item {answer.item!r}, which the study does not have"
                )
            found.append((sheet, answer, items[sheet.study][answer.item]))
    return found
