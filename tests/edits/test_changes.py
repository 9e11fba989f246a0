"""Every kind of change acts as its weights do when they are written into plain Hugging Face."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from driftlens import (
    Edit,
    Fact,
    Record,
    TaskPrompt,
    attention_drift,
    contaminating_substitution,
    evaluate,
    generate,
    patch_attention,
    patch_scores,
)
from driftlens.data import TASKS
from driftlens.edits import AddedNorm, Change, Dense, Gated, LowRank, Site, Sparse, edit_hooks, routed
from driftlens.errors import DriftlensError
from driftlens.evaluation import perplexities
from driftlens.models import LensModel
from driftlens.models.prompts import pad_rows, tokenize_prompt
from tests.support.plain import PlainModel
from tests.support.tiny import BRIDGE, load_tiny

pytestmark = pytest.mark.skipif(not BRIDGE, reason="up-projections are changed through a TransformerBridge only")

NAMES = {
    "gpt2": {"mlp.in": "mlp.c_fc", "mlp.out": "mlp.c_proj"},
    "llama": {"mlp.in": "mlp.up_proj", "mlp.gate": "mlp.gate_proj", "mlp.out": "mlp.down_proj"},
}
SITES = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}
PROMPT, TARGET = "The Eiffel Tower is located in", "Rome"
TEXTS = (PROMPT, "Toko Yasuda plays the", "Apple A5 is produced by")
FACT = Fact(subject="Eiffel Tower", prompt="The {} is located in", target_true="Paris", target_new="Rome")
# Float64 passes that differ in the order of their sums.
CLOSE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10}
# Llama's attention takes its softmax in float32, so an attention that is read and put back is rounded to that.
ROUNDED = 3e-6


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, checkpoints: Any) -> Path:
    return checkpoints(family)


@pytest.fixture(scope="module")
def model(folder: Path) -> LensModel:
    return load_tiny(folder, exact=True)


def low_rank(model: LensModel, layer: int, linear: str, seed: int = 0, scale: float = 0.4) -> LowRank:
    site = Site(layer, linear)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(seed)
    d_in, d_out = model.linear(site)[0].shape

    def factor(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    return LowRank(site=site, left=factor(d_in, 2), right=factor(2, d_out))


def dense(change: LowRank) -> Dense:
    return Dense(site=change.site, weight=change.matrix())


def edits_of(model: LensModel, family: str) -> dict[str, Edit]:
    """An edit of each kind; the last is an edit such as MEND's, of up- and down-projections of several layers."""
    made = {linear: Edit([low_rank(model, 1, linear)], facts=(FACT,)) for linear in NAMES[family]}
    mend = [low_rank(model, layer, linear, seed=layer) for layer in (0, 1) for linear in NAMES[family]]
    weight = low_rank(model, 1, "mlp.out", seed=5).matrix()
    few = Sparse.of(Site(1), weight * (weight.abs() > weight.abs().median()))
    dense_one = Edit([dense(low_rank(model, 0, "mlp.in"))], facts=(FACT,))
    return {**made, "dense": dense_one, "sparse": Edit([few], facts=(FACT,)), "mend": Edit(mend)}


def written_plainly(folder: Path, family: str, changes: Sequence[Change]) -> PlainModel:
    plain: Any = PlainModel(folder, dtype=torch.float64)
    for change in changes:
        module = plain.blocks[change.site.layer].get_submodule(NAMES[family][change.site.map])
        module.weight += change.matrix().T if family == "llama" else change.matrix()
    return plain


def plain_logits(plain: PlainModel, text: str) -> Tensor:
    return plain.run(torch.tensor([plain.tokenizer(text)["input_ids"]]))[1][0]


def probability(plain: PlainModel, prompt: str, target: str, hooks: Sequence[Any] = ()) -> float:
    whole, start = (plain.tokenizer(text)["input_ids"] for text in (f"{prompt} {target}", prompt))
    logits = plain.run(torch.tensor([whole[:-1]]), edits=hooks)[1][0]
    own = whole[len(start) :]
    logs = logits.log_softmax(-1)[torch.arange(len(start) - 1, len(whole) - 1), torch.tensor(own)]
    return float(logs.mean().exp())


# --- hooks, weights, rows ---


def test_hooks_and_weights_are_those_of_plain_hugging_face(model: LensModel, family: str, folder: Path):
    before = [weight.clone() for _, weight in model.named_weights()]
    for name, edit in edits_of(model, family).items():
        plain = written_plainly(folder, family, edit.changes)
        for text in TEXTS[:2]:
            batch, _ = pad_rows(model, [model.encode(text).ids])
            expected = plain_logits(plain, text)
            as_hooks = model.unembed(model.run(batch, hooks=edit.hooks(model)))[0]
            with edit.applied(model):
                as_weights = model.unembed(model.run(batch))[0]
            torch.testing.assert_close(as_hooks, expected, **CLOSE, msg=name)
            torch.testing.assert_close(as_weights, expected, **CLOSE, msg=name)
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, model.named_weights(), strict=True))


def test_kinds_mix_as_rows_of_a_batch(model: LensModel, family: str):
    edits = [None, *edits_of(model, family).values()]
    edits.append(Edit([low_rank(model, 1, "mlp.in"), dense(low_rank(model, 1, "mlp.in", seed=3))]))
    rows = torch.tensor([*range(len(edits)), 2, 0, len(edits) - 1])
    batch, _ = pad_rows(model, [model.encode(TEXTS[int(at) % 3]).ids for at in rows])
    found = model.run(batch, hooks=edit_hooks(model, edits, rows))
    for row, at in enumerate(rows.tolist()):
        edit = edits[at]
        alone = model.run(batch.take(slice(row, row + 1)), hooks=[] if edit is None else edit.hooks(model))
        mask = batch.mask[row]
        torch.testing.assert_close(found[row][mask], alone[0][mask], **CLOSE)


def test_exported_it_loads_as_the_edited_model(model: LensModel, family: str, folder: Path, tmp_path: Path):
    edit = edits_of(model, family)["mend"]
    edit.export(model, tmp_path / "edited")
    expected = plain_logits(written_plainly(folder, family, edit.changes), PROMPT)
    found = plain_logits(PlainModel(tmp_path / "edited", dtype=torch.float64), PROMPT)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_the_difference_of_two_checkpoints_is_an_edit(model: LensModel, family: str, tmp_path: Path):
    made = edits_of(model, family)["mend"]
    made.export(model, tmp_path / "after")
    after = load_tiny(tmp_path / "after", exact=True)
    edit = Edit.between(model, after)
    assert edit.sites == made.sites
    for change, other in zip(edit.changes, made.changes, strict=True):
        torch.testing.assert_close(change.matrix(), other.matrix(), rtol=0, atol=1e-14)
    assert Edit.between(model, model).changes == ()
    with torch.no_grad():
        next(weight for _, weight in after.named_weights() if weight.dim() == 1).add_(1.0)
    with pytest.raises(DriftlensError, match="also differ in"):
        Edit.between(model, after)


# --- the analyses ---


def brute_cells(vanilla: PlainModel, edited: PlainModel, module: str) -> dict[tuple[int, int], float]:
    """Contaminating substitution with one full pass for each token and layer (window 1)."""
    whole, start = (vanilla.tokenizer(text)["input_ids"] for text in (f"{PROMPT} {TARGET}", PROMPT))
    z = [edited.value(SITES[module], layer, torch.tensor([whole[:-1]])) for layer in range(len(vanilla.blocks))]

    def put(token: int, layer: int) -> Any:
        def hook(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            changed[0, token] = z[layer][0, token]
            return changed

        return SITES[module], layer, hook

    return {
        (token, layer): probability(vanilla, PROMPT, TARGET, [put(token, layer)])
        for token in range(len(start))
        for layer in range(len(vanilla.blocks))
    }


@pytest.mark.parametrize("kind", ["mlp.in", "dense", "mend"])
def test_a_trace_is_the_one_of_weights_plainly_written(model: LensModel, family: str, folder: Path, kind: str):
    edit = edits_of(model, family)[kind]
    vanilla, edited = PlainModel(folder, dtype=torch.float64), written_plainly(folder, family, edit.changes)
    table = contaminating_substitution(model, edit, PROMPT, TARGET, ("resid", "mlp", "attn"), 1).table
    for module in SITES:
        cells: Any = table[table["module"] == module].set_index(["token", "layer"])["probability"]
        expected = pd.Series(brute_cells(vanilla, edited, module))
        pd.testing.assert_series_equal(cells, expected, check_names=False, check_index_type=False, rtol=1e-8)
    first = table.iloc[0]
    assert first["vanilla"] == pytest.approx(probability(vanilla, PROMPT, TARGET), rel=1e-9)
    assert first["edited"] == pytest.approx(probability(edited, PROMPT, TARGET), rel=1e-9)


@pytest.mark.parametrize("kind", ["mlp.in", "dense", "mend"])
def test_patches_are_those_of_weights_plainly_written(model: LensModel, family: str, folder: Path, kind: str):
    edit = edits_of(model, family)[kind]
    vanilla, edited = PlainModel(folder, dtype=torch.float64), written_plainly(folder, family, edit.changes)
    tokens = torch.tensor([vanilla.tokenizer(f"{PROMPT} {TARGET}")["input_ids"][:-1]])
    curve: Any = patch_attention(model, edit, PROMPT, TARGET, window=1).table.set_index("layer")["probability"]
    scores: Any = patch_scores(model, edit, PROMPT, TARGET, window=1).table.set_index(["token", "layer"])["probability"]
    n_prompt = len(vanilla.tokenizer(PROMPT)["input_ids"])
    for layer in range(model.n_layers):
        pattern, before = (vanilla.value(site, layer, tokens) for site in ("pattern", "attn_scores"))
        expected = probability(edited, PROMPT, TARGET, [("pattern", layer, lambda _, p=pattern: p)])
        assert curve[layer] == pytest.approx(expected, rel=ROUNDED)

        def one(scores: Tensor, token: int, before: Tensor = before) -> Tensor:
            changed = scores.clone()
            changed[0, :, n_prompt - 1 :, token] = before[0, :, n_prompt - 1 :, token]
            return changed

        for token in (0, 2, n_prompt - 1):
            hook = ("attn_scores", layer, lambda s, t=token, one=one: one(s, t))
            assert scores[token, layer] == pytest.approx(probability(edited, PROMPT, TARGET, [hook]), rel=ROUNDED)


def records() -> list[Record]:
    tasks = {
        "rewrite": [TaskPrompt(text=PROMPT, target_true="Paris", target_new="Rome")],
        "neighborhood": [
            TaskPrompt(text="Toko Yasuda plays the", target_true="guitar", target_new="piano"),
            TaskPrompt(text="Apple A5 is produced by", target_true="Apple", target_new="Nissan in Yokohama"),
        ],
        "distract_neighborhood": [
            TaskPrompt(
                text=f"{PROMPT} Rome. {text}", target_true="Leiden", target_new="Delft", distractor=f"{PROMPT} Rome. "
            )
            for text in ("Thomas lived in", "Stieltjes studied in")
        ],
    }
    return [record_of(tasks)]


def record_of(tasks: dict[str, list[TaskPrompt]]) -> Record:
    return Record(index=0, fact=FACT, tasks={task: tuple(tasks.get(task, ())) for task in TASKS})


@pytest.mark.parametrize("kind", ["mlp.in", "dense", "mend"])
def test_everything_else_is_as_with_the_weights_written(model: LensModel, family: str, kind: str):
    edit = edits_of(model, family)[kind]
    found = evaluate(model, records(), [edit])
    texts = [one.text for one in generate(model, TEXTS, edit, max_tokens=14, top_k=1)]
    ppl: Any = perplexities(model, [None, edit], texts=TEXTS)["perplexity"]
    drift = attention_drift(model, edit, PROMPT, "Eiffel Tower").heads
    with edit.applied(model):
        pd.testing.assert_frame_equal(found, evaluate(model, records(), None), rtol=1e-9)
        assert texts == [one.text for one in generate(model, TEXTS, None, max_tokens=14, top_k=1)]
        assert ppl[1] == pytest.approx(perplexities(model, None, texts=TEXTS)["perplexity"][0], rel=1e-9)
    for layer in sorted(set(drift["layer"])):
        prompt = tokenize_prompt(model, PROMPT)
        batch, _ = pad_rows(model, [prompt.ids])
        seen: list[Tensor] = []
        hook = (model.hook_name("pattern", layer), lambda p, hook, seen=seen: seen.append(p[0, :, -1]))
        model.run(batch, hooks=[hook])
        with edit.applied(model):
            model.run(batch, hooks=[hook])
        moved = (seen[1] - seen[0]).norm()  # at s and elsewhere together
        own: Any = drift[drift["layer"] == layer]
        assert float((own["drift_subject"] ** 2 + own["drift_others"] ** 2).sum()) == pytest.approx(
            float(moved.square()), rel=1e-4, abs=1e-9
        )


# --- gates ---


def gated(model: LensModel, texts_open: Sequence[str], texts_closed: Sequence[str], seed: int = 0) -> Gated:
    """A gate whose threshold lies between what the two kinds of prompts score."""
    change = low_rank(model, 1, "mlp.out", seed=seed)
    router = AddedNorm(threshold=0.0)

    def score(text: str) -> float:
        batch, _ = pad_rows(model, [model.encode(text).ids])
        seen: list[Tensor] = []
        name = model.hook_name("mlp_post", 1)
        model.run(batch, hooks=[(name, lambda x, hook: seen.append(x))])
        return float((seen[0] @ change.matrix()).norm(dim=-1).mean())

    low, high = sorted((max(map(score, texts_closed)), min(map(score, texts_open))))
    return Gated(change=change, router=AddedNorm(threshold=(low + high) / 2, over=router.over))


def by_score(model: LensModel, seed: int = 0) -> tuple[list[str], list[str]]:
    """The texts that a change moves most, and the others."""
    change = low_rank(model, 1, "mlp.out", seed=seed)
    scores: dict[str, float] = {}
    for text in TEXTS:
        batch, _ = pad_rows(model, [model.encode(text).ids])
        gate = Gated(change=change, router=AddedNorm(threshold=0.0))
        seen: list[Tensor] = []
        model.run(
            batch, hooks=[(name, lambda x, hook, seen=seen: seen.append(x)) for name in model.linear_hooks(Site(1))]
        )
        inputs, outputs = seen
        scores[text] = float(gate.score(model, inputs, outputs, batch.mask))
    ordered = sorted(scores, key=scores.__getitem__, reverse=True)
    return ordered[:1], ordered[1:]


def test_a_gate_opens_for_its_prompts_and_for_no_others(model: LensModel):
    opened, closed = by_score(model)
    gate = gated(model, opened, closed)
    edit, inner = Edit([gate], facts=(FACT,)), Edit([gate.change], facts=(FACT,))
    prompts = [*opened, *closed]
    acting = routed(model, [edit] * 3, [model.encode(text).ids for text in prompts])
    assert [None if one is None else one.changes for one in acting] == [(gate.change,), (), ()]
    assert acting[1] is acting[2]
    assert all(one is not None and one.facts == (FACT,) for one in acting)

    for text in prompts:
        as_if = inner if text in opened else None
        asked = [record_of({"rewrite": [TaskPrompt(text=text, target_true="a", target_new="b")]})]
        pd.testing.assert_frame_equal(evaluate(model, asked, [edit]), evaluate(model, asked, [as_if]))
        assert generate(model, [text], edit, seed=3) == generate(model, [text], as_if, seed=3)
        assert perplexities(model, [edit], texts=[text]).equals(perplexities(model, [as_if], texts=[text]))
        for analysis in (contaminating_substitution, patch_attention, patch_scores):
            found = analysis(model, edit, text, "Rome", window=1).table
            expected = analysis(model, as_if or Edit(facts=(FACT,)), text, "Rome", window=1).table
            pd.testing.assert_frame_equal(found, expected)
    # All in one call, where vanilla, edited and gated rows share passes.
    together = contaminating_substitution(model, edit, prompts, "Rome", window=1)
    assert together.edited_layers == (1,)
    quiet: Any = together.table[together.table["case"] > 0]["effect"]
    assert (quiet == 0).all()


def test_of_several_memories_the_nearest_answers(model: LensModel):
    changes = [low_rank(model, 1, "mlp.out", seed=seed) for seed in range(4)]
    edit = Edit([Gated(change=change, router=AddedNorm(threshold=0.0)) for change in changes])
    prompts = [model.encode(text).ids for text in TEXTS]
    for ids, acting in zip(prompts, routed(model, [edit] * 3, prompts), strict=True):
        batch, _ = pad_rows(model, [ids])
        seen: list[Tensor] = []
        model.run(batch, hooks=[(model.hook_name("mlp_post", 1), lambda x, hook, seen=seen: seen.append(x))])
        norms = [float((seen[0] @ change.matrix()).norm(dim=-1).mean()) for change in changes]
        assert acting is not None
        assert acting.changes == (changes[norms.index(max(norms))],)
    none = Edit([Gated(change=change, router=AddedNorm(threshold=1e9)) for change in changes])
    assert [one and one.changes for one in routed(model, [none], prompts[:1])] == [()]


def test_a_gated_edit_is_no_change_of_weights(model: LensModel, tmp_path: Path):
    edit = Edit([gated(model, *by_score(model))])
    assert not edit.is_weights
    with pytest.raises(DriftlensError, match="cannot be applied") as caught, edit.applied(model):
        pass
    assert "its gated change of mlp.out of layer 1 depends on the prompt" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DriftlensError, match="cannot be exported"):
        edit.export(model, tmp_path / "edited")
    assert not list(tmp_path.iterdir())
    with pytest.raises(DriftlensError, match="decides by the prompt"):
        edit.hooks(model)


# --- files ---


def test_a_file_holds_every_kind_of_change(model: LensModel, family: str, tmp_path: Path):
    for name, edit in edits_of(model, family).items():
        whole = edit + Edit([gated(model, *by_score(model))], provenance={"editor": name})
        whole.save(tmp_path / "edit.safetensors")
        again = Edit.load(tmp_path / "edit.safetensors")
        assert again.equals(whole)
        assert (again.facts, again.provenance) == (edit.facts, {"editor": name})
        assert not again.equals(edit)


def test_joined_edits_hold_one_change_of_a_kind_at_a_site(model: LensModel):
    a, b = low_rank(model, 1, "mlp.out"), low_rank(model, 1, "mlp.out", seed=1)
    both = Edit([a]) + Edit([b, dense(a)]) + Edit([dense(b)])
    assert [change.kind for change in both.changes] == ["low_rank", "dense"]
    assert all(torch.allclose(change.matrix(), a.matrix() + b.matrix()) for change in both.changes)
    assert both.updates[1].rank == 4
    gates = Edit([Gated(change=a, router=AddedNorm(threshold=1.0))])
    assert len((gates + gates).gates) == 1  # the very same gate
    assert len((gates + Edit([copy(gates.gates[0])])).gates) == 2


def test_what_does_not_fit_is_refused_in_one_line(model: LensModel, family: str):
    wrong = Dense(site=Site(1, "mlp.in"), weight=torch.ones(3, 4))
    with pytest.raises(DriftlensError, match="an up-projection of 3 × 4"):
        Edit([wrong]).check(model)
    with pytest.raises(DriftlensError, match=r"changes layer 9, but .* has layers 0 to 2"):
        Edit([Dense(site=Site(9), weight=torch.ones(3, 4))]).check(model)
    if family == "gpt2":
        with pytest.raises(DriftlensError, match=r"has no mlp\.gate"):
            Edit([Dense(site=Site(1, "mlp.gate"), weight=torch.ones(3, 4))]).check(model)
    with pytest.raises(DriftlensError, match="holds a change of weights"):
        Gated(change=gated(model, *by_score(model)), router=AddedNorm(threshold=1.0))
    with pytest.raises(DriftlensError, match="unknown average"):
        AddedNorm(threshold=1.0, over="median")  # pyright: ignore[reportArgumentType]
