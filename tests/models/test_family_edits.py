"""Families beside the three kinds that all tests run on: edits, optimised values and grids of cells.

They differ in their windows, norms, projections and positions.  The tests are those of the three, on other checkpoints,
against plain Hugging Face in float64; where those have variants that do not concern the family, one is run.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from driftlens.data import TASKS, Fact, Record, TaskPrompt
from driftlens.editors import MEMIT, SADR
from driftlens.editors.presets import scaled_to
from driftlens.evaluation import evaluate
from driftlens.models import Batch, LensModel
from tests.analyses import test_patch, test_trace
from tests.analyses.test_patch import test_patched_scores_equal_plain_hugging_face
from tests.editors import test_value
from tests.editors.test_rome import CONTEXTS, FACT, rome, test_in_the_model_the_subject_gives_the_value
from tests.edits.test_edits import (
    test_an_exported_edit_is_the_edited_model_in_plain_hugging_face,
    test_hooks_and_weights_give_the_same_logits,
)
from tests.support.checkpoints import FAMILIES, KINDS, MORE_FAMILIES
from tests.support.edited import changes
from tests.support.plain import PlainModel
from tests.support.tiny import BRIDGE, shared

pytestmark = pytest.mark.skipif(not BRIDGE, reason="these families need the bridge")

__all__ = [
    "test_an_exported_edit_is_the_edited_model_in_plain_hugging_face",
    "test_hooks_and_weights_give_the_same_logits",
    "test_in_the_model_the_subject_gives_the_value",
    "test_patched_scores_equal_plain_hugging_face",
]

# These texts are longer than what longrope is run on; docs/families.md has its edit and its grid on a short one.
_EDITED = [family for family in (*FAMILIES, *MORE_FAMILIES) if family not in (*KINDS, "phi3-longrope")]


@pytest.fixture(scope="session", params=_EDITED)
def checkpoint_folder(request: pytest.FixtureRequest, checkpoints: Any) -> Path:
    return checkpoints(request.param)


@pytest.fixture(scope="session")
def lens_model(checkpoint_folder: Path) -> Any:
    return shared(checkpoint_folder)


@pytest.fixture(scope="session")
def exact_model(checkpoint_folder: Path) -> Any:
    return shared(checkpoint_folder, exact=True)


@pytest.fixture(scope="module")
def plain(checkpoint_folder: Path) -> PlainModel:
    return PlainModel(checkpoint_folder, dtype=torch.float64)


def test_the_substitution_grid_equals_plain_hugging_face(exact_model: Any, checkpoint_folder: Path):
    test_trace.test_the_grid_equals_plain_hugging_face_cell_by_cell(exact_model, checkpoint_folder, 2)


def test_the_patch_curve_equals_plain_hugging_face(exact_model: Any, plain: PlainModel):
    test_patch.test_patched_patterns_equal_plain_hugging_face(exact_model, plain, 2)


@pytest.mark.parametrize("fact", [test_value.MOTHER_TONGUE, test_value.AT_END], ids=["inside", "at the end"])
def test_the_trajectory_is_the_naive_loops(exact_model: LensModel, plain: PlainModel, fact: Fact):
    """Where the family puts a norm behind the MLP, δ goes through it in both."""
    test_value.test_the_trajectory_is_the_naive_loops(exact_model, plain, fact)


def test_an_edit_with_sadr_is_the_same_as_hooks_and_as_weights(exact_model: LensModel, plain: PlainModel):
    edit = rome(exact_model, lr=2.0, regularizers=(SADR(gamma=0.5),)).edit(exact_model, FACT).edit
    asked = tuple(
        TaskPrompt(text=text, target_true="French", target_new="English in Leiden")
        for text in (FACT.text, f"Toko Yasuda plays the guitar. {FACT.text}", f"{FACT.subject} is")
    )
    record = Record(index=0, fact=FACT, tasks={task: asked if task == "rewrite" else () for task in TASKS})
    columns = ["nll_true", "nll_new"]
    before, hooked = (evaluate(exact_model, record, each)[columns].to_numpy() for each in (None, edit))
    with edit.applied(exact_model):
        written = evaluate(exact_model, record)[columns].to_numpy()
    assert abs(hooked - written).max() < 1e-5  # float32 inside the attention of most families
    assert abs(hooked - before).max() > 1e-2


def test_memit_writes_what_it_optimised(exact_model: LensModel, plain: PlainModel):
    """With a weight of nearly nothing the last layer takes up all that is missing, at the place where δ stood."""
    moments = {layer: torch.eye(exact_model.d_mlp, dtype=torch.float64) for layer in (0, 1)}
    editor = MEMIT(
        layers=(0, 1), steps=4, contexts=CONTEXTS[:1], second_moment=moments, second_moment_weight=1e-9, lr=0.5
    )
    result = editor.edit(exact_model, FACT)
    text = FACT.text
    at = len(plain.tokenizer(text[: text.index(FACT.subject) + len(FACT.subject)])["input_ids"]) - 1
    tokens = torch.tensor([plain.tokenizer(text)["input_ids"]])
    seen: list[torch.Tensor] = []
    plain.run(tokens, edits=[*changes(result.edit), ("mlp_out", 1, lambda out: seen.append(out.clone()))])
    assert torch.allclose(seen[0][0, at], result.values[1], rtol=0, atol=1e-4 * float(result.values[1].norm()))


def test_default_settings_go_with_what_delta_is_added_to(exact_model: LensModel):
    settings = scaled_to(exact_model, 1)
    if exact_model.adds_to_resid("mlp_out"):
        assert settings["lr"] >= 0.5
    else:  # the norm behind it makes the scale of the down-projection's output arbitrary
        seen: list[torch.Tensor] = []
        ids = torch.tensor([exact_model.encode("The name of the capital of the country is").ids])
        hook = (exact_model.hook_name("mlp_out", 1), lambda out, hook: seen.append(out))
        exact_model.run(Batch(ids, torch.ones_like(ids, dtype=torch.bool)), hooks=[hook], stop=2)
        norm = float(seen[0][0, 1:].norm(dim=-1).mean())
        assert settings["lr"] * exact_model.d_model**0.5 == pytest.approx(0.2 * norm, rel=1e-4)
        assert settings["clamp_norm_factor"] == 4.0


def test_a_batch_of_mixed_lengths_is_its_rows(exact_model: LensModel):
    """Facts edited side by side, and prompts of several lengths evaluated in one call under different edits."""
    facts = [FACT, test_value.AT_END, test_value.MOTHER_TONGUE]
    editor = rome(exact_model, lr=1.0, regularizers=(SADR(gamma=0.1),))
    together = editor.edit_many(exact_model, facts, batch_size=3)
    asked = [
        tuple(
            TaskPrompt(text=f"{before}{fact.text}", target_true=fact.target_true, target_new=fact.target_new)
            for before in ("", "The guitar. " * number)
        )
        for number, fact in enumerate(facts, 1)
    ]
    records = [
        Record(index=at, fact=fact, tasks={task: asked[at] if task == "rewrite" else () for task in TASKS})
        for at, fact in enumerate(facts)
    ]
    found: Any = evaluate(exact_model, records, [result.edit for result in together])
    for record, result in zip(records, together, strict=True):
        alone = editor.edit(exact_model, record.fact)
        (layer,) = alone.values
        # Attention of most families computes in float32, and padding changes its sums.
        torch.testing.assert_close(result.values[layer], alone.values[layer], rtol=1e-4, atol=1e-5)
        expected = evaluate(exact_model, record, result.edit)[["nll_true", "nll_new"]].to_numpy()
        rows = found[found["record"] == record.index][["nll_true", "nll_new"]].to_numpy()
        assert abs(rows - expected).max() < 1e-5
