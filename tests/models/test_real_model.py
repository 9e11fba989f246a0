"""A real fact, edited and traced on a real model: run with -m real, which fetches SmolLM2-135M once (93 MB)."""

from typing import Any

import numpy as np
import pytest

from driftlens import ROME, contaminating_substitution, evaluate, load_model, load_records
from driftlens.errors import DriftlensError
from driftlens.models.published import PUBLISHED, obtain
from tests.support.tiny import BRIDGE

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(900),  # half a minute where nothing else runs
    pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3"),
]


@pytest.fixture(scope="module")
def model() -> Any:
    try:
        obtain(PUBLISHED["smollm2-135m"])
    except DriftlensError as error:
        pytest.skip(f"SmolLM2 cannot be fetched here: {error}")
    return load_model("smollm2-135m", device="cpu")


def test_the_eiffel_tower_moves_to_rome_and_takes_the_arc_de_triomphe_along(model: Any):
    record = load_records("real")[0]
    prompt = record.tasks["distract_neighborhood"][0]
    assert "Arc de Triomphe" in prompt.text
    edit = ROME.for_model(model).edit(model, record.fact).edit  # its second moment comes with driftlens

    tasks = ("rewrite", "distract_neighborhood")
    tables: list[Any] = [
        evaluate(model, record, one, tasks=tasks).set_index(["task", "prompt_index"]) for one in (None, edit)
    ]
    p_before, p_after = (np.exp(-table[["nll_true", "nll_new"]]) for table in tables)
    assert p_before.loc[("rewrite", 0), "nll_true"] > 0.5, "unedited, the model knows where the tower is"
    assert p_after.loc[("rewrite", 0), "nll_new"] > 0.8
    assert p_after.loc[("rewrite", 0), "nll_true"] < 0.05
    # The paper's specificity failure: a neighbor after the edited sentence.
    arc = ("distract_neighborhood", 0)
    assert p_before.loc[arc, "nll_true"] > 0.7
    assert p_after.loc[arc, "nll_true"] < 0.5 * p_before.loc[arc, "nll_true"]

    trace = contaminating_substitution(model, edit, prompt, (prompt.target_true, prompt.target_new), ["mlp", "attn"])
    lost: Any = trace.table[trace.table["target_name"] == "o_true"]
    worst = {module: cells.loc[cells["effect"].idxmin()] for module, cells in lost.groupby("module")}
    assert worst["attn"]["effect"] < -0.1
    # Figure 3: the edit writes at the subject's last token; attention at the last token, in upper layers, spreads it.
    assert worst["mlp"]["role"] == "last subject token"
    assert abs(worst["mlp"]["layer"] - min(edit.updates)) <= trace.window
    assert worst["attn"]["role"] == "last token"
    assert worst["attn"]["layer"] >= model.n_layers // 2
