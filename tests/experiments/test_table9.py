"""Table 9: the paper's percentages as counts of answers, and the automatic judge's three rules."""

import pytest

from driftlens import Fact
from driftlens.human import TextPair
from experiments.paper_numbers import TABLE_9
from experiments.table9 import EDITORS, ORDER, PAPER_ANSWERS, _fluencies, _judged, _row, outcome

FACT = Fact(subject="Eiffel Tower", prompt="The {} is in", target_true="Paris", target_new="Rome")


def judged(baseline: str, challenger: str) -> dict[str, object]:
    pair = TextPair(setting="ROME", fact=FACT, prompt=FACT.text, baseline=baseline, challenger=challenger)
    return _judged(pair, _fluencies([pair])[0])


def test_the_papers_percentages_are_of_360_answers():
    """20 pairs × 2 models × 9 annotators; ties are printed as what is left of 100, which may be a hundredth off."""
    assert set(TABLE_9) == {(editor.upper(), criterion) for editor in EDITORS for criterion in ORDER}
    for row in TABLE_9.values():
        counts = {name: row[name] * PAPER_ANSWERS / 100 for name in ("win", "loss", "tie")}
        for count in counts.values():
            # Half of a hundredth of a percent is 0.018 answers; a wrong divisor would be off by up to a half.
            assert count == pytest.approx(round(count), abs=0.04)
        assert sum(map(round, counts.values())) == PAPER_ANSWERS
        assert sum(row[name] for name in counts) == pytest.approx(100, abs=1e-9)


def test_edit_success_is_which_object_is_named():
    assert judged(" Rome.", " Rome. It is old.")["success"] == "tie"
    assert judged(" Paris.", " Rome.")["success"] == "win"
    assert judged(" Rome.", " Rome. It was in Paris.")["success"] == "loss"
    assert judged(" Berlin.", " Paris.")["success"] == "loss"
    assert judged(" Romeville.", " Berlin.")["success"] == "tie"  # a name inside a word is no name


def test_specificity_is_how_rarely_later_sentences_name_the_new_object():
    assert judged(" Rome. The Louvre is in Rome.", " Rome. The Louvre is old.")["specificity"] == "win"
    assert judged(" Rome. It is old.", " Rome. Rome is old.")["specificity"] == "loss"
    assert judged(" Rome, in Rome, Rome.", " Berlin.")["specificity"] == "tie"  # the first sentence does not count


def test_fluency_needs_a_difference():
    words = " ".join(f"word{number}" for number in range(20))
    assert judged(f" {words}.", " Rome Rome Rome Rome Rome Rome.")["fluency"] == "loss"
    assert [outcome(gain, 10.0) for gain in (-10.0, -9.9, 0.0, 9.9, 10.0)] == ["loss", "tie", "tie", "tie", "win"]


def test_a_row_counts_a_judges_answers():
    import pandas as pd

    table = pd.DataFrame([judged(" Paris.", " Rome.")] * 3 + [judged(" Rome.", " Paris.")])
    row = _row(table, "ROME", "success")
    assert (row["win"], row["loss"], row["tie"], row["pairs"]) == (0.75, 0.25, 0, 4)
    assert row["win_low"] <= 0.75 <= row["win_high"]
    assert row["win_paper"] == pytest.approx(0.2583)
