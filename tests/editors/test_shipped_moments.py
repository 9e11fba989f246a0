"""Shipped second moments: small, nearly exact, whole or refused; and what others cost is told before they are taken."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from driftlens.editors import SecondMoment, default_corpus, open_corpus, second_moments
from driftlens.editors import shipped as module
from driftlens.editors.moment_cost import MomentCost, moment_cost
from driftlens.editors.second_moment import are_cached
from driftlens.editors.shipped import SHIPPED, rounded, shipped_corpus, shipped_layers, shipped_moment, write_shipped
from driftlens.errors import DriftlensError
from driftlens.options.moments import cost_text
from tests.support.tiny import one_family

MODEL = "smollm2-135m"


def moment_of_unequal_keys(d_mlp: int, seed: int = 0) -> torch.Tensor:
    """Correlated keys whose dimensions differ in size by a factor of 100, a condition number of about 1e6."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-1, 1, d_mlp)
    keys = torch.randn(20 * d_mlp, d_mlp, generator=generator) @ torch.randn(d_mlp, d_mlp, generator=generator)
    keys = (keys / d_mlp**0.5 + torch.randn(20 * d_mlp, d_mlp, generator=generator)) * sizes
    return (keys.T @ keys / len(keys)).float()


@pytest.mark.parametrize("d_mlp", [1, 2, 96])
def test_rounding_keeps_directions_and_stays_positive_definite(d_mlp: int):
    matrix = moment_of_unequal_keys(d_mlp)
    back = rounded(matrix)
    torch.testing.assert_close(back, back.T)
    keys = torch.randn(8, d_mlp, generator=torch.Generator().manual_seed(1))
    exact, found = (SecondMoment(of).solve(keys) for of in (matrix, back))
    # 8 bits of a row's largest element: an error of 1/254 an element at most, of either sign.
    assert float((found - exact).norm() / exact.norm()) < 0.03
    assert float(torch.linalg.eigvalsh(back.double())[0]) > 0


def test_what_is_written_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    matrix = moment_of_unequal_keys(32)
    path = write_shipped(matrix, model=MODEL, layer=3, text="a text", tokens=10, folder=tmp_path)
    # A quarter of float32's bytes for half of the elements, and a little about each row.
    assert path.stat().st_size < 32 * 32 + 3 * 4 * 32 + 700
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    assert shipped_layers(MODEL) == (3,)
    found = shipped_moment(MODEL, 3, shipped_corpus(MODEL))
    assert found is not None
    assert torch.equal(found, rounded(matrix))

    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DriftlensError, match="reinstall driftlens"):
        shipped_moment(MODEL, 3, shipped_corpus(MODEL))


def test_the_presets_layers_are_shipped_and_can_be_solved_with():
    from driftlens.editors.presets import PRESETS

    wanted = {PRESETS["ROME"][MODEL].settings["layer"]}
    for editor in ("MEMIT", "PMET"):
        wanted |= set(PRESETS[editor][MODEL].settings["layers"])
    assert wanted <= set(shipped_layers(MODEL))
    matrix = shipped_moment(MODEL, min(wanted), shipped_corpus(MODEL))
    assert matrix is not None
    assert matrix.shape == (1536, 1536)
    solved = SecondMoment(matrix).solve(torch.ones(1, 1536))
    torch.testing.assert_close((solved @ matrix.double())[0], torch.ones(1536, dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_shipped_ones_are_the_default_and_other_layers_say_so(tmp_path: Path):
    model: Any = SimpleNamespace(
        name=MODEL, model_hash="0", written=(), unchanged=nullcontext, device=torch.device("cpu"), d_mlp=1536
    )
    corpus = open_corpus(default_corpus(model))
    assert SHIPPED[MODEL].text in corpus.name
    layers = shipped_layers(MODEL)[:2]
    assert are_cached(model, layers, corpus)
    found = second_moments(model, layers, corpus, folder=tmp_path)
    assert list(found) == list(layers)
    assert "shipped with driftlens" in found[layers[0]].source
    assert not are_cached(model, [20], corpus)
    with pytest.raises(DriftlensError, match=r"for layers 4, 5, .* only; for others give a corpus"):
        next(corpus.texts())


@one_family
def test_the_cost_is_told_for_the_texts_that_will_be_read(lens_model: Any):
    texts = [f"The river Vltava ends in Mělník, and that is sentence {n}." for n in range(50)]
    assert open_corpus(texts).count(1000) == 50
    assert open_corpus(texts).count(7) == 7
    assert replace(open_corpus(texts), size=None).count(1000) == 1000
    cost = moment_cost(lens_model, [0, 1], open_corpus(texts), 45)
    assert cost.texts == 45
    assert cost.seconds > 0
    assert cost.of(9) == pytest.approx(cost.seconds / 5)


def test_a_long_wait_is_told_beforehand_with_a_way_to_shorten_it():
    editor: Any = SimpleNamespace(edited_layers=(6,))
    assert cost_text(editor, MomentCost(texts=2461, seconds=10)) == ""
    text = cost_text(editor, MomentCost(texts=2461, seconds=1230.5))
    assert "layer 6 takes about 21 min: 2,461 texts" in text
    assert text.endswith("--samples 200 takes about 2 min")
    assert "--samples" not in cost_text(editor, MomentCost(texts=300, seconds=100))
