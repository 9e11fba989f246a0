"""Public datasets: every schema as it is written in its real file, fetching, and the judge's questions."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from driftlens.data import (
    TASKS,
    Fact,
    KnownFact,
    Record,
    TaskPrompt,
    dataset_path,
    homes,
    load_known_facts,
    load_records,
    load_snippets,
    load_texts,
)
from driftlens.data.filter_prompts import (
    judge_requests,
    keep_unrelated,
    neighborhood_question,
    relation_question,
)
from driftlens.data.homes import HOMES, Home, fetch
from driftlens.data.knowedit import NOTHING_TRUE
from driftlens.errors import DriftlensError
from tests.support.places import SHARED

DATA = SHARED / "data"


def write(folder: Path, content: object, name: str = "records.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def asked(record: Record) -> dict[str, list[tuple[str, str, str]]]:
    """The tasks that are there, as (text, target_true, target_new)."""
    return {
        task: [(prompt.text, prompt.target_true, prompt.target_new) for prompt in prompts]
        for task, prompts in record.tasks.items()
        if prompts
    }


# --- schemas ------------------------------------------------------------------------------------------------

COUNTERFACT: dict[str, Any] = {
    "case_id": 0,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["It was late. Danielle Darrieux, a native", "So it ended. Danielle Darrieux spoke"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is", "Montesquieu, a native"],
    "attribute_prompts": ["The mother tongue of Douglas Adams is"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is", "Where Danielle Darrieux is from, people speak"],
}
ZSRE: dict[str, Any] = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"],
    "loc": "nq question: who played desmond doss father in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
    "cond": "Trinity College >> University of Michigan || What university did Watts Humphrey attend?",
}
WIKI_RECENT: dict[str, Any] = {
    "subject": "Leo Arons",
    "prompt": "The place of death of Leo Arons is",
    "target_new": "Berlin",
    "portability": {
        "Logical_Generalization": [
            {"prompt": "Is Leo Arons still alive?", "ground_truth": [["no"], ["incorrect"]]},
        ],
        "Reasoning": [
            {
                "prompt": "The name of the continent which the place of death of Leo Arons is part of is",
                "ground_truth": [["Europe", "European continent", "Old Continent"]],
            },
            {"prompt": "", "ground_truth": [["nobody"]]},
        ],
        "Subject_Aliasing": [
            {
                "prompt": "The place of death of Martin Leo Arons is",
                "ground_truth": [["Berlin", "Berlin, Germany", "DE-BE"]],
            }
        ],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The name of the father of Leo Arons is", "ground_truth": [["Albert Arons"]]},
            {"prompt": "The name of the field of work of Leo Arons is", "ground_truth": [[""], []]},
        ]
    },
}
WIKI_COUNTERFACT: dict[str, Any] = {
    "subject": "Frederic Piesch",
    "prompt": "The name of the position held by Frederic Piesch is",
    "target_new": "Archbishop of León, Mexico",
    "ground_truth": "mayor of Vienna",
    "portability": {
        "Subject_Aliasing": [
            {
                "prompt": "The name of the position held by Frederic of Pieschen is",
                "ground_truth": "Archbishop of León, Mexico",
            }
        ]
    },
    "locality": {
        "Relation_Specificity": [{"prompt": "The gender of Frederic Piesch is", "ground_truth": "male"}],
        "Forgetfulness": [
            {
                "prompt": "The name of the position held by Frederic Piesch, which is not Archbishop of León, is",
                "ground_truth": "mayor of Vienna",
            }
        ],
    },
}
KNOWEDIT_ZSRE: dict[str, Any] = {
    "subject": "Epaspidoceras",
    "target_new": "Noctuidae",
    "prompt": "Which family does Epaspidoceras belong to?",
    "ground_truth": ["Aspidoceratidae"],
    "rephrase_prompt": "What family are Epaspidoceras?",
    "cond": "Geometridae >> Noctuidae || Which family does Epaspidoceras belong to?",
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The taxon rank of Epaspidoceras is", "ground_truth": ["genus", "genera"]},
        ]
    },
    "portability": {
        "Reasoning": [{"prompt": "What is the common name for that family?", "ground_truth": "Owlet moths"}]
    },
}
FLAT: dict[str, Any] = {
    "case_id": 4402,
    "subject": "Singled Out",
    "prompt": "Singled Out debuted on",
    "target_new": "CBS",
    "ground_truth": "MTV",
    "rephrase_prompt": "Singled Out is to debut on",
    "locality_prompt": "Daria premieres on",
    "locality_ground_truth": "MTV",
}
KNOWN: dict[str, Any] = {
    "known_id": 13,
    "subject": "Xamarin",
    "attribute": "Microsoft",
    "template": "{}, from",
    "prediction": " the Microsoft Azure team, has announced that it is",
    "prompt": "Xamarin, from the",
    "relation_id": "P127",
}


def test_counterfact_as_rome_distributes_it(tmp_path: Path):
    (record,) = load_records(write(tmp_path, [COUNTERFACT]))
    assert record.fact == Fact(
        subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_true="French", target_new="English"
    )
    before = "The mother tongue of Danielle Darrieux is English. "
    assert asked(record) == {
        "rewrite": [("The mother tongue of Danielle Darrieux is", "French", "English")],
        "paraphrase": [(text, "French", "English") for text in COUNTERFACT["paraphrase_prompts"]],
        "neighborhood": [(text, "French", "English") for text in COUNTERFACT["neighborhood_prompts"]],
        "distract_neighborhood": [(before + text, "French", "English") for text in COUNTERFACT["neighborhood_prompts"]],
    }
    assert record.tasks["distract_neighborhood"][0].distractor == before
    assert list(record.generation) == COUNTERFACT["generation_prompts"]
    assert (record.relation_id, record.target_new_id) == ("P103", "Q1860")
    assert tuple(record.tasks) == TASKS


def test_zsre_as_mend_edits_it(tmp_path: Path):
    (record,) = load_records(write(tmp_path, [ZSRE]))
    true, new = "Illinois Institute of Technology", "University of Michigan"
    assert record.fact == Fact(
        subject="Watts Humphrey", prompt="What university did {} attend?", target_true=true, target_new=new
    )
    question = "nq question: who played desmond doss father in hacksaw ridge?"
    assert asked(record) == {
        "rewrite": [("What university did Watts Humphrey attend?", true, new)],
        "paraphrase": [("What university did Watts Humphrey take part in?", true, new)],
        "neighborhood": [(question, "Hugo Weaving", new)],
        "distract_neighborhood": [
            (f"What university did Watts Humphrey attend? {new}. {question}", "Hugo Weaving", new)
        ],
    }


def test_wiki_recent_has_no_old_target(tmp_path: Path):
    (record,) = load_records(write(tmp_path, [WIKI_RECENT]))
    assert record.fact == Fact(
        subject="Leo Arons", prompt="The place of death of {} is", target_true=NOTHING_TRUE, target_new="Berlin"
    )
    continent = "The name of the continent which the place of death of Leo Arons is part of is"
    father = "The name of the father of Leo Arons is"
    assert asked(record) == {
        "rewrite": [("The place of death of Leo Arons is", NOTHING_TRUE, "Berlin")],
        "alias": [("The place of death of Martin Leo Arons is", NOTHING_TRUE, "Berlin")],
        # A prompt per answer, each with the answer's first name; entries without either are passed over.
        "reasoning": [
            (continent, NOTHING_TRUE, "Europe"),
            ("Is Leo Arons still alive?", NOTHING_TRUE, "no"),
            ("Is Leo Arons still alive?", NOTHING_TRUE, "incorrect"),
        ],
        "relation": [(father, "Albert Arons", "Berlin")],
        "distract_relation": [(f"The place of death of Leo Arons is Berlin. {father}", "Albert Arons", "Berlin")],
    }
    assert [prompt.group for prompt in record.tasks["reasoning"]] == ["Reasoning"] + ["Logical_Generalization"] * 2


def test_wiki_counterfact_and_its_plain_answers(tmp_path: Path):
    (record,) = load_records(write(tmp_path, [WIKI_COUNTERFACT]))
    true, new = "mayor of Vienna", "Archbishop of León, Mexico"
    found = asked(record)
    assert found["rewrite"] == [("The name of the position held by Frederic Piesch is", true, new)]
    assert found["alias"] == [("The name of the position held by Frederic of Pieschen is", true, new)]
    assert found["relation"] == [("The gender of Frederic Piesch is", "male", new)]
    assert set(found) == {"rewrite", "alias", "relation", "distract_relation"}


@pytest.mark.parametrize("field", ["portability", "locality"])
def test_an_empty_list_is_an_object_without_entries(tmp_path: Path, field: str):
    """As programs write it whose maps and lists are one type."""
    empty, absent = ({**WIKI_RECENT, field: value} for value in ([], None))
    assert load_records(write(tmp_path, [empty, WIKI_RECENT])) == load_records(write(tmp_path, [absent, WIKI_RECENT]))


def test_knowedits_zsre_and_its_lists_of_names(tmp_path: Path):
    (record,) = load_records(write(tmp_path, [KNOWEDIT_ZSRE]))
    found = asked(record)
    assert record.fact.target_true == "Aspidoceratidae"
    assert found["paraphrase"] == [("What family are Epaspidoceras?", "Aspidoceratidae", "Noctuidae")]
    assert found["relation"] == [("The taxon rank of Epaspidoceras is", "genus", "Noctuidae")]
    assert found["reasoning"] == [("What is the common name for that family?", "Aspidoceratidae", "Owlet moths")]


def test_easyedits_flat_records(tmp_path: Path):
    (record,) = load_records(write(tmp_path, [FLAT]))
    found = asked(record)
    assert found["neighborhood"] == [("Daria premieres on", "MTV", "CBS")]
    assert found["paraphrase"] == [("Singled Out is to debut on", "MTV", "CBS")]


def test_known_facts(tmp_path: Path):
    path = write(tmp_path, [KNOWN, {**KNOWN, "attribute": " Xerox"}])
    first, second = load_known_facts(path)
    assert first == KnownFact(
        index=0,
        subject="Xamarin",
        text="Xamarin, from the",
        attribute="Microsoft",
        template="{}, from",
        prediction=" the Microsoft Azure team, has announced that it is",
        relation_id="P127",
    )
    assert (second.index, second.attribute) == (1, "Xerox")
    assert load_known_facts(path, limit=1) == [first]
    with pytest.raises(DriftlensError, match=r"record 0: known facts have no new target .*load_known_facts"):
        load_records(path)
    with pytest.raises(DriftlensError, match="limit -1"):
        load_known_facts(path, limit=-1)


def change(record: dict[str, Any], value: object, *keys: str | int) -> dict[str, Any]:
    changed: Any = json.loads(json.dumps(record))
    place = changed
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("good", "bad", "field", "message"),
    [
        (COUNTERFACT, change(COUNTERFACT, None, "requested_rewrite", "target_true"), "requested_rewrite.target_true",
         "is missing"),
        (COUNTERFACT, change(COUNTERFACT, "French", "requested_rewrite", "target_true"),
         "requested_rewrite.target_true", "expected an object, found a text"),
        (COUNTERFACT, change(COUNTERFACT, [1], "neighborhood_prompts"), r"neighborhood_prompts\[0\]", "found a number"),
        (COUNTERFACT, change(COUNTERFACT, "one", "paraphrase_prompts"), "paraphrase_prompts", "expected a list"),
        (ZSRE, change(ZSRE, None, "answers"), "answers", "is missing"),
        (ZSRE, change(ZSRE, [], "answers"), "answers", "is empty"),
        (ZSRE, change(ZSRE, None, "loc_ans"), "loc_ans", "is missing"),
        (ZSRE, change(ZSRE, "", "alt"), "alt", "is empty"),
        (WIKI_RECENT, change(WIKI_RECENT, None, "locality", "Relation_Specificity", 0, "ground_truth"),
         r"locality.Relation_Specificity\[0\].ground_truth", "is missing"),
        (WIKI_RECENT, change(WIKI_RECENT, [[7]], "locality", "Relation_Specificity", 0, "ground_truth"),
         r"locality.Relation_Specificity\[0\].ground_truth\[0\]\[0\]", "found a number"),
        (WIKI_RECENT, change(WIKI_RECENT, "x", "portability"), "portability", "expected an object"),
        (WIKI_COUNTERFACT, change(WIKI_COUNTERFACT, {}, "target_new"), "target_new", "expected a list"),
        (FLAT, change(FLAT, None, "locality_ground_truth"), "locality_ground_truth", "is missing"),
    ],
)  # fmt: skip
def test_schema_errors_name_file_record_and_field(
    tmp_path: Path, good: dict[str, Any], bad: dict[str, Any], field: str, message: str
):
    path = write(tmp_path, [good, bad])
    with pytest.raises(DriftlensError, match=rf"records\.json, record 1, field {field}: .*{message}") as caught:
        load_records(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [{**KNOWN, "prompt": "no such"}, {**KNOWN, "template": "none"}, {"subject": "x"}])
def test_known_facts_are_checked(tmp_path: Path, bad: dict[str, Any]):
    with pytest.raises(DriftlensError, match=r"records\.json, record 1, field (prompt|template): "):
        load_known_facts(write(tmp_path, [KNOWN, bad]))


def test_a_file_of_another_kind_is_told_apart(tmp_path: Path):
    with pytest.raises(
        DriftlensError, match=r"record 0: no known schema has the fields found \(text, label\); expected"
    ):
        load_records(write(tmp_path, [{"text": "a", "label": 1}]))
    with pytest.raises(DriftlensError, match="record 0: expected an object, found a text"):
        load_records(write(tmp_path, ["text"]))
    with pytest.raises(DriftlensError, match="'me_ppl' holds no edits"):
        load_records("me_ppl")
    assert load_records(write(tmp_path, [])) == []


def test_records_that_cannot_be_edited_are_left_out_and_counted(tmp_path: Path):
    records = [
        ZSRE,
        change(ZSRE, "Who taught watts humphrey?", "src"),
        change(ZSRE, "University of Michigan", "answers", 0),
        change(ZSRE, "Which Watts Humphrey was Watts Humphrey?", "src"),
        ZSRE,
    ]
    path = write(tmp_path, records)
    with pytest.warns(UserWarning, match=r"left out 3 of 5 .*record 1, field src: subject .* does not occur"):
        found = load_records(path)
    assert [record.index for record in found] == [0, 4]
    with pytest.warns(UserWarning, match="left out 3 of 5"):
        assert len(load_records(path, limit=2)) == 2
    assert len(load_records(path, limit=1)) == 1


# --- the files themselves -----------------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.exists(), reason="the data folder is not beside the repository")
def test_the_real_files():
    known = load_known_facts(DATA / "known_1000.json")
    assert len(known) == 1209
    assert all(fact.text.startswith(fact.template.replace("{}", fact.subject)) for fact in known[:5])
    # The distributed file is this one with another layout.
    content = json.dumps(json.loads((DATA / "known_1000.json").read_text(encoding="utf-8")), indent=2) + "\n"
    assert hashlib.sha256(content.encode()).hexdigest() == HOMES["known_facts"].sha256
    texts = load_texts(DATA / "me_ppl_50.json")
    assert len(texts) == 50
    for name, file in (("me_ppl", "me_ppl_50.json"), ("merged_counterfact", "merged_counterfact.json")):
        assert hashlib.sha256((DATA / file).read_bytes()).hexdigest() == HOMES[name].sha256
    merged = load_records(DATA / "merged_counterfact.json")
    assert sum(record.target_new_id is not None for record in merged) == 839


def test_texts_and_snippets(tmp_path: Path):
    assert load_texts(write(tmp_path, [{"Corpus": "C4", "Text": " one"}, "two"])) == [" one", "two"]
    with pytest.raises(DriftlensError, match=r"record 0, field Text: is missing"):
        load_texts(write(tmp_path, [{"text": "one"}]))
    entries = [
        {"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "a", "text": "x"}, {"text": "y"}]},
        {"relation_id": "P1", "target_id": "Q2", "samples": []},
        {"relation_id": "P1", "target_id": "Q1", "samples": [{"text": "z"}]},
    ]
    assert load_snippets(write(tmp_path, entries)) == {("P1", "Q1"): ("x", "y", "z"), ("P1", "Q2"): ()}


# --- fetching -----------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for the public one of "zsre", and an empty cache."""
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    path = write(tmp_path, [ZSRE], "public.json")
    monkeypatch.setitem(homes.HOMES, "zsre", Home(url=path.as_uri()))
    return path


def test_a_dataset_is_fetched_once_and_then_read_from_the_cache(home: Path, tmp_path: Path):
    assert len(load_records("zsre")) == 1
    home.unlink()
    assert len(load_records("zsre")) == 1
    assert dataset_path("zsre") == tmp_path / "cache" / "data" / "zsre.json"


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_changed_in_the_cache_is_noticed(home: Path, monkeypatch: pytest.MonkeyPatch, known: bool):
    if known:
        digest = hashlib.sha256(home.read_bytes()).hexdigest()
        monkeypatch.setitem(homes.HOMES, "zsre", Home(url=home.as_uri(), sha256=digest))
    path = fetch("zsre")
    path.write_text("[]")
    with pytest.raises(DriftlensError, match=r"zsre\.json is not the file it should be .*delete it") as caught:
        fetch("zsre")
    assert "\n" not in str(caught.value)
    path.unlink()
    assert len(load_records("zsre")) == 1


def test_a_download_that_is_not_the_pinned_file_is_not_kept(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(homes.HOMES, "zsre", Home(url=home.as_uri(), sha256="0" * 64))
    with pytest.raises(DriftlensError, match=r"gave a file with SHA-256 .*expected 000000000000…"):
        load_records("zsre")
    assert not list(homes.cache_folder().rglob("*.*"))


def test_without_a_network_one_line_says_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch):
    home.unlink()
    with pytest.raises(
        DriftlensError, match=r"cannot fetch zsre from file://.*go online once, or download .* yourself"
    ):
        load_records("zsre")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(homes.HOMES, "zsre", Home(url="http://127.0.0.1:9/zsre.json"))
    with pytest.raises(DriftlensError, match=r"cannot fetch zsre from http://127\.0\.0\.1:9/") as caught:
        load_records("zsre")
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DriftlensError, match="HF_HUB_OFFLINE forbids to fetch it"):
        load_records("zsre")


def test_homes_are_pinned():
    for name, place in HOMES.items():
        assert place.url.startswith("https://"), name
        assert place.sha256 is None or re.fullmatch("[0-9a-f]{64}", place.sha256), name
        # Where the host can name a revision, one is named.
        if "rome.baulab.info" not in place.url:
            assert re.search(r"/[0-9a-f]{40}/", place.url), name


def test_the_hubs_mirror_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert homes._mirrored(HOMES["wiki_recent"].url).startswith("https://mirror.example/datasets/zjunlp/KnowEdit/")
    assert homes._mirrored(HOMES["zsre"].url) == HOMES["zsre"].url


# --- the judge ----------------------------------------------------------------------------------------------

IRMA = Fact(subject="Irma Boom", prompt="{} spoke the language", target_true="Dutch", target_new="Russian")


def test_the_questions_are_those_of_figure_8():
    neighbor = "Johannes Lingelbach is a native speaker of"
    assert " ".join(neighborhood_question(IRMA, neighbor).split()) == (
        "Determine the subjects in the following two sentences is related or unrelated. - Neighborhood subjects in the "
        "same field without direct collaboration or interaction are considered unrelated. Sentence 1: Irma Boom spoke "
        f"the language → Russian Sentence 2: {neighbor} Expected answer: Related or Unrelated."
    )
    relation = "The place of birth of Irma Boom is"
    assert " ".join(relation_question(IRMA, relation).split()) == (
        "Determine the factual relationships in the following two sentences is related or unrelated: Sentence 1: Irma "
        f"Boom spoke the language → Russian Sentence 2: {relation} Expected answer: Related or Unrelated."
    )


def test_related_prompts_go_in_both_forms(tmp_path: Path):
    (record,) = load_records(write(tmp_path, [COUNTERFACT]))
    requests = judge_requests([record])
    assert [request.key for request in requests] == [(0, "neighborhood", 0), (0, "neighborhood", 1)]
    answers = {requests[0].key: "They are **Related**.", requests[1].key: "unrelated"}
    (kept,) = keep_unrelated([record], answers)
    assert kept.tasks["neighborhood"] == record.tasks["neighborhood"][1:]
    assert kept.tasks["distract_neighborhood"] == record.tasks["distract_neighborhood"][1:]
    assert kept.tasks["paraphrase"] == record.tasks["paraphrase"]


@pytest.mark.parametrize(
    ("answer", "message"), [(None, "no answer"), ("Yes", "neither"), ("Related or unrelated?", "neither")]
)
def test_the_judge_must_decide(answer: str | None, message: str):
    prompt = TaskPrompt(text="The place of birth of Irma Boom is", target_true="Lochem", target_new="Russian")
    tasks = {**dict.fromkeys(TASKS, ()), "relation": (prompt,), "distract_relation": (replace(prompt, text="x"),)}
    record = Record(index=5, fact=IRMA, tasks=tasks)
    answers = {} if answer is None else {(5, "relation", 0): answer}
    with pytest.raises(DriftlensError, match=f"{message}.*(record 5, relation prompt 0)?"):
        keep_unrelated([record], answers)
