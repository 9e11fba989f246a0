"""Patching vanilla attention back, against plain Hugging Face with hooks of its own: one full pass for each cell."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from driftlens import DriftlensError, TaskPrompt, patch_attention, patch_scores
from driftlens.analyses.windows import scaled_window
from driftlens.edits import Edit, LowRankUpdate
from driftlens.hooks import patch_pattern
from driftlens.models import Batch, LensModel
from tests.support.checkpoints import LAYERS
from tests.support.plain import PlainModel
from tests.support.tiny import one_family

pytestmark = pytest.mark.backend

SHORT = ("Toko Yasuda plays the", "Yasuda plays")
LONG = ("The Eiffel Tower is in Rome. Apple A5 is", "Eiffel Tower is in Rome. A5")
PROMPTS = [SHORT[0], LONG[0]]
TARGETS = [("guitar", "national library"), ("Paris", "Rome")]  # of several tokens, so that some are forced
KEYS = ["case", "target_name", "layer"]


def random_edit(model: Any, *layers: int, seed: int = 0, scale: float = 0.3, **provenance: str) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    updates = {
        layer: LowRankUpdate(
            left=scale * torch.randn(model.d_mlp, 2, generator=generator),
            right=scale * torch.randn(2, model.d_model, generator=generator),
        )
        for layer in layers
    }
    return Edit(updates=updates, provenance=provenance)


class OneByOne:
    """3.4 and D.2 read off the paper: full passes, one patch after the other."""

    def __init__(self, plain: PlainModel, edit: Edit, prompt: str, target: str) -> None:
        self.plain = plain
        whole = plain.tokenizer(f"{prompt} {target}")["input_ids"]
        self.n_prompt = len(plain.tokenizer(prompt)["input_ids"])
        self.tokens, self.target = torch.tensor([whole[:-1]]), whole[self.n_prompt :]
        self.edit = [hook for layer, update in edit.updates.items() for hook in self.edit_hooks(layer, update)]
        self.kept: dict[tuple[str, int], Tensor] = {}
        record = [
            (site, layer, lambda tensor, key=(site, layer): self.kept.__setitem__(key, tensor))
            for site in ("pattern", "attn_scores")
            for layer in range(LAYERS)
        ]
        self.vanilla = self.probability(record)
        self.edited = self.probability(self.edit)

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

    def patterns(self, layers: Sequence[int]) -> float:
        patches = [("pattern", n, lambda _, n=n: self.kept["pattern", n]) for n in layers]
        return self.probability([*self.edit, *patches])

    def score(self, token: int, layers: Sequence[int]) -> float:
        def put(layer: int) -> Any:
            def hook(scores: Tensor) -> Tensor:
                changed = scores.clone()
                # From the last prompt token on: forced target tokens predict the target as well.
                rows = slice(self.n_prompt - 1, None)
                changed[0, :, rows, token] = self.kept["attn_scores", layer][0, :, rows, token]
                return changed

            return ("attn_scores", layer, hook)

        return self.probability([*self.edit, *map(put, layers)])


def window_of(layer: int, window: int) -> range:
    return range(max(0, layer - window // 2), min(LAYERS, layer + -(-window // 2)))


@pytest.fixture(scope="module")
def plain(checkpoint_folder: Path) -> PlainModel:
    return PlainModel(checkpoint_folder, dtype=torch.float64)


def references(plain: PlainModel, edits: Sequence[Edit]) -> dict[tuple[int, str], OneByOne]:
    return {
        (case, name): OneByOne(plain, edit, prompt, target)
        for case, (edit, prompt, targets) in enumerate(zip(edits, PROMPTS, TARGETS, strict=True))
        for name, target in zip(("o_true", "o_edit"), targets, strict=True)
    }


@pytest.mark.parametrize("window", [1, 2])
def test_patched_patterns_equal_plain_hugging_face(exact_model: Any, plain: PlainModel, window: int):
    edits = [random_edit(exact_model, 0), random_edit(exact_model, 1, seed=1)]
    patched: Any = patch_attention(exact_model, edits, PROMPTS, TARGETS, window)
    one_by_one = references(plain, edits)
    changed = 0
    for row in patched.table.itertuples():
        reference = one_by_one[row.case, row.target_name]
        layers = window_of(row.layer, window)
        assert (row.first, row.last) == (layers[0], layers[-1])
        assert row.probability == pytest.approx(reference.patterns(layers), rel=2e-6)
        assert row.effect == pytest.approx(row.probability - reference.edited, abs=1e-7)
        changed += abs(row.probability / reference.edited - 1) > 1e-3
    assert changed >= 4, "patches must change something for the comparison to mean anything"
    for row in patched.baselines.itertuples():
        reference = one_by_one[row.case, row.target_name]
        assert (row.vanilla, row.edited) == pytest.approx((reference.vanilla, reference.edited), rel=2e-6)


def test_patched_scores_equal_plain_hugging_face(exact_model: Any, plain: PlainModel):
    window = 2
    edits = [random_edit(exact_model, 0), random_edit(exact_model, 1, seed=1)]
    patched: Any = patch_scores(exact_model, edits, PROMPTS, TARGETS, window)
    one_by_one = references(plain, edits)
    changed = 0
    for row in patched.table.itertuples():
        reference = one_by_one[row.case, row.target_name]
        expected = reference.score(row.token, window_of(row.layer, window))
        assert row.probability == pytest.approx(expected, rel=2e-6)
        changed += abs(expected / reference.edited - 1) > 1e-3
    assert changed > 10
    tokens = patched.table.groupby(["case", "target_name"])["token"].nunique()
    assert dict(tokens.items()) == {key: r.n_prompt for key, r in one_by_one.items()}


def test_putting_back_all_that_an_edit_reaches_gives_the_vanilla_logits(exact_model: Any):
    model, edit = exact_model, random_edit(exact_model, 0, 1)
    ids = torch.tensor([model.encode(LONG[0]).ids])
    batch = Batch(tokens=ids, mask=torch.ones_like(ids, dtype=torch.bool))
    sites = [("pattern", n) for n in range(LAYERS)] + [("z", n) for n in range(LAYERS)]
    sites += [("mlp_out", layer) for layer in edit.updates]
    kept: dict[tuple[str, int], Tensor] = {}
    names = [(model.hook_name(*site), lambda tensor, hook, at=site: kept.__setitem__(at, tensor)) for site in sites]
    with torch.no_grad():
        vanilla = model.unembed(model.run(batch, hooks=names))
        edited = model.unembed(model.run(batch, hooks=edit.hooks(model)))
        assert float((edited - vanilla).abs().max()) > 0.1
        back = [
            (
                model.hook_name(*site),
                patch_pattern(kept[site]) if site[0] == "pattern" else lambda t, hook, at=site: kept[at],
            )
            for site in sites
        ]
        restored = model.unembed(model.run(batch, hooks=[*edit.hooks(model), *back]))
        # Without the edited MLP's output its direct way to the logits stays open.
        only_attention = model.unembed(model.run(batch, hooks=[*edit.hooks(model), *back[: -len(edit.updates)]]))
    torch.testing.assert_close(restored, vanilla, rtol=1e-9, atol=1e-9)
    assert float((only_attention - vanilla).abs().max()) > 1e-3


@pytest.mark.parametrize("patch", [patch_attention, patch_scores])
def test_patching_nothing_changes_nothing(lens_model: Any, patch: Any):
    edit = random_edit(lens_model, 1)
    table = patch(lens_model, edit, PROMPTS, TARGETS, 1).table
    below = table[table["layer"].between(0, 1)]  # attention of layers 0 and 1 has not seen the edit
    assert len(below) > 0
    assert (below["effect"] == 0).all()
    assert (table["effect"].abs() > 1e-6).any()
    nothing = LowRankUpdate(left=torch.zeros(lens_model.d_mlp, 1), right=torch.zeros(1, lens_model.d_model))
    for empty in (Edit(updates={}), Edit(updates={0: nothing})):
        found = patch(lens_model, empty, SHORT[0], TARGETS[0], 3)
        assert found.table["effect"].abs().max() < 1e-6
        assert (found.baselines["vanilla"] - found.baselines["edited"]).abs().max() < 1e-6


@pytest.mark.parametrize("patch", [patch_attention, patch_scores])
def test_a_batch_equals_its_cases_one_by_one(lens_model: Any, patch: Any):
    prompts = [*PROMPTS, "Apple", "The mayor of Paris lives in"]
    targets = [*TARGETS, ("national library", "A5 is produced"), ("French", "Delft")]
    edits = [
        random_edit(lens_model, 0),
        random_edit(lens_model, 1, seed=1),
        random_edit(lens_model, 0, 2, seed=2),
        Edit(updates={}),
    ]
    together = patch(lens_model, edits, prompts, targets, 2, batch_size=5).table
    largest = patch(lens_model, edits, prompts, targets, 2, batch_size=500).table
    alone = [
        patch(lens_model, edit, prompt, target, 2).table.assign(case=case)
        for case, (edit, prompt, target) in enumerate(zip(edits, prompts, targets, strict=True))
    ]
    for other in (largest, pd.concat(alone, ignore_index=True)):
        pd.testing.assert_frame_equal(together, other, rtol=1e-5, atol=1e-7)


@one_family
def test_memory_that_runs_out_halves_the_batch_once(lens_model: Any, monkeypatch: pytest.MonkeyPatch):
    arguments: tuple[Any, ...] = (lens_model, random_edit(lens_model, 0), PROMPTS * 4, TARGETS * 4, 2)
    expected = patch_scores(*arguments).table
    failed: list[int] = []
    run = LensModel.run

    def tight(self: Any, batch: Any, **options: Any) -> Tensor:
        if batch.shape[0] > 12:
            failed.append(batch.shape[0])
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, batch, **options)

    monkeypatch.setattr(LensModel, "run", tight)
    with pytest.warns(RuntimeWarning, match="going on with batches of") as warned:
        found = patch_scores(*arguments, batch_size=24).table
    assert len(warned) == len(failed) == 1  # several groups of passages, each with more cells than that
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-7)


def test_tables_name_what_they_hold(lens_model: Any):
    fact: dict[str, Any] = {"subject": "Eiffel Tower", "prompt": "The {} is in", "target_new": "Rome"}
    prompt = TaskPrompt(
        text=LONG[0], target_true="Paris", target_new="Rome", distractor="The Eiffel Tower is in Rome. "
    )
    edit = random_edit(lens_model, 0, **fact)
    scores = patch_scores(lens_model, edit, prompt, ("Paris", "Rome"), 2, templates=("{} is",))
    assert scores.edited_layers == (0,)
    first: Any = scores.table[(scores.table["target_name"] == "o_true") & (scores.table["layer"] == 0)]
    # A BOS token stands for no text.
    texts = first[~first["token_text"].str.startswith("<|")]
    assert "".join(texts["token_text"]) == LONG[0]
    roles = dict.fromkeys(first["role"])
    assert set(roles) >= {"first subject token", "last subject token", "after subject", "test subject", "last token"}
    assert "".join(first[first["role"] == "test subject"]["token_text"]).strip() == "Apple A5"
    curve = patch_attention(lens_model, edit, prompt, ("Paris", "Rome"), 2)
    assert list(curve.table[curve.table["target_name"] == "o_edit"]["layer"]) == list(range(LAYERS))
    assert set(curve.baselines["prompt"]) == {LONG[0]}
    assert patch_attention(lens_model, edit, prompt, "Rome").table["target_name"].unique().tolist() == ["target"]
    assert "window of 2" in repr(curve)
    assert "1 prompt" in repr(scores)


@one_family
def test_figures_show_the_tables(lens_model: Any):
    edits = [random_edit(lens_model, 0), random_edit(lens_model, 1, seed=1)]
    curve: Any = patch_attention(lens_model, edits, PROMPTS, TARGETS, 2)
    figure: Any = curve.plot(title="A & B")
    means: Any = curve.table.groupby(["target_name", "layer"])["probability"].mean()
    drawn = {tuple(np.round(trace.y, 12)) for trace in figure.data if trace.mode == "lines+markers"}
    assert drawn == {tuple(np.round(means[name], 12)) for name in ("o_true", "o_edit")}
    apart = {round(trace.y[0], 12) for trace in figure.data if trace.mode == "markers" and trace.x[0] < 0}
    assert apart == set(curve.baselines.groupby("target_name")["edited"].mean().round(12))
    assert "A &amp; B" in figure.layout.title.text
    dashed = [trace.y[0] for trace in figure.data if trace.line.dash == "dash"]
    assert sorted(dashed) == pytest.approx(sorted(curve.baselines.groupby("target_name")["vanilla"].mean()))

    scores: Any = patch_scores(lens_model, edits, PROMPTS, TARGETS, 2)
    panels: Any = [trace for trace in scores.plot().data if trace.type == "heatmap"]
    grid = scores.by_role()
    assert len(panels) == 2
    for panel, name in zip(panels, ("o_true", "o_edit"), strict=True):
        own = grid[grid["target_name"] == name]
        expected = own.pivot(index="role", columns="layer", values="effect").loc[list(dict.fromkeys(own["role"]))]
        np.testing.assert_allclose(panel.z, expected)
    single: Any = patch_scores(lens_model, edits[0], PROMPTS[0], TARGETS[0], 2).plot()
    n_tokens = patch_scores(lens_model, edits[0], PROMPTS[0], TARGETS[0], 2).table["token"].nunique()
    assert len(single.layout.yaxis.ticktext) == n_tokens


def test_half_precision_runs(checkpoints: Any):
    if not hasattr(torch, "bfloat16"):
        pytest.skip("no bfloat16")
    from tests.support.tiny import BRIDGE

    if not BRIDGE:
        pytest.skip("load_model needs transformer-lens 4.3")
    from driftlens.models import load_model

    model = load_model(checkpoints("gptj"), device="cpu", dtype="bfloat16")
    exact = load_model(checkpoints("gptj"), device="cpu", dtype="float64")
    edit = random_edit(model, 0)
    half = patch_attention(model, edit, PROMPTS, TARGETS, 2).table
    full = patch_attention(exact, edit, PROMPTS, TARGETS, 2).table
    assert np.isfinite(half["probability"]).all()
    np.testing.assert_allclose(np.log(half["probability"]), np.log(full["probability"]), atol=0.35)
    assert np.isfinite(patch_scores(model, edit, PROMPTS, TARGETS, 2).table["probability"]).all()


@one_family
def test_mistakes_are_told(lens_model: LensModel):
    edit = random_edit(lens_model, 0)
    for arguments, part in (
        (([edit], PROMPTS, TARGETS, 2), "2 prompts, 1 edits"),
        ((edit, SHORT[0], " ", 2), "is empty"),
        ((edit, SHORT[0], "guitar", 0), "window is 0"),
        ((edit, [], "guitar", 2), "no prompt"),
        ((edit, SHORT[0] * 40, "guitar", 2), "at most"),
        ((random_edit(lens_model, LAYERS), SHORT[0], "guitar", 2), "layers 0 to"),
    ):
        for patch in (patch_attention, patch_scores):
            with pytest.raises(DriftlensError, match=part):
                patch(lens_model, *arguments)
    with pytest.raises(DriftlensError, match="expected 2 different names"):
        patch_attention(lens_model, edit, SHORT[0], TARGETS[0], 2, target_names=("a", "a"))
    with pytest.raises(DriftlensError, match="1 prompts and 2 subjects"):
        patch_scores(lens_model, edit, SHORT[0], TARGETS[0], 2, subject=["a", "b"])


def test_windows_scale_with_depth():
    assert [scaled_window(10, n) for n in (28, 48, 12, 8, 3, 1)] == [10, 17, 4, 3, 1, 1]
