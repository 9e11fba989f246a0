"""Guarded SADR: guards made by the unedited model, and its terms against plain full passes with δ added by hand."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from driftlens import MEMIT, PMET, ROME, SADR, DriftlensError, Fact, GuardedSADR, evaluate, load_records
from driftlens.editors import guards as making
from driftlens.editors.guarded import usual_guards
from driftlens.editors.guards import ATTRIBUTES, QUESTIONS, Guards, states_relation
from driftlens.editors.identity import identity
from driftlens.models import LensModel
from driftlens.models.prompts import subject_last, tokenize_prompt
from driftlens.options.editing import made_regularizer
from tests.editors.test_regularizers import CONTEXTS, FACT, LAYER, OTHER, Plain, last, rome
from tests.support.places import SHARED

BENCHMARK = SHARED / "data" / "merged_counterfact.json"
SUBJECTS = ("Anna Karina", "Danielle Darrieux", "Danielle", "Romy Schneider")


@pytest.fixture(scope="module")
def model(checkpoints: Any) -> LensModel:
    from tests.support.tiny import load_tiny

    return load_tiny(checkpoints("gpt2"), exact=True)


def anew(guards: Guards, model: LensModel, *facts: Fact) -> list[tuple[str, ...]]:
    making._made.pop(model, None)
    return guards.prompts(model, facts)


@pytest.mark.parametrize("heads", ["selected", "all"])
def test_off_it_is_sadr_and_writes_nothing(model: LensModel, monkeypatch: pytest.MonkeyPatch, heads: Any):
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is to be written")

    monkeypatch.setattr(making, "sample_tokens", refuse)
    off = GuardedSADR(gamma=0.1, mu=0, nu=0, heads=heads, layers=(1, 2))
    sadr = SADR(gamma=0.1, heads=heads, layers=(1, 2))
    ours, theirs = (rome(model, one).edit(model, FACT) for one in (off, sadr))
    assert ours.history.equals(theirs.history)
    assert last(ours, "sadr") > 0
    assert torch.equal(ours.values[LAYER], theirs.values[LAYER])


@pytest.mark.parametrize("guard_heads", ["selected", "all"])
def test_each_term_as_in_full_passes(model: LensModel, guard_heads: Any):
    settings = GuardedSADR(
        gamma=0.05, gamma_guards=0.2, mu=0.7, nu=0.3, own_words=4, distracted=4, guard_heads=guard_heads
    )
    together = rome(model, settings, lr=4.0).edit_many(model, [FACT, OTHER])
    for fact, result in zip((FACT, OTHER), together, strict=True):
        (guards,) = settings.prompts(model, [fact])
        assert len(guards) > 4
        plain = Plain(model, fact, result)
        attention, answers, targets = 0.0, 0.0, 0.0
        for text in guards:
            at = subject_last(tokenize_prompt(model, text), fact.subject)
            sites = [("pattern", layer) for layer in range(LAYER + 1, model.n_layers)]
            before, now = (plain.values(text, sites, edited=edited) for edited in (False, True))
            answers += float((before["next"].exp() * (before["next"] - now["next"])).sum()) / len(guards)
            said = [plain.target(text, fact.target_new, edited=edited) for edited in (False, True)]
            targets += max(0.0, said[1] - said[0]) / len(guards)
            for site in sites:
                p, q = before[site][:, -1], now[site][:, -1]  # [heads, keys]
                chosen = (
                    q[:, at] > p[:, at].max() if guard_heads == "selected" else torch.ones(len(p), dtype=torch.bool)
                )
                p, q = p[chosen] + settings.eps, q[chosen] + settings.eps
                attention += float((p * (p / q).log()).sum()) / len(guards)
        assert attention > 1e-3
        assert answers > 1e-3
        assert last(result, "guard_attention") == pytest.approx(0.2 * attention, rel=1e-8)
        assert last(result, "guard_answers") == pytest.approx(0.7 * answers, rel=1e-8)
        assert targets > 1e-3
        assert last(result, "guard_targets") == pytest.approx(0.3 * targets, rel=1e-8)
        columns = ["nll", "kl", "weight_decay", "sadr", "guard_attention", "guard_answers", "guard_targets"]
        terms = result.history[columns].sum(axis=1)
        assert (terms - result.history["loss"]).abs().max() < 1e-12


def test_terms_that_share_guards_share_rows(model: LensModel, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    run = LensModel.run

    def count(self: LensModel, batch: Any, **settings: Any) -> Any:
        seen.append(len(batch.tokens))
        return run(self, batch, **settings)

    guards = GuardedSADR(gamma_guards=0.2, mu=0, nu=0, asked=0, own_words=3, distracted=2)
    guards.prompts(model, [FACT])
    monkeypatch.setattr(LensModel, "run", count)
    for mu in (0.0, 0.5):
        rome(model, replace(guards, mu=mu)).edit(model, FACT)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    assert max(seen) == len(CONTEXTS) + 5 + 1  # and the essence prompt
    assert len(guards.prompts(model, [FACT])[0]) == 5


@pytest.mark.parametrize("kind", [ROME, MEMIT, PMET])
def test_together_as_alone_in_every_editor(model: LensModel, kind: type[Any]):
    moment = torch.eye(model.d_mlp)
    place: dict[str, Any] = {"layer": 1, "second_moment": moment}
    if kind is not ROME:
        place = {"layers": (0, 1), "second_moment": {0: moment, 1: moment}, "second_moment_weight": 1.0}
    settings: Any = GuardedSADR(gamma=0.1, gamma_guards=0.3, mu=0.5, nu=0.4, asked=2, own_words=2, subjects=SUBJECTS)
    editor = kind(**place, steps=4, lr=1.0, contexts=CONTEXTS, early_stop_loss=3.0, regularizers=settings)
    together = editor.edit_many(model, [FACT, OTHER])
    for result, fact in zip(together, (FACT, OTHER), strict=True):
        alone = editor.edit(model, fact)
        assert list(result.history.columns)[5:9] == ["sadr", "guard_attention", "guard_answers", "guard_targets"]
        torch.testing.assert_close(
            torch.tensor(alone.history.to_numpy()), torch.tensor(result.history.to_numpy()), rtol=1e-8, atol=1e-9
        )


@pytest.mark.backend
@pytest.mark.parametrize("kind", [ROME, PMET])
def test_any_number_of_passes_gives_the_same(model: LensModel, kind: type[Any], monkeypatch: pytest.MonkeyPatch):
    moment = torch.eye(model.d_mlp)
    place: dict[str, Any] = {"layer": 1, "second_moment": moment}
    if kind is not ROME:
        place = {"layers": (0, 1), "second_moment": {0: moment, 1: moment}, "second_moment_weight": 1.0}
    settings: Any = GuardedSADR(gamma=0.1, gamma_guards=0.3, mu=0.5, nu=0.4, asked=3, own_words=2, subjects=SUBJECTS)
    editor = kind(**place, steps=6, lr=1.0, contexts=CONTEXTS, early_stop_loss=3.0, regularizers=settings)
    widths: list[int] = []
    run = LensModel.run

    def see(self: LensModel, batch: Any, **how: Any) -> Any:
        widths.append(batch.shape[1])
        return run(self, batch, **how)

    found: dict[int, list[Any]] = {}
    passes: dict[int, int] = {}
    for cost in (0, 10**9):  # a pass for every width, and one for all rows
        monkeypatch.setattr(model, "pass_cost", cost)
        editor.edit_many(model, [FACT, OTHER])  # contexts and guards are made
        monkeypatch.setattr(LensModel, "run", see)
        widths.clear()
        found[cost] = editor.edit_many(model, [FACT, OTHER])
        passes[cost] = len(widths)
        monkeypatch.setattr(LensModel, "run", run)
    assert passes[0] > 2 * passes[10**9]
    for many, one in zip(*found.values(), strict=True):
        assert len(many.history) == len(one.history)
        # A float64 model, 6 steps.
        assert (many.history - one.history).abs().max().max() < 1e-9
        for layer, value in many.values.items():
            torch.testing.assert_close(value, one.values[layer], rtol=0, atol=1e-9)


def test_made_twice_and_beside_others_they_are_the_same(lens_model: LensModel):
    guards = Guards(asked=0, own_words=4, distracted=4, tokens=8)
    first = anew(guards, lens_model, FACT, OTHER)
    assert anew(guards, lens_model, OTHER, FACT) == first[::-1]
    assert anew(replace(guards, seed=1), lens_model, FACT, OTHER) != first
    for fact, texts in zip((FACT, OTHER), first, strict=True):
        statement = f"{fact.text} {fact.target_new}."
        assert 0 < len(texts) <= 8
        assert all(text.startswith((fact.subject, statement)) for text in texts)
        assert any(text.startswith(statement) for text in texts)


def test_guards_belong_to_the_weights_as_they_are(demo_model: LensModel):
    record = load_records("demo")[0]
    guards = Guards(asked=0, own_words=2, distracted=0)
    before = guards.prompts(demo_model, [record.fact])
    edit = ROME.for_model(demo_model, steps=5).edit(demo_model, record.fact).edit
    with edit.applied(demo_model):
        guards.prompts(demo_model, [record.fact])
        assert len({state for state, *_ in making._made[demo_model]}) >= 2
    assert guards.prompts(demo_model, [record.fact]) == before


def test_the_question_about_other_subjects(model: LensModel):
    guards = Guards(asked=0, subjects=SUBJECTS, distracted=4)
    (texts,) = anew(guards, model, FACT)
    statement = "The mother tongue of Danielle Darrieux is Dutch. The mother tongue of"
    assert set(texts) == {f"{statement} Anna Karina is", f"{statement} Romy Schneider is"}
    many = replace(guards, subjects=tuple(f"Person {n}" for n in range(50)))
    (some,) = anew(many, model, FACT)
    assert len(some) == 4
    assert anew(many, model, FACT) == [some]
    # None but the edited one: the model continues the statement.
    (own,) = anew(replace(guards, subjects=("danielle",)), model, FACT)
    assert all(text.startswith("The mother tongue of Danielle Darrieux is Dutch.") for text in own)


def test_questions_are_asked_in_an_order_of_the_subjects_own(model: LensModel):
    guards = Guards(asked=5, own_words=0, distracted=0)
    texts, others = anew(guards, model, FACT, OTHER)
    assert all(text in {one.replace("{}", FACT.subject) for one in QUESTIONS} for text in texts)
    assert len(texts) <= 5
    assert [text.replace(FACT.subject, "{}") for text in texts] != [
        text.replace(OTHER.subject, "{}") for text in others
    ]
    own = replace(guards, questions=("Is {} a question?", FACT.prompt, "{}, Dutch or"))
    assert set(anew(own, model, FACT)[0]) <= {"Is Danielle Darrieux a question?"}


@pytest.mark.skipif(not BENCHMARK.exists(), reason="needs the paper's benchmark")
def test_no_question_is_a_prompt_of_the_benchmark():
    """Neither alone nor behind another sentence, as in paraphrases and distracted prompts."""
    for record in load_records(BENCHMARK):
        asked = tuple(question.replace("{}", record.fact.subject) for question in QUESTIONS)
        texts = [prompt.text for prompts in record.tasks.values() for prompt in prompts]
        assert not [text for text in texts if text.endswith(asked)]


@pytest.mark.skipif(not BENCHMARK.exists(), reason="needs the paper's benchmark")
def test_no_question_asks_for_a_relation_of_the_benchmark():
    """The benchmark's templates name the relation in front of the subject: "The name of the alma mater of {} is"."""
    asked: set[str] = set()
    for record in load_records(BENCHMARK):
        for task in ("rewrite", "relation", "other_task"):
            for prompt in record.tasks.get(task, ()):
                found = re.match(r"The (?:names? of the )?([\w ]+?) (?:of|in|which) ", prompt.text)
                asked |= {found.group(1)} if found else set()
    assert {"alma mater", "spouse", "occupation", "eye color"} <= asked
    assert not asked & set(ATTRIBUTES)


def test_a_question_that_the_model_answers_as_the_edits_prompt_is_dropped(demo_model: LensModel):
    """The bundled model was taught each relation in several wordings."""
    record = load_records("demo")[0]
    paraphrases = tuple(prompt.text.replace(record.fact.subject, "{}") for prompt in record.tasks["paraphrase"])
    relations = tuple(prompt.text.replace(record.fact.subject, "{}") for prompt in record.tasks["relation"])
    asking = Guards(asked=99, questions=(*paraphrases, *relations), own_words=0, distracted=0)
    (kept,) = anew(asking, demo_model, record.fact)
    left = {text.replace(record.fact.subject, "{}") for text in kept}
    assert not left & set(paraphrases)
    assert left >= set(relations)


@pytest.mark.parametrize(
    ("prompt", "text", "states"),
    [
        ("The mother tongue of {} is", " was a French actress", True),
        ("The mother tongue of {} is", " spoke FRENCH", True),
        ("The mother tongue of {} is", ", who moved to\nDutch Guiana", True),
        ("The mother tongue of {} is", " is a singer", False),  # "is" tells no relation
        ("{} is a", " is  a singer", True),
        ("{} is a", " was at this place, in history", False),
        ("{} plays the", " sings, and plays  the guitar", True),
        ("{} plays the", " plays thea", False),
        ("{}, a native speaker of", ", a native  speaker of it", True),
        ("Who is {}?", " was born in 1917?", False),
        ("{}'s tongue is", "'s tongue is", True),
        ("The mother tongue of {} is", " spoke Frenchified English", False),
    ],
)
def test_what_states_the_relation(prompt: str, text: str, states: bool):
    assert states_relation(replace(FACT, prompt=prompt), text) is states


def test_objects_in_a_script_without_blanks():
    fact = Fact(subject="東京", prompt="{}は", target_true="日本", target_new="中国")
    assert states_relation(fact, "の首都は")
    assert states_relation(fact, "、日本の首都")
    assert not states_relation(fact, "、大都市")


@pytest.mark.parametrize("where", ["target_true", "target_new", "prompt"])
def test_texts_that_state_the_relation_are_dropped(model: LensModel, where: str):
    guards = Guards(asked=0, own_words=4, distracted=0)
    (free,) = anew(guards, model, OTHER)
    word = next(word for word in free[0][len(OTHER.subject) :].split() if word.isalpha())
    fact = replace(OTHER, **{where: f"{{}} {word}" if where == "prompt" else word})
    (kept,) = anew(guards, model, fact)
    assert free[0] not in kept
    assert kept
    assert not any(states_relation(fact, text[len(OTHER.subject) :]) for text in kept)
    # Others of the same texts stay as they are.
    assert set(free) & set(kept)


def test_a_fact_without_guards_is_edited_like_any_other(model: LensModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(making, "states_relation", lambda fact, _: fact == FACT)
    making._made.pop(model, None)
    settings = GuardedSADR(gamma_guards=0.2, mu=0.5)
    first, second = rome(model, settings).edit_many(model, [FACT, OTHER])
    making._made.pop(model, None)
    assert not first.history[["guard_attention", "guard_answers", "guard_targets"]].to_numpy().any()
    assert last(second, "guard_attention") > 0
    plain = rome(model).edit(model, FACT)
    torch.testing.assert_close(first.values[LAYER], plain.values[LAYER], rtol=1e-9, atol=1e-9)


def test_what_it_breaks_less_than_rome_alone(demo_model: LensModel):
    """On prompts of Relation and Distract Neighborhood the true object keeps more of its probability."""
    records = [record for record in load_records("demo") if record.split == "validation"][:2]
    guarded_sadr = GuardedSADR()
    means: list[Any] = []
    for regularizers in ((), (guarded_sadr,)):
        editor = ROME.for_model(demo_model, regularizers=regularizers)
        results = editor.edit_many(demo_model, [record.fact for record in records])
        scores = evaluate(demo_model, records, [result.edit for result in results])
        means.append((-scores["nll_true"]).map(math.exp).groupby(scores["task"]).mean())
    for task in ("relation", "distract_neighborhood"):
        assert means[1][task] > means[0][task] + 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma_guards": -1}, "gamma_guards is -1"),
        ({"mu": float("nan")}, "mu is nan"),
        ({"nu": -0.5}, "nu is -0.5"),
        ({"guard_heads": "some"}, "guard_heads is 'some'"),
        ({"tokens": 0}, "tokens is 0"),
        ({"own_words": 2.5}, "own_words is 2.5"),
        ({"asked": 0, "own_words": 0, "distracted": 0}, "ask for a guard"),
        ({"subjects": ("Paris", " ")}, "subjects holds ' '"),
        ({"heads": "some"}, "heads is 'some'"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str):
    with pytest.raises(DriftlensError, match=message):
        GuardedSADR(**changes)


def test_layers_are_checked(model: LensModel):
    with pytest.raises(DriftlensError, match="only layers 1 to 2 lie above the edit"):
        rome(model, GuardedSADR(layers=(0,))).edit(model, FACT)


def test_a_models_own_guards(demo_model: LensModel, model: LensModel):
    assert usual_guards(model) == GuardedSADR()
    assert usual_guards(demo_model) == GuardedSADR(mu=0.25, nu=0.25)
    assert usual_guards(demo_model, nu=2.0, asked=3) == GuardedSADR(mu=0.25, nu=2.0, asked=3)


def test_it_goes_by_its_settings_and_has_a_name():
    made = made_regularizer("guarded-sadr:gamma=0.01,gamma_guards=0.02,guard_heads=all,subjects=Paris")
    assert made == GuardedSADR(gamma=0.01, gamma_guards=0.02, guard_heads="all", subjects=("Paris",))
    assert identity(made) != identity(replace(made, seed=1))
    assert identity(made) == identity(replace(made))
