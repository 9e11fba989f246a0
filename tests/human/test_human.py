"""Comparisons: what is hidden, what answers mean, and agreement against its definitions and a published example."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import aggregate_raters
from statsmodels.stats.inter_rater import fleiss_kappa as statsmodels_kappa

from driftlens import DriftlensError
from driftlens.human import (
    CRITERIA,
    Comparison,
    Systems,
    agreement,
    agreement_figure,
    agreement_latex,
    comparison_page,
    judgements,
    pairs_of_texts,
    read_answers,
)
from driftlens.human.agreement import fleiss_kappa, randolph_kappa
from driftlens.human.answers import checks
from driftlens.statistics.intervals import corrected_interval
from tests.support.comparisons import SECRETS, careful, comparison, sheet, side_of, text_pair

NAMES = [criterion.name for criterion in CRITERIA]

# Fleiss (1971), Table 1: 30 patients, 6 psychiatrists, 5 diagnoses; raters' order within a patient is not known.
DIAGNOSES = """444444 222555 233335 555555 222444 113333 333355 113334 114444 555555 144444 124444 222333 144444 224445
333335 111455 111112 224444 133555 555555 244444 224555 114444 144445 222224 111155 224444 133333 555555""".split()


def test_the_page_says_nothing_about_who_wrote_what():
    study = comparison()
    told = json.dumps(study.blinded())
    page = comparison_page(study).decode()
    data = page[page.index('id="data">') :].split("</script>", 1)[0]
    for secret in (*SECRETS, '"kind"', '"expected"', '"setting"'):
        assert secret not in told
        assert secret not in data
    assert {frozenset(item) for item in study.blinded()["items"]} == {frozenset(("id", "request", "prompt", "texts"))}


def test_sides_and_identifiers_are_drawn_by_the_seed():
    study = comparison(200)
    assert comparison(200) == study
    assert comparison(200, seed=1).id != study.id
    first = sum(item.challenger == 0 for item in study.pairs)
    assert 70 < first < 130  # 4 standard deviations around 100
    assert [item.id for item in study.items] == sorted(item.id for item in study.items)
    # Where a check stands tells nothing either: of 22 items the checks' places differ from seed to seed.
    places = {
        tuple(at for at, item in enumerate(comparison(seed=seed).items) if item.kind != "pair") for seed in range(9)
    }
    assert len(places) > 5


def test_checks_have_the_right_answer_they_claim():
    study = comparison(checks=4)
    kinds = {item.kind: item for item in study.items if item.kind != "pair"}
    same, mixed = kinds["identical"], kinds["shuffled"]
    assert same.texts[0] == same.texts[1]
    assert same.expected == dict.fromkeys(NAMES, "tie")
    intact = int(mixed.expected["fluency"])
    assert mixed.texts[intact] != mixed.texts[1 - intact]
    assert sorted(mixed.texts[0].split()) == sorted(mixed.texts[1].split())
    assert mixed.texts[intact].startswith(" Peru")


def test_a_key_comes_back_and_a_damaged_one_is_refused(tmp_path: Path):
    study = comparison()
    study.save(tmp_path / "key.json")
    assert Comparison.load(tmp_path / "key.json") == study
    told = json.loads((tmp_path / "key.json").read_text())
    told["items"][0]["texts"][0] += "!"
    (tmp_path / "key.json").write_text(json.dumps(told))
    for content in (json.dumps(told), "{}", "no JSON"):
        (tmp_path / "key.json").write_text(content)
        with pytest.raises(DriftlensError, match=r"key\.json is not the key of a comparison"):
            Comparison.load(tmp_path / "key.json")
    with pytest.raises(DriftlensError, match="cannot read the key"):
        Comparison.load(tmp_path / "none.json")


def test_a_study_needs_pairs_of_known_settings():
    with pytest.raises(DriftlensError, match="no pair of texts"):
        Comparison.of([], {})
    with pytest.raises(DriftlensError, match="no systems are named for the setting 'one'"):
        Comparison.of([text_pair(0)], {"two": Systems(baseline="a", challenger="b")})


def test_answers_are_brought_back_to_the_systems():
    study = comparison(6)
    always_left = sheet(study, "left", lambda item, criterion, shown: "A")
    challenger = sheet(study, "fan", lambda *of: careful(*of, pair=1))
    table: Any = judgements([study], [always_left, challenger])
    fan = table[table["annotator"] == "fan"]
    assert set(fan["outcome"]) == {"win"}
    assert set(fan["side"]) == {"A", "B"}
    items = {item.id: (at, item) for at, item in enumerate(study.items)}
    for row in table[table["annotator"] == "left"].itertuples():
        at, item = items[str(row.pair).split("/")[1]]
        assert row.outcome == ("win" if at % 2 == item.challenger else "loss")
    passed: Any = checks([study], [always_left, challenger]).groupby("annotator")["passed"].agg(list)
    assert passed["fan"] == [True, True]
    assert not all(passed["left"])


def test_tables_of_a_run_become_pairs():
    from driftlens import load_records

    records = load_records("demo", limit=3)
    rows = [
        {"record": record.index, "prompt_index": at, "prompt": prompt, "text": f"{prompt} and so on {at}"}
        for record in records
        for at, prompt in enumerate(record.generation[:2])
    ]
    one = pd.DataFrame(rows)
    other: Any = pd.DataFrame(rows[1:]).assign(text=lambda of: of["text"] + "!")
    pairs = pairs_of_texts(records, one, other, setting="x")
    assert [pair.baseline for pair in pairs] == [" and so on 1", " and so on 0", " and so on 0"]
    assert [pair.challenger for pair in pairs] == [" and so on 1!", " and so on 0!", " and so on 0!"]
    with pytest.raises(DriftlensError, match="no generated text in common"):
        pairs_of_texts(records, one, other[:0], setting="x")
    with pytest.raises(DriftlensError, match="lacks the column 'text'"):
        pairs_of_texts(records, one, other.drop(columns="text"), setting="x")
    with pytest.raises(DriftlensError, match="name the data of both runs"):
        pairs_of_texts(records, one, one.assign(prompt="Elsewhere", text="Elsewhere is"), setting="x")


def counts_of(ratings: np.ndarray) -> np.ndarray:
    return aggregate_raters(ratings)[0]


def test_fleiss_kappa_of_fleiss_1971():
    counts = counts_of(np.array([[int(each) for each in patient] for patient in DIAGNOSES]))
    assert fleiss_kappa(counts) == pytest.approx(0.430, abs=5e-4)  # as printed there


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(2, 7), st.randoms(use_true_random=False))
def test_kappas_are_statsmodels_and_follow_from_pairs_of_raters(n: int, raters: int, draw: Any):
    ratings = np.array([[draw.choice([0, 1, 2]) for _ in range(raters)] for _ in range(n)])
    counts = np.stack([(ratings == category).sum(axis=1) for category in range(3)], axis=1)
    agree = np.mean([one == other for row in ratings for one, other in combinations(row, 2)])
    assert randolph_kappa(counts) == pytest.approx((agree - 1 / 3) / (2 / 3))
    shares = counts.sum(axis=0) / counts.sum()
    chance = float((shares**2).sum())
    if len(set(ratings.ravel())) == 1:
        assert np.isnan(fleiss_kappa(counts))
        return
    assert fleiss_kappa(counts) == pytest.approx((agree - chance) / (1 - chance))
    assert fleiss_kappa(counts) == pytest.approx(statsmodels_kappa(counts))
    assert randolph_kappa(counts) == pytest.approx(statsmodels_kappa(counts, method="randolph"))
    assert fleiss_kappa(counts) <= randolph_kappa(counts) + 1e-12  # Warrens (2010)


def test_many_ties_make_fleiss_low_and_leave_randolph():
    """Nine of ten answers agree everywhere, but in the second table nearly all are ties."""
    even = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9]] * 6 + [[3, 3, 3]] * 2)
    ties = np.array([[0, 0, 9]] * 18 + [[3, 3, 3]] * 2)
    assert randolph_kappa(even) == pytest.approx(randolph_kappa(ties))
    assert fleiss_kappa(even) > 0.8
    assert fleiss_kappa(ties) < 0.45


# Kinds of pairs as (their frequency, how answers about one are distributed): strong agreement, middling, mostly ties.
WORLDS = {
    "strong": [(0.35, (0.9, 0.05, 0.05)), (0.25, (0.05, 0.9, 0.05)), (0.4, (0.05, 0.05, 0.9))],
    "middling": [(0.3, (0.7, 0.1, 0.2)), (0.2, (0.1, 0.7, 0.2)), (0.5, (0.15, 0.15, 0.7))],
    "ties": [(0.3, (0.6, 0.1, 0.3)), (0.1, (0.1, 0.6, 0.3)), (0.6, (0.05, 0.05, 0.9))],
}


@pytest.mark.parametrize("world", WORLDS)
def test_intervals_cover_what_is_known(world: str):
    """Twenty pairs and nine annotators, drawn again and again: about 95 of 100 intervals hold the true value."""
    frequencies, kinds = (np.array(part) for part in zip(*WORLDS[world], strict=True))
    shares = frequencies @ kinds
    agree, chance = frequencies @ (kinds**2).sum(axis=1), (shares**2).sum()
    truths = {
        "win": (lambda counts: counts[:, 0].sum() / counts.sum(), shares[0]),
        "fleiss": (fleiss_kappa, (agree - chance) / (1 - chance)),
        "randolph": (randolph_kappa, (agree - 1 / 3) / (2 / 3)),
    }
    draw, times = np.random.default_rng(0), 150
    held = dict.fromkeys(truths, 0)
    for _ in range(times):
        counts = np.stack([draw.multinomial(9, kinds[kind]) for kind in draw.choice(3, size=20, p=frequencies)])
        for name, (statistic, truth) in truths.items():
            low, high = corrected_interval(statistic, counts, resamples=200, seed=0)
            held[name] += low <= truth <= high
    for name, count in held.items():
        # 3 standard deviations of 150 draws around 95 % are 5.3 points; κ of 20 pairs lacks up to 3 more.
        assert count / times > (0.89 if name == "win" else 0.86), (name, count)


def nine(study: Comparison, *, of: int = 9) -> list[Any]:
    """Annotators who prefer the challenger in pairs with an even number, and who disagree in some of the others."""

    def answer(person: int) -> Any:
        def choose(item: Any, criterion: str, shown: tuple[int, int]) -> str:
            number = int(item.fact.subject.split()[1])
            pair = 1 if number % 2 == 0 else (number + person) % 3 - 1
            return careful(item, criterion, shown, pair={1: 1, 0: 0}.get(pair, "tie"))

        return choose

    return [sheet(study, f"person {person}", answer(person)) for person in range(of)]


def test_agreement_of_a_study_worked_out_by_hand():
    study = comparison(10, settings=("one", "two"))  # pairs with an even number are setting one's
    found: Any = agreement(study, nine(study), resamples=200)
    one: Any = found.table[found.table["setting"] == "one"]
    two = found.table[found.table["setting"] == "two"]
    assert (one[["pairs", "annotators", "answers"]].to_numpy() == [5, 9, 45]).all()
    assert (one["win"] == 1).all()
    assert one["fleiss"].isna().all()  # all answers are alike
    assert (one["randolph"] == 1).all()
    np.testing.assert_allclose(two[["win", "loss", "tie"]], 1 / 3)
    # Of 36 pairs of annotators 9 agree, where each answer is given by 3 of 9.
    np.testing.assert_allclose(two["fleiss"], (9 / 36 - 1 / 3) / (2 / 3))
    assert set(found.annotators["passed"]) == {2}
    assert not found.annotators["failed"].any()
    assert found.bias["low"] <= found.bias["value"] <= found.bias["high"]


def test_order_of_files_changes_nothing():
    study = comparison(8)
    sheets = nine(study, of=4)
    one, other = (agreement(study, each, resamples=100) for each in (sheets, sheets[::-1]))
    pd.testing.assert_frame_equal(one.table, other.table)


def test_annotators_who_fail_checks_are_told_and_can_be_left_out():
    study = comparison(6)
    sheets = [*nine(study, of=3), sheet(study, "hasty", lambda *_: "A")]
    kept = agreement(study, sheets, resamples=100)
    without = agreement(study, sheets, exclude_failed=True, resamples=100)
    assert kept.annotators.set_index("annotator")["failed"].to_dict() == {
        **{f"person {at}": False for at in range(3)},
        "hasty": True,
    }
    assert kept.annotators.set_index("annotator").loc["hasty", "left"] == 1
    assert set(kept.table["annotators"]) == {4}
    assert set(without.table["annotators"]) == {3}
    assert without.excluded == ("hasty",)
    pd.testing.assert_frame_equal(without.table, agreement(study, sheets[:3], resamples=100).table)
    with pytest.raises(DriftlensError, match="no answers are left to count"):
        agreement(study, sheets[3:], exclude_failed=True)


def test_kappa_rests_on_pairs_with_as_many_answers():
    study = comparison(6)
    sheets = nine(study, of=4)
    seen = {item.id for item in study.pairs[:2]}
    gone = sheet(study, "gone", lambda item, *_: "A" if item.id in seen else None)
    found: Any = agreement(study, [*sheets, gone], resamples=100).table
    assert (found["kappa_pairs"] == 4).all()
    assert (found["kappa_raters"] == 4).all()
    assert (found["answers"] == 6 * 4 + 2).all()


def test_settings_of_one_name_are_put_together():
    """As the paper does with its two models: 20 pairs of each are 40."""
    studies = [comparison(20, seed=seed) for seed in range(2)]
    sheets = [each for study in studies for each in nine(study)]
    found: Any = agreement(studies, sheets, resamples=100).table
    assert (found["pairs"] == 40).all()
    assert (found["answers"] == 360).all()


def test_files_of_answers(tmp_path: Path):
    study = comparison(4)
    sheets = [*nine(study, of=2), sheet(study, "person 0", lambda *_: "A", session="another")]
    older = sheet(study, "person 1", lambda *_: "B", exported="2025-01-01")
    for at, each in enumerate([*sheets, older]):
        (tmp_path / f"{at}.json").write_text(json.dumps(each.told()))
    with pytest.warns(RuntimeWarning, match="two annotators are called 'person 0'"):
        found = read_answers(sorted(tmp_path.glob("*.json")))
    assert [each.annotator for each in found] == ["person 0", "person 1", "person 0 (2)"]
    assert found[1].answers == sheets[1].answers  # not the older file's
    (tmp_path / "all.json").write_text(json.dumps([each.told() for each in sheets[:2]]))
    assert len(read_answers([tmp_path / "all.json"])) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told.clear(), "expected a file that the page"),
        (lambda told: told.pop("answers"), "answers"),
        (lambda told: told.update(annotator=""), "annotator is missing"),
        (lambda told: told["answers"][0].update(shown=[1, 1]), r"shown is \[1, 1\]"),
        (lambda told: told["answers"][0]["choices"].update(fluency="C"), "the choice 'C' is unknown"),
        (lambda told: told["answers"][0]["choices"].update(beauty="A"), "choices are"),
        (lambda told: told["answers"].append(told["answers"][0]), "answers an item twice"),
    ],
)
def test_wrong_answers_are_refused(tmp_path: Path, change: Any, message: str):
    told = nine(comparison(2), of=1)[0].told()
    change(told)
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(told))
    with pytest.raises(DriftlensError, match=message):
        read_answers([path])


def test_answers_to_another_study_are_refused():
    study, other = comparison(3), comparison(3, seed=1)
    with pytest.raises(DriftlensError, match="whose key is not given"):
        agreement(other, nine(study, of=1))


def test_table_9_as_latex_and_as_a_figure():
    study = comparison(10, settings=("one", "two"))
    found = agreement(study, nine(study), resamples=100)
    latex = agreement_latex(found)
    assert r"\toprule" in latex
    assert r"\multirow[t]{3}{*}{vs. one} & Specificity & 100.00 & 0.00 & 0.00 & – & 100.00 \\" in latex
    assert r"$\kappa$" in latex
    figure: Any = agreement_figure(found)
    texts = [annotation.text for annotation in figure.layout.annotations]
    assert "ROME + SADR vs. ROME" in texts
    assert "100.0 [100.0, 100.0]" in texts


def test_side_of_is_what_the_reader_undoes():
    assert side_of(1, (1, 0)) == "A"
    assert side_of(1, (0, 1)) == "B"
