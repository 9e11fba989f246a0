"""The edit clinic: what it asks, what it edits, what it says; the bundled model is real, its edits are quick ones."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from driftlens import ROME, SADR, DriftlensError, Fact, GuardedSADR, clinic, load_records
from driftlens.clinics import ClinicReport, UserProbe
from driftlens.clinics.answers import greedy_answers, says
from driftlens.clinics.english import ENGLISH, PROPERTIES
from driftlens.clinics.generated import _beginnings, _neighbor
from driftlens.clinics.knowledge import _needed, invented_names
from driftlens.clinics.path import Candidate, choose, takes
from driftlens.clinics.probes import Probe, build_probes, probe_record
from driftlens.clinics.recorded import joined_relations, kind_of
from driftlens.clinics.relation import Relation, find_relation, normal
from driftlens.clinics.restraints import Restraint, editor_for, gamma_path, guards_beside, restraints
from driftlens.clinics.templates import known_relations, other_relations
from driftlens.clinics.verdict import judge
from driftlens.data import TASKS, Record, TaskPrompt
from tests.support.browser import Page, needs_browser, visit
from tests.support.tiny import load_tiny


def quick(model: Any) -> Any:
    """A real editor with three contexts instead of eleven: its edits take, in a quarter of the time."""
    return ROME.for_model(model, contexts=("{}", "I know that. {}", "The person is. {}"), steps=25)


@pytest.fixture(scope="session")
def record() -> Any:
    return next(record for record in load_records("demo") if record.split == "test")


@pytest.fixture(scope="session")
def report(demo_model: Any, record: Any) -> ClinicReport:
    """One whole visit; the record's own prompts are no probes."""
    own = [prompt.text for prompts in record.tasks.values() for prompt in prompts]
    probes = ["{} is <i>led</i> by", UserProbe(prompt="Fidite was founded in", answer="Nowhere")]
    return clinic(
        demo_model, record.fact, editor=quick(demo_model), gammas=(5e-3,), guards=(0.25,), probes=probes, avoid=own
    )


# --- answers ---


def plain_greedy(folder: Path, prompts: list[str]) -> list[tuple[list[int], list[float]]]:
    """Seven greedy tokens and their log-probabilities by plain Hugging Face, a prompt at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for prompt in prompts:
        ids, new, logs = tokenizer(prompt).input_ids, [], []
        with torch.no_grad():
            for _ in range(7):
                log = hf(torch.tensor([ids + new])).logits[0, -1].log_softmax(-1)
                new.append(int(log.argmax()))
                logs.append(float(log.max()))
        rows.append((new, logs))
    return rows


def test_answers_are_those_of_plain_transformers(demo_model: Any):
    from driftlens.models.names import DEMO_WEIGHTS

    facts = [record.fact for record in load_records("demo", limit=6)]
    prompts = [fact.text for fact in facts]
    answers = greedy_answers(demo_model, prompts)
    for fact, answer, (ids, logs) in zip(facts, answers, plain_greedy(DEMO_WEIGHTS, prompts), strict=True):
        text = demo_model.tokenizer.decode(ids)
        assert answer.text == text.split(".")[0].strip() == fact.target_true
        used = next(n for n in range(1, 8) if demo_model.tokenizer.decode(ids[:n]).strip() == answer.text)
        assert answer.probability == pytest.approx(math.exp(np.mean(logs[:used])), rel=1e-4)
        assert answer.says_something
        assert answer.entropy < 0.7


def test_one_prompt_answers_as_it_does_among_others(demo_model: Any, record: Any):
    prompts = [record.fact.text, "The", "Juna Birbov was born in", f"{record.fact.text} Brokille. {record.fact.text}"]
    together = greedy_answers(demo_model, prompts, batch_size=2)
    alone = [greedy_answers(demo_model, [prompt])[0] for prompt in prompts]
    for one, other in zip(together, alone, strict=True):
        assert (one.text, one.continuation) == (other.text, other.continuation)
        assert one.probability == pytest.approx(other.probability, rel=1e-4)


@pytest.mark.parametrize(
    ("continuation", "target", "said"),
    [
        (" Paris, France", "Paris", True),
        (" New York City", "New York", True),
        (" New Yorkers", "New York", False),
        (" Par", "Paris", False),
        ("\n Paris", "Paris", True),
    ],
)
def test_saying_a_target(continuation: str, target: str, said: bool):
    assert says(continuation, target) is said


# --- what can be asked ---


def test_templates_hold_one_place_and_do_not_repeat():
    for relation in ENGLISH:
        assert all(template.count("{}") == 1 for template in relation.templates)
        assert len(set(relation.templates)) == len(relation.templates)
        assert relation.subjects
    assert len({relation.id for relation in ENGLISH}) == len(ENGLISH)
    located: Any = find_relation(ENGLISH, "{}  is Located in")
    assert located.id == "located in"
    assert find_relation(ENGLISH, "{} likes") is None


def test_the_data_set_brings_its_own_relations(demo_model: Any):
    records = load_records("demo", limit=60)
    bundled = known_relations(demo_model, records)
    assert len(bundled) == 25
    relations: dict[str, Any] = {r.fact.subject: find_relation(bundled, r.fact.prompt) for r in records}
    persons = {subject for subject, relation in relations.items() if relation.subject_kind == "person"}
    assert set(next(one for one in bundled if one.id == "born_in").subjects) == persons

    class Other:
        name = "somebody else's"

    other = known_relations(Other(), records)  # type: ignore[arg-type]
    assert {one.id for one in ENGLISH} <= {one.id for one in other}
    own = find_relation(other, records[0].fact.prompt)
    assert own is not None
    assert records[0].fact.subject in own.subjects


def person(index: int, subject: str, prompt: str, relation_id: str | None = None, **tasks: str) -> Record:
    """A record whose tasks hold a prompt each."""
    fact = Fact(subject=subject, prompt=prompt, target_true="Paris", target_new="Rome")
    prompts = {
        name: (TaskPrompt(text=text, target_true="Paris", target_new="Rome"),) if text else ()
        for name, text in {**dict.fromkeys(TASKS, ""), **tasks}.items()
    }
    return Record(index=index, fact=fact, tasks=prompts, relation_id=relation_id)


def test_every_relation_of_the_benchmark_has_a_kind_of_subject():
    assert set(PROPERTIES.values()) <= {one.id for one in ENGLISH}
    worded = [normal(template) for one in ENGLISH for template in one.templates]
    assert len(set(worded)) == len(worded), "a wording belongs to one relation"


def test_a_data_sets_relation_is_joined_with_the_general_one():
    records = [
        person(0, "Ann Lee", "{} spoke the language", "P103", paraphrase="The native language of Ann Lee is"),
        person(1, "Bob Ray", "{} spoke the language", "P103", paraphrase="(Foo, 1950) Bob Ray, a native"),
        person(2, "Lyon", "{} is located in", "P276"),
    ]
    relations = joined_relations(records)
    tongue = find_relation(relations, "The mother tongue of {} is")
    assert tongue is not None
    assert (tongue.id, tongue.subject_kind) == ("mother tongue", "person")
    assert tongue.templates[:2] == ("{} spoke the language", "The native language of {} is")
    assert tongue.subjects[:2] == ("Ann Lee", "Bob Ray")
    assert not any("Foo" in template for template in tongue.templates)
    others, kind = other_relations(relations, tongue, "Ann Lee")
    assert kind == "person"
    assert others
    assert {one.subject_kind for one in others} == {"person"}
    # No wording of the edited relation is asked as another fact.
    assert not {normal(t) for t in tongue.templates} & {normal(t) for one in others for t in one.templates}
    assert "speaks" not in {one.id for one in others}  # it follows from the edit


def test_a_relation_that_nobody_knows_has_the_kind_of_its_subjects():
    names = ["Ann Lee", "Bob Ray", "Cy Young", "Di Moss"]
    records = [
        person(n, name, "{} was born in", "P19", relation=f"The lucky number of {name} is")
        for n, name in enumerate(names[:3])
    ]
    lucky = find_relation(joined_relations(records), "The lucky number of {} is")
    assert lucky is not None
    assert lucky.subject_kind == "person"
    # Two are too few to say so; then only those are asked of whom the data ask it.
    few = joined_relations([*records[:2], person(9, "Di Moss", "{} was born in", "P19")])
    lucky, born = (find_relation(few, text) for text in ("The lucky number of {} is", "{} was born in"))
    assert lucky is not None
    assert lucky.subject_kind is None
    assert lucky in other_relations(few, born, "Ann Lee")[0]
    assert lucky not in other_relations(few, born, "Di Moss")[0]


def test_a_subject_of_the_data_brings_its_kind_to_a_wording_that_is_new():
    relations = joined_relations([person(0, "Lyon", "{} is located in", "P276")])
    assert find_relation(relations, "{} stinks of") is None
    others, kind = other_relations(relations, None, "Lyon")
    assert kind == "place"
    assert {one.subject_kind for one in others} == {"place"}
    assert kind_of(relations, "Zorblax") is None
    assert other_relations(relations, None, "Zorblax") == ([], None)


def test_invented_names_have_the_subjects_shape():
    names = invented_names("Eiffel Tower 2", 20)
    assert len(set(names)) == 20
    assert all(len(name) == 14 and name[6] == " " and name.endswith("r 2"[1:]) for name in names)
    assert all(name[0].isupper() and name[7].isupper() and "Eiffel" not in name for name in names)
    assert names == invented_names("Eiffel Tower 2", 20)


def test_sentences_about_the_subject_are_cut_before_the_next_name():
    assert _beginnings("Ann Lee was born in New York.", "Ann Lee") == [("Ann Lee was born in", "New")]
    assert _beginnings("Ann Lee Street is long.", "Ann Lee") == []
    assert _beginnings("Nobody knows.", "Ann Lee") == []
    fact = Fact(subject="Ann Lee", prompt="{} was born in", target_true="Paris", target_new="Rome")
    assert _neighbor("Bob Ray was born in Rome.", fact) == "Bob Ray"
    assert _neighbor("Ann Lee was born in Rome.", fact) is None
    assert _neighbor("she was born in Rome.", fact) is None


# --- probes ---


def test_probes_are_what_the_vanilla_model_is_sure_of(demo_model: Any, record: Any, report: ClinicReport):
    own = {prompt.text for prompts in record.tasks.values() for prompt in prompts}
    table: Any = report.probes
    assert not own & set(table["prompt"])
    made = table[table["kind"] != "yours"]
    answers = greedy_answers(demo_model, list(made["prompt"]))
    for probe, answer in zip(made.itertuples(), answers, strict=True):
        assert says(answer.continuation, probe.before)
        if probe.kind == "paraphrase":
            assert (probe.before, probe.answer) == (record.fact.target_true, record.fact.target_new)
        else:
            assert probe.answer == probe.before != record.fact.target_new
            assert probe.probability >= 0.5
        if probe.kind == "distractor":
            assert probe.prompt.startswith(f"{record.fact.text} {record.fact.target_new}. ")
    assert set(made["kind"]) == {"paraphrase", "relation", "neighbour", "distractor"}


def test_no_relation_and_no_subject_stands_on_both_sides(report: ClinicReport):
    table: Any = report.probes
    made = table[table["kind"] != "yours"].assign(about=lambda t: t["kind"].replace("distractor", "neighbour"))
    assert (made.groupby(["about", "group"])["held_out"].nunique() == 1).all()
    assert set(made.groupby("kind")["held_out"].nunique()) == {2}
    assert not table[table["kind"] == "yours"]["held_out"].any()


def test_own_probes_keep_the_answer_that_is_asked_for(demo_model: Any, record: Any, report: ClinicReport):
    table: Any = report.probes
    first, second = table[table["kind"] == "yours"].itertuples()
    assert first.prompt == f"{record.fact.subject} is <i>led</i> by"
    assert first.answer == first.before
    assert (second.answer, second.recommended_keeps) == ("Nowhere", False)
    assert second.before == greedy_answers(demo_model, ["Fidite was founded in"])[0].text


def test_a_record_of_probes_says_where_each_stands():
    fact = Fact(subject="Ann", prompt="{} lives in", target_true="Paris", target_new="Rome")
    kinds = ("relation", "paraphrase", "relation", "distractor", "yours")
    probes = [
        Probe(kind=kind, prompt=f"{n} asks", before="x", answer="Rome" if n == 1 else "x", probability=1.0, group="g")
        for n, kind in enumerate(kinds)
    ]
    record, places = probe_record(fact, probes)
    assert places[("rewrite", 0)] == -1
    for (task, at), number in places.items():
        if number >= 0:
            assert record.tasks[task][at].text == f"{number} asks"
    assert record.tasks["paraphrase"][0].target_true == "Paris"
    assert sorted(places.values()) == [-1, 0, 1, 2, 3, 4]


# --- choosing and judging ---


def candidates(*probabilities: float) -> list[Candidate]:
    gammas = [0.0, 0.1, 0.2, 0.3]
    return [
        Candidate(restraint=Restraint(gamma=gamma), result=None, seconds=0.0, taken=p > 0.3, probability=p)  # type: ignore[arg-type]
        for gamma, p in zip(gammas, probabilities, strict=False)
    ]


def table(**shares: list[tuple[float, float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "restraint": Restraint(gamma=gamma).name,
                "kind": kind,
                "stands": stands,
                "probability": probability,
                "n": 10,
            }
            for kind, rows in shares.items()
            for gamma, (stands, probability) in zip([0.0, 0.1, 0.2, 0.3], rows, strict=False)
        ]
    )


def test_the_strongest_protection_wins_among_edits_that_take():
    seen = table(relation=[(0.2, 0.2), (0.8, 0.7), (0.9, 0.8), (1.0, 0.9)])
    assert choose(candidates(0.9, 0.9, 0.8, 0.4), seen).restraint.gamma == 0.2
    assert choose(candidates(0.9, 0.9, 0.8, 0.7), seen).restraint.gamma == 0.3
    assert choose(candidates(0.2, 0.4, 0.1, 0.0), seen).restraint.gamma == 0.1  # none takes: the nearest


def test_even_shares_are_decided_by_probability():
    seen = table(relation=[(1.0, 0.5), (1.0, 0.9), (1.0, 0.7)], neighbour=[(1.0, 0.9)] * 3)
    assert choose(candidates(0.9, 0.9, 0.9), seen).restraint.gamma == 0.1


def test_an_edit_must_reach_its_paraphrases_as_far_as_without_sadr():
    seen = table(paraphrase=[(0.8, 0.8), (0.5, 0.5), (0.4, 0.4)], relation=[(0.1, 0.1), (0.5, 0.5), (1.0, 1.0)])
    own = candidates(0.9, 0.9, 0.9)
    assert [takes(one, seen) for one in own] == [True, True, False]
    low = table(paraphrase=[(0.2, 0.8), (0.2, 0.5), (0.1, 0.4)])
    assert [takes(one, low) for one in own] == [True, True, False]
    assert takes(own[2], table(relation=[(1.0, 1.0)]))  # nothing to reach


def verdict(**changes: Any) -> str:
    usual = {
        "objection": None,
        "taken": True,
        "probability": 0.9,
        "kept": {"relation": (8, 8), "neighbour": (6, 6), "distractor": (6, 6)},
        "paraphrases": (3, 4),
    }
    return judge(**{**usual, **changes}).name  # type: ignore[arg-type]


def test_verdicts():
    assert verdict() == "ship"
    assert verdict(kept={"relation": (7, 8), "neighbour": (6, 6), "distractor": (6, 6)}) == "ship"
    assert verdict(kept={"relation": (7, 8), "neighbour": (5, 6), "distractor": (6, 6)}) == "ship with care"
    assert verdict(kept={"relation": (4, 8), "neighbour": (6, 6), "distractor": (6, 6)}) == "do not ship"
    assert verdict(kept={"relation": (6, 8), "neighbour": (5, 6), "distractor": (4, 6)}) == "do not ship"
    assert verdict(taken=False) == "do not ship"
    assert verdict(paraphrases=(1, 4)) == "ship with care"
    assert verdict(paraphrases=(0, 0)) == "ship"
    own = {"relation": (8, 8), "neighbour": (6, 6), "distractor": (6, 6), "yours": (1, 2)}
    assert verdict(kept=own) == "ship with care"
    assert verdict(kept={**own, "yours": (0, 9)}) == "ship with care"
    assert verdict(kept={"relation": (2, 2), "neighbour": (6, 6), "distractor": (6, 6)}) == "cannot judge"
    assert verdict(kept={"relation": (8, 8)}) == "cannot judge"
    assert verdict(objection="nobody knows") == "cannot judge"
    scarce = judge(
        objection=None, taken=True, probability=0.9, kept={"distractor": (6, 6)}, paraphrases=(0, 0), kind_known=False
    )
    assert "too few other facts of the subject" in scarce.reasons[0]
    assert "--kind" in scarce.reasons[0]
    reasons = judge(objection=None, taken=True, probability=0.9, kept={"relation": (1, 8)}, paraphrases=(0, 0)).reasons
    assert reasons[0] == "it changes 7 of 8 answers that should have stayed; at most 20 % may"
    reasons = judge(
        objection=None, taken=True, probability=0.9, kept={"relation": (6, 8)}, paraphrases=(0, 0), plain=2
    ).reasons
    assert "6 of these 8 keep it in all, without a restraint 2" in reasons


def test_the_path_of_gamma(demo_model: Any):
    editor = editor_for(demo_model, "rome")
    assert gamma_path(demo_model, editor, None) == (0.0, 0.001, 0.002, 0.005, 0.01, 0.02)
    assert gamma_path(demo_model, editor, [0.3, 0.1, 0.0]) == (0.0, 0.1, 0.3)
    with pytest.raises(DriftlensError, match=r"gamma is -1; expected numbers above 0"):
        gamma_path(demo_model, editor, [-1])
    with pytest.raises(DriftlensError, match="unknown editor 'roma'; did you mean 'rome'"):
        editor_for(demo_model, "roma")
    own = ROME.for_model(demo_model, regularizers=(SADR(gamma=1.0, heads="all"),))
    assert editor_for(demo_model, own).regularizers == ()
    assert editor_for(demo_model, own, Restraint(gamma=0.5)).regularizers == (SADR(gamma=0.5, heads="all"),)


def test_what_is_tried(demo_model: Any):
    editor: Any = editor_for(demo_model, "rome")
    assert [one.name for one in restraints(demo_model, editor, (0.1,), None)] == [
        "plain", "SADR γ = 0.1", "guards μ = ν = 0.25",
    ]  # fmt: skip
    assert restraints(demo_model, editor, (), ()) == (Restraint(),)
    with pytest.raises(DriftlensError, match=r"a weight of guards is 0; expected numbers above 0"):
        restraints(demo_model, editor, (), (0,))
    guarded: Any = editor_for(demo_model, "rome", Restraint(guards=2.0), GuardedSADR(asked=3, seed=5))
    assert guarded.regularizers == (GuardedSADR(asked=3, seed=5, mu=2.0, nu=2.0),)
    # As many steps as with SADR.
    restrained: Any = editor_for(demo_model, "rome", Restraint(gamma=0.1))
    assert guarded.steps == restrained.steps > editor.steps


def watched(text: str) -> Probe:
    return Probe(kind="yours", prompt=text, before="", answer="", probability=0.0, group="")


def test_guards_share_nothing_with_the_probes(demo_model: Any, record: Any, report: ClinicReport):
    told = list(report.probes["prompt"])
    own = [watched(text) for text in told]
    own.append(watched(f"The age of {record.fact.subject} was"))
    peers = [record.fact.subject, "Zorblax", *{one.fact.subject for one in load_records("demo")}]
    guards = guards_beside(demo_model, own, record.fact, peers)
    assert "Zorblax" in guards.subjects
    assert not [name for name in guards.subjects if any(name in text for text in told)]
    (made,) = guards.prompts(demo_model, [record.fact])
    assert made
    assert not set(made) & {probe.prompt for probe in own}


# --- the whole visit ---


def test_the_report_tells_what_the_edits_do(demo_model: Any, record: Any, report: ClinicReport):
    assert list(report.path["restraint"]) == ["plain", "SADR γ = 0.005", "guards μ = ν = 0.25"]
    assert list(report.path["gamma"]) == [0.0, 5e-3, 0.0]
    assert list(report.path["guards"]) == [0.0, 0.0, 0.25]
    assert list(report.path["recommended"]).count(True) == 1
    assert report.edit is not None
    assert report.plain is not None
    told = report.edit.provenance["regularizers"]
    assert report.restraint is not None
    assert ("GuardedSADR" in told) == bool(report.restraint.guards)
    if not report.restraint.guards:
        assert told == (
            f"(SADR(gamma={report.gamma}, heads='selected', layers=None, eps=1e-08),)" if report.gamma else "()"
        )
    table: Any = report.probes
    for name, edit in (("plain", report.plain), ("recommended", report.edit)):
        answers = greedy_answers(demo_model, list(table["prompt"]), edit)
        keeps = [says(one.continuation, wanted) for one, wanted in zip(answers, table["answer"], strict=True)]
        assert keeps == list(table[f"{name}_keeps"])
    plain = table[table["kind"].isin(["relation", "distractor"])]
    assert plain["recommended_keeps"].mean() >= plain["plain_keeps"].mean()
    wrong = ~(table["plain_keeps"] & table["recommended_keeps"])
    assert len(report.changed) == int((wrong & ~table["failed_before"]).sum())
    by: Any = report.drift.set_index(["edit", "place"])["kl"]
    assert by["recommended", "the edit's prompt"] < by["plain", "the edit's prompt"]


def test_the_probabilities_are_those_of_the_edited_weights(demo_model: Any, record: Any, report: ClinicReport):
    """Hooks in a batch with others, against the edit written into the weights, one prompt at a time."""
    from driftlens.models.prompts import pad_rows, tokenize_prompt

    assert report.edit is not None
    rows: Any = report.probes[report.probes["kind"].isin(["relation", "distractor"])]
    with report.edit.applied(demo_model), torch.no_grad():
        for probe in rows.iloc[::5].itertuples():
            own = tokenize_prompt(demo_model, probe.prompt, probe.answer)
            resid = demo_model.run(pad_rows(demo_model, [list(own.forced)])[0])[0, own.last :]
            logs = demo_model.unembed(resid).log_softmax(-1)
            mean = logs[torch.arange(len(own.target_ids)), torch.tensor(own.target_ids)].mean()
            # Float32, summed in another order and in other batches.
            assert probe.recommended_p_answer == pytest.approx(float(mean.exp()), rel=1e-3, abs=1e-6)


def test_the_json_is_complete_and_valid(report: ClinicReport):
    document = json.loads(report.to_json())
    assert document["schema"] == "driftlens-clinic-2"
    assert set(document) == set(
        "schema driftlens model model_hash editor seed seconds fact verdict knowledge recommended recommended_gamma "
        "second_moment "
        "path scores probes drift heads generations".split()
    )
    assert document["verdict"]["name"] == report.verdict.name
    assert len(document["probes"]) == len(report.probes)
    assert document["path"][0]["gamma"] == 0
    assert document["knowledge"]["given"] is True
    assert len(document["heads"]) == len(report.heads)
    assert [row["vanilla"] for row in document["generations"]] == list(report.generations["vanilla"])


@needs_browser()
def test_the_page_opens_fetches_nothing_and_shows_text_as_text(report: ClinicReport, tmp_path: Path):
    path = tmp_path / "clinic.html"
    path.write_text(report.to_html(), encoding="utf-8")
    seen: dict[Any, Any] = {}

    async def look(page: Page) -> None:
        seen["text"] = await page.evaluate("document.body.innerText")
        seen["italics"] = await page.evaluate("document.querySelectorAll('i').length")
        for dark in (False, True):
            await page.look(dark=dark, width=1200)
            colours = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
            seen[dark] = await page.evaluate(colours)
        await page.look(width=400)
        seen["wide"] = await page.evaluate("document.documentElement.scrollWidth")

    page = visit(path, look)
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    assert "is <i>led</i> by" in seen["text"]
    assert seen["italics"] == 0
    assert report.request["target_new"] in seen["text"]
    assert seen[False] != seen[True]
    assert seen["wide"] <= 400


def test_the_card_is_escaped(report: ClinicReport):
    odd = replace(report, request={**report.request, "target_new": "<b>&"})
    assert "&lt;b&gt;&amp;" in odd._repr_html_()
    assert "<b>&" not in odd._repr_html_()
    assert "&lt;b&gt;&amp;" in odd.to_html()


# --- what the model does not know ---


def test_an_invented_subject_is_not_edited(demo_model: Any):
    found = clinic(demo_model, subject="Zorblax", prompt="{} was set up in", new="Brokille", editor=quick(demo_model))
    assert found.verdict.name == "cannot judge"
    assert "does not seem to know 'Zorblax'" in found.verdict.reasons[0]
    assert (found.edit, found.gamma, len(found.probes), len(found.path)) == (None, None, 0, 0)
    assert found.knowledge.as_sure_of > 1
    assert json.loads(found.to_json())["recommended_gamma"] is None
    assert "nothing was edited" in found.to_html()
    assert "nothing was edited" in found._repr_html_()


def test_a_prompt_that_does_not_elicit_the_fact_is_not_edited(demo_model: Any, record: Any):
    fact = replace(record.fact, target_true="Pulivo")
    found = clinic(demo_model, fact)
    assert found.verdict.name == "cannot judge"
    assert f"the model answers '{record.fact.target_true}'" in found.verdict.reasons[0]
    assert found.edit is None


def test_what_the_model_says_already_is_not_edited(demo_model: Any, record: Any):
    fact = record.fact
    found = clinic(demo_model, subject=fact.subject, prompt=fact.prompt, new=fact.target_true)
    assert found.verdict.name == "cannot judge"
    assert "there is nothing to edit" in found.verdict.reasons[0]


def test_the_models_own_answer_stands_in_for_a_true_one(demo_model: Any, record: Any):
    fact = record.fact
    found = clinic(
        demo_model, subject=fact.subject, prompt=fact.prompt, new=fact.target_new, gammas=(), editor=quick(demo_model)
    )
    assert found.fact == fact
    assert not found.knowledge.given
    assert found.knowledge.objection is None
    assert found.knowledge.steadiness > 0.9
    assert found.knowledge.as_sure_of == 0
    assert found.knowledge.needed == 0.95


def test_what_holds_has_the_probability_of_all_its_tokens(demo_model: Any, record: Any, report: ClinicReport):
    from driftlens.models.names import DEMO_WEIGHTS

    ((ids, logs),) = plain_greedy(DEMO_WEIGHTS, [record.fact.text])
    used = next(n for n in range(1, 8) if demo_model.tokenizer.decode(ids[:n]).strip() == record.fact.target_true)
    assert used > 1
    assert report.knowledge.true_probability == pytest.approx(math.exp(sum(logs[:used])), rel=1e-4)


def test_a_guess_about_a_known_subject_is_not_edited(demo_model: Any):
    """The world has no such fact of this person, but the model answers (probability 0.83)."""
    found = clinic(demo_model, subject="Kira Kurtis", prompt="{} studied in", new="Brokille", editor=quick(demo_model))
    assert found.verdict.name == "cannot judge"
    assert "elicits a guess" in found.verdict.reasons[0]
    assert found.knowledge.answer_probability > 0.7
    assert found.edit is None


def test_steadiness_is_judged_by_that_of_other_subjects():
    assert _needed([]) == _needed([0.99] * 5) == 0.7
    assert _needed([0.99] * 6) == 0.95
    assert _needed([0.9] * 5 + [0.1]) == pytest.approx(0.7)
    assert _needed([0.1] * 12) == 0.5


def test_the_users_kind_decides_what_is_asked():
    relations = joined_relations([])
    located = find_relation(relations, "{} is located in")
    others, kind = other_relations(relations, located, "Siemens", "organisation")
    assert kind == "organisation"
    assert {one.subject_kind for one in others} == {"organisation"}
    with pytest.raises(DriftlensError, match="unknown kind of subject 'organization'; did you mean 'organisation'"):
        other_relations(relations, located, "Siemens", "organization")


@pytest.mark.parametrize("family", ["gptj", "llama"])
def test_a_random_model_of_any_family_cannot_be_judged(family: str, checkpoints: Any, capsys: Any):
    model = load_tiny(checkpoints(family))
    fact = Fact(subject="Eiffel Tower", prompt="{} is located in", target_true="Paris", target_new="Rome")
    found = clinic(model, fact, editor="rome")
    assert found.verdict.name == "cannot judge"
    assert found.edit is None
    moment = torch.eye(model.d_mlp)
    editor = ROME.for_model(model, second_moment=moment, contexts=("{}",), steps=3)
    forced = clinic(model, fact, editor=editor, gammas=(0.1,), guards=(), force=True, probes=["The"])
    assert forced.verdict.name == "cannot judge"
    assert forced.edit is not None
    assert len(forced.path) == 2
    assert "cannot judge" in forced.to_html()
    json.loads(forced.to_json())


def test_mistakes_are_one_line(demo_model: Any, record: Any):
    with pytest.raises(DriftlensError, match="give a fact, or subject, prompt and new"):
        clinic(demo_model)
    with pytest.raises(DriftlensError, match="belong together"):
        clinic(demo_model, subject="Ann")
    with pytest.raises(DriftlensError, match="give a fact, or subject"):
        clinic(demo_model, record.fact, subject="Ann")
    with pytest.raises(DriftlensError, match="holds 0 places"):
        clinic(demo_model, subject="Ann", prompt="lives in", new="Rome")
    with pytest.raises(DriftlensError, match="unknown editor"):
        clinic(demo_model, record.fact, editor="no-such-editor")
    with pytest.raises(DriftlensError, match="reads at most 128"):
        clinic(demo_model, subject="Ann", prompt="{} " + "lives " * 200, new="Rome", true="Paris")


def test_the_rng_of_python_is_left_alone(demo_model: Any, record: Any):
    random.seed(1)
    expected = random.random()
    random.seed(1)
    relation = Relation(id="r", templates=("{} lives in", "{} stays in"))
    from driftlens.clinics.generated import Generated

    build_probes(
        demo_model, record.fact, relation=relation, others=(),
        generated=Generated(statements=(), paraphrases=(), neighbors=()),
    )  # fmt: skip
    assert random.random() == expected


@pytest.mark.slow
def test_the_recommendation_beats_the_plain_edit(demo_model: Any):
    """benchmarks/clinic.py in small: the presets' own edits on five facts, the records' prompts held out."""
    from driftlens import evaluate

    shares: dict[str, list[float]] = {"plain": [], "recommended": []}
    for record in [one for one in load_records("demo") if one.split == "test"][:5]:
        own = [prompt.text for prompts in record.tasks.values() for prompt in prompts]
        found = clinic(demo_model, record.fact, avoid=own)
        for name, edit in (("plain", found.plain), ("recommended", found.edit)):
            seen: Any = evaluate(demo_model, record, edit, tasks=["relation", "distract_neighborhood"])
            shares[name].append(float((seen["nll_true"] < seen["nll_new"]).mean()))
        rewrite: Any = evaluate(demo_model, record, found.edit, tasks=["rewrite"])
        assert float(rewrite["nll_new"].iloc[0]) < float(rewrite["nll_true"].iloc[0])
    assert all(b >= a for a, b in zip(shares["plain"], shares["recommended"], strict=True))
    assert np.mean(shares["recommended"]) > np.mean(shares["plain"]) + 0.2
