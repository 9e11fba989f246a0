"""A toy editor on a toy family, both offered by another package, reach every command without a word to driftlens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from driftlens import Edit, load_model, load_records
from driftlens.editors.keys import subject_keys
from driftlens.editors.restrained import with_sadr
from tests.commands.test_trace_command import RECORDS
from tests.support.checkpoints import write_tokenizer
from tests.support.tiny import BRIDGE
from tests.whole.outside import GRANITE, Nudge, Patient

pytestmark = pytest.mark.skipif(not BRIDGE, reason="families of one's own need transformer-lens 4.3")

PACKAGE = """
[driftlens.editors]
nudge = outside:Nudge

[driftlens.families]
GraniteForCausalLM = outside:GRANITE
"""

# In a process of its own, since a family that was found stays known to the process.
COMMANDS = """
import sys
from driftlens.commands.cli import main

model = ["--model", "granite", "--device", "cpu", "--editor", "nudge"]
fact = ["--subject", "Eiffel Tower", "--prompt", "{} is located in", "--new", "Rome", "--true", "Paris"]
data = ["--data", "records.json"]
print(main(["trace", *model, *data, "--explore", "--window", "1", "--max-prompts", "1", "--no-png", "--out", "trace"]))
print(main(["edit", *model, *fact, "--gammas", "0.1", "--force", "--save", "edit.safetensors", "--out", "clinic"]))
print(main(["evaluate", *model, *data, "--limit", "2", "--no-generate", "--out", "run"]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, the records, and the package's metadata as an installer leaves them."""
    from transformers import GraniteConfig, GraniteForCausalLM

    place = tmp_path_factory.mktemp("outside")
    config = GraniteConfig(
        vocab_size=400, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, embedding_multiplier=3.0, residual_multiplier=0.3,
        attention_multiplier=0.4, logits_scaling=2.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    GraniteForCausalLM(config).save_pretrained(place / "granite")
    write_tokenizer(place / "granite", bos=False)
    (place / "records.json").write_text(json.dumps(RECORDS))
    metadata = place / "outside-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(PACKAGE)
    return place


@pytest.mark.timeout(600)  # three commands in a process of its own, for a busy machine
def test_the_commands(place: Path):
    paths = [str(place), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "DRIFTLENS_CACHE": str(place / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        check=False,
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    # Nothing can be judged of a random model: the clinic's exit code for it is 4.
    assert [line for line in done.stdout.splitlines() if line.isdecimal()] == ["0", "4", "0"]
    for edit in (Edit.load(place / "trace" / "edit.safetensors"), Edit.load(place / "edit.safetensors")):
        assert edit.provenance["editor"] == "Nudge"
        assert edit.facts[0].subject == "Eiffel Tower"
    clinic = json.loads((place / "clinic" / "clinic.json").read_text())
    assert clinic["editor"].startswith("Nudge at layer")
    assert "Nudge" in (place / "trace" / "explore.html").read_text()
    assert (place / "run" / "scores.csv").is_file()


def test_the_edit_is_what_the_editor_says(place: Path):
    """Ŵ k = W k + strength · v at the subject's key, in a model of the toy family."""
    model = load_model(place / "granite", device="cpu", family=GRANITE)
    assert model.family == "granite"
    fact = load_records(place / "records.json")[0].fact
    editor = Nudge.for_model(model, layer=1)
    result = editor.edit(model, fact)
    key = subject_keys(model, [fact], ("{}",), 1)[0, 0]
    before = key @ model.down_projection(1)[0]
    with result.edit.applied(model):
        after = key @ model.down_projection(1)[0]
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(after - before, editor.strength * vector, rtol=1e-4, atol=1e-5)
    # With SADR or without, an editor that has no preset keeps the steps of its own.
    patient = Patient.for_model(model)
    assert [with_sadr(model, patient, gamma).steps for gamma in (None, 0.1)] == [5, 5]
