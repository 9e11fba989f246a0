"""A small study for tests: texts that hold markup, and answers made by rule."""

from collections.abc import Callable
from typing import Any

from driftlens import Fact
from driftlens.human import CRITERIA, AnswerSheet, Comparison, Systems, TextPair
from driftlens.human.comparison import Item

NASTY = "<script>document.title='broken in'</script><img src=x onerror=\"document.title='broken in'\"> & </script>"
SECRETS = ("ROME", "SADR", "baseline", "challenger", "identical", "shuffled")


def text_pair(number: int, *, setting: str = "one", baseline: str = "", challenger: str = "") -> TextPair:
    fact = Fact(subject=f"Town {number}", prompt="{} lies in", target_true="France", target_new=f"Peru {number}")
    return TextPair(
        setting=setting,
        fact=fact,
        prompt=fact.text,
        baseline=baseline or f" Peru {number}. The first writer says {number} things {NASTY}",
        challenger=challenger or f" Peru {number}. The second writer says {number} other things.",
    )


def comparison(pairs: int = 20, *, checks: int = 2, seed: int = 0, settings: tuple[str, ...] = ("one",)) -> Comparison:
    made = [text_pair(number, setting=settings[number % len(settings)]) for number in range(pairs)]
    return Comparison.of(
        made,
        {name: Systems(baseline="ROME", challenger="ROME + SADR") for name in settings},
        spares=[text_pair(100), text_pair(101)],
        checks=checks,
        seed=seed,
        title="Which <b>text</b> is better?",
    )


def sheet(
    study: Comparison,
    annotator: str,
    answer: Callable[[Item, str, tuple[int, int]], str | None],
    *,
    session: str = "",
    exported: str = "2026-01-01",
) -> AnswerSheet:
    """A sheet as the page writes it; `answer` sees the item, the criterion, and which text stands where."""
    answers: list[dict[str, Any]] = []
    for at, item in enumerate(study.items):
        shown = (at % 2, 1 - at % 2)
        choices = {each.name: choice for each in CRITERIA if (choice := answer(item, each.name, shown)) is not None}
        answers.append({"item": item.id, "shown": list(shown), "choices": choices, "seconds": 10.0 + at})
    told = {
        "format": "driftlens-answers-1",
        "study": study.id,
        "annotator": annotator,
        "session": session or annotator,
        "exported": exported,
        "answers": answers,
    }
    return AnswerSheet.read(told, f"{annotator}.json")


def side_of(text: int, shown: tuple[int, int]) -> str:
    """On which side a text stands."""
    return "AB"[shown.index(text)]


def careful(item: Item, criterion: str, shown: tuple[int, int], *, pair: int | str = "tie") -> str:
    """Right at every check; `pair` is the answer about a pair: the challenger's 1, the baseline's 0, or "tie"."""
    expected = item.expected.get(criterion, "tie")
    if item.kind == "pair":
        expected = "tie" if pair == "tie" else item.challenger if pair == 1 else 1 - item.challenger
    return "tie" if expected == "tie" else side_of(int(expected), shown)
