"""Second moments against a plain Hugging Face forward per text, and their cache against every kind of damage."""

import os
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file, save_file
from torch import Tensor

from driftlens.editors import SecondMoment, open_corpus, second_moments, stream_second_moments
from driftlens.editors import second_moment as module
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from tests.support.plain import PlainModel

TEXTS = [
    "Toko Yasuda plays the guitar in Leiden.",
    "Paris",
    "The mother tongue of Danielle Darrieux is French, and she lived in Paris and in New York.",
    "Where does the river Vltava end?",
    "it meets the Elbe, not in München or Łódź",
    "A distant relative of the mayor",
]


@pytest.fixture(scope="module")
def plain(checkpoint_folder: Path) -> PlainModel:
    return PlainModel(checkpoint_folder)


@pytest.fixture(scope="module")
def model(checkpoints: Any) -> LensModel:
    """One family is enough where the model does not matter."""
    from tests.support.tiny import load_tiny

    return load_tiny(checkpoints("gpt2"))


def keys_of(plain: PlainModel, layer: int, text: str) -> Tensor:
    ids = plain.tokenizer(text)["input_ids"][: plain.model.config.max_position_embeddings]
    return plain.value("mlp_post", layer, torch.tensor([ids]))[0].double()


def by_brute_force(plain: PlainModel, layer: int, texts: list[str]) -> Tensor:
    """All keys one below the other, each text by itself; XᵀX / n."""
    X = torch.cat([keys_of(plain, layer, text) for text in texts])
    return X.T @ X / len(X)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


# --- the statistic ---


@pytest.mark.backend
def test_it_is_the_mean_outer_product_of_all_keys(lens_model: LensModel, plain: PlainModel):
    """Several layers in one pass; float32 keys, so it agrees to about their seven digits (measured: 1e-6)."""
    found = stream_second_moments(lens_model, [0, 2], TEXTS)
    assert set(found) == {0, 2}
    for layer, matrix in found.items():
        assert matrix.dtype == torch.float32
        assert torch.equal(matrix, matrix.T)
        assert relative(matrix, by_brute_force(plain, layer, TEXTS)) < 1e-5


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    picks=st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=8),
    batch_tokens=st.sampled_from([1, 7, 40, 4096]),
    samples=st.integers(1, 9),
)
def test_batching_and_padding_do_not_matter(model: LensModel, brute: Any, picks: Any, batch_tokens: int, samples: int):
    """Any order, any repetition, batches of one token's worth and of everything, a limit anywhere."""
    texts = [TEXTS[i] for i in picks]
    found = stream_second_moments(model, [1], iter(texts), samples, batch_tokens=batch_tokens)[1]
    X = torch.cat([brute[i] for i in picks[:samples]])
    assert relative(found, X.T @ X / len(X)) < 1e-5


@pytest.fixture(scope="module")
def brute(checkpoints: Any) -> list[Tensor]:
    plain = PlainModel(checkpoints("gpt2"))
    return [keys_of(plain, 1, text) for text in TEXTS]


def test_long_texts_are_cut_to_the_context(model: LensModel, checkpoints: Any):
    text = "the river meets the Elbe and " * 20
    assert len(model.encode(text).ids) > model.n_ctx
    found = stream_second_moments(model, [0], [text])[0]
    assert relative(found, by_brute_force(PlainModel(checkpoints("gpt2")), 0, [text])) < 1e-5


def test_progress_counts_texts(model: LensModel):
    seen: list[tuple[int, int]] = []
    stream_second_moments(model, [0], TEXTS, 5, lambda *now: seen.append(now), batch_tokens=8)
    assert seen == sorted(seen)
    assert seen[-1] == (5, 5)


def test_running_out_of_memory_halves_the_batch_and_counts_nothing_twice(
    model: LensModel, brute: Any, monkeypatch: pytest.MonkeyPatch
):
    run = LensModel.run

    def small(self: LensModel, batch: Any, **options: Any) -> Tensor:
        if len(batch.tokens) > 2:
            raise torch.OutOfMemoryError
        return run(self, batch, **options)

    monkeypatch.setattr(LensModel, "run", small)
    with pytest.warns(RuntimeWarning, match="going on with batches of"):
        found = stream_second_moments(model, [1], TEXTS)[1]
    X = torch.cat(brute)
    assert relative(found, X.T @ X / len(X)) < 1e-5


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_one_line(model: LensModel, texts: list[str]):
    with pytest.raises(DriftlensError, match="the corpus holds no text"):
        stream_second_moments(model, [0], texts)


# --- solving ---


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 12), k=st.integers(1, 4), seed=st.integers(0, 2**20))
def test_solve_is_the_inverse(n: int, k: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(3 * n, n, generator=generator, dtype=torch.float64)
    C = X.T @ X / (3 * n)
    keys = torch.randn(k, n, generator=generator, dtype=torch.float64)
    solved = SecondMoment(C).solve(keys)
    assert solved.dtype == torch.float64
    # Three samples a dimension: the condition number is some hundreds, so 1e-9 leaves room for all float64 rounding.
    assert torch.allclose(solved @ C, keys, rtol=0, atol=1e-9)
    assert torch.allclose(solved, keys @ torch.linalg.inv(C), rtol=1e-9, atol=1e-8)


def test_a_singular_one_is_one_line():
    """Fewer tokens than dimensions."""
    X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(DriftlensError, match=r"singular .* take it over more text than it has dimensions") as error:
        SecondMoment(X.T @ X / 3).solve(torch.ones(1, 8))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (1, 4, 4)])
def test_a_matrix_of_another_shape_is_one_line(shape: tuple[int, ...]):
    with pytest.raises(DriftlensError, match=r"has shape \[d_mlp, d_mlp\]; this one has"):
        SecondMoment(torch.ones(shape))


# --- the cache ---


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The layers of every pass over a corpus from here on."""
    passes: list[tuple[int, ...]] = []
    stream = module.stream_second_moments

    def counting(model: LensModel, layers: Any, *rest: Any) -> Any:
        passes.append(tuple(layers))
        return stream(model, layers, *rest)

    monkeypatch.setattr(module, "stream_second_moments", counting)
    return passes


def test_it_is_computed_once(model: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    passes, corpus = counted(monkeypatch), open_corpus(TEXTS)
    first = second_moments(model, [0, 1], corpus, folder=tmp_path)
    again = second_moments(model, [1, 0], corpus, folder=tmp_path)
    assert passes == [(0, 1)]
    for layer in (0, 1):
        assert torch.equal(first[layer].matrix, again[layer].matrix)
        assert "6 texts" in again[layer].source
    # Only what is missing is computed.
    second_moments(model, [0, 2], corpus, folder=tmp_path)
    assert passes == [(0, 1), (2,)]
    assert len(list(tmp_path.iterdir())) == 3


def test_another_model_layer_corpus_or_sample_size_is_another_file(model: LensModel, checkpoints: Any):
    from tests.support.tiny import load_tiny

    other = load_tiny(checkpoints("neox"))
    names = {
        module.cache_name(model, 0, open_corpus(TEXTS), 10),
        module.cache_name(other, 0, open_corpus(TEXTS), 10),
        module.cache_name(model, 1, open_corpus(TEXTS), 10),
        module.cache_name(model, 0, open_corpus(TEXTS[::-1]), 10),
        module.cache_name(model, 0, open_corpus(TEXTS[:-1]), 10),
        module.cache_name(model, 0, open_corpus([*TEXTS[:-2], TEXTS[-2] + TEXTS[-1]]), 10),
        module.cache_name(model, 0, open_corpus(TEXTS), 11),
    }
    assert len(names) == 7
    assert module.cache_name(model, 0, open_corpus(list(TEXTS)), 10) in names


def flip_a_weight(path: Path) -> None:
    tensors = load_file(path)
    tensors["second_moment"][3, 3] += 1e-3
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata=metadata)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_text("not a tensor"),
        lambda path: save_file({"second_moment": torch.eye(4)}, path),
        lambda path: save_file({"other": torch.eye(4)}, path),
        flip_a_weight,
        flip_a_bit,
    ],
    ids="empty header-only truncated text foreign no-tensor altered bit".split(),
)
def test_a_damaged_cache_is_one_line(model: LensModel, tmp_path: Path, damage: Any):
    corpus = open_corpus(TEXTS)
    second_moments(model, [0], corpus, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    with pytest.raises(DriftlensError, match=r"cached second moment .* delete the file") as error:
        second_moments(model, [0], corpus, folder=tmp_path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_under_another_files_name_is_noticed(model: LensModel, tmp_path: Path):
    """Such as the one of another layer, copied by hand."""
    corpus = open_corpus(TEXTS)
    second_moments(model, [0], corpus, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.rename(tmp_path / module.cache_name(model, 1, corpus, module.SAMPLES))
    with pytest.raises(DriftlensError, match="is not what was written there"):
        second_moments(model, [1], corpus, folder=tmp_path)


def test_a_write_that_fails_leaves_nothing(model: LensModel, tmp_path: Path):
    full = mock.patch.object(Path, "write_bytes", side_effect=OSError(28, "No space left on device"))
    with full, pytest.raises(DriftlensError, match=r"cannot write .*No space left"):
        second_moments(model, [0], open_corpus(TEXTS), folder=tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or list((tmp_path / "cache").iterdir()) == []


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("DRIFTLENS_CACHE", raising=False)
    assert module.cache_folder() == tmp_path / "xdg" / "driftlens"
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "own"))
    assert module.cache_folder() == tmp_path / "own"


# --- corpora ---


def test_a_text_file_has_a_text_on_each_line(tmp_path: Path):
    path = tmp_path / "corpus.txt"
    path.write_text("first text\n\n  second text  \n\t\nthird, Łódź\n", encoding="utf-8")
    corpus = open_corpus(path)
    assert list(corpus.texts()) == ["first text", "second text", "third, Łódź"]
    assert list(corpus.texts()) == list(corpus.texts())  # it can be streamed again
    same, other = tmp_path / "same.txt", tmp_path / "other.txt"
    same.write_bytes(path.read_bytes())
    other.write_bytes(path.read_bytes() + b"more\n")
    assert open_corpus(same).digest == corpus.digest != open_corpus(other).digest


def test_a_corpus_opens_as_itself():
    corpus = open_corpus(TEXTS)
    assert open_corpus(corpus) is corpus
    assert list(corpus.texts()) == TEXTS


def test_corpora_that_cannot_be_are_one_line(tmp_path: Path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(DriftlensError, match=r"empty\.txt holds no text; give a file with a text on each line"):
        open_corpus(empty)
    with pytest.raises(DriftlensError, match=r"unknown corpus 'wikipedai'; did you mean 'wikipedia'.*path of a text"):
        open_corpus("wikipedai")
    with pytest.raises(DriftlensError, match="it is a folder; give a text file"):
        open_corpus(tmp_path)


@pytest.mark.skipif(os.environ.get("HF_HUB_OFFLINE") != "1", reason="would reach the network")
def test_a_data_set_out_of_reach_is_one_line(model: LensModel, tmp_path: Path):
    """The tests run offline, so that this is what a machine without a network sees."""
    with pytest.raises(DriftlensError, match=r"cannot reach the corpus 'wikitext'.*give a text file") as error:
        second_moments(model, [0], open_corpus("wikitext"), folder=tmp_path)
    assert "\n" not in str(error.value)
