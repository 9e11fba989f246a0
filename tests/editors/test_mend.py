"""MEND against numbers of the published code, plain Hugging Face gradients, and itself undisturbed."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from driftlens import MEND, SADR, DriftlensError, Edit, Fact, LensModel, evaluate, load_records, train_mend
from driftlens.data import TASKS, Record, TaskPrompt
from driftlens.editors import EditError, MENDTraining, TrainedMEND
from driftlens.editors.identity import identity
from driftlens.editors.mend_data import Example, examples, split_records
from driftlens.editors.mend_gradients import Targets, enter, gradient_factors
from driftlens.editors.mend_losses import Drawn, ExampleRows, edit_losses
from driftlens.editors.mend_network import Factors, Hypernetwork
from driftlens.editors.mend_state import TrainingState
from driftlens.editors.mend_training import optimizer_for, training_step
from driftlens.models.prompts import subject_last, tokenize_prompts
from driftlens.models.sites import LINEAR_MAPS, Site
from tests.support.places import ROOT, SHARED
from tests.support.tiny import BRIDGE, load_tiny

GOLDEN = SHARED / "golden"
FACTS = (
    Fact(subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_true="French", target_new="metal"),
    Fact(subject="Toko Yasuda", prompt="{} plays the", target_true="guitar", target_new="national library"),
    Fact(subject="Vltava", prompt="The mayor lives by the river {}", target_true="in", target_new="where"),
)


def record(index: int, fact: Fact, split: str | None = None) -> Record:
    """Two paraphrases, one of which does not name the subject, and a neighbour."""
    texts = (f"It is said that {fact.text}", "The guitar of the mayor is")
    wordings = [TaskPrompt(text=text, target_true=fact.target_true, target_new=fact.target_new) for text in texts]
    near = TaskPrompt(text=f"The Elbe {index} is", target_true=fact.target_true, target_new=fact.target_new)
    tasks = {**dict.fromkeys(TASKS, ()), "paraphrase": tuple(wordings), "neighborhood": (near,)}
    return Record(index=index, fact=fact, tasks=tasks, split=split)


def several(count: int, split: str | None = None) -> list[Record]:
    objects = ("metal", "guitar", "Delft", "Leiden", "Apple", "Nissan")
    return [
        record(
            number,
            Fact(
                subject=f"river {number}",
                prompt="{} lies in",
                target_true=objects[number % 5 + 1],
                target_new=objects[number % 5],
            ),
            split,
        )
        for number in range(count)
    ]


def maps(model: LensModel, *layers: int) -> dict[Site, tuple[int, int]]:
    found: dict[Site, tuple[int, int]] = {}
    for layer in layers:
        for linear in LINEAR_MAPS:
            try:
                d_in, d_out = model.linear(Site(layer, linear))[0].shape
            except DriftlensError:
                continue
            found[Site(layer, linear)] = (d_in, d_out)
    return found


def plain(model: LensModel, **settings: Any) -> Hypernetwork:
    """The identity: mean 0 and deviation 1, so that factors stay as they are but for the 1e-7 beside the deviation."""
    network: Any = Hypernetwork(maps(model, 1, 2), **{"rank": 4, "rate": 0.3} | settings).to(model.dtype)
    for transform in network.transforms.values():
        transform.count.fill_(2)
        transform.squares.fill_(1)
    return network


def away(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    assert float(expected.norm()) > 0
    return float((found - expected).norm() / expected.norm())


# --- against plain gradients ---


def test_the_identity_is_a_plain_gradient_step(exact_model: LensModel):
    """ΔW = −rate · ∇W, with ∇W from autograd through the weight itself.  The 1e-7 beside the deviation is the rest."""
    network = plain(exact_model)
    prompts = tokenize_prompts(exact_model, [(fact.text, fact.target_new) for fact in FACTS])
    entry = enter(exact_model, [prompt.forced for prompt in prompts], 1)
    factors, nll = gradient_factors(exact_model, entry, Targets.of(exact_model, prompts), network.sites)
    targets = Targets.of(exact_model, prompts)
    stored = dict(exact_model.named_weights())
    names = {site: exact_model.stored_name(site) for site in network.sites}
    for number, prompt in enumerate(prompts):
        own = enter(exact_model, [prompt.forced], 0)
        weights = {site: stored[name] for site, name in names.items() if name is not None}
        assert weights  # a joint weight, as of Phi-3, has no tensor of its own
        try:
            for weight in weights.values():
                weight.requires_grad_()
            with torch.enable_grad():
                logits = exact_model.unembed(exact_model.run(own.batch))[0, prompt.last :]
                loss = torch.nn.functional.cross_entropy(logits, torch.tensor(prompt.target_ids))
                gradients = torch.autograd.grad(loss, list(weights.values()))
        finally:
            for weight in weights.values():
                weight.requires_grad_(False)  # noqa: FBT003
        assert float(loss.detach()) == pytest.approx(float(nll[targets.row == number].mean()), rel=1e-9)
        for site, gradient in zip(weights, gradients, strict=True):
            left, right = (part[number] for part in network.update(site, factors[site]))
            shaped = gradient if gradient.shape == (len(left), right.shape[1]) else gradient.T
            if gradient.shape[0] == gradient.shape[1]:
                raise AssertionError("a square weight would not tell its orientation")
            # Families other than GPT-2 compute parts of a pass in float32.
            assert away(left @ right, -0.3 * shaped) < (1e-6 if exact_model.family == "gpt2" else 1e-4)


@pytest.mark.backend
def test_an_edit_lowers_the_loss_as_the_paper_has_it_and_raises_it_as_the_code_does(exact_model: LensModel):
    for sign, falls in (("paper", True), ("published", False)):
        editor = MEND(hypernetwork=trained(exact_model, plain(exact_model, rate=1e-3, sign=sign)))
        for result in editor.edit_many(exact_model, FACTS):
            before, after = result.history["nll"]
            assert (after < before) is falls


def trained(model: LensModel, network: Hypernetwork, sadr: SADR | None = None) -> TrainedMEND:
    from driftlens.editors.mend_files import About

    about = About(
        model=model.name,
        model_hash=model.model_hash,
        sites=[(site.layer, site.map) for site in network.sites],
        shapes=list(network.shapes.values()),
        rank=network.rank,
        sign=network.sign,
        sadr=None if sadr is None else {"gamma": sadr.gamma, "heads": sadr.heads},
        settings={},
        data={"name": "", "digest": "", "train": [], "validation": []},
        curve=[],
        step=0,
    )
    return TrainedMEND(network=network.requires_grad_(requires_grad=False), about=about)


@pytest.mark.backend
def test_together_alone_and_in_weights_are_the_same_edit(exact_model: LensModel):
    """Also of ranks that differ: one for each token but the last."""
    editor = MEND(hypernetwork=trained(exact_model, plain(exact_model)))
    results: Any = editor.edit_many(exact_model, FACTS)
    tolerance = 1e-9 if exact_model.family == "gpt2" else 1e-4
    for fact, result in zip(FACTS, results, strict=True):
        for mine, alone in zip(result.edit.changes, editor.edit(exact_model, fact).edit.changes, strict=True):
            assert mine.site == alone.site
            assert away(mine.matrix(), alone.matrix()) < tolerance
    tokens = [len(prompt.forced) for prompt in tokenize_prompts(exact_model, [(f.text, f.target_new) for f in FACTS])]
    ranks = [{change.site: change.rank for change in result.edit.changes} for result in results]
    assert [own[Site(1, "mlp.out")] for own in ranks] == tokens
    assert results[1].edit.changes[-1].site.layer == 2
    # In the last layer only what predicts the target counts.
    new = [len(prompt.target_ids) for prompt in tokenize_prompts(exact_model, [(f.text, f.target_new) for f in FACTS])]
    assert [own[Site(2, "mlp.out")] for own in ranks] == new
    entry = enter(exact_model, [exact_model.encode("Toko Yasuda plays the guitar").ids], 0)
    hooked = exact_model.run(entry.batch, hooks=results[1].edit.hooks(exact_model))
    with results[1].edit.applied(exact_model):
        written = exact_model.run(entry.batch)
    assert away(hooked, written) < tolerance
    after = results[1].history["nll"].iloc[-1]
    table = evaluate(exact_model, record(0, FACTS[1]), results[1].edit, tasks=["paraphrase"])
    assert len(table) == 2
    rewrite = Record(
        index=0,
        fact=FACTS[1],
        tasks={
            **dict.fromkeys(TASKS, ()),
            "rewrite": (TaskPrompt(text=FACTS[1].text, target_true="guitar", target_new=FACTS[1].target_new),),
        },
    )
    measured = evaluate(exact_model, rewrite, results[1].edit)["nll_new"].iloc[0]
    assert float(measured) == pytest.approx(float(after), rel=1e-4)


def test_facts_in_one_edit_follow_their_common_gradient(exact_model: LensModel):
    """The gradient of the mean over all target tokens is that of the facts, weighed by their tokens."""
    editor = MEND(hypernetwork=trained(exact_model, plain(exact_model)))
    joint = editor.edit_together(exact_model, FACTS[:2])
    counts = [
        len(prompt.target_ids)
        for prompt in tokenize_prompts(exact_model, [(fact.text, fact.target_new) for fact in FACTS[:2]])
    ]
    one, other = (editor.edit(exact_model, fact).edit.changes for fact in FACTS[:2])
    for both, mine, theirs in zip(joint.edit.changes, one, other, strict=True):
        expected = (counts[0] * mine.matrix() + counts[1] * theirs.matrix()) / sum(counts)
        assert away(both.matrix(), expected) < 1e-4
    with pytest.raises(DriftlensError, match="there are no facts"):
        editor.edit_together(exact_model, [])


def test_layers_are_their_formula_and_statistics_those_of_all_tokens():
    torch.manual_seed(0)
    shapes = {Site(0, "mlp.in"): (3, 5), Site(0, "mlp.out"): (5, 3), Site(1, "mlp.in"): (3, 5)}
    network = Hypernetwork(shapes, rank=2, rate=0.1).double()
    seen: list[Tensor] = []
    for count in (1, 4, 2):  # in parts, as training comes to them
        for site in (Site(0, "mlp.in"), Site(1, "mlp.in")):
            own = Factors.of(torch.randn(2, count, 3).double(), torch.randn(2, count, 5).double())
            own.used[0, 0] = False
            network.observe(site, own)
            seen.append(torch.cat([own.inputs, own.gradients], dim=-1)[own.used])
    mean, deviation = torch.cat(seen).mean(dim=0), torch.cat(seen).std(dim=0)
    transform: Any = network.transforms["3x5"]
    assert away(transform.mean, mean) < 1e-12
    assert away(transform.deviation, deviation) < 1e-12
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter))
    factors = Factors.of(torch.randn(1, 4, 3).double(), torch.randn(1, 4, 5).double())
    left, right = network.update(Site(1, "mlp.in"), factors)
    for token in range(4):
        z = (torch.cat([factors.inputs[0, token], factors.gradients[0, token]]) - mean) / (deviation + 1e-7)
        for layer in transform.layers:
            z = z + torch.relu(layer.scale[1] * (layer.u @ (layer.v @ z) + layer.bias) + layer.shift[1])
        assert away(left[0, :, token], z[:3]) < 1e-12
        assert away(right[0, token], -network.rates[2] * z[3:]) < 1e-12


def test_padding_takes_no_part(exact_model: LensModel):
    network: Any = plain(exact_model)
    for transform in network.transforms.values():
        transform.squares.zero_()  # what padding is transformed to is infinite
        transform.mean.fill_(1.0)
    factors = Factors.of(
        torch.zeros(1, 2, 48).double(), torch.zeros(1, 2, network.shapes[Site(1, "mlp.in")][1]).double()
    )
    left, right = network.update(Site(1, "mlp.in"), factors)
    assert not left.any()
    assert not right.any()


# --- against the published code ---

MAPS = {"gate_proj": "mlp.gate", "up_proj": "mlp.in", "down_proj": "mlp.out"}
PARTS = {"shift": "mode_shift.weight", "scale": "mode_scale.weight"}


class Golden:
    """Numbers of the published code on a tiny Llama, with losses to 3e-4 as its README has it."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = json.loads((GOLDEN / "mend" / "tiny-llama.json").read_text())
        self.tensors = load_file(GOLDEN / "mend" / "tiny-llama.safetensors")
        self.model: LensModel = load_tiny(GOLDEN / "models" / "tiny-llama")
        self.sites: dict[Site, str] = {}
        for name in self.told["inner_params"]:  # the order of the statistics
            _, _, layer, _, linear, _ = name.split(".")
            self.sites[Site(int(layer), MAPS[linear])] = name  # pyright: ignore[reportArgumentType]

    def network(self, rate: float = 0.0125) -> Hypernetwork:
        shapes = maps(self.model, 3, 4, 5)
        network = Hypernetwork({site: shapes[site] for site in self.sites}, rank=32, rate=rate, sign="published")
        state = network.state_dict()
        for name in self.learned(network):
            state[name] = self.tensors[f"hyper_init/{self.theirs(name)}"]
        network.load_state_dict(state)
        return network

    def learned(self, network: Hypernetwork) -> list[str]:
        return [name for name, _ in network.named_parameters() if name != "rates"]

    def theirs(self, name: str) -> str:
        _, shape, _, layer, part = name.split(".")
        return f"({shape.replace('x', ', ')}).mlp.layers.{layer}.{PARTS.get(part, part)}"

    def example(self, index: int) -> Example:
        own = self.told["texts"][str(index)]
        pairs = [(own["prompt"], own["target_new"]), (own["outer"], own["target_new"]), (own["loc"], own["loc_target"])]
        edit, outer, locality = tokenize_prompts(self.model, pairs)
        subjects = (subject_last(outer, own["subject"]),)
        return Example(edit=edit, rephrased=(outer,), subjects=subjects, locality=(locality.ids,), index=index)


@pytest.fixture(scope="module")
def golden() -> Golden:
    if not GOLDEN.is_dir():
        pytest.skip("needs ../shared/golden")
    if not BRIDGE:
        pytest.skip("load_model needs transformer-lens 4.3")
    return Golden()


def test_factors_statistics_and_updates_are_the_published_ones(golden: Golden):
    network, expected = golden.network(), golden.tensors
    for job, indices in (("init_train", [1]), ("init_eval", [407]), ("init_eval2", [407, 1677])):
        own = [golden.example(index) for index in indices]
        entry = enter(golden.model, [example.edit.forced for example in own], 3)
        targets = Targets.of(golden.model, [example.edit for example in own])
        factors, nll = gradient_factors(golden.model, entry, targets, network.sites, together=len(own))
        assert float(nll.mean()) == pytest.approx(golden.told[job]["nll_pre/edit_inner"], rel=3e-4)
        for site, name in golden.sites.items():
            if job == "init_train":
                network.observe(site, factors[site])
                transform: Any = network.transforms["x".join(map(str, network.shapes[site]))]
                mean = torch.cat([expected[f"{job}/{name}/stats_after/{part}_mean"] for part in "uv"])
                deviation = torch.cat([expected[f"{job}/{name}/stats_after/{part}_std"] for part in "uv"])
                assert away(transform.mean, mean) < 3e-4
                assert away(transform.deviation, deviation) < 3e-4
                assert float(transform.count) == float(expected[f"{job}/{name}/stats_after/k"])
            if f"{job}/{name}/u" in expected:
                length = entry.batch.shape[1]  # theirs has the target's last token, too
                raw = expected[f"{job}/{name}/u"][:, :length], expected[f"{job}/{name}/delta"][:, :length]
                used = factors[site].used.reshape(len(own), length)
                assert away(factors[site].inputs.reshape_as(raw[0])[used], raw[0][used]) < 3e-4
                assert away(factors[site].gradients.reshape_as(raw[1])[used], raw[1][used]) < 3e-4
                inputs, gradients = network.transformed(site, factors[site])
                assert away(inputs, expected[f"{job}/{name}/out_u"]) < 3e-4
                assert away(gradients, expected[f"{job}/{name}/out_delta"]) < 3e-4
            if f"{job}/{name}/dW" in expected:
                left, right = network.update(site, factors[site])
                assert away((left @ right)[0].T, expected[f"{job}/{name}/dW"]) < 3e-4


@pytest.mark.parametrize("job", ["train10", "sadr_g1e-2", "sadr_g1", "sadr_all_g1", "published_lr"])
def test_training_is_the_published_one(job: str, golden: Golden):
    """Losses of every iteration, the drift term, and the hypernetwork in the end, by the trainer's own step."""
    told, heads = golden.told[job], "all" if "_all_" in job else "selected"
    config = told["config"]
    gamma = (told["ext"] or {}).get("gamma", 0.0)
    settings = MENDTraining(
        lr=config["lr"], rate=config["edit_lr"], rate_lr=config["lr_lr"], batch_size=config["accumulate_bs"],
        sadr=SADR(gamma=gamma, heads=heads) if gamma else None,  # pyright: ignore[reportArgumentType]
        sign="published", statistics="published", optimizer="published",
    )  # fmt: skip
    network = golden.network(settings.rate)
    state = TrainingState(network=network, optimizer=optimizer_for(network, settings), path=Path(), told={})
    rows = ExampleRows(golden.model, 3)
    iterations, size = told["iterations"], settings.batch_size
    drawn = [
        Drawn(example=golden.example(index))
        for index in (golden.told["train_records"] * (1 + len(iterations) // 10))[: len(iterations)]
    ]
    noise = max(abs(told.get("fp64", {}).get(name, 0.0)) for name in ("l_edit", "l_loc"))
    bounds = [0, *range(size + 1, len(iterations) + 1, size)]
    for step, (first, last) in enumerate(pairwise(bounds)):
        expected = 0.0
        for one in iterations[first:last]:
            expected += 0.1 * one["loss/edit"] + one["loss/loc"] + gamma * one.get("sadr_raw", 0.0)
        loss = training_step(golden.model, rows, state, drawn[first:last], settings)
        state.step += 1
        assert loss * size == pytest.approx(expected, rel=3e-4 if step < 4 else max(1e-3, 20 * noise))
        if "grad" in iterations[last - 1]:
            for rate, theirs in zip(network.rates.tolist(), iterations[last - 1]["edit_lrs"], strict=True):
                assert rate == pytest.approx(theirs, rel=1e-3)
    if f"{job}/hyper_final/edit_lrs" in golden.tensors:
        for name in golden.learned(network):
            theirs = golden.tensors[f"{job}/hyper_final/{golden.theirs(name)}"]
            assert away(network.state_dict()[name], theirs) < 1e-3
        editor = MEND(hypernetwork=trained(golden.model, network))
        own = golden.told["texts"]["407"]
        fact = Fact.from_text(own["prompt"], subject=own["subject"], target_true="-", target_new=own["target_new"])
        for change in editor.edit(golden.model, fact).edit.changes:
            name = f"{job}/edit/{golden.sites[change.site]}/dW"
            if name in golden.tensors:
                assert away(change.matrix().T, golden.tensors[name]) < 1e-3


def test_the_terms_are_the_published_ones(golden: Golden):
    """NLL on the paraphrase, KL on the neighbour, drift: each by itself, and for two facts in one edit."""
    for job, together in (("sadr_g1", 1), ("batch2", 2)):
        network = golden.network()
        indices = golden.told["train_records"][:together]
        losses = edit_losses(
            golden.model, ExampleRows(golden.model, 3), network,
            [Drawn(example=golden.example(index)) for index in indices],
            sadr=SADR(gamma=1.0), observe=True, together=together,
        )  # fmt: skip
        first = golden.told[job]["iterations"][0]
        assert float(losses.edit.detach()) == pytest.approx(first["loss/edit"], rel=3e-4)
        assert float(losses.locality.detach()) == pytest.approx(first["loss/loc"], rel=3e-4)
        if together == 1:
            assert float(losses.drift.detach()) == pytest.approx(first["sadr_raw"], rel=3e-4)


# --- training ---

SHORT = MENDTraining(layers=(1, 2), rank=4, steps=6, batch_size=3, validate_every=2, rate=1e-3, lr=1e-3)


@pytest.fixture(scope="module")
def tiny(checkpoints: Any) -> LensModel:
    return load_tiny(checkpoints("gpt2"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hypernetworks"


def test_training_lowers_the_validation_loss_and_keeps_the_best(tiny: LensModel, tmp_path: Path):
    before = tiny.model_hash
    rows: list[Any] = []
    steps: list[int] = []
    found: Any = train_mend(
        tiny, several(30, "train"), tmp_path / "out.safetensors", SHORT, data="toy",
        on_step=lambda step, _: steps.append(step), on_validation=rows.append,
    )  # fmt: skip
    assert tiny.model_hash == before
    assert steps == [1, 2, 3, 4, 5, 6]
    assert found.curve["step"].tolist() == [0, 2, 4, 6]
    assert rows == found.curve.iloc[1:].to_dict("records")
    best = found.curve.loc[found.curve["loss"].idxmin()]
    assert best["step"] == found.about.step > 0
    assert (found.curve["before"] == found.curve["before"][0]).all()
    assert best["edit"] < best["before"]
    assert not list(tmp_path.glob("*.state.*"))
    # The file is the result, which is the network of the best validation.
    editor = MEND.load(tmp_path / "out.safetensors", tiny)
    assert editor.network.digest == found.network.digest
    assert identity(editor.hypernetwork) == identity(TrainedMEND.load(tmp_path / "out.safetensors"))
    assert editor.hypernetwork.about.data["name"] == "toy"
    split = split_records(several(30, "train"))
    assert found.about.data["train"] == [one.index for one in split.train]
    nll = [
        editor.edit(tiny, one.fact).history["nll"].iloc[-1]
        for one in split.validation  # judged on another wording, so that only the direction is the same
    ]
    assert sum(nll) / len(nll) < best["before"]


def test_an_interrupted_training_ends_as_an_undisturbed_one(
    tiny: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import driftlens.editors.mend_training as module

    monkeypatch.setattr(module, "_SAVE_EVERY", 0.0)
    records = several(12)
    settings = MENDTraining(**{**vars(SHORT), "sadr": SADR(gamma=0.1), "measured": 2})
    expected = train_mend(tiny, records, tmp_path / "whole.safetensors", settings)

    def stop(step: int, loss: float) -> None:
        if step in (1, 4):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_mend(tiny, records, tmp_path / "parts.safetensors", settings, on_step=stop)
    taken: list[int] = []
    found = train_mend(
        tiny, records, tmp_path / "parts.safetensors", settings, on_step=lambda step, _: taken.append(step)
    )
    assert taken == [5, 6]
    assert found.network.digest == expected.network.digest
    assert found.about == expected.about
    whole, parts = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    # Done is done; another training is not taken for this one.
    again = train_mend(tiny, records, tmp_path / "parts.safetensors", settings, on_step=stop)
    assert again.network.digest == found.network.digest
    with pytest.raises(DriftlensError, match="holds another hypernetwork"):
        train_mend(tiny, records, tmp_path / "parts.safetensors", MENDTraining(**{**vars(settings), "seed": 1}))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_mend(tiny, records, tmp_path / "other.safetensors", settings, on_step=stop)
    shorter = MENDTraining(**{**vars(settings), "steps": 3})
    with pytest.raises(DriftlensError, match="after 4 steps; give at least so many"):
        train_mend(tiny, records, tmp_path / "other.safetensors", shorter)
    with pytest.raises(DriftlensError, match="state of another training"):
        train_mend(tiny, several(13), tmp_path / "other.safetensors", settings)


KILLED = """
import sys
from tests.support.tiny import load_tiny
from pathlib import Path
from tests.editors.test_mend import SHORT, several
import driftlens.editors.mend_training as module

module._SAVE_EVERY = 0.0
module.train_mend(
    load_tiny(Path(sys.argv[1])),
    several(30, "train"),
    sys.argv[2],
    SHORT,
    on_step=lambda *told: print(*told, flush=True),
)
"""


def test_a_killed_training_ends_as_an_undisturbed_one(tiny: LensModel, checkpoints: Any, tmp_path: Path):
    path = tmp_path / "killed.safetensors"
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(checkpoints("gpt2")), str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("1 ")
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    process.wait()
    taken: list[int] = []
    found = train_mend(tiny, several(30, "train"), path, SHORT, on_step=lambda step, _: taken.append(step))
    assert taken == list(range(taken[0], 7))
    assert taken[0] > 1
    expected = train_mend(tiny, several(30, "train"), tmp_path / "whole.safetensors", SHORT)
    assert found.network.digest == expected.network.digest


def test_drift_is_restrained_by_the_training(tiny: LensModel, tmp_path: Path):
    """The same training with the term weighs less drift against the rest; with γ = 0 it is the one without."""
    settings = {**vars(SHORT), "steps": 12, "validate_every": 12, "lr": 1e-2}
    plain_one, restrained, none = (
        train_mend(
            tiny, several(30, "train"), tmp_path / f"{at}.safetensors", MENDTraining(**{**settings, "sadr": sadr})
        )
        for at, sadr in enumerate((None, SADR(gamma=50.0), SADR(gamma=0.0)))
    )
    assert restrained.curve["drift"].iloc[0] == plain_one.curve["drift"].iloc[0]
    assert restrained.curve["drift"].iloc[-1] < 0.8 * plain_one.curve["drift"].iloc[-1]
    assert none.network.digest == plain_one.network.digest
    assert none.sadr is None
    assert restrained.sadr == SADR(gamma=50.0)


def test_which_records_train():
    records = [record(number, FACTS[number % 2]) for number in range(4)] + [
        record(4 + number, Fact(subject=f"river {number // 2}", prompt="{} is", target_true="a", target_new="b"))
        for number in range(20)
    ]
    split = split_records(records, measured=4)
    assert {one.fact.subject for one in split.train}.isdisjoint({one.fact.subject for one in split.validation})
    assert {one.index for one in (*split.train, *split.validation)} == set(range(4, 24))
    assert len(split.validation) == 4
    # A subject that is measured takes no part, wherever its other records are.
    with_measured = split_records(records, measured=6)
    assert "river 0" not in {one.fact.subject for one in (*with_measured.train, *with_measured.validation)}
    own = [*several(6, "train"), *[record(10 + n, fact, "validation") for n, fact in enumerate(FACTS)]]
    assert [one.index for one in split_records(own).validation] == [10, 11, 12]
    tested = [*own, record(20, FACTS[0], "test")]
    assert [one.index for one in split_records(tested).validation] == [11, 12]
    with pytest.raises(DriftlensError, match="0 of 24 records are above the first 400"):
        split_records(records)
    demo = load_records("demo")
    chosen = split_records(demo)
    tests = {one.fact.subject for one in demo if one.split == "test"}
    assert not tests & {one.fact.subject for one in (*chosen.train, *chosen.validation)}


def test_what_an_example_is_made_of(tiny: LensModel):
    without = Record(index=9, fact=FACTS[1], tasks=dict.fromkeys(TASKS, ()))
    own, other = examples(tiny, [record(3, FACTS[0]), without])
    assert [prompt.text for prompt in own.rephrased] == [f"It is said that {FACTS[0].text}"]  # the one with the subject
    assert other.rephrased == (other.edit,)
    assert other.locality == own.locality
    (edit,) = examples(tiny, [record(3, FACTS[0])], rephrase=False)
    assert edit.rephrased == (edit.edit,)
    with pytest.raises(DriftlensError, match="no record has a neighborhood prompt"):
        examples(tiny, [without])


# --- files, and which hypernetwork ---


def test_which_hypernetwork_edits(tiny: LensModel, checkpoints: Any, tmp_path: Path, cache: Path):
    with pytest.raises(
        DriftlensError, match=r"no MEND hypernetwork of .* was trained without SADR; driftlens train-mend"
    ):
        MEND.for_model(tiny)
    drift = SADR(gamma=0.5)
    network, restrained = plain(tiny, rate=1e-3), plain(tiny, rate=1e-4)
    trained(tiny, network).save(tmp_path / "plain.safetensors")
    trained(tiny, restrained, drift).save(tmp_path / "sadr.safetensors")
    files = (tmp_path / "plain.safetensors", tmp_path / "sadr.safetensors")
    one, other = MEND.for_model(tiny, files=files), MEND.for_model(tiny, files=files, regularizers=(drift,))
    assert (one.network.digest, other.network.digest) == (network.digest, restrained.digest)
    assert (one.regularizers, other.regularizers) == ((), (drift,))
    assert other.edited_layers == (1, 2)
    assert other.restrained_above == 1
    assert one.gammas(tiny) == (0.5,)
    # What puts SADR onto an editor, or takes it away, finds the other one.
    from driftlens.editors.restrained import with_sadr

    assert with_sadr(tiny, one, 0.5).regularizers == (drift,)
    assert with_sadr(tiny, other, None).regularizers == ()
    with pytest.raises(DriftlensError, match=r"trained with SADR at γ = 0.1 \(there is: without, γ = 0.5\); driftlens"):
        with_sadr(tiny, one, 0.1)
    with pytest.raises(DriftlensError, match=r"trained without SADR and cannot edit with SADR at γ = 0.5"):
        MEND(hypernetwork=one.hypernetwork, regularizers=(drift,))
    with pytest.raises(DriftlensError, match="MEND takes SADR alone"):
        MEND.for_model(tiny, files=files, regularizers=(drift, drift))
    with pytest.raises(DriftlensError, match="unknown setting of MEND 'lr'"):
        MEND.for_model(tiny, lr=0.1)
    # Without a name: what the training has put into the cache.
    cache.mkdir(parents=True)
    files[0].rename(cache / "any-name.safetensors")
    assert MEND.for_model(tiny).network.digest == network.digest
    # Provenance tells the one from the other, and caches with it.
    told = [editor.provenance(tiny, FACTS[0]) for editor in (one, other)]
    assert told[0]["hypernetwork"] != told[1]["hypernetwork"]
    one.check_identified()


def test_another_models_hypernetwork_is_refused_or_warned_of(tiny: LensModel, checkpoints: Any, tmp_path: Path):
    trained(tiny, plain(tiny)).save(tmp_path / "mend.safetensors")
    llama = load_tiny(checkpoints("llama"))
    with pytest.raises(DriftlensError, match="whose MLPs have another shape than those of"):
        MEND.load(tmp_path / "mend.safetensors", llama)
    with pytest.raises(DriftlensError, match="the hypernetwork's mlp"):
        MEND(hypernetwork=TrainedMEND.load(tmp_path / "mend.safetensors")).edit(llama, FACTS[0])
    changed = load_tiny(checkpoints("gpt2"))
    with torch.no_grad():
        changed.W_out(0)[0, 0] += 1
    with pytest.warns(RuntimeWarning, match="the hypernetwork was trained on"):
        MEND.load(tmp_path / "mend.safetensors", changed)
    # An edit that is applied for a while makes no other model of it.
    editor = MEND.load(tmp_path / "mend.safetensors", tiny)
    with editor.edit(tiny, FACTS[0]).edit.applied(tiny):
        editor.edit(tiny, FACTS[1])


def test_a_file_that_is_none_is_said_so(tiny: LensModel, tmp_path: Path):
    path = tmp_path / "mend.safetensors"
    path.write_bytes(b"none")
    with pytest.raises(DriftlensError, match="cannot read"):
        TrainedMEND.load(path)
    Edit().save(path)
    with pytest.raises(DriftlensError, match="is no MEND hypernetwork"):
        MEND.load(path, tiny)
    network = plain(tiny)
    with torch.no_grad():
        network.rates[0] = float("nan")
    trained(tiny, network).save(path)
    with pytest.raises(DriftlensError, match="holds NaN or infinity"):
        TrainedMEND.load(path)
    trained(tiny, plain(tiny)).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DriftlensError):
        TrainedMEND.load(path)


def test_half_precision_files_keep_rates_and_statistics(tiny: LensModel, tmp_path: Path):
    network = plain(tiny, rate=1e-5)
    trained(tiny, network).save(tmp_path / "mend.safetensors", dtype=torch.float16)
    found = TrainedMEND.load(tmp_path / "mend.safetensors").network
    assert torch.equal(found.rates, network.rates)
    for name, tensor in network.state_dict().items():
        assert found.state_dict()[name].dtype == torch.float32
        assert torch.allclose(found.state_dict()[name], tensor, rtol=1e-3)


def test_facts_that_cannot_be_edited_leave_the_others(tiny: LensModel):
    editor = MEND(hypernetwork=trained(tiny, plain(tiny)))
    long = Fact(subject="Vltava", prompt="where " * 100 + "{} is", target_true="in", target_new="on")
    with pytest.raises(EditError, match="reads at most") as caught:
        editor.edit_many(tiny, [FACTS[0], long, FACTS[1]])
    results = caught.value.results
    assert results[1] is None
    assert results[2] is not None
    assert results[2].fact == FACTS[1]


def test_a_gradient_of_exactly_zero_is_no_edit(checkpoints: Any):
    model = load_tiny(checkpoints("llama"))
    with torch.no_grad():
        dict(model.named_weights())["lm_head.weight"].zero_()
    editor = MEND(hypernetwork=trained(model, plain(model)))
    with pytest.raises(EditError, match=r"the gradient at .* is zero; load the model in float32"):
        editor.edit(model, FACTS[0])


def test_settings_out_of_range(tiny: LensModel, tmp_path: Path):
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"steps": 0}, "steps is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"rank": 0}, "rank is 0"),
        ({"sign": "add"}, "sign is 'add'; expected 'paper' or 'published'"),
        ({"sadr": SADR(layers=(1,))}, "leave its layers out"),
    ]
    for given, message in mistakes:
        with pytest.raises(DriftlensError, match=message):
            MENDTraining(**given)
    mistakes = [
        ({"layers": (7,)}, "layer 7 is out of range"),
        ({"layers": (2,), "sadr": SADR()}, "layer 2 is the last of"),
    ]
    for given, message in mistakes:
        with pytest.raises(DriftlensError, match=message):
            train_mend(tiny, several(8, "train"), tmp_path / "out", MENDTraining(**given))
    with pytest.raises(DriftlensError, match="the loss is not finite"):
        train_mend(tiny, several(8, "train"), tmp_path / "out", MENDTraining(rate=1e30, layers=(1, 2)))
    assert not (tmp_path / "out").exists()


# --- the bundled model's ---


def test_the_shipped_hypernetworks_edit_the_bundled_model(demo_model: LensModel, tmp_path: Path):
    """On test records, after a training on records of other subjects, the ones that training.mend_records writes."""
    from driftlens import summarize
    from driftlens.demo import SEED
    from driftlens.demo.world import build_world
    from driftlens.editors import sadr_gamma
    from driftlens.editors.mend_files import SHIPPED
    from training.mend_records import mend_records
    from training.records import write_records

    tested = [one for one in load_records("demo") if one.split == "test"]
    subjects = {one.fact.subject for one in tested}
    write_records(mend_records(build_world(SEED), subjects), tmp_path / "records.json")
    split = split_records(load_records(tmp_path / "records.json"))
    assert not subjects & {one.fact.subject for one in (*split.train, *split.validation)}
    gamma = sadr_gamma(demo_model, "mend")
    drift: list[float] = []
    for regularizers in ((), (SADR(gamma=gamma),)):
        editor: Any = MEND.for_model(demo_model, regularizers=regularizers)
        assert editor.regularizers == regularizers
        assert editor.hypernetwork.about.data["digest"] == split.digest
        edits = [result.edit for result in editor.edit_many(demo_model, [one.fact for one in tested[:10]])]
        scores: Any = summarize(evaluate(demo_model, tested[:10], edits, tasks=["rewrite", "neighborhood"]))["value"]
        assert scores["ES"] >= 80
        assert scores["NS"] >= 80
        drift.append(float(editor.hypernetwork.curve.set_index("step")["drift"][editor.hypernetwork.about.step]))
    assert drift[1] < drift[0]
    assert MEND.for_model(demo_model).gammas(demo_model) == (gamma,)
    assert sum(path.stat().st_size for path in SHIPPED.glob("*.safetensors")) < 1.5e6
