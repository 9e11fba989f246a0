"""What the facts of a batch have in common is run once: counted columns, and numbers that stay what they are alone."""

from typing import Any

import pytest
import torch

from driftlens.data import Fact
from driftlens.editors.prefixes import shared_prefixes
from driftlens.editors.prompt_rows import prompt_rows
from driftlens.editors.vanilla_rows import vanilla_rows
from driftlens.models import LensModel
from tests.support.tiny import one_family

CONTEXTS = ("{}", "The mayor lives by the river and plays the guitar. {}", "Paris. {}")
FACTS = [
    Fact(subject="Vltava", prompt="The mayor lives by the river {}", target_true="in", target_new="where"),
    Fact(subject="Paris", prompt="{} is the capital of", target_true="France", target_new="Leiden"),
    Fact(subject="Toko Yasuda", prompt="{} plays the", target_true="guitar", target_new="piano"),
    Fact(subject="Leiden", prompt="The city of {} is in", target_true="France", target_new="the Netherlands"),
]


def rows_of(model: LensModel, facts: list[Fact]) -> list[Any]:
    return [prompt_rows(model, fact, CONTEXTS, CONTEXTS, "{} is a", ()) for fact in facts]


def test_a_prefix_is_what_all_rows_of_a_context_begin_with(lens_model: LensModel):
    by_fact = rows_of(lens_model, FACTS)
    for number, prefix in enumerate(shared_prefixes(by_fact, len(CONTEXTS))):
        rows = [own[number] for own in by_fact]
        assert all(row.ids[: len(prefix)] == prefix and len(prefix) <= row.subject for row in rows)
        after = {row.ids[len(prefix)] for row in rows}
        assert len(after) > 1 or any(row.subject == len(prefix) for row in rows)  # and no longer one is
    assert max(map(len, shared_prefixes(by_fact, len(CONTEXTS)))) >= len(lens_model.encode(CONTEXTS[1][:-4]).ids) - 1


@one_family
def test_a_fact_alone_shares_nothing(lens_model: LensModel):
    assert shared_prefixes(rows_of(lens_model, FACTS[:1]), len(CONTEXTS)) == [(), (), ()]


def test_prefixes_are_run_once(lens_model: LensModel, monkeypatch: pytest.MonkeyPatch):
    by_fact = rows_of(lens_model, FACTS)
    prefixes = shared_prefixes(by_fact, len(CONTEXTS))
    run, columns = LensModel._pass, [0]

    def counting(self: LensModel, batch: Any, **how: Any) -> Any:
        stop = self.n_layers if how.get("stop") is None else how["stop"]
        columns[0] += int(batch.mask.sum()) * (stop - how["start"])
        return run(self, batch, **how)

    monkeypatch.setattr(LensModel, "_pass", counting)
    layer, n_layers = 1, lens_model.n_layers
    vanilla_rows(lens_model, FACTS, layer=layer, places=("mlp_out",), contexts=CONTEXTS, essence="{} is a")
    own = [(row, 0 if row.context is None else len(prefixes[row.context])) for rows in by_fact for row in rows]
    wanted = n_layers * sum(map(len, prefixes))
    wanted += sum((layer + 1) * (len(row.ids) - begin) for row, begin in own)
    wanted += sum((n_layers - layer - 1) * (row.subject - begin) for row, begin in own)
    assert columns[0] == wanted


@pytest.mark.parametrize("places", [("mlp_out",), ("mlp_out", "attn_out")])
def test_together_the_rows_are_what_they_are_alone(exact_model: LensModel, places: Any):
    """In float64, so that rounding hides nothing; but the attention of other families is float32 in every precision."""
    near = 1e-11 if exact_model.family == "gpt2" else 1e-4
    how: dict[str, Any] = {"layer": 1, "places": places, "contexts": CONTEXTS, "essence": "{} is a"}
    together = vanilla_rows(exact_model, FACTS, **how)
    assert sorted(n for members, _ in together.groups for n in members.tolist()) == list(range(len(FACTS)))
    for number, fact in enumerate(FACTS):
        alone = vanilla_rows(exact_model, [fact], **how)
        assert torch.allclose(together.target_init[number], alone.target_init[0], rtol=0, atol=near)
        assert torch.allclose(together.keys[number], alone.keys[0], rtol=0, atol=near)
        members, rows = next(group for group in together.groups if number in group[0].tolist())
        mine = (rows.fact == members.tolist().index(number)).nonzero().squeeze(1)
        ((_, own),) = alone.groups
        width = own.batch.shape[1]
        real = own.batch.mask
        assert torch.equal(rows.batch.tokens[mine, :width][real], own.batch.tokens[real])
        assert torch.allclose(rows.resid[mine, :width][real], own.resid[real], rtol=0, atol=near)
        assert rows.past is not None
        assert own.past is not None
        seen = exact_model.run(rows.batch, start=2, resid=rows.resid, past=rows.past)[mine, :width]
        assert torch.allclose(
            seen[real], exact_model.run(own.batch, start=2, resid=own.resid, past=own.past)[real], rtol=0, atol=near
        )
