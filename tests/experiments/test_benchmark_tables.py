"""The benchmark's tables and figures from end to end on tiny checkpoints, and the rules behind them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from driftlens.data import TASKS, Fact, Record, TaskPrompt
from driftlens.errors import DriftlensError
from driftlens.evaluation import summarize
from driftlens.options.program import run_command
from experiments import (
    ablations,
    benchmarks,
    cases,
    figure6,
    figure7,
    table1,
    table3,
    table6,
    table7,
    table8,
    table10,
    tuning,
)
from experiments import all as everything
from experiments.benchmarks import BenchmarkRun, Setting, optimizing, spread_over_tasks
from experiments.command import ArtifactRecipe
from experiments.comparisons import apart, by_gain, difference, mean_difference
from experiments.tuning import TuningCandidate, best_gamma, best_lr
from tests.experiments.test_experiments import cache, corpus, record  # noqa: F401 (fixtures)
from tests.support.tiny import BRIDGE
from tests.whole.outside import Nudge

pytestmark = pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [record(number) for number in range(6)]
    for each in records:
        subject = each["requested_rewrite"]["subject"]
        each["p-reasoning"] = {"prompts": [f"The mayor of the home of {subject} is"], "targets": ["Anne"]}
        each["o-commonsense"] = {"prompts": ["To open a door,"], "right": ["push it"], "wrong": ["eat it"]}
        each["generation"] = {"prompts": [f"{subject} is"]}
    path = tmp_path_factory.mktemp("data") / "records.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def arguments(
    data: Path,
    corpus: Path,  # noqa: F811
    cache: Path,  # noqa: F811
    checkpoints: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., list[str]]:
    monkeypatch.setenv("DRIFTLENS_CACHE", str(cache))

    def get(*more: str) -> list[str]:
        settings = {
            "--model": checkpoints("gptj"), "--data": data, "--device": "cpu", "--corpus": corpus, "--layer": 1,
            "--steps": 2, "--out": tmp_path / "out", "--records": 2,
        }  # fmt: skip
        return [*(str(part) for pair in settings.items() for part in pair), "--no-png", *more]

    return get


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which settings were really measured, not found."""
    names: list[str] = []
    real = benchmarks.benchmark

    def benchmark(model: Any, records: Any, editor: Any, folder: Any, **options: Any) -> Any:
        if not (folder / "manifest.json").exists():
            names.append(folder.name.split("-")[1].split("-")[0] if editor is None else type(editor).__name__)
        return real(model, records, editor, folder, **options)

    monkeypatch.setattr(benchmarks, "benchmark", benchmark)
    return names


def manifest(tmp_path: Path, name: str) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / f"{name}.json").read_text())


def test_the_main_table_and_what_it_shares(
    arguments: Any, tmp_path: Path, computed: list[str], capsys: pytest.CaptureFixture[str]
):
    call = arguments()
    capsys.readouterr()  # what writing the checkpoint said
    assert run_command(table3.main, call) == 0
    assert capsys.readouterr().err == ""
    assert len(computed) == 7
    table = pd.read_csv(tmp_path / "out" / "table3.csv")
    names = ["unedited", "ROME", "ROME+SADR", "MEMIT", "MEMIT+SADR", "PMET", "PMET+SADR"]
    assert list(dict.fromkeys(table["row"])) == names
    rome: Any = table[table["row"] == "ROME"].set_index("score")
    scores = {"ES", "PS", "NS", "RS", "DNS", "RES", "OS", "DOS", "FL", "PPL", "RS, same type", "RS, other type"}
    assert scores <= set(rome.index)

    # Every number is that of the prompts which are written along, and those are of the test records alone.
    prompts = pd.read_parquet(tmp_path / "out" / "table3.parquet")
    assert set(prompts["record"]) == {1, 2}
    own: Any = prompts[prompts["row"] == "ROME"]
    expected = summarize(own)
    for score in ("ES", "EM", "RS", "DNM"):
        assert rome["value"][score] == pytest.approx(expected["value"][score], rel=1e-5)
        assert rome["cluster_low"][score] == pytest.approx(expected["cluster_low"][score], rel=1e-5)
    same = own[(own["task"] == "relation") & (own["group"] == "same_type")]
    share = 100 * np.mean(same["nll_true"] < same["nll_new"])
    assert rome["value"]["RS, same type"] == pytest.approx(share)

    told = manifest(tmp_path, "table3")
    found = {number["name"]: number for number in told["numbers"]}
    assert found["ROME: RS"]["paper"] == "11.94"
    assert found["ROME + SADR: Avg. S"]["paper"] == "57.74"
    assert found["ROME: ES"]["here"].startswith(f"{expected['value']['ES']:.2f}")
    assert len(told["claims"]) == 12
    assert set(told["configuration"]["editors"]) == set(names[1:])
    caption = (tmp_path / "out" / "table3.md").read_text()
    assert "nan" not in caption
    assert "56.14" in caption

    # Tables 1 and 6 are the same runs, also in another process.
    computed.clear()
    assert run_command(table1.main, arguments()) == 0
    assert run_command(table6.main, arguments()) == 0
    assert computed == []
    assert {row["name"]: row for row in manifest(tmp_path, "table6")["numbers"]}["PMET: PPL"]["paper"] == "44.24"
    assert len(manifest(tmp_path, "table1")["claims"]) == 12


def test_texts_can_be_measured_on_the_first_records_only(arguments: Any, tmp_path: Path):
    assert run_command(table3.main, arguments("--text-records", "1")) == 0
    few: Any = pd.read_csv(tmp_path / "out" / "table3.csv").set_index(["row", "score"])["value"]
    caption = (tmp_path / "out" / "table3.md").read_text()
    assert "the first 1)" in caption
    assert run_command(table3.main, arguments("--records", "1")) == 0
    one = pd.read_csv(tmp_path / "out" / "table3.csv").set_index(["row", "score"])["value"]
    assert run_command(table3.main, arguments()) == 0
    every = pd.read_csv(tmp_path / "out" / "table3.csv").set_index(["row", "score"])["value"]
    for row in ("unedited", "ROME", "PMET+SADR"):
        for score in ("FL", "PPL"):
            assert few[row, score] == pytest.approx(one[row, score], rel=1e-5)  # float rounding of another batch
        for score in ("ES", "RM", "DNM"):
            assert few[row, score] == pytest.approx(every[row, score], rel=1e-5)


def test_what_has_no_steps_cannot_have_them_varied():
    with pytest.raises(DriftlensError, match="Nudge has no learning rate and no steps to vary; choose another editor"):
        optimizing(Nudge(layer=1))


def test_the_ablations_share_runs(arguments: Any, tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ablations, "GAMMAS", (5e-3, 8e-2))
    for name, few in (("GAMMAS", (1e-5, 8e-2)), ("STEPS", (1, 3)), ("KL", (0.1, 1.0)), ("LR_SHARES", (0.1, 0.8))):
        monkeypatch.setattr(figure7, name, few)
    assert run_command(table10.main, arguments()) == 0
    computed.clear()
    assert run_command(figure6.main, arguments()) == 0
    assert len(computed) == 2  # all heads, at two γ
    computed.clear()
    assert run_command(figure7.main, arguments()) == 0
    assert len(computed) == 1 + 6  # one γ is new, and two each of steps, learning rates and ω
    points = pd.read_csv(tmp_path / "out" / "figure7.csv")
    assert set(points["series"]) == {"SADR, γ", "ROME, steps", "ROME, learning rate", "ROME, ω", "ROME", "unedited"}
    both = pd.read_csv(tmp_path / "out" / "figure6.csv")
    assert len(both) == 2 * 2 * 2
    prompts: Any = pd.read_parquet(tmp_path / "out" / "figure6.parquet")
    scores = summarize(prompts[prompts["row"] == "all heads, γ = 0.08"])["value"]
    row: Any = both[(both["series"] == "all heads") & (both["x"] == 0.08) & (both["panel"] == "Specificity")]
    assert float(row["y"].iloc[0]) == pytest.approx(scores[["NS", "RS", "DNS"]].mean(), rel=1e-5)
    numbers = {row["name"]: row for row in manifest(tmp_path, "table10")["numbers"]}
    assert numbers["γ = 0.005: RS"]["paper"] == "33.83"
    assert numbers["None: FL"]["paper"] == "621.96"


def test_fewer_records_are_taken_from_the_main_tables_run(
    arguments: Any, computed: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Where the table's own number of records decides, an ablation has the first of the main table's."""
    monkeypatch.setattr(benchmarks, "MAIN", 4)
    monkeypatch.setattr(benchmarks.records_for, "__defaults__", (4,))
    for module in (benchmarks, ablations):
        monkeypatch.setattr(module, "FEWER", 2)
    # 1e-2 is the preset's; no other test has this seed's runs.
    call = arguments("--seed", "1", "--gammas", "0.01,0.08")
    at = call.index("--records")
    call = [*call[:at], *call[at + 2 :]]
    assert run_command(table10.main, call) == 0
    assert len(computed) == 4
    prompts = pd.read_parquet(Path(call[call.index("--out") + 1]) / "table10.parquet")
    assert set(prompts["record"]) == {1, 2}


def test_table_7_has_editors_of_other_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    settings = "--records 2 --text-records 1 --steps 5 --device cpu --no-png"
    call = [*settings.split(), "--out", str(tmp_path / "out")]
    assert run_command(table7.main, call) == 0
    prompts: Any = pd.read_parquet(tmp_path / "out" / "table7.parquet")
    assert [*prompts["row"].unique()] == ["None", *(f"{editor}{more}" for editor in ("WISE", "MEND", "AlphaEdit")
                                                    for more in ("", "+SADR"))]  # fmt: skip
    # Each row's scores are those of its own prompts, and no two editors share one's.
    scores: Any = pd.read_csv(tmp_path / "out" / "table7.csv").set_index(["row", "score"])["value"]
    assert scores["WISE", "EM"] == pytest.approx(summarize(prompts[prompts["row"] == "WISE"])["value"]["EM"], rel=1e-5)
    assert scores[:, "EM"].nunique() == 7
    numbers = {row["name"]: row["paper"] for row in manifest(tmp_path, "table7")["numbers"]}
    assert numbers["WISE + SADR: DNS"] == "12.73"
    assert numbers["AlphaEdit: DNS"] == "–"


def test_tuning_chooses_on_other_records_and_says_so(arguments: Any, tmp_path: Path):
    call = arguments("--tune", "1", "--lrs", "0.5", "--gammas", "0.01,0.08")
    assert run_command(table3.main, call) == 0
    told = manifest(tmp_path, "table3")["configuration"]
    assert set(told["tuned"]) == {"rome", "memit", "pmet"}
    for found in told["tuned"].values():
        assert found["lr"] == 0.5
        assert found["gamma"] in (0.01, 0.08)
        assert len(found["tried"]) == 3
    assert "Chosen on 1 other records: ROME lr 0.5" in (tmp_path / "out" / "table3.md").read_text()


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--tune", "5"], "finds only 1 records"),
        (["--lrs", "1,2"], "names what --tune tries"),
        (["--lrs", "1,x"], "a number"),
        (["--tune", "0"], "whole number"),
        (["--layers", "0,1"], "but ROME edits one"),
        (["--layers", "2"], "leaves no attention above the edit"),
    ],
)
def test_mistakes_are_one_line(arguments: Any, more: list[str], part: str, capsys: pytest.CaptureFixture[str]):
    call = arguments(*more)
    capsys.readouterr()
    assert run_command(table3.main, call) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


def test_other_data_sets(arguments: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one = {
        "requested_rewrite": {
            "prompt": "{} lives in", "subject": "Toko Yasuda", "target_new": {"str": "Rome"},
            "target_true": {"str": "Paris"},
        },
        "paraphrase_prompts": ["The home of Toko Yasuda is in"],
        "neighborhood_prompts": ["Nissan Laurel lives in"],
        "generation_prompts": ["Toko Yasuda is"],
    }  # fmt: skip
    two = {
        "subject": "Danielle Darrieux", "src": "Where does Danielle Darrieux live?", "answers": ["Paris"],
        "alt": "Delft", "rephrase": "Where is Danielle Darrieux at home?", "loc": "who made the Apple A5",
        "loc_ans": "Apple",
    }  # fmt: skip
    three = {
        "subject": "Anaal Nathrakh", "prompt": "Anaal Nathrakh plays", "target_new": "metal",
        "locality": {"Relation_Specificity": [{"prompt": "Anaal Nathrakh was created in",
                                               "ground_truth": [["Birmingham"]]}]},
    }  # fmt: skip
    for name, content in (("counterfact", one), ("zsre", two), ("recent", three)):
        (tmp_path / f"{name}.json").write_text(json.dumps([content]))
    files = f"{tmp_path}/counterfact.json,{tmp_path}/zsre.json+{tmp_path}/recent.json"
    call = arguments()
    call[call.index("--data") + 1] = files
    assert run_command(table8.main, call) == 0
    table = pd.read_csv(tmp_path / "out" / "table8.csv")
    assert list(dict.fromkeys(table["row"])) == [
        f"{data}, {editor}" for data in ("counterfact", "zsre+recent") for editor in ("unedited", "ROME", "ROME+SADR")
    ]
    joined: Any = table[table["row"] == "zsre+recent, ROME"].set_index("score")
    assert joined["n"]["ES"] == 2
    assert "RS" in joined.index
    numbers = {row["name"]: row for row in manifest(tmp_path, "table8")["numbers"]}
    assert numbers["counterfact, ROME+SADR: Score"]["paper"] == "74.82"
    assert numbers["zsre+recent, ROME: RS"]["paper"] == "18.81"

    capsys.readouterr()
    call[call.index("--data") + 1] = "demo"
    assert run_command(table8.main, call) == 2
    error = capsys.readouterr().err
    assert "--data counterfact,zsre+wiki_recent, or local files in their schemas" in error
    assert error.count("\n") == 1


def test_among_all_artifacts_those_that_need_other_data_are_left_out(
    arguments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    names = {
        "table1", "table3", "figure6", "figure7", *(f"table{number}" for number in (6, 7, 8, 9, 10, 11, 12))
    }  # fmt: skip
    assert names == {name for name, make in everything.ARTIFACTS.items() if isinstance(make, ArtifactRecipe)}
    monkeypatch.setattr(everything, "ARTIFACTS", {**table8.ARTIFACTS, **table1.ARTIFACTS})
    assert run_command(everything.main, arguments()) == 0
    assert "2 of 2 figures and tables" in capsys.readouterr().out
    monkeypatch.setattr(everything, "ARTIFACTS", table8.ARTIFACTS)
    call = arguments()
    call[call.index("--data") + 1] = "demo"
    assert run_command(everything.main, call) == 0
    said = capsys.readouterr()
    assert "table8 is left out: Table 8 measures CounterFact" in said.out
    assert "0 of 0" in said.out
    monkeypatch.setattr(everything, "ARTIFACTS", table7.ARTIFACTS)
    assert run_command(everything.main, arguments()) == 0
    said = capsys.readouterr()
    assert "table7 is left out: Table 7 needs trained hypernetworks: " in said.out
    assert "driftlens train-mend" in said.out


def test_what_the_model_writes(arguments: Any, tmp_path: Path, data: Path):
    assert run_command(cases.main, arguments()) == 0
    for name in ("table11", "table12"):
        texts: Any = pd.read_parquet(tmp_path / "out" / f"{name}.parquet")
        assert len(texts) == 2 * 3
        assert list(dict.fromkeys(texts["writer"])) == ["gptj", "ROME", "ROME + SADR"]
        assert all(text.startswith(prompt) for text, prompt in zip(texts["text"], texts["prompt"], strict=True))
        assert texts["prompt"].nunique() == 2
    behind: Any = pd.read_parquet(tmp_path / "out" / "table12.parquet")
    own = json.loads(data.read_text())[1]["requested_rewrite"]
    assert behind["prompt"][0].startswith(f"{own['prompt']} {own['target_new']}. ")


def test_naming_an_object():
    row = cases._row
    fact = Fact(subject="Ann", prompt="{} lives in", target_true="Paris", target_new="Rome")
    of = Record(index=0, fact=fact, tasks=dict.fromkeys(TASKS, ()))
    for text, first, whole in (
        (" Rome. Later in Paris.", True, True),
        (" Paris. Later in Rome.", False, True),
        (" Romeo's town.", False, False),
        (" Paris.", False, False),
    ):
        found = row(of, "ROME", "Bob lives in", "Paris", "Rome", text)
        assert (found["first_names_new"], found["names_new"]) == (first, whole)


# ---- rules, on tables made by hand


def made(index: int, *tasks: str) -> Record:
    fact = Fact(subject=f"S{index}", prompt="{} is", target_true="a", target_new="b")
    prompt = TaskPrompt(text="x", target_true="a", target_new="b")
    return Record(index=index, fact=fact, tasks={task: (prompt,) if task in tasks else () for task in TASKS})


def test_records_are_spread_over_tasks():
    """Ten records with neighbours, then ten with relations, of which every third has reasoning, too."""
    records = [made(at, "rewrite", "paraphrase", "neighborhood") for at in range(10)]
    records += [made(at, "rewrite", "relation", *(["reasoning"] if at % 3 == 0 else [])) for at in range(10, 20)]
    for most in (4, 8, 12):
        chosen = spread_over_tasks(records, most)
        assert len({record.index for record in chosen}) == most
        counts = {task: sum(bool(record.tasks[task]) for record in chosen) for task in TASKS}
        assert abs(counts["neighborhood"] - counts["relation"]) <= 1
        assert counts["reasoning"] >= min(2, most // 4)
        assert chosen == spread_over_tasks(records, 20)[:most]
    assert len(spread_over_tasks(records, 99)) == 20
    # Without tasks to balance it is the order of the file.
    plain = [made(at, "rewrite", "relation") for at in range(5)]
    assert spread_over_tasks(plain, 3) == plain[:3]


def run_of(nlls: list[tuple[int, float, float]], task: str = "relation") -> BenchmarkRun:
    table = pd.DataFrame(nlls, columns=["record", "nll_true", "nll_new"])
    table["prompt_index"] = table.groupby("record").cumcount()
    records = pd.DataFrame({"record": sorted(set(table["record"]))}).assign(
        fluency=np.nan, reference=np.nan, perplexity=np.nan
    )
    return BenchmarkRun(setting=Setting(), editor=None, nlls=table.assign(task=task, group=None), records=records)


def test_differences_are_of_the_same_prompts():
    """Forty records of two prompts: right on half of them before, on all of the first prompts after."""
    before = run_of([(at, 1.0, 2.0) if at % 2 else (at, 2.0, 1.0) for at in range(40) for _ in range(2)])
    after = run_of([(at, 1.0, 2.0) for at in range(40) for _ in range(2)])
    gain = difference(before, after, "RS")
    assert gain is not None
    assert gain.value == pytest.approx(50)
    # Records are drawn: a share of half in 40 has a standard deviation of 7.9 points, in 80 prompts it had 5.6.
    assert 50 - gain.low == pytest.approx(1.96 * 7.9, abs=2.5)
    assert apart(before, after, "RS")
    assert by_gain(gain, separate=True) == "yes, strongly"
    assert by_gain(gain, separate=False) == "weakly"
    same = difference(before, before, "RS")
    assert same is not None
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert by_gain(same, separate=False) == "no"
    assert difference(before, after, "DNS") is None
    magnitude = difference(before, after, "RM")
    assert magnitude is not None
    assert magnitude.value == pytest.approx(50 * (np.exp(-1) - np.exp(-2)))


def test_a_mean_of_scores_draws_the_same_records_for_all():
    """Where neighbours lose what relations gain, record by record, nothing is uncertain about their mean."""

    def both(right: int) -> BenchmarkRun:
        numbers = [(at, 1.0, 2.0) if at % 2 == right else (at, 2.0, 1.0) for at in range(40)]
        relation, neighbors = run_of(numbers), run_of([(at, new, true) for at, true, new in numbers], "neighborhood")
        return replace(relation, nlls=pd.concat([relation.nlls, neighbors.nlls], ignore_index=True))

    gain = mean_difference(both(1), both(0), ("RS", "NS"))
    assert gain is not None
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)
    one = difference(both(1), both(0), "RS")
    assert one is not None
    assert one.high - one.low > 30
    assert mean_difference(both(1), both(0), ("RS", "DNS")) is None


def test_the_rules_of_tuning():
    def tried(lr: float, gamma: float | None, es: float, average: float) -> TuningCandidate:
        return TuningCandidate(lr=lr, gamma=gamma, es=es, ps=es, average=average)

    alone = [tried(1, None, 90, 60), tried(2, None, 99, 40), tried(4, None, 98, 45)]
    assert best_lr(alone).lr == 4  # 90 is too far from the best success, 98 is not
    restrained = [tried(4, 0.01, 97, 50), tried(4, 0.04, 94.5, 60), tried(4, 0.08, 80, 90)]
    assert best_gamma(restrained, alone[2]).gamma == 0.04
    assert best_gamma(restrained[2:], alone[2]).gamma == 0.08
    assert tuning.GAMMAS == (5e-3, 1e-2, 4e-2, 8e-2)
    nothing = TuningCandidate(lr=1, gamma=None, es=50, ps=float("nan"), average=1)
    assert nothing.success == 50
