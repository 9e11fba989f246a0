"""An edit acts the same as hooks, as weights, as a row of a batch, from a file and as an exported folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from driftlens.edits import Edit, LowRankUpdate, edit_hooks
from driftlens.errors import DriftlensError
from driftlens.models import Batch, LensModel
from tests.support.plain import PlainModel
from tests.support.tiny import BRIDGE, one_family

TEXTS = ("Toko Yasuda plays the guitar in Leiden", "The mother tongue of Danielle Darrieux is", "Paris is a")


def random_edit(model: LensModel, layers: tuple[int, ...], *, rank: int = 1, seed: int = 0) -> Edit:
    """Large enough to move every logit."""
    generator = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)

    updates = {n: LowRankUpdate(left=factor(model.d_mlp, rank), right=factor(rank, model.d_model)) for n in layers}
    return Edit(updates=updates, provenance={"seed": str(seed)})


def batch_of(model: LensModel, texts: tuple[str, ...] = TEXTS) -> Batch:
    rows = [torch.tensor(model.encode(text).ids) for text in texts]
    width = max(map(len, rows))
    tokens = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return Batch(tokens, torch.arange(width) < lengths[:, None])


def logits(model: LensModel, batch: Batch, hooks: Any = ()) -> Tensor:
    """At the real tokens only, [tokens, d_vocab]."""
    return model.unembed(model.run(batch, hooks=hooks))[batch.mask]


def every_bit(model: LensModel) -> dict[int, bytes]:
    return {n: model.W_out(n).detach().contiguous().numpy().tobytes() for n in range(model.n_layers)}


@pytest.fixture
def restored(lens_model: LensModel) -> Iterator[LensModel]:
    """The shared model, after which it must be what it was."""
    before = every_bit(lens_model)
    yield lens_model
    assert every_bit(lens_model) == before


# --- hooks and weights ---


@pytest.mark.backend
def test_hooks_and_weights_give_the_same_logits(exact_model: LensModel):
    edit, batch = random_edit(exact_model, (0, 2), rank=2), batch_of(exact_model)
    vanilla, hooked = logits(exact_model, batch), logits(exact_model, batch, edit.hooks(exact_model))
    with edit.applied(exact_model):
        written = logits(exact_model, batch)
    assert float((hooked - vanilla).abs().max()) > 0.1
    # Float64, but what Hugging Face computes in float32 within it (see test_value.py) sees inputs that differ in
    # their last digits, and may round them to the other side.
    tolerance = 1e-11 if exact_model.family == "gpt2" else 1e-5
    assert torch.allclose(hooked, written, rtol=0, atol=tolerance)
    assert torch.equal(logits(exact_model, batch), vanilla)


@one_family
@pytest.mark.backend
def test_the_written_weight_is_the_sum(exact_model: LensModel):
    edit = random_edit(exact_model, (1,), rank=3)
    before = exact_model.W_out(1).clone()
    with edit.applied(exact_model):
        assert torch.allclose(exact_model.W_out(1), before + edit.updates[1].matrix(), rtol=0, atol=1e-14)


@one_family
@pytest.mark.backend
def test_every_bit_comes_back_after_an_exception(restored: LensModel):
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), random_edit(restored, (0, 1, 2)).applied(restored):
        fail()


@pytest.mark.backend
def test_nested_edits_add_up_and_come_off_one_by_one(restored: LensModel):
    a, b = random_edit(restored, (0, 1), seed=1), random_edit(restored, (1, 2), seed=2)
    before = every_bit(restored)
    batch = batch_of(restored)
    with a.applied(restored):
        only_a = every_bit(restored)
        with b.applied(restored):
            nested = logits(restored, batch)
        assert every_bit(restored) == only_a != before
        with pytest.raises(RuntimeError, match="inside"), b.applied(restored):
            raise RuntimeError("inside")
        assert every_bit(restored) == only_a
    summed = logits(restored, batch, (a + b).hooks(restored))
    assert torch.allclose(nested, summed, rtol=0, atol=1e-4 * float(nested.abs().max()))  # float32


@one_family
@pytest.mark.backend
def test_weights_that_cannot_all_be_written_are_put_back(restored: LensModel, monkeypatch: pytest.MonkeyPatch):
    edit = random_edit(restored, (0, 1, 2))
    written = Edit.written
    calls: list[int] = []

    def failing(self: Edit, model: LensModel, layer: int, W_out: Tensor) -> Tensor:
        calls.append(layer)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return written(self, model, layer, W_out)

    monkeypatch.setattr(Edit, "written", failing)
    with pytest.raises(torch.OutOfMemoryError), edit.applied(restored):
        pytest.fail("the body must not run")


def test_a_small_change_survives_a_bf16_models_precision(checkpoints: Any):
    """The sum is formed in float32 and rounded once, in the weight as in the hook."""
    if not BRIDGE:
        pytest.skip("loads through load_model")
    from driftlens.models import load_model

    model = load_model(checkpoints("gpt2"), device="cpu", dtype="bfloat16")
    left, right = torch.full((model.d_mlp, 1), 1e-3), torch.full((1, model.d_model), 1.0)
    edit = Edit(updates={1: LowRankUpdate(left=left, right=right)})
    before = model.W_out(1).clone()
    with edit.applied(model):
        expected = (before.double() + 1e-3).bfloat16()
        assert torch.equal(model.W_out(1), expected)
    assert torch.equal(model.W_out(1), before)


# --- sums and rows ---


@pytest.mark.backend
def test_a_sum_is_both_edits(exact_model: LensModel):
    a, b = random_edit(exact_model, (0, 1), seed=1), random_edit(exact_model, (1, 2), rank=2, seed=2)
    both = a + b
    assert list(both.updates) == [0, 1, 2]
    assert both.updates[1].rank == 3
    expected = a.updates[1].matrix() + b.updates[1].matrix()
    assert torch.allclose(both.updates[1].matrix(), expected, rtol=0, atol=1e-14)
    assert both.provenance == {"seed": "1 + 2"}
    assert a.updates[1].rank == 1  # the summands stay what they are
    batch = batch_of(exact_model)
    with a.applied(exact_model), b.applied(exact_model):
        written = logits(exact_model, batch)
    tolerance = 1e-11 if exact_model.family == "gpt2" else 1e-5
    assert torch.allclose(logits(exact_model, batch, both.hooks(exact_model)), written, rtol=0, atol=tolerance)
    hooks = [*a.hooks(exact_model), *b.hooks(exact_model)]
    assert torch.allclose(logits(exact_model, batch, hooks), written, rtol=0, atol=tolerance)


def test_a_sum_keeps_the_wider_precision():
    def update(dtype: torch.dtype) -> Edit:
        value = torch.tensor([[1 + 2**-40]], dtype=torch.float64).to(dtype)
        return Edit(updates={0: LowRankUpdate(left=value, right=value)})

    for both in (
        update(torch.float32) + update(torch.float64),
        update(torch.float64) + update(torch.float32),
    ):
        assert both.updates[0].left.dtype == torch.float64
        assert 1 + 2**-40 in both.updates[0].left.flatten().tolist()


@pytest.mark.backend
def test_many_edits_as_rows_are_each_edit_by_itself(exact_model: LensModel):
    """Different layers, ranks and precisions, and vanilla rows, in one pass; rows may share an edit."""
    wide = random_edit(exact_model, (0, 2), rank=3, seed=1)
    narrow = Edit(
        updates={n: LowRankUpdate(left=u.left.float(), right=u.right.float()) for n, u in wide.updates.items()}
    )
    edits = [narrow, None, wide, random_edit(exact_model, (1,), seed=2)]
    rows = torch.tensor([2, 1, 3, 0, 2, 1])
    batch = batch_of(exact_model, TEXTS + TEXTS)
    found = exact_model.run(batch, hooks=edit_hooks(exact_model, edits, rows))
    tolerance = 1e-11 if exact_model.family == "gpt2" else 1e-5
    for row, which in enumerate(rows.tolist()):
        alone = Batch(batch.tokens[row : row + 1], batch.mask[row : row + 1])
        edit = edits[which]
        expected = exact_model.run(alone, hooks=[] if edit is None else edit.hooks(exact_model))[0]
        length = int(batch.mask[row].sum())
        assert torch.allclose(found[row, :length], expected[:length], rtol=0, atol=tolerance)


@one_family
@pytest.mark.backend
def test_rows_without_an_index_are_the_edits_in_order(lens_model: LensModel):
    edits = [random_edit(lens_model, (0,), seed=1), None, random_edit(lens_model, (0,), seed=2)]
    batch = batch_of(lens_model)
    in_order = lens_model.run(batch, hooks=edit_hooks(lens_model, edits))
    indexed = lens_model.run(batch, hooks=edit_hooks(lens_model, edits, torch.arange(3)))
    assert torch.equal(in_order, indexed)
    assert edit_hooks(lens_model, [None, None]) == []


# --- files ---


def test_a_file_holds_factors_and_provenance(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    # Not contiguous, and one factor shared by two layers: both are the file format's to refuse, not ours.
    left = torch.randn(3, 8, generator=generator).T
    right = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    update = LowRankUpdate(left=left.double(), right=right)
    provenance = {"editor": "ROME", "subject": "Danielle Darrieux", "settings": '{"a": [1, 2]}\n«ü»'}
    edit = Edit(updates={11: update, 2: update}, provenance=provenance)
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert loaded.provenance == provenance
    assert list(loaded.updates) == [2, 11]
    for layer in (2, 11):
        assert loaded.updates[layer].left.dtype == torch.float64
        assert torch.equal(loaded.updates[layer].left, update.left)
        assert torch.equal(loaded.updates[layer].right, update.right)
    assert [path.name for path in tmp_path.iterdir()] == ["edit.safetensors"]


def save_foreign(path: Path, tensors: dict[str, Tensor], **metadata: str) -> None:
    save_file(tensors, path, metadata=metadata or None)


def save_as_edit(path: Path, tensors: dict[str, Tensor], provenance: str = "{}") -> None:
    save_foreign(path, tensors, format="driftlens-edit-1", provenance=provenance)


FACTORS = {"0.left": torch.ones(4, 1), "0.right": torch.ones(1, 3)}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "cannot read .*no such file"),
        (lambda path: path.write_bytes(b""), "cannot read the edit"),
        (lambda path: path.write_bytes(b"not a safetensors file at all"), "cannot read the edit"),
        (lambda path: path.mkdir(), "cannot read .*it is a folder"),
        (lambda path: save_foreign(path, FACTORS), "is not a driftlens edit"),
        (lambda path: save_foreign(path, FACTORS, format="pt"), "is not a driftlens edit"),
        (lambda path: save_foreign(path, FACTORS, format="driftlens-edit-1"), "cannot read the edit"),
        (lambda path: save_as_edit(path, FACTORS, provenance="{"), "cannot read the edit"),
        (lambda path: save_as_edit(path, {"0.left": torch.ones(4, 1)}), r"lacks the factor '0\.right'"),
        (lambda path: save_as_edit(path, {"weight": torch.ones(4, 1)}), "cannot read the edit"),
        (lambda path: save_as_edit(path, {**FACTORS, "0.right": torch.ones(2, 3)}), r"shapes \(4, 1\) and \(2, 3\)"),
    ],
    ids="missing empty foreign-bytes folder no-metadata other-format no-provenance bad-json half name rank".split(),
)
def test_a_file_that_is_no_edit_is_one_line(tmp_path: Path, write: Any, message: str):
    path = tmp_path / "edit.safetensors"
    write(path)
    with pytest.raises(DriftlensError, match=message) as error:
        Edit.load(path)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_one_line(tmp_path: Path):
    path = tmp_path / "edit.safetensors"
    Edit(updates={0: LowRankUpdate(left=FACTORS["0.left"], right=FACTORS["0.right"])}).save(path)
    whole = path.read_bytes()
    for length in (4, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DriftlensError, match="cannot read the edit"):
            Edit.load(path)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    edit = Edit(updates={0: LowRankUpdate(left=FACTORS["0.left"], right=FACTORS["0.right"])})
    with pytest.raises(DriftlensError, match=r"cannot write .*file/edit\.safetensors"):
        edit.save(tmp_path / "file" / "edit.safetensors")


# --- the wrong model ---


@one_family
def test_an_edit_of_another_model_is_refused(lens_model: LensModel):
    d_mlp, d_model = lens_model.d_mlp, lens_model.d_model

    def edit(layer: int, rows: int, columns: int) -> Edit:
        return Edit(updates={layer: LowRankUpdate(left=torch.ones(rows, 1), right=torch.ones(1, columns))})

    for wrong, message in (
        (edit(3, d_mlp, d_model), "changes layer 3, but .* has layers 0 to 2"),
        (edit(-1, d_mlp, d_model), "changes layer -1"),
        (edit(0, d_mlp + 1, d_model), f"down-projection of {d_mlp + 1} × {d_model}, but .*'s is {d_mlp} × {d_model}"),
        (edit(0, d_mlp, d_model - 1), "down-projection of"),
    ):
        for use in (
            wrong.hooks,
            lambda m, e=wrong: edit_hooks(m, [None, e]),
            lambda m, e=wrong: e.applied(m).__enter__(),
        ):
            with pytest.raises(DriftlensError, match=message) as error:
                use(lens_model)
            assert "\n" not in str(error.value)


def test_factors_that_do_not_fit_together_are_refused():
    with pytest.raises(DriftlensError, match=r"expected \[d_mlp, r\] and \[r, d_model\]"):
        LowRankUpdate(left=torch.ones(4), right=torch.ones(1, 3))
    with pytest.raises(DriftlensError, match="shapes"):
        LowRankUpdate(left=torch.ones(4, 2), right=torch.ones(1, 3))


# --- export ---


@pytest.mark.skipif(not BRIDGE, reason="a HookedTransformer has no Hugging Face model to export")
def test_an_exported_edit_is_the_edited_model_in_plain_hugging_face(lens_model: LensModel, tmp_path: Path):
    edit = random_edit(lens_model, (0, 2), rank=2)
    edit.export(lens_model, tmp_path / "edited")
    plain = PlainModel(tmp_path / "edited")
    for text in TEXTS:
        batch = batch_of(lens_model, (text,))
        expected = logits(lens_model, batch, edit.hooks(lens_model))
        found = plain.run(batch.tokens)[1][0]
        assert plain.tokenizer(text)["input_ids"] == batch.tokens[0].tolist()
        assert torch.allclose(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))  # float32
    with pytest.raises(DriftlensError, match="not empty"):
        edit.export(lens_model, tmp_path / "edited")


def test_provenance_is_plain_json(tmp_path: Path):
    """Any safetensors reader can say where an edit comes from."""
    from safetensors import safe_open

    Edit(updates={}, provenance={"editor": "by hand"}).save(tmp_path / "edit.safetensors")
    with safe_open(tmp_path / "edit.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["provenance"]) == {"editor": "by hand"}
    assert Edit.load(tmp_path / "edit.safetensors") == Edit(updates={}, provenance={"editor": "by hand"})


@one_family
def test_results_print_in_a_line(lens_model: LensModel):
    from driftlens.data import Fact
    from driftlens.edits import EditResult, JointEditResult

    edit = random_edit(lens_model, (1, 2), rank=2)
    assert repr(edit) == "Edit(layers {1: rank 2, 2: rank 2})"
    assert repr(edit.updates[1]) == f"LowRankUpdate([{lens_model.d_mlp}, 2] @ [2, {lens_model.d_model}])"
    fact = Fact(subject="Ann", prompt="{} lives in", target_true="Paris", target_new="Rome")
    history = pd.DataFrame({"step": [0, 1], "probability": [0.1, 0.98765]})
    vectors: Any = {1: torch.ones(lens_model.d_mlp)}
    result = EditResult(fact=fact, edit=edit, history=history, keys=vectors, values=vectors)
    assert repr(result) == f"EditResult('Ann lives in': 'Paris' → 'Rome', {edit!r}, 2 steps, P(new) 0.988)"
    rows: Any = {1: torch.ones(2, lens_model.d_mlp)}
    joint = JointEditResult(facts=(fact, fact), edit=edit, history=history, keys=rows, values=rows)
    assert repr(joint) == f"JointEditResult(2 facts: 'Ann lives in': 'Paris' → 'Rome', …; {edit!r})"
