"""`evaluate` against plain Hugging Face, one prompt and one target at a time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from driftlens.data import TASKS, Fact, Record, TaskPrompt
from driftlens.edits import Edit, LowRankUpdate
from driftlens.errors import DriftlensError
from driftlens.evaluation import evaluate, summarize
from driftlens.models import LensModel
from tests.support.places import SHARED
from tests.support.plain import PlainModel
from tests.support.tiny import BRIDGE

COLUMNS = ["record", "task", "prompt_index", "group", "nll_true", "nll_new"]


DISTRACTOR = "The mother tongue of Danielle Darrieux is Paris. "


def prompt(text: str, true: str, new: str, group: str | None = None, distractor: str = "") -> TaskPrompt:
    return TaskPrompt(text=text, target_true=true, target_new=new, group=group, distractor=distractor)


def record(index: int, subject: str, **tasks: tuple[TaskPrompt, ...]) -> Record:
    fact = Fact(subject=subject, prompt="{} plays the", target_true="guitar", target_new="metal")
    return Record(index=index, fact=fact, tasks={task: tasks.get(task, ()) for task in TASKS})


RECORDS: Any = [
    record(
        7,
        "Toko Yasuda",
        rewrite=(prompt("Toko Yasuda plays the", "guitar", "metal but not in Leiden"),),
        # Single tokens of the same length, and targets that begin alike: rows that can and cannot be shared.
        neighborhood=(
            prompt("Paris is", "in", "a"),
            prompt("Where does the river Vltava end? In Mělník, where it meets", "the Elbe", "the mayor"),
        ),
        relation=(
            prompt("Toko Yasuda lived in", "Łódź", "München", group="same_type"),
            prompt("Toko Yasuda is a", "translator", "relative", group="other_type"),
        ),
    ),
    record(
        3,
        "Danielle Darrieux",
        rewrite=(prompt("The mother tongue of Danielle Darrieux is", "French", "Paris"),),
        # Begin alike, and so can share a part of their passes.
        distract_neighborhood=(
            prompt(DISTRACTOR + "Paris is", "in Leiden", "a", distractor=DISTRACTOR),
            prompt(DISTRACTOR + "Where does the river Vltava", "end", "meet the Elbe", distractor=DISTRACTOR),
        ),
        distract_relation=(prompt(DISTRACTOR + "Danielle Darrieux lived in", "Paris", "Łódź", distractor=DISTRACTOR),),
    ),
]


def random_edit(model: LensModel, seed: int, layers: tuple[int, ...] = (1,)) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    updates = {
        n: LowRankUpdate(
            left=0.3 * torch.randn(model.d_mlp, 1, generator=generator),
            right=0.3 * torch.randn(1, model.d_model, generator=generator),
        )
        for n in layers
    }
    return Edit(updates=updates)


@pytest.fixture(scope="module")
def plain(checkpoint_folder: Path) -> PlainModel:
    return PlainModel(checkpoint_folder)


@pytest.fixture(scope="module")
def model(checkpoints: Any) -> LensModel:
    from tests.support.tiny import load_tiny

    return load_tiny(checkpoints("llama-gqa"))


def nll_by_hand(plain: PlainModel, text: str, target: str, edit: Edit | None) -> float:
    """Mean over the target's tokens; the edit as (x @ left) @ right behind each edited layer's MLP."""
    ids, whole = (plain.tokenizer(words)["input_ids"] for words in (text, f"{text} {target}"))
    assert whole[: len(ids)] == ids
    tokens = torch.tensor([whole])
    edits: list[Any] = []
    for layer, update in ({} if edit is None else edit.updates).items():
        seen: list[Tensor] = []
        edits.append(("mlp_post", layer, lambda post, seen=seen: seen.append(post)))
        edits.append(("mlp_out", layer, lambda out, seen=seen, u=update: out + seen[-1] @ u.left @ u.right))
    log_probs = plain.run(tokens, edits=edits)[1][0].log_softmax(-1)
    losses = [-float(log_probs[k - 1, whole[k]]) for k in range(len(ids), len(whole))]
    return sum(losses) / len(losses)


def table_by_hand(plain: PlainModel, edits: list[Edit | None]) -> pd.DataFrame:
    rows = [
        (each.index, task, at, p.group, *(nll_by_hand(plain, p.text, t, edit) for t in (p.target_true, p.target_new)))
        for each, edit in zip(RECORDS, edits, strict=True)
        for task, prompts in each.tasks.items()
        for at, p in enumerate(prompts)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def assert_same(found: Any, expected: Any) -> None:
    """The same lines in the same order; NLLs of about 8, in float32, to 1e-5 of that (measured: 6e-7)."""
    assert list(found.columns) == COLUMNS
    pd.testing.assert_frame_equal(found[COLUMNS[:3]], expected[COLUMNS[:3]], check_dtype=False)
    groups = [[g if isinstance(g, str) else None for g in table["group"]] for table in (found, expected)]
    assert groups[0] == groups[1]
    for column in ("nll_true", "nll_new"):
        assert float(((found[column] - expected[column]) / expected[column]).abs().max()) < 1e-5


@pytest.mark.backend
def test_vanilla_and_edited_nlls_are_hugging_faces(lens_model: LensModel, plain: PlainModel):
    """Each record under its own edit, in one batch; one of them vanilla."""
    edit = random_edit(lens_model, 0, (0, 2))
    vanilla = table_by_hand(plain, [None, None])
    assert_same(evaluate(lens_model, RECORDS), vanilla)
    mixed: Any = evaluate(lens_model, RECORDS, [edit, None])
    assert_same(mixed, table_by_hand(plain, [edit, None]))
    first = mixed["record"] == 7
    assert ((mixed["nll_new"] - vanilla["nll_new"]).abs()[first] > 1e-4).all()


@pytest.mark.backend
def test_rows_of_a_batch_are_the_edited_weights(lens_model: LensModel):
    edits = [random_edit(lens_model, 1), random_edit(lens_model, 2, (0, 1))]
    together = evaluate(lens_model, RECORDS, edits)
    alone = []
    for each, edit in zip(RECORDS, edits, strict=True):
        with edit.applied(lens_model):
            alone.append(evaluate(lens_model, each))
    assert_same(together, pd.concat(alone, ignore_index=True))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_size=st.integers(1, 20), order=st.permutations([0, 1, 1, 0]))
def test_the_batch_size_does_not_matter(model: LensModel, batch_size: int, order: list[int]):
    """Nor which records share a batch, with which edits."""
    edits = [random_edit(model, 1), None]
    records, chosen = [RECORDS[i] for i in order], [edits[i] for i in order]
    found: Any = evaluate(model, records, chosen, batch_size=batch_size)
    one_by_one = [evaluate(model, r, e, batch_size=1) for r, e in zip(records, chosen, strict=True)]
    expected: Any = pd.concat(one_by_one, ignore_index=True)
    pd.testing.assert_frame_equal(found[COLUMNS[:3]], expected[COLUMNS[:3]])
    for column in ("nll_true", "nll_new"):
        assert torch.allclose(torch.tensor(found[column]), torch.tensor(expected[column]), rtol=1e-5)


def test_one_record_and_chosen_tasks(model: LensModel):
    edit = random_edit(model, 1)
    whole = evaluate(model, RECORDS, [edit, edit])
    one = evaluate(model, RECORDS[0], edit, tasks=["neighborhood", "rewrite"])
    assert list(one["task"]) == ["rewrite", "neighborhood", "neighborhood"]
    expected: Any = whole[(whole["record"] == 7) & whole["task"].isin(["rewrite", "neighborhood"])]
    assert torch.allclose(
        torch.tensor(one["nll_new"].to_numpy()), torch.tensor(expected["nll_new"].to_numpy()), rtol=1e-5
    )
    assert len(evaluate(model, RECORDS[0], edit, tasks=["alias"])) == 0
    assert list(evaluate(model, []).columns) == COLUMNS


def test_progress_and_memory(model: LensModel, monkeypatch: pytest.MonkeyPatch):
    expected = evaluate(model, RECORDS)
    run = LensModel.run

    def small(self: LensModel, batch: Any, **options: Any) -> Tensor:
        if len(batch.tokens) > 1:
            raise torch.OutOfMemoryError
        return run(self, batch, **options)

    monkeypatch.setattr(LensModel, "run", small)
    seen: list[tuple[int, int]] = []
    with pytest.warns(RuntimeWarning, match="out of memory: going on with batches"):
        found = evaluate(model, RECORDS, on_rows=lambda *now: seen.append(now))
    assert torch.allclose(torch.tensor(found["nll_true"]), torch.tensor(expected["nll_true"]), rtol=1e-5)
    assert seen[-1] == (len(found), len(found))


def test_mistakes_are_one_line(model: LensModel):
    edit = random_edit(model, 1)
    for arguments, message in (
        ((RECORDS, [edit]), "2 records but 1 edits; give one edit for each record"),
        ((RECORDS, edit), "2 records but 1 edits"),
    ):
        with pytest.raises(DriftlensError, match=message) as error:
            evaluate(model, *arguments)
        assert "\n" not in str(error.value)
    with pytest.raises(DriftlensError, match="unknown task 'neighbourhood'; did you mean 'neighborhood'"):
        evaluate(model, RECORDS, tasks=["neighbourhood"])
    with pytest.raises(DriftlensError, match="batch_size is 0"):
        evaluate(model, RECORDS, batch_size=0)


def test_a_prompt_that_is_too_long_costs_its_own_nll(model: LensModel):
    room = model.n_ctx - len(model.encode("the the").ids) - 1
    brim = "the " * room + "the"  # with one more token it is full, with more it is too long
    long = record(5, "Toko Yasuda", relation=(prompt(brim, "a", "a guitar and a guitar"), prompt("The", "a", "b")))
    far = replace(RECORDS[0], tasks=RECORDS[0].tasks | {"paraphrase": (prompt("the " * 80, "a", "b"),)})
    edits = [random_edit(model, 1), random_edit(model, 2), None]
    with pytest.warns(
        RuntimeWarning, match=r"^2 of \d+ prompts cannot be read, and their NLLs are NaN: record 7, "
    ) as told:
        found = evaluate(model, [far, long, RECORDS[1]], edits)
    assert len(told) == 1
    assert "reads at most 64" in str(told[0].message)
    lost: Any = found[found[["nll_true", "nll_new"]].isna().any(axis=1)]
    assert lost[["record", "task", "prompt_index"]].to_numpy().tolist() == [[7, "paraphrase", 0], [5, "relation", 0]]
    # Where only one target is too long, the other's NLL is there.
    assert lost["nll_true"].isna().tolist() == [True, False]
    assert lost["nll_new"].isna().all()
    others = evaluate(model, [RECORDS[0], RECORDS[1]], [edits[0], None])
    left: Any = found[(found["record"] != 5) & (found["task"] != "paraphrase")]
    expected: Any = others[others["task"] != "paraphrase"]
    assert torch.allclose(torch.tensor(left["nll_new"].to_numpy()), torch.tensor(expected["nll_new"].to_numpy()))
    assert summarize(found).loc["RS", "n"] == summarize(others).loc["RS", "n"] + 1
    listed: list[tuple[int, str, int, str]] = []
    evaluate(model, far, on_problem=lambda *problem: listed.append(problem))
    assert [problem[:3] for problem in listed] == [(7, "paraphrase", 0)]


def test_an_edit_that_swaps_two_targets_is_seen_in_the_scores(model: LensModel):
    """From prompts to scores: what the table says of each prompt is what is counted."""
    nlls = evaluate(model, RECORDS, [random_edit(model, 1), None])
    scores = summarize(nlls)
    for score, task, new_wins in (("ES", "rewrite", True), ("NS", "neighborhood", False), ("RS", "relation", False)):
        lines = nlls[nlls["task"] == task]
        wins = lines["nll_new"] < lines["nll_true"] if new_wins else lines["nll_true"] < lines["nll_new"]
        assert scores.loc[score, "value"] == pytest.approx(100 * wins.mean())
        assert scores.loc[score, "n"] == len(lines)


def test_very_unlikely_targets_do_not_tie():
    """exp(−800) and exp(−900) are both zero in float64; the likelier one wins all the same."""
    lines = [("rewrite", 900.0, 800.0), ("rewrite", 800.0, 900.0), ("rewrite", 800.0, 800.0)]
    scores = summarize(pd.DataFrame(lines, columns=["task", "nll_true", "nll_new"]))
    assert scores.loc["ES", "value"] == pytest.approx(100 / 3)
    assert scores.loc["EM", "value"] == 0.0


@pytest.mark.skipif(
    not (SHARED / "models" / "counterfact-gpt2").is_dir(),
    reason="the benchmark's records and a model for them are not here",
)
def test_records_of_the_benchmark():
    """A model that knows the benchmark's facts finds them likelier than the counterfactual ones."""
    from driftlens.data import load_records
    from driftlens.models import load_model

    data = SHARED / "data" / "merged_counterfact.json"
    if not data.is_file():
        pytest.skip(f"{data} is not here")
    if not BRIDGE:
        pytest.skip("loads through load_model")
    model = load_model(SHARED / "models" / "counterfact-gpt2", device="cpu")
    plain = PlainModel(SHARED / "models" / "counterfact-gpt2", dtype=torch.float32)
    everything = load_records(data)
    records = [everything[i] for i in (0, 538, 839, 1468)]
    nlls: Any = evaluate(model, records, tasks=["rewrite", "reasoning", "relation"])
    for line in nlls.itertuples():
        each: Record = next(r for r in records if r.index == line.record)
        asked = each.tasks[str(line.task)][line.prompt_index]
        for found, target in ((line.nll_true, asked.target_true), (line.nll_new, asked.target_new)):
            # float32; NLLs of well-known targets are near zero, so absolute.
            assert found == pytest.approx(nll_by_hand(plain, asked.text, target, None), abs=1e-4)
