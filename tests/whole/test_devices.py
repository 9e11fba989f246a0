"""On a GPU everything is what it is on the CPU: edits, traces, patches, drift, scores, perplexity and texts.

The GPU is CUDA's where there is one; DRIFTLENS_TEST_DEVICE names another device, e.g. mps.

The bundled model is trained, so that its answers are decided and a difference of a kernel's rounding decides nothing.
It is run in float32 on both devices, which PyTorch multiplies in full float32 by default.  Optimisation enlarges a
rounding difference (ROME's 20 steps of Adam divide a gradient by its own size), so edits are compared by what they do.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

GPU = os.environ.get("DRIFTLENS_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "")

pytestmark = [
    pytest.mark.skipif(not GPU, reason="needs a GPU"),
    pytest.mark.timeout(240),
]

RECORDS = 3
STEPS = 8
EDITORS = ("rome", "memit", "pmet", "alphaedit")


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """The bundled model in float32, on either device."""
    from driftlens import load_model

    return {name: load_model("demo", device=device, dtype="float32") for name, device in (("cpu", "cpu"), ("gpu", GPU))}


@pytest.fixture(scope="module")
def records() -> list[Any]:
    from driftlens import load_records

    return load_records("demo", limit=RECORDS)


@pytest.fixture(scope="module")
def edits(models: dict[str, Any], records: list[Any]) -> list[Any]:
    """ROME's, made on the CPU: both devices read the same."""
    from driftlens import ROME

    own = ROME.for_model(models["cpu"], steps=STEPS).edit_many(models["cpu"], [record.fact for record in records])
    return [result.edit for result in own]


def close(cpu: Any, gpu: Any, columns: list[str], *, within: float) -> None:
    """Both tables have the same rows in the same order, and the columns' numbers agree."""
    numbers = cpu.select_dtypes("number").columns
    others = [name for name in cpu.columns if name not in numbers]
    pd.testing.assert_frame_equal(cpu[others], gpu[others])
    for name in columns:
        difference: Any = (cpu[name] - gpu[name]).abs().max()
        assert difference <= within, f"{name} differs by {difference}"


def on_both(models: dict[str, Any], work: Any) -> tuple[Any, Any]:
    return work(models["cpu"]), work(models["gpu"])


def restraints(model: Any) -> dict[str, tuple[Any, ...]]:
    from driftlens import SADR, GuardedSADR

    return {"plain": (), "sadr": (SADR(),), "guards": (GuardedSADR(mu=0.25, nu=0.25, subjects=("Spain", "Oslo")),)}


@pytest.mark.parametrize("restraint", ["plain", "sadr", "guards"])
@pytest.mark.parametrize("name", EDITORS)
def test_edits(models: dict[str, Any], records: list[Any], name: str, restraint: str):
    from driftlens import evaluate
    from driftlens.registry import EDITORS

    facts = [record.fact for record in records]

    def made(model: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
        editor = EDITORS.find(name).for_model(model, steps=STEPS, regularizers=restraints(model)[restraint])
        results = editor.edit_many(model, facts)
        for result in results:
            assert {update.left.device.type for update in result.edit.changes} == {model.device.type}
        history = pd.concat([result.history for result in results], ignore_index=True)
        return history, evaluate(model, records, [result.edit for result in results])

    (cpu, cpu_nlls), (gpu, gpu_nlls) = on_both(models, made)
    # At the first step nothing has been enlarged yet.
    first = cpu["step"] == 0
    close(cpu[first], gpu[first], ["loss", "nll", "probability"], within=1e-4)
    close(cpu_nlls, gpu_nlls, ["nll_true", "nll_new"], within=0.05)


def test_an_edit_of_one_device_is_applied_on_the_other(models: dict[str, Any], records: list[Any], edits: list[Any]):
    from driftlens import evaluate

    cpu, gpu = on_both(models, lambda model: evaluate(model, records, edits))
    close(cpu, gpu, ["nll_true", "nll_new"], within=1e-3)
    with edits[0].applied(models["gpu"]):
        inside = evaluate(models["gpu"], records[:1])
    close(inside, gpu[gpu["record"] == records[0].index].reset_index(drop=True), ["nll_true"], within=1e-3)


def test_trace_patches_and_drift(models: dict[str, Any], records: list[Any], edits: list[Any]):
    from driftlens import attention_drift, contaminating_substitution, patch_attention, patch_scores

    prompts = [record.tasks["distract_neighborhood"][0] for record in records]
    targets = [(prompt.target_true, prompt.target_new) for prompt in prompts]
    subjects = [record.fact.subject for record in records]
    for measure in (
        lambda model: contaminating_substitution(model, edits, prompts, targets, ("resid", "mlp", "attn"), 2),
        lambda model: patch_attention(model, edits, prompts, targets, 2),
        lambda model: patch_scores(model, edits, prompts, targets, 2),
    ):
        cpu, gpu = on_both(models, measure)
        close(cpu.table, gpu.table, ["probability", "effect"], within=1e-4)
    cpu, gpu = on_both(models, lambda model: attention_drift(model, edits, prompts, subjects))
    close(cpu.heads, gpu.heads, ["kl", "drift_subject"], within=1e-3)


def test_perplexity_and_texts(models: dict[str, Any], records: list[Any], edits: list[Any]):
    from driftlens import generate
    from driftlens.evaluation.perplexity import perplexities

    text = ["The mother tongue of a person is the language of the home. " * 3]
    cpu, gpu = on_both(models, lambda model: perplexities(model, edits, texts=text))
    assert ((cpu["perplexity"] - gpu["perplexity"]).abs() <= 1e-3 * cpu["perplexity"]).all()
    prompts = [record.fact.text for record in records]
    cpu, gpu = on_both(models, lambda model: generate(model, prompts, edits, top_k=1, max_tokens=20))
    assert [one.text for one in cpu] == [one.text for one in gpu]


def test_many_facts(models: dict[str, Any], records: list[Any]):
    from driftlens import MEMIT, edit_in_sequence, edit_together, evaluate

    facts = [record.fact for record in records]

    def scores(model: Any) -> pd.DataFrame:
        editor = MEMIT.for_model(model, steps=STEPS)
        whole = [edit_in_sequence(model, editor, facts).edit, edit_together(model, editor, facts).edit]
        return pd.concat([evaluate(model, records, [one] * len(records)) for one in whole], ignore_index=True)

    cpu, gpu = on_both(models, scores)
    close(cpu, gpu, ["nll_true", "nll_new"], within=0.1)


def test_wise_and_mend(models: dict[str, Any], records: list[Any]):
    from driftlens import MEND, WISE, evaluate

    for editor in (MEND, WISE):

        def nlls(model: Any, editor: Any = editor) -> pd.DataFrame:
            own = editor.for_model(model)
            return evaluate(model, records, [own.edit(model, record.fact).edit for record in records])

        cpu, gpu = on_both(models, nlls)
        # WISE makes up to 70 steps of SGD, and which weights it may change is a draw on the CPU.
        close(cpu, gpu, ["nll_true", "nll_new"], within=0.1 if editor is WISE else 1e-2)


def test_second_moments(models: dict[str, Any], tmp_path: Path):
    from driftlens.editors.corpora import open_corpus
    from driftlens.editors.second_moment import second_moments

    corpus = open_corpus("demo")
    cpu, gpu = on_both(
        models, lambda model: second_moments(model, [1], corpus, samples=64, folder=tmp_path / model.device.type)
    )
    mine, other = cpu[1].matrix, gpu[1].matrix.cpu()
    assert (mine - other).norm() <= 1e-4 * mine.norm()


@pytest.mark.parametrize(
    "arguments",
    [
        "trace --record 0 --no-png --steps 4",
        "edit --subject Gloxorp --new Brokille --steps 4 --gammas 0.01 --guards 0.25",
        "evaluate --editor rome --limit 2 --steps 4 --no-generate",
    ],
    ids=lambda line: line.split()[0],
)
def test_command_lines(tmp_path: Path, arguments: str, capsys: pytest.CaptureFixture[str]):
    from driftlens.commands.cli import main

    words = [*arguments.split(), "--device", GPU, "--out", str(tmp_path / "out")]
    if words[0] == "edit":
        words += ["--prompt", "{} was set up in"]
    # An edit of four steps may well be one that the clinic advises against.
    assert main(words) in ((0, 3) if words[0] == "edit" else (0,)), capsys.readouterr().err


def test_bfloat16(records: list[Any]):
    from driftlens import ROME, SADR, evaluate, load_model

    model = load_model("demo", device=GPU, dtype="bfloat16")
    editor = ROME.for_model(model, steps=STEPS, regularizers=(SADR(),))
    edits = [result.edit for result in editor.edit_many(model, [record.fact for record in records])]
    nlls: Any = evaluate(model, records, edits)
    assert nlls[["nll_true", "nll_new"]].notna().all().all()
