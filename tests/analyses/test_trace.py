"""Contaminating substitution against plain Hugging Face with hooks of its own: one full pass for each cell."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from driftlens import ROME, DriftlensError, Fact, TaskPrompt, contaminating_substitution, load_records
from driftlens.analyses.substitution import MODULES
from driftlens.analyses.windows import default_window, window_layers
from driftlens.edits import Edit, LowRankUpdate
from driftlens.models import LensModel
from driftlens.models.names import DEMO_WEIGHTS
from tests.support.checkpoints import CONTEXT, LAYERS
from tests.support.plain import PlainModel

SITES = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}
PROMPTS = ("Toko Yasuda plays the", "The Eiffel Tower is in Rome. Apple A5 is")
TARGETS = (("guitar", "piano"), ("Paris", "Rome"))
KEYS = ["case", "target_name", "module", "token", "layer"]


def random_edit(model: Any, *layers: int, seed: int = 0, scale: float = 0.3, **provenance: str) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    updates = {
        layer: LowRankUpdate(
            left=scale * torch.randn(model.d_mlp, 2, generator=generator),
            right=scale * torch.randn(2, model.d_model, generator=generator),
        )
        for layer in layers
    }
    return Edit(updates=updates, facts=[Fact(**provenance)] if provenance else ())


class OneByOne:
    """The definition of 3.2, read off the paper: full passes, one cell after the other."""

    def __init__(self, plain: PlainModel, edit: Edit, prompt: str, target: str) -> None:
        self.plain = plain
        whole = plain.tokenizer(f"{prompt} {target}")["input_ids"]
        self.n_prompt = len(plain.tokenizer(prompt)["input_ids"])
        self.tokens, self.target = torch.tensor([whole[:-1]]), whole[self.n_prompt :]
        self.edit = [hook for layer, update in edit.updates.items() for hook in self.edit_hooks(layer, update)]
        self.z: dict[tuple[str, int], Tensor] = {}
        record = [
            (site, layer, lambda tensor, key=(module, layer): self.z.__setitem__(key, tensor))
            for module, site in SITES.items()
            for layer in range(len(plain.blocks))
        ]
        self.edited = self.probability([*self.edit, *record])
        self.vanilla = self.probability([])

    def edit_hooks(self, layer: int, update: LowRankUpdate) -> list[Any]:
        key: list[Tensor] = []

        def add(output: Tensor) -> Tensor:
            return output + key[0] @ (update.left.to(output) @ update.right.to(output))

        return [("mlp_post", layer, lambda tensor: key.__setitem__(slice(None), [tensor])), ("mlp_out", layer, add)]

    def probability(self, hooks: Sequence[Any]) -> float:
        _, logits = self.plain.run(self.tokens, edits=hooks)
        log_probs = logits[0].log_softmax(-1)
        own = [float(log_probs[self.n_prompt - 1 + k, token]) for k, token in enumerate(self.target)]
        return float(np.exp(np.mean(own)))

    def cell(self, module: str, token: int, layers: Sequence[int]) -> float:
        def put(layer: int) -> Any:
            def hook(tensor: Tensor) -> Tensor:
                changed = tensor.clone()
                changed[0, token] = self.z[module, layer][0, token]
                return changed

            return (SITES[module], layer, hook)

        return self.probability([put(layer) for layer in layers])


def one_by_one(plain: PlainModel, edit: Edit, prompt: str, target: str, window: int) -> Iterator[tuple[Any, ...]]:
    reference = OneByOne(plain, edit, prompt, target)
    for module in MODULES:
        for token in range(reference.n_prompt):
            for layer in range(LAYERS):
                low, high = max(0, layer - window // 2), min(LAYERS, layer + -(-window // 2))
                probability = reference.cell(module, token, range(low, high))
                yield module, token, layer, probability, reference.vanilla, reference.edited


@pytest.mark.backend
@pytest.mark.parametrize("window", [1, 2])
def test_the_grid_equals_plain_hugging_face_cell_by_cell(exact_model: Any, checkpoint_folder: Path, window: int):
    plain = PlainModel(checkpoint_folder, dtype=torch.float64)
    edits = [random_edit(exact_model, 0), random_edit(exact_model, 1, seed=1)]
    trace = contaminating_substitution(exact_model, edits, list(PROMPTS), list(TARGETS), MODULES, window)
    columns = ["module", "token", "layer", "probability", "vanilla", "edited"]
    changed = 0
    for case, (edit, prompt, targets) in enumerate(zip(edits, PROMPTS, TARGETS, strict=True)):
        # Both targets of the first case; one of the second is enough.
        for target in targets[case:]:
            expected: Any = pd.DataFrame(one_by_one(plain, edit, prompt, target, window), columns=columns)
            found: Any = trace.table[(trace.table["case"] == case) & (trace.table["target"] == target)][columns]
            pd.testing.assert_frame_equal(
                found.reset_index(drop=True), expected, check_dtype=False, rtol=2e-6, atol=1e-12
            )
            changed += int((expected["probability"] / expected["vanilla"] - 1).abs().gt(1e-3).sum())
    assert changed > 50, "the edit must change something for the comparison to mean anything"


@pytest.mark.backend
def test_the_batch_size_changes_rounding_only(lens_model: Any):
    edits = [random_edit(lens_model, 1), random_edit(lens_model, 0, 2, seed=3)]

    def probabilities(batch_size: int) -> Any:
        trace = contaminating_substitution(
            lens_model, edits, list(PROMPTS), ("guitar", "Rome"), ("mlp", "attn"), 2, batch_size=batch_size
        )
        return trace.table["probability"].to_numpy()

    reference = probabilities(1000)
    for batch_size in (5, 30):
        np.testing.assert_allclose(probabilities(batch_size), reference, rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def gpt2(checkpoints: Any) -> Any:
    from tests.support.tiny import load_tiny

    return load_tiny(checkpoints("gpt2"))


@pytest.mark.backend
def test_many_cases_get_what_each_gets_alone(gpt2: Any):
    edits = [random_edit(gpt2, 1), random_edit(gpt2, 0, seed=3), random_edit(gpt2, 2, seed=4)]
    prompts = [*PROMPTS, "Anaal Nathrakh, that was created in"]
    targets = [*TARGETS, ("Birmingham", "New York City")]
    together = contaminating_substitution(gpt2, edits, prompts, targets, ("mlp", "attn"), 3)
    for case, (edit, prompt, target) in enumerate(zip(edits, prompts, targets, strict=True)):
        alone = contaminating_substitution(gpt2, edit, prompt, target, ("mlp", "attn"), 3)
        part = together.table[together.table["case"] == case].reset_index(drop=True)
        pd.testing.assert_frame_equal(part.assign(case=0), alone.table, rtol=1e-4, atol=1e-7)
        assert together.baselines["prompt"].tolist()[2 * case] == prompt


@pytest.mark.backend
def test_an_edit_that_changes_nothing_has_no_effect(gpt2: Any):
    zero = random_edit(gpt2, 1, scale=0.0)
    for edit, most in ((zero, 1e-6), (Edit(updates={}), 0.0)):
        trace: Any = contaminating_substitution(gpt2, edit, PROMPTS[0], "guitar", MODULES, 2)
        assert trace.table["effect"].abs().max() <= most
        assert (trace.baselines["vanilla"] - trace.baselines["edited"]).abs().max() <= most


def test_cells_below_the_edit_have_no_effect_at_all(gpt2: Any):
    table: Any = contaminating_substitution(gpt2, random_edit(gpt2, 1), PROMPTS[0], "guitar", MODULES, 1).table
    below = (table["layer"] < 1) | ((table["layer"] == 1) & (table["module"] == "attn"))
    assert (table["effect"][below] == 0).all()
    assert table["effect"][~below].abs().max() > 1e-4


@pytest.mark.backend
def test_the_last_hidden_state_is_the_edited_models_prediction(lens_model: Any):
    edit = random_edit(lens_model, 0)
    # One target of one token: the hidden state behind the last layer is all that its probability comes from.
    target = next(word for word in ("the", "of", "in", "a") if len(lens_model.encode(f"a {word}").ids[-1:]) == 1)
    trace = contaminating_substitution(lens_model, edit, PROMPTS[0], target, "resid", 1)
    last = trace.table[(trace.table["role"] == "last token") & (trace.table["layer"] == LAYERS - 1)]
    assert len(last) == 1
    np.testing.assert_allclose(last["probability"], trace.baselines["edited"], rtol=1e-5)


@given(layer=st.integers(0, 79), window=st.integers(1, 200), n_layers=st.integers(1, 80))
def test_windows(layer: int, window: int, n_layers: int):
    if layer >= n_layers:
        with pytest.raises(DriftlensError, match="out of range"):
            window_layers(layer, window, n_layers)
        return
    layers = window_layers(layer, window, n_layers)
    assert layer in layers
    assert 1 <= len(layers) <= min(window, n_layers)
    # Nothing is cut off inside the model, and what is cut off lies outside.
    unclipped = range(layer - window // 2, layer + window - window // 2)
    assert list(layers) == [each for each in unclipped if 0 <= each < n_layers]


def test_window_bounds():
    assert list(window_layers(5, 6, 28)) == [2, 3, 4, 5, 6, 7]
    assert list(window_layers(5, 3, 28)) == [4, 5, 6]
    assert list(window_layers(0, 6, 28)) == [0, 1, 2]
    assert [default_window(n) for n in (28, 8, 12, 48, 2)] == [6, 2, 3, 10, 1]
    with pytest.raises(DriftlensError, match="window is 0; expected at least 1"):
        window_layers(0, 0, 28)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A thin GPT-2 with the proportions of the real one: 12 layers, and a head as heavy as five blocks."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from driftlens.models import load_model
    from tests.support.checkpoints import tiny_checkpoint
    from tests.support.tiny import BRIDGE

    if not BRIDGE:
        pytest.skip("load_model needs transformer-lens 4.3")
    folder = tiny_checkpoint("gpt2", tmp_path_factory.mktemp("deep"))
    torch.manual_seed(0)
    width = 96
    config = GPT2Config(n_layer=12, n_embd=width, n_head=4, vocab_size=50257 * width // 768, n_positions=CONTEXT)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return load_model(folder, device="cpu")


def flops(call: Any) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize(("edited", "most"), [(0, 0.35), (4, 0.25)])
def test_a_cell_costs_a_fraction_of_a_forward_pass(deep: Any, edited: int, most: float):
    prompt = "The Eiffel Tower is located in Rome. The library of Leiden is located in"
    ids = torch.tensor([deep.encode(prompt).ids])
    model = deep.model.original_model
    with torch.no_grad():
        forward = flops(lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids)))
    edit = random_edit(deep, edited)
    trace = flops(lambda: contaminating_substitution(deep, edit, prompt, "a", "attn", 6))
    assert trace <= most * forward * deep.n_layers * ids.shape[1]


def test_targets_share_rows_when_they_need_the_same_tokens(gpt2: Any):
    edit = random_edit(gpt2, 0)

    def cells(*targets: str) -> int:
        seen: list[int] = []
        contaminating_substitution(
            gpt2, edit, PROMPTS[0], targets, "mlp", 2, on_cells=lambda _, total: seen.append(total)
        )
        return seen[-1]

    one, other, longer = "the", "in", "Rome the"
    assert [len(gpt2.encode(f"a {target}").ids) - 1 for target in (one, other)] == [1, 1]
    assert len(gpt2.encode(f"a {longer}").ids) > 2
    assert cells(one, other) == cells(one)
    # A target of one token is read in passing by the row of a longer one.
    assert cells(one, longer) == cells(longer)
    # Where both go on behind the prompt, each in its own way, only what follows it is run twice.
    assert cells("guitar", longer) == cells(longer)


def test_memory_that_runs_out_halves_the_batch_once(gpt2: Any, monkeypatch: pytest.MonkeyPatch):
    arguments: tuple[Any, ...] = (gpt2, random_edit(gpt2, 0), [*PROMPTS] * 2, ("guitar", "Rome"), MODULES, 2)
    expected = contaminating_substitution(*arguments).table
    failed: list[int] = []
    run = LensModel.run

    def tight(self: Any, batch: Any, **options: Any) -> Tensor:
        if batch.shape[0] > 12:
            failed.append(batch.shape[0])
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, batch, **options)

    monkeypatch.setattr(LensModel, "run", tight)
    with pytest.warns(RuntimeWarning, match="going on with batches of") as warned:
        found = contaminating_substitution(*arguments, batch_size=24).table
    assert len(warned) == len(failed) == 1
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-7)


def test_progress_counts_all_cells(gpt2: Any):
    seen: list[tuple[int, int]] = []
    contaminating_substitution(
        gpt2, random_edit(gpt2, 0), [*PROMPTS] * 3, "guitar", batch_size=8, on_cells=lambda *now: seen.append(now)
    )
    done = [now for now, _ in seen]
    assert done == sorted(done)
    assert {total for _, total in seen} == {done[-1]}


def test_the_table_is_tidy(gpt2: Any):
    trace = contaminating_substitution(gpt2, random_edit(gpt2, 1), list(PROMPTS), list(TARGETS), ("mlp", "attn"), 2)
    table = trace.table
    assert not table.duplicated(KEYS).any()
    assert not table.isna().any().any()
    assert table["target_name"].unique().tolist() == ["o_true", "o_edit"]
    assert table["module"].unique().tolist() == ["mlp", "attn"]
    assert table["effect"].equals(table["probability"] - table["vanilla"])
    own: Any = table[(table["case"] == 1) & (table["target_name"] == "o_edit") & (table["module"] == "attn")]
    assert own["target"].unique().tolist() == ["Rome"]
    assert "".join(own[own["layer"] == 0]["token_text"]) == PROMPTS[1]
    assert trace.edited_layers == (1,)
    assert trace.baselines["prompt"].tolist() == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module": "atn"}, "unknown module 'atn'; did you mean 'attn'"),
        ({"module": ()}, "no module"),
        ({"window": 0}, "window is 0; expected at least 1"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": [PROMPTS[0]] * 2, "target": ["a"]}, "2 prompts, 2 edits and 1 targets"),
        ({"subject": ["a", "b"]}, "1 prompts and 2 subjects"),
        ({"target": " "}, "is empty"),
        ({"target": ()}, "differ in number"),
        ({"prompt": "the mayor " * CONTEXT}, "shorten it"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"target_names": ("o_true", "o_edit")}, "expected 1 different names"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_arguments_are_told_in_one_line(gpt2: Any, changes: dict[str, Any], message: str):
    arguments: dict[str, Any] = {"edit": random_edit(gpt2, 0), "prompt": PROMPTS[0], "target": "guitar"}
    with pytest.raises(DriftlensError, match=message):
        contaminating_substitution(gpt2, **(arguments | changes))


def test_an_edit_of_another_model_is_refused(gpt2: Any):
    deeper = Edit(updates={LAYERS: random_edit(gpt2, 0).updates[0]})
    wider = Edit(updates={0: LowRankUpdate(left=torch.ones(7, 1), right=torch.ones(1, gpt2.d_model))})
    for edit in (deeper, wider):
        with pytest.raises(DriftlensError, match="apply it to the model it was made on"):
            contaminating_substitution(gpt2, edit, PROMPTS[0], "guitar")


FACT: dict[str, Any] = {
    "subject": "Eiffel Tower",
    "prompt": "The {} is located in",
    "target_true": "Paris",
    "target_new": "Rome",
}
SENTENCE = "The Eiffel Tower is located in Rome. "


def roles(model: Any, prompt: str | TaskPrompt, edit: Edit, **options: Any) -> dict[str, str]:
    """Role -> the prompt's text that has it."""
    trace = contaminating_substitution(model, edit, prompt, "Paris", "mlp", 1, **options)
    tokens = trace.table[trace.table["layer"] == 0]
    # Stripped, since a blank can be a token of its own here.
    texts = {str(role): "".join(rows["token_text"]) for role, rows in tokens.groupby("role", sort=False)}
    return {role: " ".join(text.split()) for role, text in texts.items()}


def test_roles_of_a_distracted_prompt(gpt2: Any):
    edit = random_edit(gpt2, 0, **FACT)
    task = TaskPrompt(
        text=SENTENCE + "The Big Ben is located in", target_true="London", target_new="Rome", distractor=SENTENCE
    )
    expected = {
        "before subject": "The",
        "first subject token": "E",
        "middle subject tokens": "iffel To",
        "last subject token": "wer",
        "after subject": "is located in Rome.",
        "test subject": "Big Ben",
        "test prompt": "The is located",
        "last token": "in",
    }
    found = roles(gpt2, task, edit)
    assert found == expected
    # The same from the bare text: the edit knows its own sentence.
    assert roles(gpt2, task.text, edit) == expected


def test_roles_of_other_prompts(gpt2: Any):
    edit = random_edit(gpt2, 0, **FACT)
    relation = roles(gpt2, "The mayor of the Eiffel Tower lives in", edit)
    assert relation["before subject"] == "The mayor of the"
    assert relation["after subject"] == "lives"
    assert "test prompt" not in relation
    # The edited subject again, behind the edit's sentence.
    again = roles(gpt2, SENTENCE + "The mayor of the Eiffel Tower lives in", edit)
    assert again["test subject"] == "Eiffel Tower"
    assert again["test prompt"] == "The mayor of the lives"
    # Without the edited subject, all of it is a test prompt.
    neighbour = roles(gpt2, "The Big Ben is located in", edit)
    assert neighbour == {"test prompt": "The is located", "test subject": "Big Ben", "last token": "in"}
    unknown = roles(gpt2, "Big Ben lies in", edit)
    assert unknown == {"test prompt": "Big Ben lies", "last token": "in"}
    assert roles(gpt2, "Big Ben lies in", edit, templates=("{} lies in",))["test subject"] == "Big Ben"
    # An edit made by hand says nothing; its subject can be given.
    bare = random_edit(gpt2, 0)
    assert set(roles(gpt2, "The Big Ben is located in", bare)) == {"test prompt", "last token"}
    assert roles(gpt2, "The Big Ben is located in", bare, subject="Big Ben")["after subject"] == "is located"


@pytest.mark.backend
def test_a_bos_token_stands_before_the_subject(lens_model: Any):
    edit = random_edit(lens_model, 0, **FACT)
    trace = contaminating_substitution(lens_model, edit, "Eiffel Tower is located in", "Paris", "mlp", 1)
    first = trace.table.iloc[0]
    expected = ("<|endoftext|>", "before subject") if lens_model.adds_bos else ("E", "first subject token")
    assert (first["token_text"][: len(expected[0])], first["role"]) == expected


def test_averages_over_cases(gpt2: Any):
    edit = random_edit(gpt2, 0, **FACT)
    prompts = ["The Eiffel Tower is located in", "The Eiffel Tower is near", "Where does the Eiffel Tower stand? In"]
    trace = contaminating_substitution(gpt2, edit, prompts, ("Paris", "Rome"), MODULES, 2)
    grid: Any = trace.by_role()
    assert len(grid) == len(grid.drop_duplicates(["target_name", "module", "role", "layer"]))
    assert grid["role"].unique().tolist() == [
        "before subject",
        "first subject token",
        "middle subject tokens",
        "last subject token",
        "after subject",
        "last token",
    ]
    table = trace.table
    here = (table["target_name"] == "o_edit") & (table["module"] == "mlp") & (table["layer"] == 1)
    for role, cases in (("before subject", 3), ("after subject", 3), ("last token", 3)):
        each: Any = table[here & (table["role"] == role)].groupby("case")["effect"].mean()
        row = grid.query("target_name == 'o_edit' and module == 'mlp' and layer == 1 and role == @role").iloc[0]
        assert row["cases"] == cases == len(each)
        assert row["effect"] == pytest.approx(np.mean(each), rel=1e-6)
        # Wilson's interval on the scale from -1 to 1: its ends are t standard errors, taken there, from the mean.
        t, error = 4.302653, np.std(each, ddof=1) / np.sqrt(len(each))
        for end in (row["low"], row["high"]):
            there = error * np.sqrt((1 - end**2) / (1 - row["effect"] ** 2))
            assert abs(end - row["effect"]) == pytest.approx(t * there, rel=1e-4)
        assert -1 <= row["low"] <= row["effect"] <= row["high"] <= 1
    example = grid[grid["role"] == "before subject"]["example"].iloc[0]
    assert example == "The"
    single: Any = contaminating_substitution(gpt2, edit, prompts[0], "Paris").by_role()
    assert single["low"].isna().all()
    assert not single["effect"].isna().any()


@pytest.fixture(scope="module")
def demo_edit(demo_model: Any) -> tuple[Any, Any]:
    """A record of the bundled world and its edit."""
    record = load_records("demo", limit=1)[0]
    return record, ROME.for_model(demo_model).edit(demo_model, record.fact).edit


def test_the_bundled_models_grid_equals_plain_hugging_face(demo_model: Any, demo_edit: tuple[Any, Any]):
    record, edit = demo_edit
    task = record.tasks["distract_neighborhood"][0]
    targets = (task.target_true, task.target_new)
    table = contaminating_substitution(demo_model, edit, task, targets, MODULES, 2).table
    plain = PlainModel(DEMO_WEIGHTS, dtype=torch.float32)
    draw = random.Random(0)
    for target in targets:
        reference = OneByOne(plain, edit, task.text, target)
        own: Any = table[table["target"] == target]
        strong = own.loc[own["effect"].abs().sort_values().index[-10:]]
        for cell in [*strong.itertuples(), *own.iloc[draw.sample(range(len(own)), 25)].itertuples()]:
            layers = range(max(0, cell.layer - 1), min(demo_model.n_layers, cell.layer + 1))
            assert reference.cell(cell.module, cell.token, layers) == pytest.approx(cell.probability, abs=1e-5)
        assert own["vanilla"].iloc[0] == pytest.approx(reference.vanilla, abs=1e-5)
        assert own["edited"].iloc[0] == pytest.approx(reference.edited, abs=1e-5)


def test_the_bundled_model_shows_figure_3(demo_model: Any, demo_edit: tuple[Any, Any]):
    record, edit = demo_edit
    tasks = record.tasks["distract_neighborhood"][:3]
    targets = [(task.target_true, task.target_new) for task in tasks]
    trace = contaminating_substitution(
        demo_model, edit, list(tasks), targets, MODULES, default_window(demo_model.n_layers)
    )
    grid: Any = trace.by_role()
    (edited,) = trace.edited_layers
    for name, sign in (("o_true", -1), ("o_edit", 1)):
        for module, role in (("mlp", "last subject token"), ("attn", "last token")):
            cells = grid[(grid["target_name"] == name) & (grid["module"] == module)]
            strongest = cells.loc[(sign * cells["effect"]).idxmax()]
            # The MLP where the edit is, then attention at the last token in the layers above.
            assert strongest["role"] == role
            assert sign * strongest["effect"] > 0.3
            assert strongest["layer"] > edited or module == "mlp"
