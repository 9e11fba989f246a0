"""WISE against the published code's own numbers, finite differences, and plain loops over rows."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from driftlens import SADR, WISE, DriftlensError, Edit, EditResult, Fact, GuardedSADR, clinic, load_model, load_records
from driftlens.commands import cli
from driftlens.editors import EditError, Failure, Seen, Wants, WISEConventions
from driftlens.editors.restrained import with_sadr
from driftlens.editors.side_objective import evaluate_memory
from driftlens.editors.side_rows import rows_of_facts, side_rows
from driftlens.editors.ties import ties_merge
from driftlens.edits import Dense, Gated, Site, Sparse, edit_hooks, routed
from driftlens.explorer import Bench, exhibits, explorer_page
from driftlens.explorer.bench import editors_by_gamma
from driftlens.hooks import record
from driftlens.models import LensModel
from driftlens.models.prompts import pad_rows, subject_last, tokenize_prompt
from driftlens.options.program import run_command
from driftlens.runs import benchmark, cached_edits
from tests.commands.test_trace_command import RECORDS
from tests.support.places import SHARED
from tests.support.tiny import BRIDGE, shared

GOLDEN = SHARED / "golden"
LAYER = 3
# Tolerances that the golden numbers' notes state: float32 against float32 of another library version.
EARLY, LATER = 3e-4, 1e-3


# --- the published code's numbers ---


def golden_models() -> list[str]:
    return [path.stem for path in sorted((GOLDEN / "wise").glob("tiny-*.json"))] or ["missing"]


@cache
def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    folder = GOLDEN / "wise"
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


@pytest.fixture(scope="module", params=golden_models())
def name(request: pytest.FixtureRequest) -> str:
    if not BRIDGE or not (GOLDEN / "models" / str(request.param)).is_dir():
        pytest.skip("the published code's numbers are not here")
    return request.param


@pytest.fixture(scope="module")
def published(name: str) -> LensModel:
    return shared(GOLDEN / "models" / name)


def golden_fact(record: str) -> Fact:
    asked = json.loads((GOLDEN / "records.json").read_text())[record]["requested_rewrite"]
    return Fact(
        subject=asked["subject"],
        prompt=asked["prompt"].replace(asked["subject"], "{}"),
        target_true=asked["target_true"],
        target_new=asked["target_new"],
    )


class Masked(WISE):
    """With the masks and the locality prompts of a run, which the published code draws and takes one a fact."""

    given: Any

    def mask(self, model: LensModel, memory: int = 0) -> Tensor:
        return self.given.turned(self.given.masks[memory])

    def locality_for(self, model: LensModel, fact: Fact) -> tuple[str, ...]:
        return (self.given.locality[fact],)


class Job:
    """A run of the published code, and the editor that is to give its numbers."""

    def __init__(self, name: str, model: LensModel, key: str) -> None:
        runs, self.tensors = golden(name)
        self.told, self.key, self.model = runs[key], key, model
        self.facts = [golden_fact(record) for record in self.told["records"]]
        self.edits: list[dict[str, Any]] = self.told["edits"]
        self.masks = [self.tensor(f"edit{n}/mask").bool() for n in range(len(self.edits))]
        given, sadr = self.told["hparams"], self.told["sadr"]
        self.contexts = self.told["contexts"][0] if self.told["sequential_edit"] else self.told["contexts"]
        heads = "selected" if sadr is None or sadr["select"] else "all"
        # Where SADR is not in the loss it is recorded all the same.
        gamma = sadr["gamma"] if sadr else 0.0
        self.editor: Any = Masked(
            layer=LAYER, steps=given["n_iter"], lr=given["edit_lr"], mask_ratio=given["mask_ratio"],
            norm_constraint=given["norm_constraint"], alpha=given["alpha"], beta=given["beta"], gamma=given["gamma"],
            act_ratio=given["act_ratio"], save_freq=given["save_freq"], merge_freq=given["merge_freq"],
            retrieve=given["retrieve"], density=given["densities"], contexts=tuple(self.contexts),
            conventions=WISEConventions.published(),
            regularizers=(SADR(gamma=gamma, heads=heads),) if gamma else (),
        )  # fmt: skip
        self.locality = dict(zip(self.facts, self.told["loc_prompts"], strict=True))
        self.editor.__dict__["given"] = self

    def tensor(self, name: str) -> Tensor:
        return self.tensors[f"{self.key}/{name}"]

    def names(self, start: str) -> list[str]:
        return sorted(
            name.removeprefix(f"{self.key}/") for name in self.tensors if name.startswith(f"{self.key}/{start}")
        )

    def after(self, step: int, edit: int = 0) -> Tensor:
        """W' − W after a step's update, in float32 and driftlens's orientation."""
        return self.turned(self.tensor(f"edit{edit}/new_weight_after_step{step}")) - self.model.W_out(LAYER)

    def turned(self, stored: Tensor) -> Tensor:
        """A weight as [d_mlp, d_model]."""
        return stored if self.model.family == "gpt2" else stored.T

    def trained(self, steps: int) -> Tensor:
        """Our side memory after so many steps."""
        editor: Any = replace(self.editor, steps=steps)
        editor.__dict__["given"] = self
        (memory,) = editor._train(
            self.model, self.facts, self.editor.mask(self.model), editor._training(self.model), None
        )
        assert not isinstance(memory, Failure)
        return memory.delta

    @property
    def noise(self) -> float:
        """Of the last memory, by what the code itself differs from its run in float64."""
        return max(LATER, *(20 * (value or 0) for value in (self.told.get("fp64") or {"": 0}).values()))

    def tolerance(self, step: int) -> float:
        noise = (self.told.get("fp64") or {}).get("loss_abs_max") or 0.0
        return EARLY if step <= 3 else max(LATER, 20 * noise)


UNPADDED = [
    "down/407/nopad", "down/28/nopad", "down/407/nopad_pub", "down/407/nopad_sadr_g1e-2", "down/28/nopad_sadr_g1e-2",
    "down/28/nopad_sadr_g1", "down/28/nopad_sadr_all_g1", "down/407/nopad_earlystop",
]  # fmt: skip


@pytest.fixture(scope="module", params=UNPADDED)
def job(request: pytest.FixtureRequest, name: str, published: LensModel) -> Job:
    return Job(name, published, request.param)


@pytest.fixture(scope="module")
def result(job: Job) -> EditResult:
    return job.editor.edit(job.model, job.facts[0])


COLUMNS = {
    "nll": "ft", "margin_gap": "term_gamma", "margin_irrelevant": "term_alpha", "margin_edited": "term_beta",
    "sadr": "sadr",
}  # fmt: skip


def test_every_step_is_the_published_codes(job: Job, result: EditResult):
    (told,) = job.edits
    assert len(result.history) == told["n_steps_evaluated"]
    for row, expected in zip(result.history.to_dict("records"), told["steps"], strict=True):
        found = {ours: row[ours] for ours in COLUMNS if ours in row}
        wanted = {ours: expected[theirs] for ours, theirs in COLUMNS.items() if ours in row}
        found |= {"in": row["distance_edited"], "out": row["distance_irrelevant"]}
        wanted |= {"in": sum(expected["in_scope"]) / len(expected["in_scope"]), "out": expected["out_scope"][0]}
        for key, value in wanted.items():
            assert found[key] == pytest.approx(value, abs=job.tolerance(row["step"])), (key, row["step"])


def test_the_memory_after_its_steps_is_the_published_codes(job: Job):
    mask = job.editor.mask(job.model)
    told = job.edits[0]
    for name in job.names("edit0/new_weight_after_step"):
        step = int(name.rsplit("step", 1)[1])
        delta, expected = job.trained(step + 1), job.after(step)
        error = float((delta - expected).norm() / expected.norm())
        noise = (job.told["fp64"] or {}).get(f"new_weight_after_step{step}") or 0
        assert error < (EARLY if step <= 3 else max(LATER, 20 * noise))
        if step <= 3:  # entries outside the mask shrink with W, as its weight decay has no mask
            outside = delta[~mask]
            assert float((outside - expected[~mask]).abs().max()) < 1e-6
            assert float(outside.abs().max()) > 0
    assert told["n_updates"] == told["n_steps_evaluated"] - (job.key.endswith("earlystop"))


def loss_gradient(editor: WISE, model: LensModel, fact: Fact, delta: Tensor) -> tuple[Tensor, float]:
    """The gradient of a fact's whole loss at a memory, and the loss."""
    whole = editor.conventions.tokens == "all"
    (own,), _ = rows_of_facts(
        model,
        [fact],
        contexts=editor.contexts_for(model),
        irrelevant=[editor.locality_for(model, fact)],
        whole_target=whole,
    )
    assert own is not None
    rows = side_rows(model, [own], layer=editor.layer, whole_target=whole)
    settings = editor.side_settings(model)
    with torch.no_grad():
        nothing = [torch.zeros_like(delta)]
        vanilla = evaluate_memory(model, rows, nothing, layer=editor.layer, settings=settings, vanilla=None)[1]
    leaf = delta.clone().requires_grad_()
    terms, _ = evaluate_memory(model, rows, [leaf], layer=editor.layer, settings=settings, vanilla=vanilla)
    terms.loss.sum().backward()
    assert leaf.grad is not None
    return leaf.grad, float(terms.loss.detach())


def test_the_gradient_is_the_published_codes(job: Job):
    for name in job.names("edit0/grad_raw_step"):
        step = int(name.rsplit("step", 1)[1])
        delta = job.trained(step) if step else torch.zeros_like(job.model.W_out(LAYER))
        found, _ = loss_gradient(job.editor, job.model, job.facts[0], delta)
        expected = job.turned(job.tensor(name))
        assert float((found - expected).norm() / expected.norm()) < EARLY


def score(model: LensModel, gate: Gated, text: str) -> float:
    batch, _ = pad_rows(model, [model.encode(text).ids])
    seen: list[Tensor] = []
    names = model.linear_hooks(gate.site)
    model.run(batch, hooks=[(name, lambda x, hook: seen.append(x)) for name in names], stop=gate.site.layer + 1)
    inputs, outputs = seen
    return float(gate.score(model, inputs, outputs, batch.mask))


def check_queries(job: Job, edit: Edit) -> None:
    for query in job.told["queries"]:
        ids = job.model.encode(query["text"]).ids
        (acting,) = routed(job.model, [edit], [ids])
        assert acting is not None
        assert bool(acting.changes) == (query["branch"] != "original"), query
        (distance,) = {max(query["d_new"], query.get("d_layer", 0.0), *query.get("d_memory", ()))}
        assert score(job.model, edit.gates[0], query["text"]) == pytest.approx(distance, rel=job.noise)
        batch, _ = pad_rows(job.model, [ids])
        logits = job.model.unembed(job.model.run(batch, hooks=edit_hooks(job.model, [acting])))[0, -1]
        assert int(logits.argmax()) == query["argmax"]
        stored = f"query/{query['name']}/logprobs"
        if stored in job.names("query"):
            torch.testing.assert_close(logits.log_softmax(-1), job.tensor(stored), rtol=0, atol=job.tolerance(99))


def test_prompts_are_routed_as_by_the_published_code(job: Job, result: EditResult):
    (gate,) = result.edit.gates
    threshold = job.told["hparams"]["act_ratio"] * job.edits[0]["threshold_act"]
    assert gate.router.threshold == pytest.approx(threshold, rel=LATER)
    check_queries(job, result.edit)


SEQUENCES = ["down/seq2/ties_merge", "down/seq2/ties_retrieve", "down/seq4/ties_merge", "down/seq2/same_memory"]


@pytest.fixture(scope="module", params=SEQUENCES)
def sequence(request: pytest.FixtureRequest, name: str, published: LensModel) -> Job:
    return Job(name, published, request.param)


def test_a_sequence_is_the_published_codes(sequence: Job):
    joint = sequence.editor.edit_together(sequence.model, sequence.facts)
    for number, told in enumerate(sequence.edits):
        history: Any = joint.history[joint.history["fact"] == number]
        assert len(history) == told["n_steps_evaluated"]
        for row, expected in zip(history.to_dict("records"), told["steps"], strict=True):
            for ours, theirs in COLUMNS.items():
                if ours in row:
                    assert row[ours] == pytest.approx(expected[theirs], abs=sequence.tolerance(row["step"])), (
                        number,
                        row,
                    )
    (gate,) = joint.edit.gates
    last = f"edit{len(sequence.edits) - 1}"
    final = [name for name in sequence.names(last) if name.endswith("/merged")] or sequence.names(f"{last}/new_weight")
    expected = sequence.turned(sequence.tensor(final[-1])) - sequence.model.W_out(LAYER)
    away = (gate.change.matrix() - expected).abs()
    # What no mask covers differs from W by its weight decay alone.  Which of these entries Ties counts among the
    # largest is then a matter of float32's last bit, and halves a large entry of another memory or leaves it whole.
    merged = final[-1].endswith("merged")
    assert float((away > LATER).double().mean()) < (5e-3 if merged else 1e-9)
    threshold = sequence.told["hparams"]["act_ratio"] * sequence.edits[-1]["threshold_act"]
    assert gate.router.threshold == pytest.approx(threshold, rel=LATER)
    check_queries(sequence, Edit([Gated(change=Sparse.of(gate.site, expected), router=gate.router)]))


def test_ties_is_the_published_codes(sequence: Job):
    W = sequence.tensor("edit1/merge0/layer") if sequence.names("edit1/merge0") else None
    for merged in [name for name in sequence.names("edit") if name.endswith("/merged")]:
        prefix = merged.removesuffix("merged")
        assert W is not None
        layer = sequence.tensor(f"{prefix}layer")
        changes = [sequence.tensor(name) - W for name in sequence.names(f"{prefix}input")]
        weights = [1 / len(changes)] * len(changes)
        if not torch.equal(layer, W):  # the layer carries a merge already
            weights = [*(0.4 * weight for weight in weights), 0.6]
            changes.append(layer - W)
        found = W + ties_merge(changes, weights, 0.53)
        torch.testing.assert_close(found, sequence.tensor(merged), rtol=0, atol=1e-6)


# --- numbers of our own ---


FACT = Fact(subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_true="French", target_new="guitar")
OTHER = Fact(subject="Toko Yasuda", prompt="{} plays the", target_true="guitar", target_new="national library")
LONG = Fact(
    subject="Vltava", prompt="Where the mayor meets the Elbe is the river {}", target_true="in", target_new="metal"
)


def small(layer: int = 1, **settings: Any) -> WISE:
    defaults: dict[str, Any] = {
        "layer": layer, "steps": 4, "lr": 0.05, "alpha": 0.5, "beta": 3.0, "gamma": 2.0,
        "contexts": ("{}", "The guitar. {}"), "locality": ("Apple A5 is produced by Apple", "the Elbe"),
        "early_stop_loss": -1.0,
    }  # fmt: skip
    return WISE(**defaults | settings)


@pytest.fixture(scope="module", params=["gpt2", "gptj", "llama-gqa", "gemma2"])
def exact(request: pytest.FixtureRequest, checkpoints: Any) -> LensModel:
    if not BRIDGE and request.param == "gemma2":
        pytest.skip("this family needs transformer-lens 4.3")
    return shared(checkpoints(request.param), exact=True)


@pytest.fixture(scope="module")
def tiny(checkpoints: Any) -> LensModel:
    return shared(checkpoints("gpt2"))


@pytest.mark.parametrize("conventions", [WISEConventions(), WISEConventions.published()])
def test_the_gradient_is_that_of_finite_differences(exact: LensModel, conventions: WISEConventions):
    """Of the whole loss, SADR included, where all three margins are open, along directions drawn at random."""
    editor = small(conventions=conventions, regularizers=(SADR(gamma=0.5, heads="all"),))
    generator = torch.Generator().manual_seed(0)

    def drawn(scale: float) -> Tensor:
        return scale * torch.randn(exact.d_mlp, exact.d_model, generator=generator, dtype=torch.float64)

    delta = drawn(0.05)
    gradient, _ = loss_gradient(editor, exact, FACT, delta)
    for _ in range(3):
        way, h = drawn(1.0), 1e-4
        up, down = (loss_gradient(editor, exact, FACT, delta + sign * h * way)[1] for sign in (1, -1))
        # Every family but GPT-2 takes attention's softmax in float32, which a smaller h would see.
        assert (up - down) / (2 * h) == pytest.approx(float((gradient * way).sum()), rel=1e-3, abs=1e-3)


def plain_distance(model: LensModel, matrix: Tensor, text: str) -> float:
    """Δ of one prompt, token by token, from a pass of that prompt alone."""
    batch, _ = pad_rows(model, [model.encode(text).ids])
    seen: list[Tensor] = []
    model.run(batch, hooks=[(model.hook_name("mlp_post", 1), lambda x, hook: seen.append(x))])
    return sum(float((x @ matrix).square().sum().sqrt()) for x in seen[0][0]) / seen[0].shape[1]


TEXTS = ("The mother tongue of Danielle Darrieux is", "Toko Yasuda plays the", "metal", "Where does the river end")


def test_gates_decide_row_by_row(exact: LensModel):
    """Rows with different memories side by side, against a loop over prompts and tokens."""
    editor = small()
    results = editor.edit_many(exact, [FACT, OTHER])
    matrices = [result.edit.gates[0].change.matrix() for result in results]
    for result, matrix in zip(results, matrices, strict=True):
        contexts = [context.replace("{}", result.fact.text) for context in ("{}", "The guitar. {}")]
        smallest = min(plain_distance(exact, matrix, text) for text in contexts)
        assert result.edit.gates[0].router.threshold == pytest.approx(editor.act_ratio * smallest, rel=1e-6)
    asked = [(n, text) for text in TEXTS for n in (0, 1)]
    acting = routed(exact, [results[n].edit for n, _ in asked], [exact.encode(text).ids for _, text in asked])
    opened = [bool(edit and edit.changes) for edit in acting]
    for (n, text), is_open in zip(asked, opened, strict=True):
        assert is_open == (plain_distance(exact, matrices[n], text) > results[n].edit.gates[0].router.threshold)
    assert opened[0]  # the edited prompts themselves
    assert opened[3]
    assert not all(opened)
    # And what an open gate gives is the model with W' in place of W, in its own row only.
    batch, _ = pad_rows(exact, [exact.encode(text).ids for _, text in asked])
    found = exact.run(batch, hooks=edit_hooks(exact, acting))
    for row, ((n, _), is_open) in enumerate(zip(asked, opened, strict=True)):
        with (
            exact.rewritten(lambda site, w, n=n: w + matrices[n], sites=[results[n].edit.sites[0]], what="W'")
            if is_open
            else nullcontext()
        ):
            alone = exact.run(batch.take(slice(row, row + 1)))
        torch.testing.assert_close(found[row][batch.mask[row]], alone[0][batch.mask[row]], rtol=1e-5, atol=1e-6)


def test_a_fact_gets_the_numbers_that_it_has_alone(exact: LensModel):
    """Also where its neighbours are wider, stop earlier, or cannot be edited."""
    editor = small(steps=6, regularizers=(SADR(gamma=0.5),), early_stop_loss=1e9, early_stop_change=0.3)
    unreadable = Fact(subject="Elbe", prompt="metal " * 80 + "the {}", target_true="in", target_new="where")
    facts = [FACT, LONG, unreadable, OTHER]
    together = editor.try_many(exact, facts, batch_size=4)
    assert isinstance(together[2], Failure)
    lengths: set[int] = set()
    for fact, result in zip(facts, together, strict=True):
        if isinstance(result, Failure):
            continue
        alone: Any = editor.edit(exact, fact)
        pd.testing.assert_frame_equal(result.history, alone.history, rtol=1e-5, atol=1e-7)
        ours, theirs = (one.edit.gates[0].change.matrix() for one in (result, alone))
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
        lengths.add(len(alone.history))
        terms = alone.history[["nll", "margin_gap", "margin_irrelevant", "margin_edited", "sadr"]]
        pd.testing.assert_series_equal(terms.sum(axis=1), alone.history["loss"], check_names=False)


def test_only_the_mask_moves_and_never_beyond_the_clamp(tiny: LensModel):
    editor = small(norm_constraint=0.02, steps=8, weight_decay=0.1)
    before = tiny.model_hash
    (gate,) = editor.edit(tiny, FACT).edit.gates
    matrix = gate.change.matrix()
    assert tiny.model_hash == before
    assert not bool((matrix != 0)[~editor.mask(tiny)].any())
    assert float(matrix.abs().max()) == pytest.approx(0.02)
    assert 0.19 < float(editor.mask(tiny).double().mean()) < 0.21
    assert not torch.equal(editor.mask(tiny), editor.mask(tiny, 1))
    assert torch.equal(editor.mask(tiny), replace(editor, lr=3.0).mask(tiny))


def test_a_file_holds_the_gate(tiny: LensModel, tmp_path: Path):
    edit = small().edit(tiny, FACT).edit
    edit.save(tmp_path / "edit.safetensors")
    again = Edit.load(tmp_path / "edit.safetensors")
    assert again.equals(edit)
    assert again.facts == (FACT,)
    assert again.provenance["editor"] == "WISE"
    ids = [tiny.encode(text).ids for text in TEXTS]
    opened = [[bool(one and one.changes) for one in routed(tiny, [e] * len(ids), ids)] for e in (edit, again)]
    assert opened[0] == opened[1]
    size = (tmp_path / "edit.safetensors").stat().st_size
    assert size < 4 * tiny.d_mlp * tiny.d_model * 0.3  # a fifth of the entries, and a bit for each
    for wanted, attempt in (
        ("applied", lambda: edit.applied(tiny).__enter__()),
        ("exported", lambda: edit.export(tiny, tmp_path / "x")),
    ):
        with pytest.raises(
            DriftlensError, match=f"the edit cannot be {wanted}: its gated change .* depends on the prompt"
        ) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")
def test_in_bfloat16_it_is_the_same_edit_to_its_precision(checkpoints: Any):
    """Memories are held in float32, so that steps too small for bfloat16 add up."""
    model = load_model(checkpoints("llama"), device="cpu", dtype="bfloat16")
    editor = small(lr=1e-3, steps=20, alpha=1e9, beta=-1e9, gamma=-1e9)
    result = editor.edit(model, FACT)
    whole = editor.edit(shared(checkpoints("llama")), FACT)
    ours, theirs = (one.edit.gates[0].change.matrix() for one in (result, whole))
    assert ours.dtype == torch.float32
    assert float((ours - theirs).norm() / theirs.norm()) < 0.1
    nll = result.history["nll"]
    assert nll.iloc[-1] < nll.iloc[0]
    assert nll.iloc[-1] == pytest.approx(whole.history["nll"].iloc[-1], abs=0.15)


def test_facts_fill_memories_that_are_merged(exact: LensModel):
    editor = small(save_freq=1, merge_freq=2, steps=3)
    alone = [replace(editor, seed=0).edit(exact, FACT)]
    joint: Any = editor.edit_together(exact, [FACT, OTHER, LONG])
    assert joint.history["fact"].unique().tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(
        joint.history[joint.history["fact"] == 0].drop(columns="fact"), alone[0].history, rtol=1e-6
    )
    merged, _ = joint.edit.gates  # the first two facts' as one, and the third's
    both = merged.change.matrix()
    assert float((both[~(editor.mask(exact) | editor.mask(exact, 1))]).abs().max()) == 0
    contexts = ("{}", "The guitar. {}")
    smallest = min(plain_distance(exact, both, c.replace("{}", f.text)) for f in (FACT, OTHER) for c in contexts)
    assert merged.router.threshold == pytest.approx(0.88 * smallest, rel=1e-6)
    again = small(save_freq=2, merge_freq=2, steps=3).edit_together(exact, [FACT, OTHER])
    (gate,) = again.edit.gates
    assert not bool((gate.change.matrix() != 0)[~editor.mask(exact)].any())
    assert float(again.history["nll"].iloc[3]) != pytest.approx(float(joint.history["nll"].iloc[3]))
    merge = replace(editor, retrieve=False).edit_together(exact, [FACT, OTHER, LONG, FACT])
    assert len(merge.edit.gates) == 1
    retrieve = editor.edit_together(exact, [FACT, OTHER, LONG, FACT])
    assert len(retrieve.edit.gates) == 2


def test_ties_by_hand():
    one = torch.tensor([[4.0, -3.0, 0.5, 1.0]])
    other = torch.tensor([[2.0, 5.0, 0.2, -4.0]])
    found = ties_merge([one, other], [0.5, 0.5], 0.75)  # the 0.5 is kept, of the other the 0.2 is trimmed
    torch.testing.assert_close(found, torch.tensor([[3.0, 5.0, 0.0, -4.0]]))
    found = ties_merge([one, other], [0.2, 0.8], 1.0)
    torch.testing.assert_close(found, torch.tensor([[2.4, 5.0, 0.26, -4.0]]))


class Sees:
    """A regulariser that looks at everything, and compares by its own arithmetic."""

    wants = Wants(attention=True, patterns=True, hidden=True, next_tokens=True)

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def penalty(self, seen: Seen) -> Tensor:
        self.seen.append(seen)
        before, now = seen.before.log_probabilities, seen.now.log_probabilities
        assert before is not None
        assert now is not None
        return (before.exp() * (before - now)).sum(-1)


def test_regularisers_see_the_contexts_and_nothing_else(exact: LensModel):
    watcher = Sees()
    guarded = GuardedSADR(gamma=0.1, gamma_guards=0.1, subjects=("Toko Yasuda",), own_words=1, distracted=1, tokens=3)
    result = small(steps=2, regularizers=(watcher, guarded)).edit(exact, FACT)
    assert [*result.history.columns[6:-3]] == ["sees", "sadr", "guards"] or "sees" in result.history
    assert (result.history.loc[0, ["sees"]].abs() < 1e-6).all()
    assert result.history.loc[1, "sees"] > 0
    seen: Any = watcher.seen[-1]
    prompts = [tokenize_prompt(exact, c.replace("{}", FACT.text)) for c in ("{}", "The guitar. {}")]
    (matrix,) = [small(steps=1, regularizers=(Sees(), guarded)).edit(exact, FACT).edit.gates[0].change.matrix()]
    for row, prompt in enumerate(prompts):
        batch, _ = pad_rows(exact, [prompt.prompt_ids])
        store: dict[str, Tensor] = {}
        hooks = [(exact.hook_name(site, 2), record(store, site)) for site in ("pattern", "resid_post")]
        change = Edit([Dense(site=Site(1), weight=matrix)])
        logits = exact.unembed(exact.run(batch, hooks=[*hooks, *change.hooks(exact)]))[0, -1]
        at = subject_last(prompt, FACT.subject, start=prompt.text.index(FACT.subject))
        width = prompt.n_prompt - at
        assert int(seen.last[row]) == width - 1
        begin = int(seen.subject[row]) - at
        assert seen.now.hidden is not None
        assert seen.now.patterns is not None
        close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(
            seen.edited[0, row][:, begin : begin + prompt.n_prompt], store["pattern"][0, :, -1], **close
        )
        torch.testing.assert_close(
            seen.now.patterns[0, row, :, :width, begin : begin + prompt.n_prompt], store["pattern"][0, :, at:], **close
        )
        torch.testing.assert_close(seen.now.hidden[1, row, :width], store["resid_post"][0, at:], **close)
        torch.testing.assert_close(seen.now.log_probabilities[row], logits.log_softmax(-1), **close)


def test_sadr_restrains_the_drift(tiny: LensModel):
    history = [
        small(steps=12, regularizers=(SADR(gamma=g, heads="all"),)).edit(tiny, FACT).history for g in (1e-9, 3.0)
    ]
    drift = [float(own["sadr"].iloc[-1]) / gamma for own, gamma in zip(history, (1e-9, 3.0), strict=True)]
    assert drift[1] < drift[0]


def test_mistakes_are_one_line(tiny: LensModel):
    mistakes: dict[str, dict[str, Any]] = {
        "act_ratio is 1; expected a number between": {"act_ratio": 1},
        "mask_ratio is 0; expected a share": {"mask_ratio": 0},
        "merge_freq is 3, but a memory holds 2 facts": {"merge_freq": 3, "save_freq": 2},
        "norm_constraint is 0; expected a number above 0": {"norm_constraint": 0},
        "give at least one text": {"locality": ()},
        "beta is inf": {"beta": float("inf")},
    }
    for message, settings in mistakes.items():
        with pytest.raises(DriftlensError, match=message) as caught:
            small(**settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(DriftlensError, match="unknown setting of WISE 'kl_factor'"):
        WISE.for_model(tiny, kl_factor=0.5)
    with pytest.raises(DriftlensError, match="layer 9 is out of range"):
        small(layer=9).edit(tiny, FACT)
    with pytest.raises(DriftlensError, match="no facts"):
        small().edit_together(tiny, [])
    with pytest.raises(EditError, match="not finite"):
        small(lr=1e38, norm_constraint=1e38, steps=8).edit(tiny, FACT)


def test_a_model_that_nobody_has_tuned_gets_margins_of_its_own(tiny: LensModel):
    editor = WISE.for_model(tiny)
    assert editor.layer == tiny.n_layers - 2
    assert editor.alpha == editor.beta / 4
    result = editor.edit(tiny, FACT)
    history = result.history
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert history["distance_edited"].iloc[-1] > history["distance_irrelevant"].iloc[-1]


# --- everywhere else ---


@pytest.fixture
def arguments(checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if not BRIDGE:
        pytest.skip("commands load a checkpoint by name, which needs transformer-lens 4.3")
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("records.json").write_text(json.dumps(RECORDS))
    usual = ["--model", str(checkpoints("gpt2")), "--device", "cpu", "--editor", "wise", "--data", "records.json"]
    return lambda *more: [*usual, *more]


def test_commands_take_it(arguments: Any, capsys: pytest.CaptureFixture[str]):
    few = ["--steps", "2", "--contexts", "2x1"]
    traced = ["--max-prompts", "1", "--no-png", "--explore", "--window", "1", "--sadr", "--out", "out"]
    assert cli.main(["trace", *arguments(*few, *traced)]) == 0
    assert "WISE" in capsys.readouterr().out
    edit = Edit.load("out/edit.safetensors")
    assert (edit.provenance["editor"], edit.is_weights) == ("WISE", False)
    assert "WISE" in Path("out/explore.html").read_text()
    assert cli.main(["evaluate", *arguments(*few, "--limit", "1", "--out", "run")]) == 0
    assert Path("run/scores.csv").is_file()
    assert cli.main(["profile", *arguments()[:4], "--editor", "wise", "--data", "records.json", "--records", "2",
                     "--no-generation", "--json", "p.json"]) == 0  # fmt: skip
    assert "wise" in Path("p.json").read_text()
    capsys.readouterr()
    assert run_command(cli.main, ["trace", *arguments("--kl", "0.1")]) == 2
    assert "--kl is no setting of wise; leave it out" in capsys.readouterr().err


def test_runs_resume_and_caches_find(arguments: Any, tiny: LensModel, tmp_path: Path):
    records = load_records("records.json")[:2]
    editor = small(steps=2)
    whole = benchmark(tiny, records, editor, tmp_path / "whole", tasks=("rewrite",), generate=False, shard_size=1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark(
            tiny, records, editor, tmp_path / "run", tasks=("rewrite",), generate=False, shard_size=1, on_shard=stop
        )
    resumed: Any = benchmark(tiny, records, editor, tmp_path / "run", tasks=("rewrite",), generate=False, shard_size=1)
    pd.testing.assert_frame_equal(resumed.nlls, whole.nlls)
    assert (resumed.records["problem"] == "").all()
    facts = [record.fact for record in records]
    made = cached_edits(tiny, editor, facts, tmp_path / "edits")
    read = cached_edits(tiny, editor, facts, tmp_path / "edits")
    assert all(one.equals(other) for one, other in zip(made, read, strict=True))
    other = replace(editor, conventions=WISEConventions.published())
    cached_edits(tiny, other, facts[:1], tmp_path / "edits")
    assert len(list((tmp_path / "edits").glob("edit-*"))) == 3


def test_the_clinic_and_the_explorer(arguments: Any, tiny: LensModel):
    fact, editor = load_records("demo")[0].fact, small(steps=2)
    report = clinic(
        tiny, subject=fact.subject, prompt=fact.prompt, new=fact.target_new, true=fact.target_true, editor=editor,
        gammas=(0.1,), force=True,
    )  # fmt: skip
    assert report.edit is not None
    assert report.edit.provenance["editor"] == "WISE"
    bench = Bench(tiny, exhibits(load_records("records.json")[:1], most=1), editors_by_gamma(tiny, editor))
    page = explorer_page(bench, (None, 0.1), (1,), editor="WISE")
    assert b"WISE + SADR" in page


def test_steps_follow_gamma_on_a_model_without_a_preset(tiny: LensModel):
    """The clinic and the explorer choose the steps anew for each γ."""
    usual = WISE.for_model(tiny)
    assert usual.steps == WISE.steps
    assert with_sadr(tiny, usual, 0.1).steps == WISE.steps
