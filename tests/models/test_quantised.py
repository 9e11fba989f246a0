"""A quantised checkpoint is traced, evaluated and edited on the fly; its weights are never written to."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from driftlens import contaminating_substitution
from driftlens.data import TASKS, Record, TaskPrompt
from driftlens.editors import SADR
from driftlens.errors import DriftlensError
from driftlens.evaluation import evaluate
from driftlens.models import Batch, LensModel, load_model
from tests.analyses.test_trace import PROMPTS, TARGETS, one_by_one
from tests.editors.test_rome import FACT, random_moment, rome
from tests.support.checkpoints import write_tokenizer
from tests.support.plain import PlainModel
from tests.support.tiny import BRIDGE, shared

torchao = pytest.importorskip("torchao", reason="needs torchao")

pytestmark = [
    pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torchao"),
]


@pytest.fixture(scope="module", params=["llama-gqa", "gemma3"])
def pair(
    request: pytest.FixtureRequest, checkpoints: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, LensModel, LensModel]:
    """A checkpoint in integers of 8 bits, as its publisher would write it; loaded, and the original."""
    from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, TorchAoConfig

    original, folder = checkpoints(request.param), tmp_path_factory.mktemp("quantised") / request.param
    config = TorchAoConfig(Int8WeightOnlyConfig())
    AutoModelForCausalLM.from_pretrained(original, quantization_config=config).save_pretrained(folder)
    write_tokenizer(folder, bos=True)
    return folder, load_model(folder, device="cpu"), shared(original)


def tokens() -> Batch:
    ids = torch.randint(2, 400, (2, 20), generator=torch.Generator().manual_seed(0))
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool))


def test_it_is_the_quantised_model(pair: tuple[Path, LensModel, LensModel]):
    folder, model, original = pair
    assert model.quantisation == "torchao"
    assert model.source == f"{folder}, quantised (torchao)"
    found, expected = model.unembed(model.run(tokens())), PlainModel(folder).run(tokens().tokens)[1]
    assert (found - expected).norm() / expected.norm() < 1e-5
    whole = original.unembed(original.run(tokens()))
    assert (found - whole).norm() / whole.norm() > 1e-4
    assert model.model_hash != original.model_hash
    assert model.model_hash == load_model(folder, device="cpu").model_hash


def test_its_matrices_are_the_dequantised_ones(pair: tuple[Path, LensModel, LensModel]):
    folder, model, _ = pair
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj._weight_"
    by_hand = stored[f"{name}qdata"].float() * stored[f"{name}scale"].reshape(-1, 1)
    assert torch.allclose(model.down_projection(1)[0], by_hand.T, atol=1e-6)


def test_it_is_edited_on_the_fly(pair: tuple[Path, LensModel, LensModel]):
    """By an edit made on it, whose gradients go through the quantised maps, and by one of the original."""
    _, model, original = pair
    record = Record(
        index=0,
        fact=FACT,
        tasks={
            task: (TaskPrompt(text=FACT.text, target_true="French", target_new="English"),) if task == "rewrite" else ()
            for task in TASKS
        },
    )
    settings: Any = {"steps": 15, "lr": 2.0, "regularizers": (SADR(gamma=0.01),)}
    result = rome(model, **settings).edit(model, FACT)
    before, after = (evaluate(model, record, edit)["nll_new"].item() for edit in (None, result))
    assert after < before - 0.3
    made = rome(original, **settings).edit(original, FACT).edit
    expected = evaluate(original, record, made)["nll_new"].item()
    with pytest.warns(RuntimeWarning, match="the edit was made on"):
        moved = evaluate(model, record, made)["nll_new"].item()
    # Eight bits a weight are off by up to half a hundredth, and so many maps on the way move an NLL by one or two.
    assert (after, moved) == pytest.approx((expected, expected), rel=0.03)


def test_the_grid_equals_plain_hugging_face_on_the_quantised_model(pair: tuple[Path, LensModel, LensModel]):
    folder, model, _ = pair
    edit = rome(model, layer=0, second_moment=random_moment(model.d_mlp)).edit(model, FACT).edit
    prompt, target = PROMPTS[0], TARGETS[0][0]
    found = contaminating_substitution(model, edit, prompt, target, ("resid", "mlp", "attn"), 2).table
    expected = [cell[3] for cell in one_by_one(PlainModel(folder), edit, prompt, target, 2)]
    assert found["probability"].to_numpy() == pytest.approx(expected, rel=1e-3, abs=1e-8)


def test_its_weights_are_not_written_to(pair: tuple[Path, LensModel, LensModel], tmp_path: Path):
    _, model, _ = pair
    edit = rome(model).edit(model, FACT).edit
    before = model.model_hash
    for call in (
        lambda: edit.applied(model).__enter__(),
        lambda: edit.export(model, tmp_path / "out"),
        lambda: model.export(tmp_path / "out"),
        lambda: model.W_out(1),
    ):
        with pytest.raises(DriftlensError, match=r"is quantised \(torchao\), so .* act as hooks, or load") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert model.model_hash == before


def test_a_method_whose_library_is_missing(checkpoints: Any, tmp_path: Path):
    folder = Path(shutil.copytree(checkpoints("llama"), tmp_path / "awq"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    assert "gptqmodel" not in sys.modules
    with pytest.raises(DriftlensError) as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)
    assert "install what is missing, or use the full-precision checkpoint" in str(caught.value)
