"""Batched generation with a cache is generation one row at a time without one."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from driftlens.edits import Edit
from driftlens.errors import DriftlensError
from driftlens.evaluation import generation
from driftlens.evaluation.generation import generate
from driftlens.models import Batch, LensModel
from tests.support.edited import random_edit
from tests.support.tiny import one_family

pytestmark = pytest.mark.backend

PROMPTS = (
    "The Eiffel Tower is located in Paris, and",
    "Toko",
    "Where does the river Vltava end? In",
    "Apple A5",
    "Toko",
)


@torch.no_grad()
def one_at_a_time(
    model: LensModel, prompt: str, edit: Edit | None, *, limit: int, top_k: int = 1, draws: Sequence[float] = ()
) -> list[int]:
    """Whole sequences again for every token, with the edit written into the weights."""
    ids = list(model.encode(prompt).ids)
    while len(ids) < limit:
        batch = Batch(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
        if edit is None:
            logits = model.unembed(model.run(batch))[0, -1]
        else:
            with edit.applied(model):
                logits = model.unembed(model.run(batch))[0, -1]
        ranked = logits.argsort(descending=True)[:top_k]
        probabilities = logits[ranked].softmax(0).tolist()
        place, passed = 0, probabilities[0]
        while top_k > 1 and place < top_k - 1 and passed <= draws[len(ids)]:
            place += 1
            passed += probabilities[place]
        ids.append(int(ranked[place]))
    return ids


@pytest.mark.parametrize("top_k", [1, 5])
def test_a_batch_under_different_edits_is_one_at_a_time_without_a_cache(exact_model: LensModel, top_k: int):
    edits = [None, random_edit(exact_model, 0, 1), random_edit(exact_model, 1, 0, 2), None, None]
    keys = ["a", "b", "c", "d", "e"]
    found = generate(exact_model, PROMPTS, edits, top_k=top_k, max_tokens=24, keys=keys)
    for prompt, edit, key, result in zip(PROMPTS, edits, keys, found, strict=True):
        draws = generation._draws(key, 0, 24).tolist()
        expected = one_at_a_time(exact_model, prompt, edit, limit=24, top_k=top_k, draws=draws)
        assert list(result.ids) == expected
        assert result.n_prompt == len(exact_model.encode(prompt).ids)
        assert result.text.startswith(prompt)
        assert exact_model.tokenizer.decode(expected, skip_special_tokens=True) == result.text
    assert len({result.ids[result.n_prompt :] for result in found}) == 5


@settings(
    max_examples=4,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(order=st.permutations(range(len(PROMPTS))), batch_size=st.integers(1, 6))
def test_batch_size_and_order_change_no_text(exact_model: LensModel, order: list[int], batch_size: int):
    edits = [None, random_edit(exact_model, 0, 1), random_edit(exact_model, 1, 1), None, None]
    alone = generate(exact_model, PROMPTS, edits, max_tokens=18, keys=range(5))
    mixed = generate(
        exact_model,
        [PROMPTS[i] for i in order],
        [edits[i] for i in order],
        max_tokens=18,
        keys=order,
        batch_size=batch_size,
    )
    assert mixed == [alone[i] for i in order]


@one_family
def test_the_seed_and_the_place_among_equals_choose_the_text(exact_model: LensModel):
    first, second = generate(exact_model, ["Toko Yasuda", "Toko Yasuda"], max_tokens=30)
    assert first.ids != second.ids
    assert generate(exact_model, ["Toko Yasuda"], max_tokens=30) == [first]
    assert generate(exact_model, ["Toko Yasuda"], max_tokens=30, seed=1)[0].ids != first.ids


@one_family
def test_a_whole_text_has_as_many_tokens_as_asked_for(lens_model: LensModel):
    long, short = PROMPTS[0], "Toko"
    length = len(lens_model.encode(long).ids)
    whole, grown = generate(lens_model, [long, short], max_tokens=length)
    assert (whole.continuation, whole.text, len(whole.ids)) == ("", long, length)
    assert len(grown.ids) == length
    # The model's context is a limit too.
    (limited,) = generate(lens_model, [short], max_tokens=500)
    assert len(limited.ids) == lens_model.n_ctx


@one_family
def test_eos_ends_a_text_only_when_asked(lens_model: LensModel):
    prompts = ["Toko", "Apple A5 is", "The"]
    free = generate(lens_model, prompts, max_tokens=20)
    end = free[1].ids[free[1].n_prompt + 3]
    tokenizer, before = lens_model.tokenizer, lens_model.tokenizer.eos_token_id
    try:
        tokenizer.eos_token_id = end
        ended = generate(lens_model, prompts, max_tokens=20, stop_at_eos=True)
    finally:
        tokenizer.eos_token_id = before
    for stopped, whole in zip(ended, free, strict=True):
        new = whole.ids[whole.n_prompt :]
        kept = new[: new.index(end)] if end in new else new
        assert stopped.ids == whole.ids[: whole.n_prompt] + kept


@one_family
def test_one_edit_serves_all_prompts(exact_model: LensModel):
    edit = random_edit(exact_model, 3, 1)
    assert generate(exact_model, PROMPTS, edit, max_tokens=16) == generate(
        exact_model, PROMPTS, [edit] * len(PROMPTS), max_tokens=16
    )


@one_family
def test_progress_counts_rows(lens_model: LensModel):
    seen: list[tuple[int, int]] = []
    generate(lens_model, PROMPTS, max_tokens=8, batch_size=2, on_rows=lambda *done: seen.append(done))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert generate(lens_model, []) == []


@one_family
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"edits": [None]}, "5 prompts but 1 edits"),
        ({"keys": ["a"]}, "5 prompts but 1 keys"),
    ],
)
def test_mistakes_are_told(lens_model: LensModel, options: dict[str, Any], message: str):
    with pytest.raises(DriftlensError, match=message):
        generate(lens_model, PROMPTS, **options)
