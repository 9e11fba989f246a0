"""Where there is no result, one line says so: unknown facts, edits that do not take, missing probes."""

from typing import Any

import pandas as pd
import pytest

from driftlens.clinics.answers import says
from driftlens.clinics.english import ENGLISH, asked_of
from driftlens.clinics.probes import Probe
from driftlens.clinics.relation import find_relation, with_article_of
from driftlens.clinics.templates import other_relations, peers_of
from driftlens.clinics.verdict import judge, scarce
from driftlens.commands.trace_doubts import doubts
from driftlens.commands.trace_study import TraceStudy
from driftlens.data import Fact, TaskPrompt

FACT = Fact(subject="Eiffel Tower", prompt="{} is in", target_true="Paris", target_new="Rome")
PROMPT = TaskPrompt(text="Big Ben is in", target_true="London", target_new="Rome")
STUDY = TraceStudy(fact=FACT, task="neighborhood", prompts=(PROMPT,), name="typed fact")


def seen(own: float, traced: float, edited: float) -> pd.DataFrame:
    rows = {"task": ["the edit", "neighborhood"], "true_before": [own, traced], "true_after": [0.01, 0.1]}
    return pd.DataFrame({**rows, "edit_after": [edited, 0.2]})


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0.9, 0.8, 0.99), ()),
        ((0.001, 0.8, 0.99), ("does not seem to know the fact", "spelling of the subject")),
        ((0.9, 0.8, 0.2), ("the edit does not take: P('Rome') is 0.200", "--steps")),
        ((0.9, 0.001, 0.99), ("at most 0.001", "--test-prompt")),
        ((0.001, 0.001, 0.2), ("does not seem to know", "does not take", "nothing to lose")),
    ],
)
def test_one_line_says_what_is_missing(numbers: Any, said: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("driftlens.commands.trace_doubts._said", lambda *_: "a city")
    model: Any = None
    line = doubts(model, STUDY, seen(*numbers))
    assert bool(line) == bool(said)
    assert "\n" not in line
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    ("continuation", "right"),
    [
        (" Paris, the capital", True),
        (" the heart of Paris, France", True),
        ("\nParis", True),
        (" Parisian cafés", False),
        (" a city near Paris", False),
        (" not Paris", False),
        (" Lyon, Paris", False),
        (" London and Paris", False),
        (" the centre of the very large city of Paris", False),
    ],
)
def test_an_answer_may_be_led_to(continuation: str, right: bool):
    assert says(continuation, "Paris") is right


def test_a_prompt_that_goes_on_from_a_template_is_of_its_relation():
    for prompt in ("{} is located in", "{} is located in the city of", "The {} is located in the city of"):
        found = find_relation(ENGLISH, prompt)
        assert found is not None
        assert found.id == "located in"
    assert find_relation(ENGLISH, "{} is a purple thing of") is None


def test_the_wordings_of_such_a_prompt_go_on_as_it_does():
    """ "{} can be found in" asks for less than "{} is located in the city of", so it is no other wording of it."""
    found = find_relation(ENGLISH, "The {} is located in the city of")
    assert found is not None
    assert "{} can be found in the city of" in found.templates
    assert all(template.endswith("in the city of") for template in found.templates)


@pytest.mark.parametrize(
    ("prompt", "template", "own"),
    [
        ("{} is in", "{} is made of", "{} is made of"),
        ("The {} is in", "{} is made of", "The {} is made of"),
        ("The {} is in", "The owner of {} is", "The owner of the {} is"),
        ("Where is the {}?", "The {} is in", "The {} is in"),
    ],
)
def test_a_subjects_article_is_that_of_the_edits_prompt(prompt: str, template: str, own: str):
    assert with_article_of(prompt, template) == own


@pytest.mark.parametrize(
    ("template", "name", "text"),
    [
        ("The {} is in", "The Louvre", "The Louvre is in"),
        ("The {} is in", "Big Ben", "Big Ben is in"),
        ("The {} is in", "Grand Hotel", "The Grand Hotel is in"),  # no general name, so as the prompt has it
        ("{} is in", "The Louvre", "The Louvre is in"),
        ("The owner of {} is", "The Louvre", "The owner of the Louvre is"),
        ("The owner of the {} is", "Big Ben", "The owner of Big Ben is"),
    ],
)
def test_other_subjects_have_one_article_at_most(template: str, name: str, text: str):
    assert asked_of(template, name) == text


def test_what_follows_from_an_edit_is_no_damage():
    own = find_relation(ENGLISH, "{} is located in")
    others, kind = other_relations(ENGLISH, own)
    assert kind == "place"
    assert not {"country of place", "continent"} & {one.id for one in others}
    assert "designed by" in {one.id for one in others}
    assert "The Colosseum" in peers_of(ENGLISH, "place")
    assert peers_of(ENGLISH, None) == ()


def probe(kind: Any, *, held_out: bool = True, failed: bool = False) -> Probe:
    return Probe(
        kind=kind,
        prompt="p",
        before="a",
        answer="a",
        probability=1.0,
        group="g",
        held_out=held_out,
        failed_before=failed,
    )


def test_missing_probes_are_told_before_anything_is_edited():
    enough = [probe("relation")] * 3 + [probe("distractor")] * 3
    assert scarce(enough, kind_known=True) is None
    few = scarce([probe("relation"), probe("distractor", held_out=False)], kind_known=False)
    assert few is not None
    assert "add 5 --probe" in few
    assert "--kind" in few
    own = [*[probe("relation")] * 3, probe("distractor"), probe("yours", failed=True), probe("yours")]
    assert "add 1 --probe" in (scarce(own, kind_known=True) or "")
    assert scarce([*own, probe("yours")], kind_known=True) is None


def test_the_users_probes_stand_in_for_missing_ones():
    kept = {"relation": (3, 3), "distractor": (0, 0), "yours": (3, 3)}
    given: Any = {"objection": None, "taken": True, "probability": 0.9, "paraphrases": (0, 0)}
    assert judge(kept=kept, **given).name == "ship"
    assert judge(kept={**kept, "yours": (0, 3)}, **given).name == "do not ship"
    assert "add 2 --probe" in judge(kept={**kept, "yours": (1, 1)}, **given).reasons[0]
