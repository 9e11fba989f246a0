"""Families that differ in their windows, norms, projections and positions: values, writes and parts of a pass.

The tests are those of the first families (`test_models.py`, `test_partial_passes.py`), on other checkpoints. The texts
reach beyond the checkpoints' sliding windows.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from driftlens.models import Batch, LensModel
from tests.models.test_export import (
    test_an_edit_lands_in_the_right_matrix,
    test_an_unedited_model_comes_back_bit_for_bit,
)
from tests.models.test_models import (
    TEXTS,
    plain,
    test_a_deep_copy_is_a_model_of_its_own,
    test_every_site_shows_hugging_faces_value,
    test_every_write_has_the_effect_it_has_in_hugging_face,
    test_gradients_are_hugging_faces,
    test_padding_changes_nothing,
    test_residuals_and_logits_are_hugging_faces,
    test_the_down_projection_is_the_live_matrix,
)
from tests.models.test_partial_passes import (
    prefix,
    suffix,
    test_a_prefix_can_grow,
    test_a_suffix_behind_a_prefix_is_the_whole_pass,
    test_a_suffix_equals_the_row_on_its_own,
    test_branches_are_rows_of_their_own,
    test_hooks_act_on_a_suffix_as_on_the_whole,
    test_hooks_and_gradients_in_branches,
)
from tests.support.checkpoints import MORE_FAMILIES, WINDOW
from tests.support.plain import PlainModel
from tests.support.tiny import BRIDGE, shared

pytestmark = pytest.mark.skipif(not BRIDGE, reason="these families need the bridge")

__all__ = [
    "plain",
    "prefix",
    "suffix",
    "test_a_deep_copy_is_a_model_of_its_own",
    "test_a_prefix_can_grow",
    "test_a_suffix_behind_a_prefix_is_the_whole_pass",
    "test_a_suffix_equals_the_row_on_its_own",
    "test_an_edit_lands_in_the_right_matrix",
    "test_an_unedited_model_comes_back_bit_for_bit",
    "test_branches_are_rows_of_their_own",
    "test_every_site_shows_hugging_faces_value",
    "test_every_write_has_the_effect_it_has_in_hugging_face",
    "test_gradients_are_hugging_faces",
    "test_hooks_act_on_a_suffix_as_on_the_whole",
    "test_hooks_and_gradients_in_branches",
    "test_padding_changes_nothing",
    "test_residuals_and_logits_are_hugging_faces",
    "test_the_down_projection_is_the_live_matrix",
]


@pytest.fixture(scope="session", params=[family for family in MORE_FAMILIES if family != "phi3-longrope"])
def checkpoint_folder(request: pytest.FixtureRequest, checkpoints: Any) -> Path:
    return checkpoints(request.param)


@pytest.fixture(scope="session")
def lens_model(checkpoint_folder: Path) -> Any:
    return shared(checkpoint_folder)


@pytest.mark.parametrize("checkpoint_folder", ["mistral"], indirect=True)
def test_texts_are_longer_than_the_windows(lens_model: LensModel):
    assert len(lens_model.encode(TEXTS[0])) > 2 * WINDOW


def test_logits_at_every_length_are_hugging_faces(lens_model: LensModel, plain: PlainModel):
    generator = torch.Generator().manual_seed(3)
    for length in (1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW, lens_model.n_ctx):
        tokens = torch.randint(2, lens_model.d_vocab, (2, length), generator=generator)
        found = lens_model.unembed(lens_model.run(Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))))
        expected = plain.run(tokens)[1]
        assert (found - expected).norm() / expected.norm() < 1e-5  # measured: 4e-7
