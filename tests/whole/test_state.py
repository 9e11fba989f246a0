"""What a model is in the middle of: an edit applied, another thread, a gradient mode, somebody else's hook."""

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from driftlens import MEMIT, PMET, ROME, SADR, DriftlensError, Edit, Fact, evaluate
from driftlens.analyses.drift import attention_drift
from driftlens.analyses.patch import patch_attention, patch_scores
from driftlens.analyses.substitution import contaminating_substitution
from driftlens.data import TASKS, Record, TaskPrompt
from driftlens.edits import LowRankUpdate
from driftlens.evaluation import perplexities
from driftlens.evaluation.generation import generate
from driftlens.models import LensModel
from tests.support.edited import random_edit
from tests.support.tiny import BRIDGE, load_tiny

TEXT = "The Eiffel Tower is in"
FACT = Fact(subject="Eiffel Tower", prompt="The {} is in", target_true="Paris", target_new="Rome")
PROMPT = TaskPrompt(text=TEXT, target_true="Paris", target_new="Rome")
RECORD = Record(index=0, fact=FACT, tasks={**dict.fromkeys(TASKS, ()), "rewrite": (PROMPT,)})

# Everything public that takes an edit.
USES: dict[str, Callable[[Any, Edit], Any]] = {
    "evaluate": lambda m, e: evaluate(m, RECORD, e),
    "generate": lambda m, e: generate(m, [TEXT], e, max_tokens=12),
    "perplexities": lambda m, e: perplexities(m, e, texts=["The mayor of Paris is old."]),
    "substitution": lambda m, e: contaminating_substitution(m, e, TEXT, "Paris", window=1),
    "patch attention": lambda m, e: patch_attention(m, e, TEXT, "Paris", 1),
    "patch scores": lambda m, e: patch_scores(m, e, TEXT, "Paris", 1),
    "drift": lambda m, e: attention_drift(m, e, TEXT, "Eiffel Tower"),
    "hooks": lambda m, e: e.hooks(m),
    "applied": lambda m, e: e.applied(m).__enter__(),
}


@pytest.fixture(scope="module")
def model(checkpoints: Any) -> Any:
    return load_tiny(checkpoints("gpt2"))


def rome(model: Any, **settings: Any) -> ROME:
    usual = {"layer": 1, "steps": 3, "contexts": ("{}",), "second_moment": torch.eye(model.d_mlp)}
    return ROME(**{"early_stop_loss": -math.inf, **usual, **settings})


# --- an edit counts once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", USES)
def test_an_edit_that_is_applied_cannot_be_given_as_well(use: str, model: Any):
    edit = random_edit(model, 0, 0, 1)
    copy = Edit(updates={n: LowRankUpdate(left=u.left.clone(), right=u.right.clone()) for n, u in edit.updates.items()})
    with edit.applied(model):
        for same in (edit, copy):  # as it is after saving and loading
            with pytest.raises(DriftlensError, match="applied to the model already and would count twice"):
                USES[use](model, same)
    assert model.written == ()


@pytest.mark.skipif(not BRIDGE, reason="a HookedTransformer has no Hugging Face model to export")
def test_an_edit_that_is_applied_is_not_exported_twice(model: Any, tmp_path: Path):
    edit = random_edit(model, 0, 1)
    with edit.applied(model), pytest.raises(DriftlensError, match="would count twice"):
        edit.export(model, tmp_path / "edited")
    assert not list(tmp_path.iterdir())


def test_another_edit_beside_it_adds_up(model: Any):
    one, other = random_edit(model, 0, 0), random_edit(model, 1, 1)
    both = evaluate(model, RECORD, one + other)
    with one.applied(model):
        beside = evaluate(model, RECORD, other)
        assert [entry.what for entry in model.written] == [one]
    torch.testing.assert_close(torch.tensor(beside["nll_true"]), torch.tensor(both["nll_true"]), rtol=1e-4, atol=1e-5)


def test_edits_left_in_another_order_are_all_taken_back(model: Any):
    one, other = random_edit(model, 0, 0, 1), random_edit(model, 1, 1, 2)
    before = [model.W_out(n).clone() for n in range(model.n_layers)]
    first, second = one.applied(model), other.applied(model)
    first.__enter__()
    second.__enter__()
    with pytest.raises(DriftlensError, match="left in reverse order"):
        first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert all(torch.equal(model.W_out(n), before[n]) for n in range(model.n_layers))
    assert model.written == ()


# --- an edit for this model, of numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("use", USES)
def test_factors_that_are_no_numbers_are_refused(use: str, model: Any):
    edit = random_edit(model, 0, 1)
    edit.updates[1].right[0, 3] = math.nan
    with pytest.raises(DriftlensError, match="the edit holds NaN or infinity in layer 1") as caught:
        USES[use](model, edit)
    assert "\n" not in str(caught.value)


def test_a_file_of_no_numbers_is_refused(model: Any, tmp_path: Path):
    edit = random_edit(model, 0, 1)
    edit.updates[1].left[2, 0] = -math.inf
    edit.save(tmp_path / "edit.safetensors")
    with pytest.raises(DriftlensError, match=r"edit\.safetensors holds NaN or infinity in layer 1; make it again"):
        Edit.load(tmp_path / "edit.safetensors")


@pytest.mark.parametrize("use", [name for name in USES if name != "applied"])
def test_an_edit_for_another_model_of_the_same_shape_warns(use: str, model: Any, checkpoints: Any):
    edit = rome(model).edit(model, FACT).edit
    USES[use](model, edit)
    other = load_tiny(checkpoints("gpt2"))
    with torch.no_grad():
        other.W_out(2)[3, 4] += 1e-3
    with pytest.warns(RuntimeWarning, match=rf"was made on .* but .* has {other.model_hash}"):
        USES[use](other, edit)


def test_an_edit_made_on_an_edited_model_belongs_to_that(model: Any):
    first = rome(model).edit(model, FACT).edit
    with first.applied(model):
        second = rome(model).edit(model, replace(FACT, target_new="Leiden")).edit
        evaluate(model, RECORD, second)  # the model it was made on
    evaluate(model, RECORD, first + second)  # and with what it was made on top of
    with pytest.warns(RuntimeWarning, match="the edit was made on"):
        evaluate(model, RECORD, second)
    with random_edit(model, 5, 2).applied(model):
        evaluate(model, RECORD, first)  # made on the model before what is applied: they add up


def test_hashes_of_earlier_versions_are_not_compared(model: Any):
    edit = replace(random_edit(model, 0, 1), provenance={"model": "demo", "model_hash": "032cfc8e5dd9c13b"})
    evaluate(model, RECORD, edit)


# --- threads ---------------------------------------------------------------------------------------------------------


def test_two_threads_on_one_model_get_the_numbers_of_one(model: Any):
    edits = [None, *(random_edit(model, seed, seed % 3) for seed in range(4))]
    expected = [evaluate(model, RECORD, edit) for edit in edits]

    def work(number: int) -> list[bool]:
        at = number % len(edits)
        return [evaluate(model, RECORD, edits[at]).equals(expected[at]) for _ in range(4)]

    with ThreadPoolExecutor(4) as pool:
        assert all(all(same) for same in pool.map(work, range(20)))


def test_a_thread_waits_while_another_has_an_edit_applied(model: Any):
    edit, other = random_edit(model, 0, 0, 1), random_edit(model, 1, 2)
    expected, applied, done = evaluate(model, RECORD, other), threading.Event(), threading.Event()

    def apply() -> None:
        with edit.applied(model):
            applied.set()
            done.wait(0.3)

    with ThreadPoolExecutor(2) as pool:
        writer = pool.submit(apply)
        applied.wait()
        found = pool.submit(evaluate, model, RECORD, other)
        writer.result()
        assert found.result().equals(expected)


def test_editing_in_two_threads_while_a_third_writes(model: Any):
    """Weights that change between a pass and its gradient would be an error of PyTorch's, or a wrong edit."""
    editor, edit = rome(model, regularizers=(SADR(),)), random_edit(model, 0, 0, 1)
    expected = editor.edit(model, FACT).edit.updates[1]
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            with edit.applied(model):
                pass

    with ThreadPoolExecutor(3) as pool:
        writer = pool.submit(write)
        try:
            for found in pool.map(lambda _: editor.edit(model, FACT).edit.updates[1], range(4)):
                torch.testing.assert_close(found.left, expected.left)
                torch.testing.assert_close(found.right, expected.right)
        finally:
            stop.set()
        writer.result()


def test_two_lens_models_of_one_model_share_its_lock(model: Any):
    other = LensModel(model.model, check=False, tokenizer=model.tokenizer)
    edit = random_edit(model, 0, 1)
    with edit.applied(model):
        assert [entry.what for entry in other.written] == [edit]
        with pytest.raises(DriftlensError, match="count twice"):
            evaluate(other, RECORD, edit)
        inside = other.model_hash
    assert inside != other.model_hash == model.model_hash


def test_a_thread_that_waits_long_says_so(model: Any, monkeypatch: pytest.MonkeyPatch):
    from driftlens.models import sharing

    monkeypatch.setattr(sharing, "PATIENCE", 0.05)

    def ask() -> str:
        with pytest.warns(RuntimeWarning, match="another thread has held the model"):
            return model.model_hash

    with ThreadPoolExecutor(1) as pool:
        with random_edit(model, 0, 1).applied(model):
            found = pool.submit(ask)
            threading.Event().wait(0.3)
        assert found.result() == model.model_hash


# --- gradient modes and the like -------------------------------------------------------------------------------------


@contextmanager
def gradients_off() -> Iterator[None]:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    yield
    torch.set_grad_enabled(before)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "set_grad_enabled": gradients_off,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
}


def editors(model: Any) -> dict[str, Any]:
    moments = {0: torch.eye(model.d_mlp), 1: torch.eye(model.d_mlp)}
    several = {"layers": (0, 1), "steps": 3, "contexts": ("{}",), "second_moment": moments, "second_moment_weight": 1.0}
    return {
        "rome": rome(model, regularizers=(SADR(),)),
        "mean key": rome(model, residual_key="mean", contexts=("{}", "Old. {}")),
        "memit": MEMIT(**several),
        "pmet": PMET(**several),
    }


@pytest.mark.parametrize("mode", MODES)
def test_edits_are_the_same_in_every_mode(mode: str, model: Any):
    for name, editor in editors(model).items():
        expected = editor.edit(model, FACT)
        with MODES[mode]():
            found = editor.edit(model, FACT)
        assert found.history["loss"].tolist() == pytest.approx(expected.history["loss"].tolist(), rel=1e-5), name
        for layer, update in expected.edit.updates.items():
            torch.testing.assert_close(found.edit.updates[layer].matrix(), update.matrix(), rtol=1e-4, atol=1e-5)
        # What was made in the mode must serve outside of it, gradients included.
        right = found.edit.updates[1].right
        assert not right.is_inference()


@pytest.mark.parametrize("mode", MODES)
def test_what_is_measured_is_the_same_in_every_mode(mode: str, model: Any):
    edit = random_edit(model, 0, 0, 1)

    def measured() -> list[float]:
        trace = contaminating_substitution(model, edit, TEXT, "Paris", window=1)
        with edit.applied(model):
            written = evaluate(model, RECORD)["nll_new"].tolist()
        tables = (
            evaluate(model, RECORD, edit)["nll_new"],
            perplexities(model, edit, texts=["The mayor of Paris is old."])["perplexity"],
            trace.table["probability"],
            patch_scores(model, edit, TEXT, "Paris", 1).table["probability"],
            attention_drift(model, edit, TEXT, "Eiffel Tower").table["kl"],
        )
        return [*written, *(value for table in tables for value in table.tolist())]

    expected = measured()
    with MODES[mode]():
        assert measured() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert measured() == expected  # and nothing is left behind


@pytest.mark.parametrize("mode", MODES)
def test_second_moments_and_prefixes_are_the_same_in_every_mode(mode: str, model: Any):
    from driftlens.editors import open_corpus, stream_second_moments
    from driftlens.editors.contexts import ContextSampling, sample_contexts

    corpus = open_corpus(["The Eiffel Tower is in Paris.", "The mayor of Paris is old."])
    expected = stream_second_moments(model, [0], corpus.texts())[0]
    prefixes = sample_contexts(model, ContextSampling(lengths=((9, 3),), seed=3))
    again = load_tiny_like(model)
    with MODES[mode]():
        found = stream_second_moments(model, [0], corpus.texts())[0]
        assert sample_contexts(again, ContextSampling(lengths=((9, 3),), seed=3)) == prefixes
        assert again.model_hash == model.model_hash
    torch.testing.assert_close(found, expected)


def load_tiny_like(model: Any) -> Any:
    return LensModel(model.model, name=model.name, check=False, tokenizer=model.tokenizer)


# --- hooks that somebody else left -----------------------------------------------------------------------------------


def leave_a_hook(model: Any, kind: str) -> Callable[[], Any]:
    """A hook that changes what an MLP gives out; returns what takes it away."""
    point = model._backend.hook_point(model.hook_name("mlp_out", 1))
    if kind == "TransformerLens's":
        point.add_hook(lambda tensor, hook: tensor + 1)
        return point.remove_hooks
    if kind == "PyTorch's":
        return point.register_forward_hook(lambda module, args, output: output + 1).remove
    return point.register_forward_pre_hook(lambda module, args: (args[0] + 1,)).remove


@pytest.mark.parametrize("kind", ["TransformerLens's", "PyTorch's", "PyTorch's, before"])
def test_a_hook_left_on_a_model_is_noticed(kind: str, checkpoints: Any, tmp_path: Path):
    model = load_tiny(checkpoints("gpt2"))
    expected, editor = evaluate(model, RECORD), rome(model)
    remove = leave_a_hook(model, kind)
    try:
        with pytest.raises(DriftlensError, match=r"a hook is left on the model at blocks\.1.*hook_out") as caught:
            LensModel(model.model, tokenizer=model.tokenizer)
        assert "\n" not in str(caught.value)
        with pytest.warns(RuntimeWarning, match="the numbers are those of the model with it"):
            assert not evaluate(model, RECORD).equals(expected)
        # What is kept, on disk or in an edit's provenance, must say of what it is.
        with pytest.raises(DriftlensError, match="cannot be told from the model's own"):
            editor.edit(model, FACT)
    finally:
        remove()
    assert evaluate(model, RECORD).equals(expected)


@pytest.mark.skipif(not BRIDGE, reason="a HookedTransformer holds no Hugging Face model")
def test_hooks_that_hugging_face_leaves_behind_are_no_changes(checkpoints: Any):
    model = load_tiny(checkpoints("gpt2"))
    tokens = torch.tensor([[5, 6, 7]])
    model.model.original_model(tokens, output_hidden_states=True)  # it captures them with hooks that stay
    assert model.foreign_hooks == []
    LensModel(model.model, tokenizer=model.tokenizer)


def test_hooks_of_a_pass_are_gone_after_it(model: Any):
    evaluate(model, RECORD, random_edit(model, 0, 1))
    assert model.foreign_hooks == []
