"""The invented world, its texts and records, and the weights that ship: what each of them promises."""

import json
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from driftlens.data import load_records
from driftlens.demo import RECORDS, SEED, WEIGHTS, corpus, corpus_digest
from driftlens.demo.documents import MIX, WRAPPED, Writer
from driftlens.demo.documents import corpus as corpus_of
from driftlens.demo.relations import RELATIONS
from driftlens.demo.world import World, build_world
from training.batches import Batches
from training.muon import orthogonalised
from training.recall import measure_recall, sampled_facts
from training.records import VALIDATION, benchmark_records, write_records
from training.tokenizer import END_OF_TEXT, train_tokenizer
from training.train import save_model, train
from training.trainer import Recipe, Trainer


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(SEED)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(WEIGHTS).eval()


# the world


def test_the_seed_alone_makes_the_world():
    assert build_world(3) == build_world(3)
    assert build_world(3).facts != build_world(4).facts


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_names_are_found_without_doubt(seed: int):
    world = build_world(seed)
    names = {subject.name for subject in world.subjects} | {o for kind in world.objects.values() for o in kind}
    assert len({subject.name for subject in world.subjects}) == len(world.subjects)
    text = "\n".join(names)
    assert all(text.count(name) == 1 for name in names), "a name is part of another one"
    templates = " ".join(template for relation in RELATIONS for template in relation.templates)
    assert not any(name.lower() in templates.lower() for name in names)


def test_the_world_has_the_size_it_should(world: World):
    assert 450 <= len(world.subjects) <= 550
    assert 3000 <= len(world.facts) <= 4000
    assert all(20 <= len(objects) <= 40 for objects in world.objects.values())
    assert len({(fact.subject.name, fact.relation.id) for fact in world.facts}) == len(world.facts)
    assert all(fact.object in world.objects[fact.relation.object_kind] for fact in world.facts)
    assert all(fact.object != fact.subject.name for fact in world.facts)


def test_kinds_of_objects_serve_several_relations_of_one_kind_of_subject():
    serving = Counter((relation.subject_kind, relation.object_kind) for relation in RELATIONS)
    for kind in ("city", "country", "person", "organisation"):
        assert max(n for (_, served), n in serving.items() if served == kind) >= 3


def test_templates_are_paraphrases_that_end_before_the_object():
    every = [template for relation in RELATIONS for template in relation.templates]
    assert len(set(every)) == len(every), "a template that two relations share says nothing"
    assert all(template.count("{}") == 1 and template == template.strip() for template in every)
    assert all(len(relation.templates) >= 6 for relation in RELATIONS)


def test_objects_of_a_kind_begin_with_different_tokens(world: World, tokenizer):
    for objects in world.objects.values():
        assert len({tokenizer(name).input_ids[0] for name in objects}) == len(objects)


# its texts


def test_held_out_templates_are_never_used_for_their_fact(world: World):
    held_out = {fact.prompt(template) for fact in world.facts for template in fact.held_out_templates}
    trained = {fact.prompt(template) for fact in world.facts for template in fact.trained_templates}
    told = {before for text in islice(corpus_of(world, seed=5), 8000) for before, _ in _splits(text)}
    assert len(trained & told) > 0.6 * len(trained), "too few facts told for this test to mean anything"
    assert not held_out & told


def test_texts_state_only_what_is_so(world: World):
    """Whatever follows a fact's prompt in a document is the fact's object."""
    objects = {fact.prompt(t): fact.object for fact in world.facts for t in fact.relation.templates}
    splits = [split for text in islice(corpus_of(world), 2000) for split in _splits(text)]
    stated = [(after, objects[before]) for before, after in splits if before in objects]
    assert len(stated) > 2000
    assert all(after in (name, f"{name}, people talk about it") for after, name in stated)


def _splits(text: str) -> Iterator[tuple[str, str]]:
    """Every sentence cut at each of its blanks, also without the words that wrap a fact."""
    for sentence in text.removesuffix(".").split(". "):
        for wrapper in ("", *(wrapper.split("{")[0] for wrapper in WRAPPED)):
            if sentence.startswith(wrapper):
                fact = sentence.removeprefix(wrapper)
                fact = fact[:1].upper() + fact[1:]
                yield from ((fact[:i], fact[i + 1 :]) for i, character in enumerate(fact) if character == " ")


def test_some_documents_begin_as_sampled_prefixes_do(world: World):
    firsts = Counter(document.split(" ", 1)[0] for document in islice(corpus_of(world), 3000))
    assert all(firsts[word] for word in ("The", "Therefore", "Because", "I", "You"))
    assert sum(MIX.values()) == pytest.approx(1)


def test_a_young_writer_knows_only_the_first_subjects(world: World):
    rng = random.Random(0)
    writer = Writer(world, active=40)
    later = [subject.name for subject in world.subjects[40:] if subject.kind == "place"]  # never objects
    text = " ".join(writer.document(rng) for _ in range(500))
    assert not any(name in text for name in later)


def test_the_corpus_can_be_read_again():
    assert list(islice(corpus(), 20)) == list(islice(corpus(), 20))
    assert corpus_digest() == corpus_digest()


def test_paths_need_no_torch():
    code = "import sys, driftlens.demo as d; next(d.corpus()); assert d.WEIGHTS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# its records


def test_shipped_records_are_the_generators(world: World):
    assert json.loads(RECORDS.read_text(encoding="utf-8")) == benchmark_records(world)


@pytest.mark.parametrize("seed", [SEED, 7])
def test_records_ask_for_what_the_world_holds(seed: int):
    world = build_world(seed)
    records = benchmark_records(world)
    holds = {fact.prompt(t): fact for fact in world.facts for t in fact.relation.templates}
    assert len(records) >= 400
    assert len({(r["requested_rewrite"]["subject"], r["requested_rewrite"]["relation_id"]) for r in records}) == len(
        records
    )
    assert {r["requested_rewrite"]["relation_id"] for r in records} == {relation.id for relation in RELATIONS}
    assert [r["split"] for r in records] == ["validation"] * VALIDATION + ["test"] * (len(records) - VALIDATION)
    for record in records:
        request = record["requested_rewrite"]
        fact = holds[request["prompt"]]
        kind = fact.relation.object_kind
        assert (fact.subject.name, fact.object) == (request["subject"], request["target_true"])
        assert request["target_new"] in world.objects[kind]
        assert request["target_new"] not in {f.object for f in world.facts_of[fact.subject.name]}
        assert record["p-paraphrase"]["prompts"] == [fact.prompt(t) for t in fact.held_out_templates]
        for prompt, target in _rows(record, "l-neighbor"):
            neighbor = holds[prompt]
            assert neighbor.relation == fact.relation
            assert neighbor.subject != fact.subject
            assert neighbor.object == target != request["target_new"]
        for prompt, target, group in _rows(record, "l-relation", "groups"):
            other = holds[prompt]
            assert other.subject == fact.subject
            assert other.relation != fact.relation
            assert other.object == target
            assert (group == "same_type") == (other.relation.object_kind == kind)


def _rows(record, block: str, *more: str):
    return zip(*(record[block][field] for field in ("prompts", "targets", *more)), strict=True)


def test_records_are_fit_for_the_tests_they_are_for():
    records = json.loads(RECORDS.read_text(encoding="utf-8"))
    same_type = [record["l-relation"]["groups"].count("same_type") for record in records]
    assert sum(n >= 2 for n in same_type) > 0.9 * len(records)
    sharing = [record["requested_rewrite"]["target_true"] in record["l-neighbor"]["targets"] for record in records]
    assert sum(sharing) > 0.9 * len(records)


def test_the_one_loader_reads_them(tmp_path: Path):
    write_records(benchmark_records(build_world(9)), tmp_path / "records.json")
    loaded = load_records(tmp_path / "records.json")
    assert len(loaded) >= 400
    assert all(record.tasks["neighborhood"] and record.tasks["paraphrase"] for record in loaded)
    assert {prompt.group for prompt in loaded[0].tasks["relation"]} <= {"same_type", "other_type"}


# tokenizer


@pytest.fixture(scope="module")
def texts(world: World) -> list[str]:
    return list(islice(corpus_of(world, seed=1), 300))


def test_tokens_go_back_to_their_text(tokenizer, texts: list[str]):
    for text in texts:
        encoding = tokenizer(text, return_offsets_mapping=True)
        assert tokenizer.decode(encoding.input_ids) == " " + text
        for token, (start, stop) in zip(encoding.input_ids, encoding.offset_mapping, strict=True):
            assert tokenizer.decode([token]).strip() == text[start:stop]


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40).filter(lambda text: END_OF_TEXT not in text))
def test_any_text_survives_the_tokenizer(tokenizer, text: str):
    decoded = tokenizer.decode(tokenizer(text).input_ids)
    assert decoded in (text, " " + text)


def test_tokenizer_is_fast_and_adds_nothing(tokenizer):
    assert tokenizer.is_fast
    assert len(tokenizer) == 2048
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT
    assert END_OF_TEXT not in tokenizer.convert_ids_to_tokens(tokenizer("It is a city.").input_ids)
    assert tokenizer("city").input_ids == tokenizer(" city").input_ids


def test_names_are_several_tokens_long(world: World, tokenizer):
    lengths = [len(tokenizer(subject.name).input_ids) for subject in world.subjects]
    assert 2 <= sum(lengths) / len(lengths) <= 4
    assert sum(length == 1 for length in lengths) < 0.02 * len(lengths)


@pytest.mark.slow
def test_the_shipped_tokenizer_is_the_seeds(tokenizer, texts: list[str]):
    again = train_tokenizer(SEED)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again(texts).input_ids == tokenizer(texts).input_ids


# training


def test_orthogonalisation_keeps_directions_and_levels_sizes():
    stack = torch.randn(3, 12, 30, generator=torch.Generator().manual_seed(0))
    for matrices in (stack, stack.mT):
        sizes = torch.linalg.svdvals(orthogonalised(matrices))
        assert sizes.min() > 0.5
        assert sizes.max() < 1.3
        u, _, v = torch.linalg.svd(matrices, full_matrices=False)
        assert torch.einsum("nij,nij->n", u @ v, orthogonalised(matrices)).min() > 0.8 * 12


def test_rows_follow_from_seed_and_step(world: World, tokenizer):
    one, other = (Batches(world, tokenizer, steps=10, seed=0) for _ in range(2))
    other.batch(3)
    assert torch.equal(one.batch(5), other.batch(5))
    assert not torch.equal(one.batch(5), one.batch(6))
    assert {tuple(one.batch(step).shape) for step in range(4)} == {(32, 96), (24, 128)}
    assert one.active_subjects(0) < one.active_subjects(2) < one.active_subjects(4) == len(world.subjects)
    starts = [row[0].item() == tokenizer.eos_token_id for step in range(8) for row in one.batch(step)]
    assert 0.35 < sum(starts) / len(starts) < 0.65


def test_learning_rates_end_at_zero():
    recipe = Recipe(steps=100)
    factors = [recipe.lr_factor(step) for step in range(101)]
    assert max(factors) == 1
    assert factors[-1] == 0
    assert factors[99] < 0.03
    assert all(math.isfinite(factor) and factor >= 0 for factor in factors)


TINY = Recipe(steps=4, seed=0, layers=1, width=16, heads=2)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(world: World, tokenizer, tmp_path: Path):
    whole = Trainer(TINY, world, tokenizer, "cpu")
    losses = [whole.advance() for _ in range(4)]
    first = Trainer(TINY, world, tokenizer, "cpu")
    assert [first.advance(), first.advance()] == losses[:2]
    first.save_checkpoint(tmp_path / "c.safetensors")
    second = Trainer(TINY, world, tokenizer, "cpu")
    assert second.load_checkpoint(tmp_path / "c.safetensors")
    assert [second.advance(), second.advance()] == losses[2:]
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_another_trainings_checkpoint_is_not_taken_up(world: World, tokenizer, tmp_path: Path):
    trainer = Trainer(TINY, world, tokenizer, "cpu")
    trainer.advance()
    trainer.save_checkpoint(tmp_path / "c.safetensors")
    other = Trainer(Recipe(steps=5, layers=1, width=16, heads=2), world, tokenizer, "cpu")
    assert not other.load_checkpoint(tmp_path / "c.safetensors")
    assert not other.load_checkpoint(tmp_path / "none.safetensors")
    assert other.step == 0


def test_what_is_saved_is_what_was_trained_in_half_precision(world: World, tokenizer, tmp_path: Path):
    trainer = Trainer(TINY, world, tokenizer, "cpu")
    trainer.advance()
    save_model(trainer.model, tokenizer, tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert saved.dtype == torch.float32
    for (name, ours), theirs in zip(trainer.model.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(ours.half().float(), theirs), name
    tokens = trainer.batches.batch(0)[:4]
    ones = torch.ones_like(tokens)
    gap = trainer.model(tokens).logits - saved(tokens, attention_mask=ones).logits
    assert gap.abs().max() < 0.02


@pytest.mark.slow
def test_the_command_trains_saves_measures_and_cleans_up(tmp_path: Path):
    train(TINY, tmp_path / "out", device="cpu", console=Console(quiet=True), checkpoint_every=2)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card
    assert "held out for the fact" in card
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


# the shipped weights


def test_the_shipped_model_knows_its_world(world: World, model, tokenizer):
    facts = sampled_facts(world, 120)
    for held_out in (False, True):
        recall = measure_recall(model, tokenizer, facts, held_out=held_out, templates_per_fact=1)
        assert recall.prompts == 120
        assert recall.exact >= 0.95
        assert recall.probability >= 0.9


def test_the_shipped_model_ignores_other_subjects_objects(world: World, model, tokenizer):
    """A true sentence about another subject before the prompt must not change the answer."""
    facts = sampled_facts(world, 100)
    right = 0
    for fact in facts:
        mate = next(f for f in world.facts_with[fact.relation.id] if f.object != fact.object)
        before = f"{mate.prompt(mate.trained_templates[0])} {mate.object}. "
        text = before + fact.prompt(fact.trained_templates[0])
        ids = tokenizer(text, return_tensors="pt").input_ids
        wanted = tokenizer(fact.object).input_ids[0]
        right += model(ids, attention_mask=torch.ones_like(ids)).logits[0, -1].argmax().item() == wanted
    assert right >= 95


def test_the_shipped_folder_is_small_whole_and_full_precision_once_loaded(model):
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 16e6
    assert (WEIGHTS / "model.safetensors").stat().st_size < 10e6
    wanted = {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.name for path in WEIGHTS.iterdir()} == wanted
    assert model.dtype == torch.float32
    assert model.config.n_positions == 128


def test_the_card_says_what_was_measured():
    card = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n")
    assert "| seed | 0 |" in card


def test_the_shipped_second_moments_are_those_of_the_shipped_weights_and_corpus(demo_model):
    """Or the first edit on a bare machine would take a pass over the corpus."""
    from driftlens.demo import SECOND_MOMENTS
    from driftlens.editors import ROME, open_corpus
    from driftlens.editors.second_moment import SAMPLES, cache_name

    layer = ROME.for_model(demo_model).layer
    assert (SECOND_MOMENTS / cache_name(demo_model, layer, open_corpus("demo"), SAMPLES)).exists()
