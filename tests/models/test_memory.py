"""Batches are halved when memory runs out, once and for all, and nothing is lost or done twice."""

import warnings
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from driftlens.errors import DriftlensError
from driftlens.models.memory import in_batches, in_groups


class Machine:
    """Work on numbers that fits into memory only `room` items at a time."""

    def __init__(self, room: int, error: type[Exception] | Exception = torch.OutOfMemoryError) -> None:
        self.room = room
        self.error = error
        self.sizes: list[int] = []

    def work(self, batch: Sequence[int]) -> list[int]:
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise self.error
        return [10 * item for item in batch]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 30), size=st.integers(1, 40), room=st.integers(1, 40))
def test_every_item_is_done_once_and_in_order(n: int, size: int, room: int):
    machine, progress = Machine(room), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        results = in_batches(range(n), size, machine.work, on_done=lambda done, _: progress.append(done))
    assert results == [10 * item for item in range(n)]
    assert progress == sorted(set(progress))
    assert progress[-1:] == ([n] if n else [])
    assert all(batch <= size for batch in machine.sizes)


def test_it_halves_until_it_fits_and_says_so_once():
    machine = Machine(room=3)
    with pytest.warns(RuntimeWarning, match="out of memory: going on with batches of 8") as warned:
        in_batches(range(20), 16, machine.work)
    assert len(warned) == 1
    # 16 and 8 fail, 4 fails, then twos to the end: the size never grows again.
    assert machine.sizes == [16, 8, 4] + [2] * 10


def test_groups_keep_to_themselves_and_what_memory_taught_holds_for_all():
    machine = Machine(room=2)
    groups = [[4, 0, 2], [1], [3, 5, 6, 7]]
    with pytest.warns(RuntimeWarning, match="out of memory") as warned:
        assert in_groups(range(8), groups, 64, machine.work) == [10 * item for item in range(8)]
    assert len(warned) == 1
    assert machine.sizes == [3, 1, 1, 1, 1] + [1] * 4


def test_nothing_is_said_when_all_goes_well():
    machine = Machine(room=100)
    assert in_batches(range(5), 2, machine.work) == [0, 10, 20, 30, 40]
    assert machine.sizes == [2, 2, 1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError("Unable to allocate 8.00 EiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
    ],
    ids=["cuda", "cpu", "numpy", "mps"],
)
def test_each_way_to_run_out_of_memory(error: Exception):
    machine = Machine(room=1, error=error)
    with pytest.warns(RuntimeWarning, match="out of memory"):
        assert in_batches([1, 2], 2, machine.work) == [10, 20]


def test_another_error_comes_through():
    machine = Machine(room=1, error=RuntimeError("sizes of tensors must match"))
    with pytest.raises(RuntimeError, match="sizes of tensors"):
        in_batches([1, 2], 2, machine.work)
    assert machine.sizes == [2]


def test_the_cpu_allocators_own_words():
    """Whatever this torch says when asked for a petabyte is recognised."""

    def work(batch: Sequence[int]) -> list[int]:
        if len(batch) > 1:
            torch.empty(2**50, dtype=torch.uint8)
        return list(batch)

    with pytest.warns(RuntimeWarning, match="out of memory"):
        assert in_batches([1, 2], 2, work) == [1, 2]


def test_one_item_too_large_is_one_line():
    with pytest.warns(RuntimeWarning), pytest.raises(DriftlensError, match="single item in the batch; use a") as error:
        in_batches([1, 2], 2, Machine(room=0).work)
    assert "\n" not in str(error.value)


def test_a_batch_size_below_one_is_one_line():
    with pytest.raises(DriftlensError, match="batch_size is 0; expected at least 1"):
        in_batches([1], 0, Machine(room=1).work)
