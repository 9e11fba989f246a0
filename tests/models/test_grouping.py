"""Which facts share a pass, against every split there is; and what sharing rows must not change."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftlens.data import Fact
from driftlens.editors.vanilla_rows import vanilla_rows
from driftlens.models import LensModel
from driftlens.models.grouping import group_by_width, pass_cost

FIRST = Fact(subject="Paris", prompt="{} is the capital of", target_true="France", target_new="the Netherlands")
INSIDE = Fact(subject="Vltava", prompt="The mayor lives by the river {}", target_true="in", target_new="where")
FAR = Fact(
    subject="Toko Yasuda",
    prompt="{}, who plays the guitar but not in Leiden, was born in the city of",
    target_true="Paris",
    target_new="Zwolle",
)


def price(groups: list[list[int]], widths: list[int], rows: list[int], cost: int) -> int:
    return sum(cost + max(widths[i] for i in group) * sum(rows[i] for i in group) for group in groups)


def splits(items: list[int]) -> list[list[list[int]]]:
    """Every way to put items into groups."""
    if not items:
        return [[]]
    first, rest = items[0], items[1:]
    found: list[list[list[int]]] = []
    for size in range(len(rest) + 1):
        for others in itertools.combinations(rest, size):
            left = [item for item in rest if item not in others]
            found += [[[first, *others], *split] for split in splits(left)]
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 22)), min_size=1, max_size=6),
    st.sampled_from([0, 1, 64, 512]),
)
def test_no_split_of_the_facts_is_cheaper(facts: list[tuple[int, int]], cost: int):
    widths, rows = [width for width, _ in facts], [n for _, n in facts]
    groups = group_by_width(widths, rows, cost)
    assert sorted(i for group in groups for i in group) == list(range(len(facts)))
    assert all(group == sorted(group) for group in groups)
    best = min(price(split, widths, rows, cost) for split in splits(list(range(len(facts)))))
    assert price(groups, widths, rows, cost) == best


def test_free_passes_are_taken_and_dear_ones_are_not():
    assert group_by_width([9, 2, 9, 2], [5] * 4, 1) == [[1, 3], [0, 2]]
    assert group_by_width([9, 2, 9, 2], [5] * 4, 1000) == [[0, 1, 2, 3]]
    assert group_by_width([], [], 64) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=60), st.sampled_from([0, 32, 512]), st.integers(1, 20))
def test_no_group_holds_more_than_it_may(widths: list[int], cost: int, most: int):
    groups = group_by_width(widths, None, cost, most=most)
    assert sorted(i for group in groups for i in group) == list(range(len(widths)))
    assert all(0 < len(group) <= most for group in groups)
    # Groups are runs of neighbours, so no narrow item stands beside one that is wider than a later group's.
    sizes = [[widths[i] for i in group] for group in groups]
    assert all(max(one) <= min(other) for one, other in itertools.pairwise(sizes))
    if len(widths) <= most:
        assert groups == group_by_width(widths, None, cost)


def test_a_pass_costs_more_where_launches_are_what_costs():
    assert pass_cost(torch.device("cpu")) < pass_cost(torch.device("cuda"))


def test_a_context_given_twice_is_one_row_with_twice_the_weight(lens_model: LensModel):
    contexts = ("{}", "The guitar. {}", "The guitar. {}", "{}")
    vanilla = vanilla_rows(lens_model, [INSIDE], layer=1, places=("mlp_out",), contexts=contexts, essence=None)
    ((_, rows),) = vanilla.groups
    assert rows.weight.tolist() == [0.5, 0.5]
    assert vanilla.keys.shape[:2] == (1, 5)
    assert torch.equal(vanilla.keys[0, 2], vanilla.keys[0, 3])
    assert torch.equal(vanilla.keys[0, 0], vanilla.keys[0, 4])
    assert not torch.equal(vanilla.keys[0, 1], vanilla.keys[0, 2])


def test_the_essence_prompt_shares_the_bare_prompts_row_only_where_both_begin_alike(lens_model: LensModel):
    contexts = ("The guitar. {}", "{}")
    facts = [FIRST, INSIDE]
    vanilla = vanilla_rows(lens_model, facts, layer=1, places=("mlp_out",), contexts=contexts, essence="{} is a")
    for number, extra in ((0, 0), (1, 1)):
        members, rows = next(group for group in vanilla.groups if number in group[0].tolist())
        own = rows.fact == members.tolist().index(number)
        assert int(own.sum()) == len(contexts) + extra
    # Without the bare prompt among the contexts there is no such row, and the essence prompt has its own.
    alone = vanilla_rows(lens_model, [FIRST], layer=1, places=("mlp_out",), contexts=contexts[:1], essence="{} is a")
    ((_, rows),) = alone.groups
    assert rows.is_context.tolist() == [True, False]
    assert rows.batch.mask[1].sum() == 1  # read at the subject itself: nothing behind it is run
    assert torch.allclose(alone.target_init, vanilla.target_init[:1], atol=1e-5)


def test_a_wide_fact_does_not_widen_the_others(demo_model: LensModel):
    facts = [FIRST, INSIDE, FAR]
    contexts = tuple(f"{word}. {{}}" for word in "a b c d e f g h i j k l".split())
    vanilla = vanilla_rows(demo_model, facts, layer=1, places=("mlp_out",), contexts=contexts, essence="{} is a")
    assert len(vanilla.groups) > 1
    assert sorted(i for members, _ in vanilla.groups for i in members.tolist()) == [0, 1, 2]
    for _, rows in vanilla.groups:
        assert bool(rows.batch.mask[:, -1].any())  # as wide as its widest row, and no wider
        assert rows.past is not None
        assert bool(rows.past.mask[:, 0].any())
