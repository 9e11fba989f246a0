"""The paper's tables against themselves: what is flagged follows from the printed numbers."""

import math
import statistics

import pytest

from experiments.paper_checks import inconsistencies
from experiments.paper_numbers import (
    AVERAGED,
    TABLE_1,
    TABLE_3,
    TABLE_3_INTERVALS,
    TABLE_6,
    TABLE_7,
    TABLE_8,
    TABLE_10,
    Row,
    harmonic_mean,
)
from tests.support.places import ROOT, SHARED

PAPER = SHARED / "paper.txt"
PAGE = ROOT / "docs" / "paper-vs-driftlens.md"


def test_harmonic_mean_is_the_usual_one():
    for row in TABLE_3.values():
        parts = [row[name] for name in AVERAGED]
        assert harmonic_mean(parts) == pytest.approx(statistics.harmonic_mean(parts))


def test_tables_have_their_size():
    assert [len(table) for table in (TABLE_1, TABLE_3, TABLE_6, TABLE_7, TABLE_8, TABLE_10)] == [4, 21, 35, 5, 6, 6]
    assert all(len(row) == 10 for row in TABLE_1.values())
    assert all(len(row) == 7 and len(TABLE_3_INTERVALS[key]) == 6 for key, row in TABLE_3.items())
    assert all(len(row) == 15 for row in TABLE_6.values())


@pytest.mark.skipif(not PAPER.exists(), reason="needs the paper's text")
@pytest.mark.parametrize("table", [TABLE_1, TABLE_6, TABLE_7, TABLE_8, TABLE_10])
def test_every_row_stands_in_the_paper(table: dict[object, dict[str, float]]):
    """In the order of the columns, so that no number can have slipped into another's place."""
    lines = [[cell.split("(")[0] for cell in line.split("\t")] for line in PAPER.read_text().splitlines()]
    printed = {tuple(float(cell) for cell in line if cell.replace(".", "", 1).isdigit()) for line in lines}
    printed |= {row[1:] for row in printed}  # Table 10 has γ, which is not among the row's values
    for row in table.values():
        assert tuple(row.values()) in printed


@pytest.mark.skipif(not PAPER.exists(), reason="needs the paper's text")
def test_table_3_stands_in_the_paper_with_its_intervals():
    text = PAPER.read_text()
    for key, row in TABLE_3.items():
        halves = TABLE_3_INTERVALS[key]
        cells = [f"{value:.2f}({halves[name]})" if name in halves else f"{value:.2f}" for name, value in row.items()]
        assert "\t".join(cells) in text


def test_the_averages_that_do_not_follow():
    """Two in Table 3, one in Table 7; all others do, to the rounding of their parts."""
    wrong = {key for key, row in TABLE_3.items() if not _follows(row)}
    assert wrong == {("GPT-J", "ROME+SADR"), ("Llama-3", "MEMIT+SADR")}
    assert statistics.harmonic_mean([99.76, 96.36, 80.86, 27.75, 49.35]) == pytest.approx(56.14, abs=0.005)
    assert statistics.harmonic_mean([99.82, 98.87, 82.96, 35.38, 45.57]) == pytest.approx(60.68, abs=0.005)
    assert {editor for editor, row in TABLE_7.items() if not _follows(row)} == {"WISE"}
    assert all(_follows(row) for row in TABLE_8.values())
    found = [each.where for each in inconsistencies() if "Avg. S" in each.what]
    assert found == ["Table 3, GPT-J ROME+SADR", "Table 3, Llama-3 MEMIT+SADR", "Table 7, WISE"]


def _follows(row: Row) -> bool:
    return abs(statistics.harmonic_mean([row[name] for name in AVERAGED if name in row]) - row["Avg.S"]) < 0.05


def test_gpt_js_memit_row_is_llama_3s():
    for editor in ("MEMIT", "MEMIT+SADR"):
        ours, theirs = TABLE_6["GPT-J", editor], TABLE_6["Llama-3", editor]
        assert {name for name in ours if ours[name] != theirs[name]} == {"RES", "OS", "DOS", "PPL"}
    assert all(TABLE_6["Llama-3", "MEMIT"][name] == value for name, value in TABLE_1["MEMIT"].items())
    told = [each for each in inconsistencies() if "repeats" in each.what or "is Llama-3's" in each.what]
    assert len(told) == 3


def test_an_interval_that_its_share_cannot_have():
    """n rewrite prompts with a share p succeed within 1.96 √(p (1 − p) / n)."""
    odd = [
        key
        for key, row in TABLE_3.items()
        if abs(1.96 * math.sqrt(row["ES"] * (100 - row["ES"]) / 1678) - TABLE_3_INTERVALS[key]["ES"]) > 0.1
    ]
    assert odd == [("Llama-3", "MEMIT")]
    assert any("ES 99.64 has the interval 0.3" in each.what for each in inconsistencies())


@pytest.mark.parametrize(
    "part",
    [
        "PM 80.26 and 76.93, NS 79.45 and 80.26",  # Table 1's PM is Table 3's NS
        "PS falls by up to 3.94 points",
        "3.09 points for Llama-2-13B ROME",
        "132.4 %",
        "295.4 %",
        "DNM is 5.80, less than half of ROME + SADR's 12.76",
        "RES is 28.97",
        "ES 99.64 and 99.94, PS 95.47 and 99.52",
    ],
)
def test_further_inconsistencies(part: str):
    assert any(part in each.what for each in inconsistencies())


def test_the_page_names_every_inconsistency():
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    for each in inconsistencies():
        assert f"**{each.where}**: {each.what}." in text
