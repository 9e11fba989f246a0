"""Facts, records and the loader: the conventions on right and wrong, and errors that lead to the place."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from driftlens.data import TASKS, Fact, Record, TaskPrompt, load_records
from driftlens.errors import DriftlensError
from tests.support.places import ROOT, SHARED

BENCHMARK = SHARED / "data" / "merged_counterfact.json"

EIFFEL = {"subject": "Eiffel Tower", "target_true": "Paris", "target_new": "New York"}


def eiffel_record() -> dict[str, Any]:
    return {
        "requested_rewrite": {"prompt": "The Eiffel Tower is located in", **EIFFEL},
        "rewrite": {"prompts": ["The Eiffel Tower is located in"], "targets": ["New York"]},
        "p-paraphrase": {"prompts": ["Where is the Eiffel Tower? It is in"], "targets": ["New York"]},
        "p-subject_alias": {"prompts": ["The Iron Lady is located in"], "targets": ["New York"]},
        "p-reasoning": {"prompts": ["The country of the Eiffel Tower is"], "targets": ["the USA"]},
        "l-neighbor": {
            "prompts": ["The Louvre is located in", "Notre-Dame is in"],
            "targets": ["Paris", "Paris"],
        },
        "l-relation": {
            "prompts": ["The builder of the Eiffel Tower is", "The Eiffel Tower's river is the"],
            "targets": ["Eiffel", "Seine"],
            "groups": ["other_type", None],
        },
        "o-commonsense": {"prompts": "To open a jar", "right": "twist the lid ", "wrong": "twist the jar"},
        "generation": {"prompts": ["Near the Eiffel Tower"]},
        "split": "test",
    }


def write(folder: Path, records: object) -> Path:
    path = folder / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def load_one(folder: Path, record: object) -> Record:
    (loaded,) = load_records(write(folder, [record]))
    return loaded


# --- Fact ---------------------------------------------------------------------------------------------------


def test_fact_puts_the_subject_in_and_strips_what_joining_adds():
    fact = Fact(subject=" Eiffel Tower ", prompt="{} is in ", target_true=" Paris", target_new="New York\n")
    assert fact == Fact(prompt="{} is in", **EIFFEL)
    assert fact.text == "Eiffel Tower is in"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": " "}, "subject is empty"),
        ({"target_new": "\t\n"}, "target_new is empty"),
        ({"target_true": ""}, "target_true is empty"),
        ({"target_new": " Paris "}, "'Paris' equals target_true"),
        ({"prompt": "Eiffel Tower is in"}, "holds 0 places"),
        ({"prompt": "{} is in {}"}, "holds 2 places"),
        ({"prompt": "{}, the Eiffel Tower, is in"}, "occurs 2 times"),
        ({"prompt": ""}, "holds 0 places"),
    ],
)
def test_fact_refuses_what_cannot_be_edited(change: dict[str, str], message: str):
    with pytest.raises(DriftlensError, match=message) as caught:
        Fact(**{"prompt": "{} is in", **EIFFEL, **change})
    assert "\n" not in str(caught.value)


def test_fact_counts_overlapping_occurrences():
    # "aa" stands at 0 and at 1 of "aaa is": whoever searches the text would find the wrong one.
    with pytest.raises(DriftlensError, match="occurs 2 times"):
        Fact(subject="aa", prompt="{}a is", target_true="b", target_new="c")


@pytest.mark.parametrize(
    ("text", "message"),
    [("The tower is in", "does not occur"), ("Eiffel Tower or Eiffel Tower", "occurs 2 times")],
)
def test_fact_from_text_needs_the_subject_once(text: str, message: str):
    with pytest.raises(DriftlensError, match=message):
        Fact.from_text(text, **EIFFEL)


def test_fact_from_text_refuses_an_empty_subject():
    with pytest.raises(DriftlensError, match="subject is empty"):
        Fact.from_text("It is in", subject=" ", target_true="Paris", target_new="Rome")


characters = st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("{}aA é中🙂"))
texts = st.text(alphabet=characters, max_size=12)


@given(before=texts, subject=texts, after=texts)
def test_template_and_text_are_two_views_of_one_prompt(before: str, subject: str, after: str):
    subject, after = subject.strip(), after.rstrip()
    template, text = f"{before}{{}}{after}", f"{before}{subject}{after}"
    assume(subject and template.count("{}") == 1)
    assume(text.find(subject) == text.rfind(subject) == len(before))
    fact = Fact(subject=subject, prompt=template, target_true="x", target_new="y")
    assert fact.text == text
    assert Fact.from_text(text, subject=subject, target_true="x", target_new="y") == fact


@given(before=texts, subject=texts, after=texts)
def test_fact_from_text_gives_the_text_back_or_says_why_not(before: str, subject: str, after: str):
    text = f"{before}{subject}{after}"
    try:
        fact = Fact.from_text(text, subject=subject, target_true="x", target_new="y")
    except DriftlensError:
        # Only where there is no subject, more than one, or a slot written out in the text.
        once = bool(subject.strip()) and text.find(subject.strip()) == text.rfind(subject.strip())
        assert not once or text.replace(subject.strip(), "{}", 1).count("{}") != 1
    else:
        # Blanks at the end are dropped, up to a line break, which stays.
        assert text.startswith(fact.text)
        assert not text[len(fact.text) :].strip()
        assert not fact.text.endswith((" ", "\t"))
        assert fact.subject == subject.strip()


# --- records ------------------------------------------------------------------------------------------------


def test_each_task_has_its_right_and_wrong_targets(tmp_path: Path):
    record = load_one(tmp_path, eiffel_record())
    pairs = {task: [(p.target_true, p.target_new) for p in prompts] for task, prompts in record.tasks.items()}
    assert pairs == {
        "rewrite": [("Paris", "New York")],
        "paraphrase": [("Paris", "New York")],
        "alias": [("Paris", "New York")],
        "reasoning": [("Paris", "the USA")],
        "neighborhood": [("Paris", "New York")] * 2,
        "relation": [("Eiffel", "New York"), ("Seine", "New York")],
        "distract_neighborhood": [("Paris", "New York")] * 2,
        "distract_relation": [("Eiffel", "New York"), ("Seine", "New York")],
        "other_task": [("twist the lid", "twist the jar")],
        "distract_other_task": [("twist the lid", "twist the jar")],
    }
    assert tuple(record.tasks) == TASKS
    assert record.fact == Fact(prompt="The {} is located in", **EIFFEL)
    assert (record.index, record.split, record.generation) == (0, "test", ("Near the Eiffel Tower",))
    assert [p.group for p in record.tasks["relation"]] == ["other_type", None]


@pytest.mark.parametrize("task", ["neighborhood", "relation", "other_task"])
def test_distract_tasks_put_the_edited_sentence_first(tmp_path: Path, task: str):
    record = load_one(tmp_path, eiffel_record())
    distractor = "The Eiffel Tower is located in New York. "
    assert record.tasks[f"distract_{task}"] == tuple(
        replace(prompt, text=distractor + prompt.text, distractor=distractor) for prompt in record.tasks[task]
    )


def test_missing_and_empty_blocks_are_tasks_without_prompts(tmp_path: Path):
    raw = eiffel_record()
    record = load_one(
        tmp_path,
        {
            "requested_rewrite": raw["requested_rewrite"],
            "l-neighbor": {"prompts": [], "targets": []},
            "l-relation": None,
        },
    )
    assert record.tasks == dict.fromkeys(TASKS, ())
    assert (record.generation, record.split) == ((), None)


def test_records_travel_between_processes_and_into_sets(tmp_path: Path):
    record = load_one(tmp_path, eiffel_record())
    assert pickle.loads(pickle.dumps(record)) == record
    assert len({record, record}) == 1


def test_a_record_names_every_task():
    fact = Fact(prompt="{} is in", **EIFFEL)
    with pytest.raises(DriftlensError, match=r"unknown tasks \['neighbourhood'\]"):
        Record(index=0, fact=fact, tasks={**dict.fromkeys(TASKS, ()), "neighbourhood": ()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "  "}, "prompt is empty"),
        ({"target_true": " "}, "target_true"),
        ({"distractor": "x "}, "must begin"),
    ],
)
def test_task_prompt_refuses_what_cannot_be_scored(change: dict[str, str], message: str):
    with pytest.raises(DriftlensError, match=message):
        TaskPrompt(**{"text": "It is in", "target_true": "Paris", "target_new": "Rome", **change})


# --- reading ------------------------------------------------------------------------------------------------


def test_limit_takes_the_first_records(tmp_path: Path):
    path = write(tmp_path, [eiffel_record(), eiffel_record(), "rubbish"])
    assert [record.index for record in load_records(path, limit=2)] == [0, 1]
    assert load_records(path, limit=0) == []
    with pytest.raises(DriftlensError, match="limit -1"):
        load_records(path, limit=-1)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path):
    path = tmp_path / "records.json"
    path.write_text(json.dumps([eiffel_record()]), encoding="utf-8-sig")
    assert len(load_records(str(path))) == 1


def _without(*keys: str) -> dict[str, Any]:
    record = eiffel_record()
    block = record
    for key in keys[:-1]:
        block = block[key]
    del block[keys[-1]]
    return record


def _with(value: object, *keys: str) -> dict[str, Any]:
    record = eiffel_record()
    block = record
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    return record


@pytest.mark.parametrize(
    ("record", "field", "message"),
    [
        (_without("requested_rewrite"), "requested_rewrite", "is missing"),
        (_without("requested_rewrite", "subject"), "requested_rewrite.subject", "is missing"),
        (_with(" ", "requested_rewrite", "subject"), "requested_rewrite.subject", "is empty"),
        (_with("Big Ben", "requested_rewrite", "subject"), "requested_rewrite.prompt", "does not occur"),
        (
            _with("{} or Eiffel Tower", "requested_rewrite", "prompt"),
            "requested_rewrite.prompt",
            "holds 2 places",
        ),
        (
            _with("Paris ", "requested_rewrite", "target_new"),
            "requested_rewrite.target_new",
            "equals target_true",
        ),
        (
            _with(7, "requested_rewrite", "target_true"),
            "requested_rewrite.target_true",
            "expected a text, found a number",
        ),
        (_with([], "requested_rewrite"), "requested_rewrite", "expected an object, found a list"),
        (_without("l-neighbor", "targets"), "l-neighbor.targets", "is missing"),
        (_with(["Paris"], "l-neighbor", "targets"), "l-neighbor.targets", "has 1 entries for 2 prompts"),
        (_with({"a": 1}, "l-neighbor", "prompts"), "l-neighbor.prompts", "expected a list, found an object"),
        (_with(["x", None], "l-neighbor", "prompts"), r"l-neighbor.prompts\[1\]", "found null"),
        (_with(["same_type"], "l-relation", "groups"), "l-relation.groups", "has 1 entries for 2 prompts"),
        (_with([True, None], "l-relation", "groups"), r"l-relation.groups\[0\]", "found a boolean"),
        (_with(" ", "o-commonsense", "right"), "o-commonsense.right", "is empty"),
        (_with(["a", "b"], "o-commonsense", "wrong"), "o-commonsense.wrong", "has 2 entries for 1 prompts"),
        (_with(1.5, "split"), "split", "found a number"),
    ],
)
def test_schema_errors_name_file_record_and_field(tmp_path: Path, record: object, field: str, message: str):
    path = write(tmp_path, [eiffel_record(), record])
    with pytest.raises(DriftlensError, match=rf"records\.json, record 1, field {field}: .*{message}") as caught:
        load_records(path)
    assert "\n" not in str(caught.value)


def test_a_record_that_is_no_object_is_named(tmp_path: Path):
    with pytest.raises(DriftlensError, match=r"record 1: expected an object, found a text"):
        load_records(write(tmp_path, [eiffel_record(), "text"]))


@pytest.mark.parametrize("content", ['{"a": 1}', '"text"', "3", "null"])
def test_a_file_that_is_no_list_is_named(tmp_path: Path, content: str):
    path = tmp_path / "records.json"
    path.write_text(content)
    with pytest.raises(DriftlensError, match="is no list of records"):
        load_records(path)


@given(data=st.data())
def test_a_cut_file_is_reported_with_record_and_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    whole = json.dumps([eiffel_record()] * 3, indent=1)
    cut = data.draw(st.integers(0, len(whole) - 2))
    path = tmp_path_factory.mktemp("cut") / "records.json"
    path.write_text(whole[:cut])
    # Each record's last line is " },": as many as are complete stand before the damage.
    complete = whole[:cut].count("\n }")
    with pytest.raises(DriftlensError, match=rf"is damaged: record {complete}, line \d+"):
        load_records(path)


def test_damage_inside_a_record_is_reported_where_it_is(tmp_path: Path):
    path = write(tmp_path, [])
    path.write_text('[\n{"a": 1},\n{"a": [1, 2},\n{"a": 3}\n]')
    with pytest.raises(DriftlensError, match="record 1, line 3, column 12"):
        load_records(path)


@pytest.mark.parametrize("name", ["records.jsonl", "records.NDJSON", "records.json"])
def test_an_object_on_each_line_is_read_like_a_list(tmp_path: Path, name: str):
    records = [eiffel_record(), eiffel_record()]
    records[1]["requested_rewrite"]["target_new"] = "Bern\u2028"  # no line ends here
    path = tmp_path / name
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text(f"\ufeff\n{lines[0]}\r\n\n{lines[1]}\n", encoding="utf-8")
    assert load_records(path) == load_records(write(tmp_path, records))
    path.write_text(f"{lines[0]}\n\n{lines[1][:40]}\n")
    with pytest.raises(DriftlensError, match=rf"{name} is damaged: record 1, line 3, column \d+"):
        load_records(path)
    path.write_text(f"{lines[0]}\n[1]\n")
    with pytest.raises(DriftlensError, match="record 1: expected an object, found a list"):
        load_records(path)


def test_a_file_of_lines_may_have_one_or_none_or_hold_a_list(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    for content, count in (
        (json.dumps(eiffel_record()), 1),
        ("\n", 0),
        (json.dumps([eiffel_record()] * 3, indent=1), 3),
    ):
        path.write_text(content)
        assert len(load_records(path)) == count


def test_bytes_that_are_no_text_are_reported_with_their_line(tmp_path: Path):
    path = tmp_path / "records.json"
    path.write_bytes(b'[\n{"a":\n"\xff"}]')
    with pytest.raises(DriftlensError, match="line 3 is not UTF-8"):
        load_records(path)


def test_absurd_nesting_is_one_line(tmp_path: Path):
    path = tmp_path / "records.json"
    path.write_text("[" * 200_000)
    with pytest.raises(DriftlensError, match="nested too deeply"):
        load_records(path)


def test_unknown_names_and_missing_files(tmp_path: Path):
    with pytest.raises(DriftlensError, match=r"unknown dataset 'dmeo'; did you mean 'demo'\?"):
        load_records("dmeo")
    with pytest.raises(DriftlensError, match=r"unknown dataset 'qqqq'; known: .*demo, .*zsre .*JSON file"):
        load_records("qqqq")
    with pytest.raises(DriftlensError, match=r"cannot read absent\.json: no such file"):
        load_records("absent.json")
    with pytest.raises(DriftlensError, match=r"cannot read .*: it is a folder"):
        load_records(tmp_path)


# --- the two datasets that exist ----------------------------------------------------------------------------


@pytest.mark.skipif(not BENCHMARK.exists(), reason="the benchmark file is not beside the repository")
def test_the_whole_benchmark_parses():
    records = load_records(BENCHMARK)
    raw = json.loads(BENCHMARK.read_text(encoding="utf-8"))
    assert len(records) == 1678
    counts = {task: sum(len(record.tasks[task]) for record in records) for task in TASKS}
    for task, block in {
        "rewrite": "rewrite",
        "paraphrase": "p-paraphrase",
        "alias": "p-subject_alias",
        "reasoning": "p-reasoning",
        "neighborhood": "l-neighbor",
        "relation": "l-relation",
    }.items():
        assert counts[task] == sum(len(entry[block]["prompts"]) for entry in raw if block in entry)
    assert counts["other_task"] == counts["distract_other_task"] == 1678
    assert counts["distract_neighborhood"] == counts["neighborhood"]
    for record, entry in zip(records, raw, strict=True):
        assert record.fact.text == entry["requested_rewrite"]["prompt"]
        assert record.tasks["rewrite"][0].text == record.fact.text


def test_the_bundled_records_parse():
    path = ROOT / "driftlens" / "demo" / "records.json"
    if not path.exists():
        pytest.skip("no bundled records in this tree")
    records = load_records("demo")
    assert len(records) > 100
    assert {record.split for record in records} == {"validation", "test"}
    assert {p.group for record in records for p in record.tasks["relation"]} <= {"same_type", "other_type"}


def test_a_record_prints_in_a_line_and_describes_itself_in_full():
    fact = Fact(subject="Ann", prompt="{} lives in", target_true="Paris", target_new="Rome")
    prompt = TaskPrompt(text="Bob lives in", target_true="Lyon", target_new="Rome")
    record = Record(index=3, fact=fact, tasks={**dict.fromkeys(TASKS, ()), "neighborhood": (prompt, prompt)})
    assert repr(record) == "Record(3, 'Ann lives in': 'Paris' → 'Rome', 2 prompts)"
    others = [
        replace(record, index=4),
        replace(record, fact=replace(fact, target_true="Nice")),
        replace(record, tasks={**record.tasks, "neighborhood": (prompt, replace(prompt, target_true="Nice"))}),
        replace(record, split="test"),
        replace(record, relation_id="P551"),
        replace(record, generation=("Ann is",)),
    ]
    assert len({one.described() for one in (record, *others)}) == 7
