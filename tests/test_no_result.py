"""Where there is no result, one line says so: unknown facts and edits that do not take."""

from typing import Any

import pandas as pd
import pytest

from driftlens.commands.trace_doubts import doubts
from driftlens.commands.trace_study import Study
from driftlens.data import Fact, TaskPrompt

FACT = Fact(subject="Eiffel Tower", prompt="{} is in", target_true="Paris", target_new="Rome")
PROMPT = TaskPrompt(text="Big Ben is in", target_true="London", target_new="Rome")
STUDY = Study(fact=FACT, task="neighborhood", prompts=(PROMPT,), name="typed fact")


def seen(own: float, traced: float, edited: float) -> pd.DataFrame:
    rows = {"task": ["the edit", "neighborhood"], "true_before": [own, traced], "true_after": [0.01, 0.1]}
    return pd.DataFrame({**rows, "edit_after": [edited, 0.2]})


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0.9, 0.8, 0.99), ()),
        ((0.001, 0.8, 0.99), ("does not seem to know the fact", "spelling of the subject")),
        ((0.9, 0.8, 0.2), ("the edit does not take: P('Rome') is 0.200", "--steps")),
        ((0.9, 0.001, 0.99), ("at most 0.001", "--test-prompt")),
        ((0.001, 0.001, 0.2), ("does not seem to know", "does not take", "nothing to lose")),
    ],
)
def test_one_line_says_what_is_missing(numbers: Any, said: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("driftlens.commands.trace_doubts._said", lambda *_: "a city")
    model: Any = None
    line = doubts(model, STUDY, seen(*numbers))
    assert bool(line) == bool(said)
    assert "\n" not in line
    for part in said:
        assert part in line
