"""`driftlens profile`: what it adds up is what it measured, and mistakes are one line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftlens import contaminating_substitution, evaluate, load_model, load_records
from driftlens.commands.cli import main, run_command
from driftlens.display.durations import measured_duration
from driftlens.editors import ROME
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.models.grouping import passes
from driftlens.models.timing import Phase, intercept, measured, measured_pass_cost, resident_bytes
from driftlens.runs.estimate import estimate
from driftlens.runs.profiling import EditorCost, profile_model


def test_a_run_is_records_times_what_a_record_takes():
    phases = [
        Phase(name="evaluation", seconds=0.5, peak_bytes=None, per="record"),
        Phase(name="generation", seconds=2.0, peak_bytes=None, per="record"),
    ]
    cost = EditorCost(editor="rome", steps=20, facts=4, fixed=0.1, per_step=0.05)
    assert cost.seconds == pytest.approx(1.1)
    (run,) = estimate(phases, [cost], 100)
    assert (run.edits, run.evaluation, run.generation) == pytest.approx((110.0, 50.0, 200.0))
    assert run.seconds == pytest.approx(360.0)
    assert estimate(phases[:1], [cost], 100)[0].generation == 0


def test_durations_as_one_reads_them():
    assert [measured_duration(s) for s in (0.0123, 3.44, 119.0, 300.0, 7560.0)] == [
        "12.3 ms",
        "3.4 s",
        "119.0 s",
        "5.0 min",
        "2.1 h",
    ]


@given(st.floats(0, 1000), st.floats(1e-6, 1e-2), st.integers(1, 64), st.integers(2, 100))
def test_the_cost_of_a_pass_is_where_the_line_meets_no_token(cost: float, per_token: float, few: int, times: int):
    many = few * times
    one, more = ((cost + tokens) * per_token for tokens in (few, many))
    assert intercept(one, more, few, many) == pytest.approx(min(cost, many), abs=0.51)


def test_where_tokens_cost_nothing_a_pass_costs_as_much_as_all_of_them():
    assert intercept(0.2, 0.2, 8, 512) == 512


def test_the_cost_of_a_pass_is_the_models_own(lens_model: LensModel):
    found = measured_pass_cost(lens_model)
    assert 0 <= found <= 8 * 1024
    estimate = lens_model.pass_cost
    try:
        lens_model.pass_cost = 0
        assert len(passes([3, 9], lens_model.pass_cost, most=2)) == 2
        lens_model.pass_cost = 1000
        assert len(passes([3, 9], lens_model.pass_cost, most=2)) == 1
    finally:
        lens_model.pass_cost = estimate


HELD = """
import torch

from driftlens.PLACE import measured

cpu = torch.device("cpu")
before = measured("nothing", lambda: None, cpu, per="run").peak_bytes
# Written to, or the system would not give it; long enough held for the sampling to see it.
held = measured("much", lambda: [torch.ones(30_000_000).sum() for _ in range(5)], cpu, per="run").peak_bytes
print(held - before)
"""


def test_memory_held_for_a_moment_is_seen():
    if resident_bytes() is None:
        pytest.skip("the system does not say what a process holds")
    # In a process of its own: one that has run other tests holds memory that it can give without asking for more.
    program = HELD.replace("driftlens.PLACE", measured.__module__)
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert float(told.stdout) > 60e6


def test_a_profile_of_one_record_as_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    estimate = load_model("demo", device="cpu", check=False).pass_cost
    file = tmp_path / "profile.json"
    arguments = ["--records", "1", "--editor", "rome", "--no-generation", "--samples", "4", "--run", "10"]
    assert main(["profile", "--device", "cpu", *arguments, "--json", str(file)]) == 0
    told = json.loads(file.read_text())
    assert told["model"] == "demo"
    assert told["pass_cost_tokens"] >= 0
    names = [phase["name"] for phase in told["phases"]]
    for name in (
        "edit: vanilla pass",
        "edit: a step forward",
        "edit: a step backward",
        "trace, all cells",
        "evaluation",
    ):
        assert name in names
    assert all(phase["seconds"] >= 0 for phase in told["phases"])
    (cost,), (run,) = told["editors"], told["full_run"]
    assert cost["seconds"] == pytest.approx(cost["fixed"] + cost["steps"] * cost["per_step"])
    assert run["edits"] == pytest.approx(10 * cost["seconds"])
    assert run["seconds"] == pytest.approx(run["edits"] + run["evaluation"])
    printed = capsys.readouterr().out
    assert "a full run of 10 records" in printed
    assert "rome" in printed

    # What it measured is used by every later load of the model, in the same precision, unless somebody says otherwise.
    (kept,) = (tmp_path / "cache" / "pass-costs").iterdir()
    assert json.loads(kept.read_text())["pass_cost"] == told["pass_cost_tokens"]
    assert kept.name in "".join(printed.split())
    kept.write_text(kept.read_text().replace(f'"pass_cost": {told["pass_cost_tokens"]}', '"pass_cost": 77'))
    assert load_model("demo", device="cpu", check=False).pass_cost == 77
    assert load_model("demo", device="cpu", check=False, dtype="bfloat16").pass_cost == estimate
    monkeypatch.setenv("DRIFTLENS_PASS_COST", "estimate")
    assert load_model("demo", device="cpu", check=False).pass_cost == estimate
    monkeypatch.setenv("DRIFTLENS_PASS_COST", "12.5")
    assert load_model("demo", device="cpu", check=False).pass_cost == 12.5
    monkeypatch.setenv("DRIFTLENS_PASS_COST", "many")
    with pytest.raises(DriftlensError, match="DRIFTLENS_PASS_COST is 'many'; expected a number of tokens"):
        load_model("demo", device="cpu", check=False)
    monkeypatch.delenv("DRIFTLENS_PASS_COST")
    kept.write_text("{")  # what cannot be read is as good as nothing
    assert load_model("demo", device="cpu", check=False).pass_cost == estimate


def test_another_cost_of_a_pass_changes_no_number(demo_model: LensModel, monkeypatch: pytest.MonkeyPatch):
    records = load_records("demo", limit=3)
    editor = ROME.for_model(
        demo_model, steps=4, contexts=("{}", "It is so. {}"), second_moment=torch.eye(demo_model.d_mlp)
    )
    found: list[tuple[np.ndarray, ...]] = []
    for tokens in (0, 32, 10_000):
        monkeypatch.setattr(demo_model, "pass_cost", tokens)
        results = editor.edit_many(demo_model, [record.fact for record in records])
        nlls = evaluate(demo_model, records, results)[["nll_true", "nll_new"]].to_numpy()
        prompt = records[0].tasks["neighborhood"][0]
        targets = (prompt.target_true, prompt.target_new)
        grid = contaminating_substitution(demo_model, results[0].edit, prompt, targets, "mlp", 3).table
        losses = np.concatenate([result.history["loss"].to_numpy() for result in results])
        found.append((losses, nlls, grid["probability"].to_numpy()))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert np.abs(one - two).max() < 2e-4  # float32 rounding, which four steps of Adam enlarge


def test_nothing_to_profile_is_an_error(demo_model: LensModel):
    with pytest.raises(DriftlensError, match="0 records and 1 editors to profile"):
        profile_model(demo_model, [], {"rome": ROME(layer=1)}, batch_size=4, generate=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--records", "0"], "'0' is not a whole number of at least 1"),
        (["--editor", "rme"], "unknown editor 'rme'"),
        (["--data", "nowhere.json"], "nowhere.json"),
        (["--model", "no-such-model"], "unknown model 'no-such-model'"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--json", "/proc/driftlens/profile.json"], "/proc/driftlens"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert run_command(main, ["profile", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0
    assert "Traceback" not in error
