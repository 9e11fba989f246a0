"""The batch size that is found where none is given."""

import pytest
import torch

from driftlens import load_records
from driftlens.editors import ROME
from driftlens.editors.fitting import MOST, USED, USUAL, bytes_per_fact, edit_batch_size, facts_that_fit
from driftlens.models import LensModel


def test_as_many_as_fit_and_never_none():
    assert facts_that_fit(0, 1e9) == 1
    assert facts_that_fit(10e9, 1e9) == int(10 * USED)
    assert facts_that_fit(1e15, 1.0) == MOST


def test_the_estimate_lies_above_what_a_fact_holds(demo_model: LensModel):
    """Against the CPU allocator's own count of a step's tensors."""
    from benchmarks.measuring import peak_bytes

    facts = [record.fact for record in load_records("demo", limit=2)]
    contexts = ("{}", "The name of the place. {}", "Because it is. {}")
    editor = ROME(layer=1, steps=2, contexts=contexts, second_moment=torch.eye(demo_model.d_mlp), early_stop_loss=0.0)
    editor.edit_many(demo_model, facts)
    one, two = (peak_bytes(lambda n=n: editor.edit_many(demo_model, facts[:n]), demo_model.device) for n in (1, 2))
    estimated = bytes_per_fact(demo_model, rows=4, columns=24, layer=1)
    assert two - one < estimated < 30 * (two - one)


def test_what_holds_more_is_estimated_higher(demo_model: LensModel):
    less = bytes_per_fact(demo_model, rows=12, columns=20, layer=1)
    assert bytes_per_fact(demo_model, rows=22, columns=20, layer=1) > less
    assert bytes_per_fact(demo_model, rows=12, columns=40, layer=1) > less
    assert bytes_per_fact(demo_model, rows=12, columns=20, layer=4) < less


def test_where_the_device_does_not_tell_it_is_the_usual(demo_model: LensModel):
    facts = [record.fact for record in load_records("demo", limit=2)]
    assert edit_batch_size(demo_model, facts, ("{}",), 1) == USUAL


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_goes_with_the_free_memory():
    from driftlens import load_model

    model = load_model("demo", device="cuda")
    facts = [record.fact for record in load_records("demo", limit=2)]
    assert edit_batch_size(model, facts, ("{}",), 1) == MOST
