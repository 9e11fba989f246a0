"""Work is not done that cannot change anything: counted operations against the plain way, so no machine's noise.

The plain way is `benchmarks/plain.py`: Hugging Face's model, whole sequences at every step, one forward for each cell.
A bound that fails is a regression of the engine, whatever the clock says.
"""

from typing import Any

import pytest
import torch

from benchmarks import plain as plainly
from benchmarks.measuring import operations
from driftlens import ROME, SADR, Edit, contaminating_substitution, evaluate, load_model, load_records
from driftlens.analyses.substitution import MODULES
from driftlens.analyses.windows import default_window, window_layers
from driftlens.data import Record
from driftlens.editors.contexts import ContextSampling, sample_contexts
from driftlens.models import LensModel
from driftlens.models.names import DEMO_WEIGHTS
from tests.support.places import SHARED


def settings(model: LensModel, editor: ROME) -> plainly.PlainSettings:
    names = ("layer", "steps", "lr", "weight_decay", "kl_factor", "clamp_norm_factor", "early_stop_loss", "contexts")
    gamma = next((one.gamma for one in editor.regularizers if isinstance(one, SADR)), 0.0)
    return plainly.PlainSettings(gamma=gamma, **{name: getattr(editor, name) for name in names})


def compared(model: LensModel, plain: plainly.PlainModel, records: list[Record], editor: ROME) -> float:
    """Operations of `edit_many` over those of the plain way, which gives the same edits."""
    facts = [record.fact for record in records]
    ours: list[Edit] = []
    theirs: list[plainly.PlainEdit] = []
    own = settings(model, editor)
    few = operations(lambda: ours.extend(result.edit for result in editor.edit_many(model, facts)))
    many = operations(lambda: theirs.extend(plainly.edit(plain, fact, own, lambda k: k) for fact in facts))
    for one, other in zip(ours, theirs, strict=True):
        matrix = one.updates[editor.layer].matrix()
        assert float((matrix - other.change).norm() / other.change.norm()) < 1e-3
    return few / many


CONTEXTS = ("{}", "The name of the place. {}", "Because it is. {}", "I have read about the capital of the country. {}")


@pytest.mark.parametrize("sadr", [False, True], ids=["ROME", "ROME + SADR"])
def test_an_edit_of_the_bundled_records(demo_model: LensModel, sadr: bool):
    plain = plainly.PlainModel.load(DEMO_WEIGHTS, dtype=torch.float32, attention="eager")
    editor = ROME.for_model(
        demo_model,
        steps=6,
        contexts=CONTEXTS,
        second_moment=torch.eye(demo_model.d_mlp),
        regularizers=(SADR(),) if sadr else (),
    )
    assert compared(demo_model, plain, load_records("demo", limit=4), editor) < 0.4


def test_an_edit_of_the_real_benchmarks_records():
    folder, data = SHARED / "models" / "counterfact-gpt2", SHARED / "data" / "merged_counterfact.json"
    if not (folder.is_dir() and data.is_file()):
        pytest.skip(f"needs {folder} and {data}")
    model = load_model(folder, device="cpu")
    plain = plainly.PlainModel.load(folder, dtype=torch.float32)
    contexts = sample_contexts(model, ContextSampling())
    assert len(contexts) == 21
    editor = ROME(layer=2, lr=3.0, steps=6, contexts=contexts, second_moment=torch.eye(model.d_mlp))
    assert compared(model, plain, load_records(data, limit=4), editor) < 0.5


def test_a_grid_of_cells(demo_model: LensModel):
    plain = plainly.PlainModel.load(DEMO_WEIGHTS, dtype=torch.float32)
    record = load_records("demo", limit=1)[0]
    editor = ROME.for_model(demo_model, steps=3, contexts=CONTEXTS, second_moment=torch.eye(demo_model.d_mlp))
    edit = editor.edit(demo_model, record.fact).edit
    prompt = record.tasks["distract_neighborhood"][0]
    targets = (prompt.target_true, prompt.target_new)
    layer, n_layers = editor.layer, demo_model.n_layers
    window = default_window(n_layers)
    change = plainly.PlainEdit(layer=layer, change=edit.updates[layer].matrix(), delta=torch.empty(0), losses=())
    loop = plainly.PlainTrace(plain, change, prompt.text, targets)

    def cell(part: int | None, token: int, n: int) -> plainly.PlainCell:
        return plainly.PlainCell(part=part, token=token, layers=window_layers(n, window, n_layers))

    grid = operations(lambda: contaminating_substitution(demo_model, edit, prompt, targets, MODULES, window))
    # Every cell of the loop costs the same, so one is counted.
    cells = len(MODULES) * loop.n_tokens * n_layers
    assert grid / (cells * operations(lambda: loop.probabilities(cell(0, 2, 3)))) < 0.35

    table: Any = contaminating_substitution(demo_model, edit, prompt, targets, MODULES, window).table
    table = table.set_index(["module", "token", "layer", "target_name"])["probability"]
    for part, module in ((None, "resid"), (0, "mlp"), (2, "attn")):
        for token, n in ((loop.n_tokens - 1, 4), (2, 2)):
            for name, value in zip(("o_true", "o_edit"), loop.probabilities(cell(part, token, n)), strict=True):
                assert table[module, token, n, name] == pytest.approx(value, abs=1e-4)


def test_an_evaluation(demo_model: LensModel):
    plain = plainly.PlainModel.load(DEMO_WEIGHTS, dtype=torch.float32)
    records = load_records("demo", limit=8)
    editor = ROME.for_model(demo_model, steps=2, contexts=CONTEXTS, second_moment=torch.eye(demo_model.d_mlp))
    edits = [result.edit for result in editor.edit_many(demo_model, [record.fact for record in records])]
    theirs = [
        plainly.PlainEdit(
            layer=editor.layer, change=edit.updates[editor.layer].matrix(), delta=torch.empty(0), losses=()
        )
        for edit in edits
    ]
    ours = operations(lambda: evaluate(demo_model, records, edits))
    each = operations(
        lambda: [plainly.evaluate(plain, record, edit) for record, edit in zip(records, theirs, strict=True)]
    )
    # Eight records leave passes that mix lengths; of 64 it is 0.33.
    assert ours / each < 0.55
