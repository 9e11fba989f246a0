"""Context prefixes: sampled as ROME samples them, the same for the same seed, or given."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from driftlens.data import Fact
from driftlens.editors import ContextSampling, contexts, sample_contexts
from driftlens.editors.contexts import check_contexts
from driftlens.editors.keys import subject_keys
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from tests.support.plain import PlainModel
from tests.support.tiny import one_family

STARTS = ("The", "Therefore", "Because", "I", "You")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sampling anew, whatever a model has been asked for before."""

    def sample(model: LensModel, sampling: ContextSampling) -> tuple[str, ...]:
        contexts._sampled.pop(model, None)
        return sample_contexts(model, sampling)

    return sample


@pytest.fixture(scope="module")
def model(checkpoints: Any) -> LensModel:
    from tests.support.tiny import load_tiny

    return load_tiny(checkpoints("gpt2"))


@one_family
@pytest.mark.backend
def test_rome_takes_twenty_one(lens_model: LensModel, fresh: Any):
    """The bare prompt, ten prefixes of five tokens and ten of ten, from five beginnings in turn."""
    templates = fresh(lens_model, ContextSampling())
    assert len(templates) == 21
    assert templates[0] == "{}"
    assert check_contexts(templates) == templates
    for number, template in enumerate(templates[1:]):
        prefix, slot = template[: -len(". {}")], template[-len(". {}") :]
        assert slot == ". {}"
        assert prefix.startswith(STARTS[number % 5])
        assert len(prefix.splitlines()) == 1


@pytest.mark.backend
def test_each_token_is_among_the_most_likely(lens_model: LensModel, checkpoint_folder: Path, fresh: Any):
    """By plain Hugging Face, one prefix at a time; the prefixes of a seed differ from those of another."""
    plain = PlainModel(checkpoint_folder)
    chosen: list[list[int]] = []
    decode = lens_model.tokenizer.decode

    class Watching:
        """The model's tokenizer; its text alone would not give the sampled tokens back."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return tokenizer(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def decode(self, ids: list[int], **options: Any) -> str:
            chosen.append(list(ids))
            return decode(ids, **options)

    tokenizer = lens_model._tokenizer
    lens_model._tokenizer = Watching()
    try:
        fresh(lens_model, ContextSampling(lengths=((4, 5), (8, 5)), top_k=3))
    finally:
        lens_model._tokenizer = tokenizer
    bos = [0] if lens_model.adds_bos else []
    assert [len(ids) for ids in chosen] == [
        max(n, len(start_ids(lens_model, i))) for i, n in enumerate([4] * 5 + [8] * 5)
    ]
    ranks = []
    for number, ids in enumerate(chosen):
        assert ids[0] not in bos
        for k in range(len(start_ids(lens_model, number)), len(ids)):
            logits = plain.run(torch.tensor([bos + ids[:k]]))[1][0, -1]
            ranks.append(int((logits > logits[ids[k]]).sum()))
    assert max(ranks) <= 2  # top_k = 3; ranks count from 0
    assert len(set(ranks)) > 1  # and it is sampling, not a search for the best


def start_ids(model: LensModel, number: int) -> list[int]:
    ids = model.encode(STARTS[number % 5]).ids
    return ids[1:] if model.adds_bos else ids


def test_seeds(model: LensModel, fresh: Any):
    sampling = ContextSampling(lengths=((6, 5),))
    assert fresh(model, sampling) == fresh(model, sampling)
    other = ContextSampling(lengths=((6, 5),), seed=1)
    assert fresh(model, other) != fresh(model, sampling)
    # Nobody else's random numbers are taken, or given.
    before = torch.random.get_rng_state()
    fresh(model, sampling)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1234)
    assert fresh(model, sampling) == sample_contexts(model, sampling)


def test_they_are_sampled_once_for_a_model(model: LensModel, monkeypatch: pytest.MonkeyPatch):
    sampling = ContextSampling(lengths=((3, 2),), seed=7)
    first = sample_contexts(model, sampling)
    monkeypatch.setattr(LensModel, "run", lambda *_, **__: pytest.fail("a pass was run"))
    assert sample_contexts(model, sampling) == first


def test_frequencies_follow_the_model(model: LensModel, fresh: Any):
    """Many first tokens of one beginning against the softmax over the five most likely."""
    sampling = ContextSampling(lengths=((len(model.encode("I").ids) + 1, 800),), starts=("I",))
    templates = fresh(model, sampling)[1:]
    ids = torch.tensor([model.encode("I").ids])
    from driftlens.models import Batch

    logits = model.unembed(model.run(Batch(ids, torch.ones_like(ids, dtype=torch.bool)))[0, -1])
    top = logits.topk(5)
    expected: dict[str, float] = {}  # by text: tokens that are parts of characters may look alike
    for token, probability in zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True):
        text = " ".join(model.tokenizer.decode([*ids[0].tolist(), token], skip_special_tokens=True).split())
        expected[text] = expected.get(text, 0.0) + probability
    assert len(expected) > 2
    for text, probability in expected.items():
        share = templates.count(text + ". {}") / 800
        assert abs(share - probability) < 4 * (0.25 / 800) ** 0.5  # four standard errors


def test_braces_and_line_breaks_do_not_stay(model: LensModel, fresh: Any, monkeypatch: pytest.MonkeyPatch):
    """A sampled text with a slot of its own would take the prompt twice."""
    monkeypatch.setattr(contexts, "_sample", lambda *_: ["The {} of\n\n{a} } is", "The {}", "The 100% {0} \u2028 of"])
    templates = fresh(model, ContextSampling(lengths=((3, 3),)))
    assert templates == ("{}", "The of a is. {}", "The. {}", "The 100% 0 of. {}")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=8), max_size=3))
def test_given_contexts_hold_one_slot(given_contexts: list[str]):
    right = bool(given_contexts) and all(context.count("{}") == 1 for context in given_contexts)
    if right:
        assert check_contexts(given_contexts) == tuple(given_contexts)
        return
    with pytest.raises(DriftlensError, match=r"contexts is empty|must hold exactly one") as error:
        check_contexts(given_contexts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", ["no slot", "{} and {}", "{0}", ""])
def test_wrong_templates_are_one_line(wrong: str):
    with pytest.raises(DriftlensError, match=r"must hold exactly one \"\{\}\", where the prompt goes"):
        check_contexts(("{}", wrong))


# --- keys ---

FACTS = (
    Fact(subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_true="a", target_new="b"),
    Fact(subject="Toko Yasuda", prompt="{} plays {the} the", target_true="a", target_new="b"),
    Fact(subject="Paris", prompt="The mayor of {}", target_true="a", target_new="b"),
)
TEMPLATES = ("{}", "Paris and Toko Yasuda. {}", "Where does it end? {} In Delft,")


@pytest.mark.backend
def test_keys_are_the_down_projections_input_at_the_subjects_end(lens_model: LensModel, checkpoint_folder: Path):
    """Read from plain Hugging Face over the whole prompt, one by one."""
    plain = PlainModel(checkpoint_folder)
    for layer in (0, 2):
        keys = subject_keys(lens_model, FACTS, TEMPLATES, layer)
        assert keys.shape == (3, 3, lens_model.d_mlp)
        for i, fact in enumerate(FACTS):
            for j, template in enumerate(TEMPLATES):
                text = template.replace("{}", fact.text)
                end = template.index("{}") + fact.prompt.index("{}") + len(fact.subject)
                at = len(plain.tokenizer(text[:end])["input_ids"]) - 1
                expected = plain.value("mlp_post", layer, torch.tensor([plain.tokenizer(text)["input_ids"]]))[0, at]
                # float32 through up to three blocks, relative to the largest entry.
                assert float((keys[i, j] - expected).abs().max()) < 1e-5 * float(expected.abs().max())
