"""`evaluate` is one prompt at a time on plain Hugging Face, whatever shares a batch with it."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from driftlens.data import TASKS, Fact, Record, TaskPrompt
from driftlens.edits import Edit
from driftlens.errors import DriftlensError
from driftlens.evaluation import evaluate
from driftlens.models import LensModel
from tests.support.edited import changes, random_edit
from tests.support.plain import PlainModel
from tests.support.tiny import one_family

pytestmark = pytest.mark.backend

DISTRACTOR = "The mother tongue of Danielle Darrieux is English. "


def record(index: int, **tasks: list[tuple[str, str, str]]) -> Record:
    fact = Fact(
        subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_true="French", target_new="English"
    )
    prompts = {
        task: tuple(
            TaskPrompt(
                text=(DISTRACTOR if task.startswith("distract") else "") + text,
                target_true=true,
                target_new=new,
                distractor=DISTRACTOR if task.startswith("distract") else "",
            )
            for text, true, new in asked
        )
        for task, asked in tasks.items()
    }
    return Record(index=index, fact=fact, tasks={task: prompts.get(task, ()) for task in TASKS})


NEIGHBORS = [
    ("The mother tongue of Léon Blum is", "French", "English"),
    ("Montesquieu, a native", "French", "a language of New York"),
    ("Where does the river Vltava end? In", "Mělník, where it meets the Elbe", "Paris"),
]
RECORDS = (
    record(
        7,
        rewrite=[("The mother tongue of Danielle Darrieux is", "French", "English")],
        neighborhood=NEIGHBORS,
        distract_neighborhood=NEIGHBORS,
        distract_relation=[("Toko", "Yasuda", "guitar")],
    ),
    # The prompts of another record again, under another edit.
    record(3, neighborhood=NEIGHBORS[:2], other_task=[("To open a jar", "twist the lid", "twist the jar")]),
    record(9),
    record(8, paraphrase=[("A", "b", "c"), ("A", "same", "same")]),
)


def edits_of(model: LensModel) -> list[Edit | None]:
    return [random_edit(model, 0, 1), random_edit(model, 1, 0, 2, rank=1), None, None]


def by_hand(plain: PlainModel, text: str, target: str, edit: Edit | None) -> float:
    """Mean NLL of the target's tokens, from the tokens of the prompt and of the whole text."""
    start = len(plain.tokenizer(text)["input_ids"])
    ids = plain.tokenizer(f"{text} {target}")["input_ids"]
    log_probs = plain.run(torch.tensor([ids]), edits=changes(edit))[1][0].log_softmax(-1)
    return -sum(float(log_probs[at - 1, ids[at]]) for at in range(start, len(ids))) / (len(ids) - start)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_every_nll_is_that_of_plain_hugging_face(exact_model: LensModel, checkpoint_folder: Path, batch_size: int):
    plain = PlainModel(checkpoint_folder, dtype=torch.float64)
    edits = edits_of(exact_model)
    table: Any = evaluate(exact_model, RECORDS, edits, batch_size=batch_size)
    assert list(table.columns) == ["record", "task", "prompt_index", "group", "nll_true", "nll_new"]
    place = {of.index: number for number, of in enumerate(RECORDS)}
    assert len(table) == sum(len(prompts) for of in RECORDS for prompts in of.tasks.values())
    for row in table.itertuples():
        of = RECORDS[place[row.record]]
        prompt = of.tasks[row.task][row.prompt_index]
        for found, target in ((row.nll_true, prompt.target_true), (row.nll_new, prompt.target_new)):
            assert found == pytest.approx(by_hand(plain, prompt.text, target, edits[place[row.record]]), abs=1e-5)


words = st.sampled_from("the Eiffel Tower Paris Łódź plays a guitar in New-York metal national é".split())
phrases = st.lists(words, min_size=1, max_size=4).map(" ".join)
prompts = st.lists(st.tuples(phrases, phrases, phrases), max_size=3)


@settings(
    max_examples=5,
    deadline=None,
    # Shrinking a failure of a whole evaluation takes many minutes and shows little more.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    asked=st.lists(st.tuples(prompts, prompts, st.booleans()), min_size=1, max_size=4),
    batch_size=st.integers(1, 12),
    order=st.randoms(use_true_random=False),
)
def test_all_at_once_is_one_record_at_a_time(
    exact_model: LensModel, asked: list[tuple[Any, Any, bool]], batch_size: int, order: Any
):
    records = [record(i, relation=plain, distract_relation=after) for i, (plain, after, _) in enumerate(asked)]
    edits = [random_edit(exact_model, i, 1) if edited else None for i, (*_, edited) in enumerate(asked)]
    alone = pd.concat([evaluate(exact_model, of, edit, batch_size=1) for of, edit in zip(records, edits, strict=True)])
    shuffled = list(range(len(records)))
    order.shuffle(shuffled)
    together = evaluate(
        exact_model, [records[i] for i in shuffled], [edits[i] for i in shuffled], batch_size=batch_size
    )
    keys = ["record", "task", "prompt_index"]
    both: Any = alone.merge(together, on=keys, suffixes=("", "_together"))
    assert len(both) == len(alone) == len(together)
    for column in ("nll_true", "nll_new"):
        assert both[column].dtype == "float64"
        assert both.empty or (both[column] - both[f"{column}_together"]).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:a hook is on the model")  # it counts what is run
def test_what_prompts_begin_with_in_common_is_run_once(lens_model: LensModel):
    columns: list[int] = []
    handle = lens_model.model.blocks[0].mlp.register_forward_pre_hook(
        lambda _module, args: columns.append(args[0].shape[0] * args[0].shape[1])
    )
    try:
        # One row at a time: nothing is padding.
        tasks = ["neighborhood", "distract_neighborhood", "distract_relation"]
        evaluate(lens_model, RECORDS[0], tasks=tasks, batch_size=1)
    finally:
        handle.remove()
    whole = {
        tuple(lens_model.encode(f"{prompt.text} {target}").ids[:-1])
        for task in tasks
        for prompt in RECORDS[0].tasks[task]
        for target in (prompt.target_true, prompt.target_new)
    }
    assert sum(columns) < 0.6 * sum(map(len, whole))


@one_family
def test_tasks_can_be_chosen_and_progress_is_told(lens_model: LensModel):
    seen: list[tuple[int, int]] = []
    table = evaluate(lens_model, RECORDS, tasks=["neighborhood"], on_rows=lambda *done: seen.append(done))
    assert set(table["task"]) == {"neighborhood"}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    whole = evaluate(lens_model, RECORDS)
    expected: Any = whole[whole["task"] == "neighborhood"].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, expected, atol=1e-4)


@one_family
def test_mistakes_are_told(lens_model: LensModel):
    with pytest.raises(DriftlensError, match="4 records but 1 edits"):
        evaluate(lens_model, RECORDS, [None])
    with pytest.raises(DriftlensError, match="unknown task 'neighbourhood'; did you mean"):
        evaluate(lens_model, RECORDS, tasks=["neighbourhood"])
