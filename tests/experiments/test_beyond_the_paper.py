"""Guards against SADR and edits that add up, end to end on a tiny checkpoint; the paired difference of Avg. S."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from driftlens.display.terminal import Terminal
from driftlens.editors import ROME
from driftlens.evaluation import summarize
from driftlens.options.program import run_command
from experiments import damage, guards, sequences
from experiments.benchmarks import NONE, BenchmarkRun, editor_of
from experiments.comparisons import average_difference
from experiments.options import read_options
from experiments.study import open_study
from tests.experiments.test_benchmark_tables import arguments, data  # noqa: F401 (fixtures)
from tests.experiments.test_experiments import cache, corpus  # noqa: F401 (fixtures)
from tests.support.tiny import BRIDGE

TASKS = ("rewrite", "paraphrase", "neighborhood", "relation", "distract_neighborhood")
end_to_end = pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")


def random_run(seed: int, records: int = 8) -> BenchmarkRun:
    generator = np.random.default_rng(seed)
    rows = [
        {"record": record, "task": task, "prompt_index": prompt, "group": None,
         "nll_true": generator.uniform(0, 4), "nll_new": generator.uniform(0, 4)}
        for record in range(records) for task in TASKS for prompt in range(3)
    ]  # fmt: skip
    return BenchmarkRun(
        setting=NONE, editor=None, nlls=pd.DataFrame(rows), records=pd.DataFrame({"record": range(records)})
    )


def harmonic(nlls: pd.DataFrame) -> float:
    """Avg. S from its definition."""
    shares: list[float] = []
    for task in TASKS:
        of = nlls[nlls["task"] == task]
        wins: Any = of["nll_new"] < of["nll_true"] if task in TASKS[:2] else of["nll_true"] < of["nll_new"]
        shares.append(100 * float(wins.mean()))
    return 5 / sum(1 / share for share in shares) if all(shares) else 0.0


def shares_of_records(nlls: pd.DataFrame) -> Any:
    """[records, tasks] in percent; every record has as many prompts of a task as every other."""
    found: Any = nlls.assign(share=np.where(nlls["task"].isin(TASKS[:2]), 1, -1) * (nlls["nll_new"] - nlls["nll_true"]))
    wins = found.assign(share=100.0 * (found["share"] < 0)).pivot_table(index="record", columns="task", values="share")
    return wins[list(TASKS)].to_numpy()


def test_the_difference_of_two_averages():
    before, after = random_run(1), random_run(2)
    gain = average_difference(before, after)
    assert gain is not None
    assert gain.value == pytest.approx(harmonic(after.nlls) - harmonic(before.nlls), rel=1e-12)
    assert gain.value == pytest.approx(
        summarize(after.nlls)["value"]["Avg.S"] - summarize(before.nlls)["value"]["Avg.S"], rel=1e-12
    )
    # The interval is that of both averages over the same records, drawn with replacement.
    generator = np.random.default_rng(5)
    shares = [shares_of_records(run.nlls) for run in (before, after)]
    drawn: list[float] = []
    for _ in range(2000):
        chosen = generator.integers(0, 8, 8)
        with np.errstate(divide="ignore"):  # a share of zero makes the average zero
            first, second = (5 / (1 / of[chosen].mean(axis=0)).sum() for of in shares)
        drawn.append(second - first)
    low, high = np.percentile(drawn, [2.5, 97.5])
    # Both are estimates from draws; their ends scatter by a few percent of the width.
    assert (gain.low, gain.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_against_itself_nothing_is_gained_and_without_a_part_nothing_is_said():
    run: Any = random_run(3)
    gain = average_difference(run, run)
    assert gain is not None
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)
    lacking = BenchmarkRun(
        setting=NONE, editor=None, nlls=run.nlls[run.nlls["task"] != "relation"], records=run.records
    )
    assert average_difference(lacking, run) is None


@end_to_end
def test_guards_end_to_end(arguments: Any, tmp_path: Path):  # noqa: F811
    assert run_command(guards.main, arguments("--gammas", "0.1")) == 0
    table = pd.read_csv(tmp_path / "out" / "guards_table.csv")
    assert list(dict.fromkeys(table["row"])) == ["unedited", "ROME", "ROME + SADR", "ROME + guards"]
    told = json.loads((tmp_path / "out" / "guards_table.json").read_text())
    assert "guarded_sadr" in str(told["configuration"]).lower() or "GuardedSADR" in str(told["configuration"])
    assert "0 are, or end like, a prompt that is measured" in (tmp_path / "out" / "guards_table.md").read_text()
    points = pd.read_csv(tmp_path / "out" / "guards_curve.csv")
    assert set(points["series"]) == {"ROME", "SADR", "guards"}  # --steps gives both the same number
    assert len(points[(points["panel"] == "Relation") & (points["series"] == "guards")]) == len(guards.FACTORS)


def test_the_curve_has_sadr_with_both_numbers_of_steps():
    with open_study(read_options(["--gammas", "0.01,0.1"], prog="", description=""), Terminal(quiet=True)) as study:
        settings = guards.curve_settings(study)
        steps = {
            name: editor.steps for name, of in settings.items() if isinstance(editor := editor_of(study, of), ROME)
        }
    few, many = steps["ROME"], steps["γ = 0.01"]
    assert few < many
    assert steps == {
        "ROME": few, "γ = 0.01": many, "γ = 0.1": many, f"γ = 0.01, {few} steps": few, f"γ = 0.1, {few} steps": few,
        **{f"μ = ν = {0.25 * factor:g}": many for factor in guards.FACTORS},
    }  # fmt: skip


@end_to_end
def test_what_attention_carries_end_to_end(arguments: Any, tmp_path: Path):  # noqa: F811
    assert run_command(damage.main, arguments("--gamma", "0.1")) == 0
    table: Any = pd.read_csv(tmp_path / "out" / "damage.csv")
    assert list(dict.fromkeys(table["row"])) == ["ROME", "ROME + SADR", "ROME + guards"]
    assert set(table["task"]) == set(damage.TASKS)
    # The file has six decimals.
    assert ((table["edited"] - table["restored"]) - table["carried"]).abs().max() < 2e-6
    shares = table[["vanilla", "edited", "restored"]]
    assert shares.min().min() >= 0
    assert shares.max().max() <= 100
    # The unedited model is the same in every row.
    prompts = table[table["row"] == "ROME"]["vanilla"].to_numpy()
    for row in ("ROME + SADR", "ROME + guards"):
        assert np.array_equal(table[table["row"] == row]["vanilla"].to_numpy(), prompts)


@end_to_end
def test_sequences_end_to_end(arguments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    monkeypatch.setattr(sequences, "COUNTS", (1, 2))
    monkeypatch.setattr(sequences, "EDITORS", ("rome", "memit"))
    monkeypatch.setattr(sequences, "GUARDED", ("rome",))
    call = arguments()
    at = call.index("--layer")
    del call[at : at + 2]  # of ROME alone
    assert run_command(sequences.main, call) == 0
    table = pd.read_csv(tmp_path / "out" / "edits_in_sequence.csv")
    names = ["ROME", "ROME+SADR", "ROME+guards", "MEMIT", "MEMIT+SADR"]
    assert list(table["row"]) == [name for name in names for _ in range(2)]
    assert list(table["edits"]) == [1, 2] * len(names)
    together = pd.read_csv(tmp_path / "out" / "edits_together.csv")
    assert set(together["row"]) == set(names) - {"ROME+guards"}
    # Alone is alone, however several are written.
    for name in set(together["row"]):
        once: list[Any] = [of[(of["row"] == name) & (of["edits"] == 1)] for of in (table, together)]
        first, second = (of["ES"].iloc[0] for of in once)
        assert first == second
