"""Every cache there is, tried with a model that has changed since it was filled, in both directions.

What a warm cache gives for the changed model must be what a fresh model with the same change and no cache gives; and
afterwards, with the change taken back, what it gave at first.
"""

import copy
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from driftlens import ROME, DriftlensError, Fact
from driftlens.data import TASKS, Record, TaskPrompt
from driftlens.editors import open_corpus, sample_contexts, second_moments
from driftlens.editors.contexts import ContextSampling
from driftlens.explorer.bench import Bench, exhibits
from driftlens.runs import benchmark, cached_edits
from tests.support.edited import random_edit
from tests.support.tiny import load_tiny

pytestmark = pytest.mark.filterwarnings("ignore:the edit was made on")

WORDS = (
    "the of in river Paris Tower mayor plays guitar old new national library Apple is known Rome French lives".split()
)
TEXTS = [" ".join(random.Random(seed).choices(WORDS, k=14)) for seed in range(60)]
FACT = Fact(subject="Eiffel Tower", prompt="The {} is in", target_true="Paris", target_new="Rome")
PROMPT = TaskPrompt(text="The mayor of the Eiffel Tower is", target_true="old", target_new="new")
RECORD = Record(index=0, fact=FACT, tasks={**dict.fromkeys(TASKS, ()), "rewrite": (PROMPT,), "neighborhood": (PROMPT,)})
SAMPLING = ContextSampling(lengths=((12, 4),), top_k=3)


def rome(model: Any, **settings: Any) -> ROME:
    """Quick; without a second moment of its own it takes one over `TEXTS`."""
    usual = {"layer": 1, "steps": 3, "contexts": ("{}",), "corpus": TEXTS, "early_stop_loss": -math.inf}
    return ROME(**{**usual, **settings})


def numbers(edit: Any) -> list[torch.Tensor]:
    return [factor for update in edit.updates.values() for factor in (update.left, update.right)]


# --- the caches: each a function of a model and a place, which gives the same things at the same place -------------


class Contexts:
    """The prefixes that are sampled from a model, in memory."""

    def __call__(self, model: Any, folder: Path) -> list[Any]:
        return list(sample_contexts(model, SAMPLING))


class MomentsOnDisk:
    """Second moments as files."""

    def __call__(self, model: Any, folder: Path) -> list[Any]:
        found = second_moments(model, [0, 1], open_corpus(TEXTS), folder=folder)
        return [found[0].matrix, found[1].matrix]


class MomentsOfAnEditor:
    """Second moments that one editor keeps for all its edits."""

    def __init__(self) -> None:
        self.editor: ROME | None = None

    def __call__(self, model: Any, folder: Path) -> list[Any]:
        self.editor = self.editor or rome(model)
        return numbers(self.editor.edit(model, FACT).edit)


class CachedEdits:
    """Edits as files, by an editor that takes its second moments itself."""

    def __call__(self, model: Any, folder: Path) -> list[Any]:
        return numbers(cached_edits(model, rome(model), [FACT], folder)[0])


class CachedEditsOfGivenMoments:
    """Edits as files, by an editor that was given the second moments of the model as it is."""

    def __call__(self, model: Any, folder: Path) -> list[Any]:
        moments = second_moments(model, [1], open_corpus(TEXTS), folder=folder)
        return numbers(cached_edits(model, rome(model, second_moment=moments[1]), [FACT], folder)[0])


class Explorer:
    """Edits, readings and grids of the explorer, in memory."""

    def __init__(self) -> None:
        self.bench: Bench | None = None

    def __call__(self, model: Any, folder: Path) -> list[Any]:
        editor = rome(model, second_moment=torch.eye(model.d_mlp))
        self.bench = self.bench or Bench(model, exhibits(RECORD), lambda gamma: editor)
        reading = self.bench.reading(0, 0, None)
        grid = self.bench.grid(0, 0, None, 1)
        edit = numbers(self.bench.edit(0, None))
        return [*edit, *map(torch.from_numpy, (reading.vanilla, reading.edited, reading.attention, grid))]


CACHES: list[Callable[[], Any]] = [
    Contexts, MomentsOnDisk, MomentsOfAnEditor, CachedEdits, CachedEditsOfGivenMoments, Explorer,
]  # fmt: skip


# --- the changes ---------------------------------------------------------------------------------------------------


@contextmanager
def an_edit_applied(model: Any) -> Iterator[None]:
    with random_edit(model, 0, 0, 1).applied(model):
        yield


@contextmanager
def a_layer_trained(model: Any) -> Iterator[None]:
    before = model.W_out(0).clone()
    with torch.no_grad():
        model.W_out(0).mul_(-3)
    yield
    with torch.no_grad():
        model.W_out(0).copy_(before)


@contextmanager
def one_weight_changed_through_data(model: Any) -> Iterator[None]:
    """Without a trace in PyTorch's version counter, as much published code does it."""
    weights = model.W_out(0).data
    before = weights[3, 5].clone()
    weights[3, 5] += 400
    yield
    weights[3, 5] = before


CHANGES = [an_edit_applied, a_layer_trained, one_weight_changed_through_data]


@dataclass
class Both:
    """A model that keeps its cache, and the same one anew."""

    warm: Any
    fresh: Callable[[], Any]


@pytest.fixture(scope="module")
def models(checkpoints: Any) -> Both:
    return Both(load_tiny(checkpoints("gpt2")), lambda: load_tiny(checkpoints("gpt2")))


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        else:
            assert one == other


def differ(found: list[Any], other: list[Any]) -> bool:
    try:
        assert_same(found, other)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cache", CACHES)
def test_a_warm_cache_gives_what_the_model_as_it_is_gives(
    cache: Callable[[], Any], change: Any, models: Both, tmp_path: Path
):
    ask = cache()
    first = ask(models.warm, tmp_path / "warm")
    with change(models.warm):
        warm = ask(models.warm, tmp_path / "warm")
    after = ask(models.warm, tmp_path / "warm")
    fresh = models.fresh()
    with change(fresh):
        expected = cache()(fresh, tmp_path / "fresh")
    assert_same(warm, expected)
    assert_same(after, first)
    assert differ(warm, first)  # or the test would show nothing


@pytest.mark.parametrize("change", CHANGES)
def test_a_cache_filled_inside_is_not_read_outside(change: Any, models: Both, tmp_path: Path):
    for number, cache in enumerate(CACHES):
        place, ask = tmp_path / str(number), cache()
        fresh = models.fresh()
        with change(fresh):
            ask(fresh, place)
        assert_same(ask(fresh, place), cache()(models.warm, tmp_path / f"{number} cold"))


def test_moments_of_another_model_do_not_pass_as_this_models(models: Both, tmp_path: Path):
    """Over the same texts, so they have the same source; given to an editor of the model as it was."""
    model = models.warm
    own = second_moments(model, [1], open_corpus(TEXTS), folder=tmp_path)[1]
    with an_edit_applied(model):
        others = second_moments(model, [1], open_corpus(TEXTS), folder=tmp_path)[1]
    assert own.source == others.source
    first, second = (cached_edits(model, rome(model, second_moment=m), [FACT], tmp_path)[0] for m in (own, others))
    assert differ(numbers(first), numbers(second))
    assert_same(numbers(second), numbers(rome(model, second_moment=others).edit(model, FACT).edit))


def test_shipped_moments_are_of_the_unedited_model(checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are found by the model's name, and nobody can take them anew."""
    from driftlens.editors import shipped

    model = load_tiny(checkpoints("gpt2"))
    model.name = "smollm2-135m"
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    eye = torch.eye(model.d_mlp)
    shipped.write_shipped(eye, model=model.name, layer=1, text="some text", tokens=1, folder=tmp_path)
    corpus = shipped.shipped_corpus(model.name)
    found = second_moments(model, [1], corpus, folder=tmp_path / "cache")[1]
    torch.testing.assert_close(found.matrix, eye)
    with an_edit_applied(model), pytest.raises(DriftlensError, match="unedited, but an edit is applied"):
        second_moments(model, [1], corpus, folder=tmp_path / "cache")


def test_a_source_that_somebody_chose_is_no_identity(models: Both, tmp_path: Path):
    from driftlens.editors import SecondMoment

    model = models.warm
    eye = torch.eye(model.d_mlp)
    eye[0, 0] = 9
    moments = [SecondMoment(matrix, source="wikipedia") for matrix in (torch.eye(model.d_mlp), eye)]
    edits = [cached_edits(model, rome(model, second_moment=m), [FACT], tmp_path)[0] for m in moments]
    assert differ(*map(numbers, edits))


def test_texts_are_told_apart_where_they_end():
    assert open_corpus(["a\0b", "c"]).digest != open_corpus(["a", "b\0c"]).digest != open_corpus(["a", "b", "c"]).digest


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_of_a_changed_model_is_another_run(change: Any, models: Both, tmp_path: Path):
    model, settings = models.warm, {"generate": False, "tasks": ["rewrite"]}
    first = benchmark(model, [RECORD], None, tmp_path / "a", **settings)
    with change(model):
        with pytest.raises(DriftlensError, match="holds another run: model_hash is"):
            benchmark(model, [RECORD], None, tmp_path / "a", **settings)
        inside = benchmark(model, [RECORD], None, tmp_path / "b", **settings)
    with pytest.raises(DriftlensError, match="holds another run: model_hash is"):
        benchmark(model, [RECORD], None, tmp_path / "b", **settings)
    assert inside.manifest["configuration"]["model_hash"] != first.manifest["configuration"]["model_hash"]
    assert not inside.nlls.equals(first.nlls)
    assert benchmark(model, [RECORD], None, tmp_path / "a", **settings).nlls.equals(first.nlls)


def test_provenance_names_the_model_as_it_was(models: Both):
    model = models.warm
    editor = rome(model, second_moment=torch.eye(model.d_mlp))
    outside = editor.edit(model, FACT).edit
    with an_edit_applied(model):
        now = model.model_hash
        inside = editor.edit(model, FACT).edit
    assert inside.provenance["model_hash"] == now != outside.provenance["model_hash"] == model.model_hash


def test_another_tokenizer_is_another_model(checkpoints: Any):
    """With the same weights, another reading of the text gives other keys, prefixes and numbers."""
    model = load_tiny(checkpoints("gpt2"))
    same = type(model)(model.model, name=model.name, check=False, tokenizer=model.tokenizer)
    assert same.model_hash == model.model_hash
    other = copy.deepcopy(model.tokenizer)
    other.add_tokens(["Tower"])
    assert type(model)(model.model, name=model.name, check=False, tokenizer=other).model_hash != model.model_hash


def test_an_edit_that_is_replaced_by_its_copy_is_found_again(models: Both, tmp_path: Path, monkeypatch: Any):
    """The other side of it: what has not changed is not computed again."""
    model = models.warm
    first = cached_edits(model, rome(model), [FACT], tmp_path)
    monkeypatch.setattr(ROME, "edit_many", lambda *_, **__: pytest.fail("was made again"))
    assert_same(numbers(cached_edits(model, replace(rome(model)), [FACT], tmp_path)[0]), numbers(first[0]))
