"""Results in a notebook: escaped, well-formed, without script or network, and with the numbers of their tables."""

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest
import torch
from jinja2 import UndefinedError

from driftlens import (
    Edit,
    EditResult,
    Fact,
    JointEditResult,
    Record,
    TaskPrompt,
    attention_drift,
    contaminating_substitution,
    patch_attention,
    patch_scores,
)
from driftlens.data import TASKS
from driftlens.display.html import card, faint, pairs, row, table
from driftlens.display.svg import curves, heatmap, sparkline
from driftlens.display.templates import Markup, render
from driftlens.edits import LowRankUpdate

ODD = Fact(subject='<b>Tom & "Co"</b>', prompt="{} is in", target_true="<i>Rome", target_new="Paris & Metz")
VOID = {"br", "meta", "img"}


class Structure(HTMLParser):
    """Every element is closed by its own name, in order; and the text that is left."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data + "\n"


def shown(result: Any) -> Structure:
    page = result._repr_html_()
    assert len(page) < 100_000
    assert len(repr(result)) < 300, "a terminal shows a line"
    assert not re.search(r"https?:|<script|javascript:", page)
    return Structure(page)


def an_edit(model: Any, fact: Fact = ODD, *, scale: float = 0.5) -> Edit:
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(model.d_mlp, 1, generator=draw), torch.randn(1, model.d_model, generator=draw)
    names = {"subject": fact.subject, "prompt": fact.prompt, "target_true": fact.target_true}
    provenance = {**names, "target_new": fact.target_new, "editor": "ROME", "regularizers": "(SADR(gamma=0.01),)"}
    return Edit(updates={0: LowRankUpdate(left=scale * left, right=right)}, provenance=provenance)


def history(*probabilities: float) -> pd.DataFrame:
    steps = pd.DataFrame({"step": range(len(probabilities)), "probability": probabilities})
    return steps.assign(loss=[3.25, *[0.125] * (len(steps) - 1)], nll=0.1, kl=0.025, weight_decay=0.0, sadr=0.0)


@pytest.fixture(scope="module")
def model(checkpoints: Any) -> Any:
    from tests.support.tiny import load_tiny

    return load_tiny(checkpoints("gpt2"))


BAD = "</style></script><script>alert('&')</script>"


@pytest.mark.parametrize(
    "made",
    [
        lambda: Markup(card(BAD, BAD, BAD, faint(BAD))),
        lambda: row(BAD, pairs({BAD: BAD})),
        lambda: table((BAD, BAD), [(BAD, BAD)], numbers=1),
        lambda: heatmap([[1.0, -1.0]], [BAD], limit=1.0, heading=BAD, axis=BAD),
        lambda: curves([(BAD, "red", [0.5, 0.25])], axis=BAD),
        lambda: sparkline([0.5, 0.25], heading=BAD),
    ],
)
def test_text_stays_text_wherever_it_is_put(made: Any):
    page = made()
    assert isinstance(page, Markup)  # so that it is not escaped a second time
    found = Structure(str(page))
    assert "script" not in found.tags
    assert "&amp;amp;" not in page
    if "<svg" not in page:  # a drawing's long labels are cut
        assert BAD in found.text


def test_a_template_is_given_all_that_it_shows():
    with pytest.raises(UndefinedError, match="'text' is undefined"):
        render("human/notice.html", title="A title")


def test_an_edit_result_tells_the_request_and_how_it_went(model: Any):
    edit = an_edit(model)
    card = shown(EditResult(fact=ODD, edit=edit, history=history(0.002, 0.5, 0.987), keys={}, values={}))
    for words in ("<i>Rome → Paris & Metz", ODD.text, "ROME layer 0, rank 1", "SADR(gamma=0.01)", "3 steps"):
        assert words in card.text
    assert "P(o_edit) while editing 0.002 → 0.987" in card.text
    assert "loss 3.250 → 0.125" in card.text
    assert "nll 0.100, kl 0.025" in card.text
    assert "i" not in card.tags


def test_a_joint_result_tells_each_facts_probability(model: Any):
    facts = tuple(replace(ODD, subject=f"Item {n}") for n in range(10))
    steps = pd.concat([history(0.1, 0.1 * n).assign(fact=n) for n in range(10)])
    card = shown(JointEditResult(facts=facts, edit=an_edit(model), history=steps, keys={}, values={}))
    assert "10 facts in one update" in card.text
    assert "Item 7 is in …" in card.text
    assert "0.700" in card.text
    assert "and 2 more" in card.text
    assert "Item 8" not in card.text


def test_an_edit_tells_its_size(model: Any):
    edit = an_edit(model)
    assert f"{edit.updates[0].matrix().norm():.4g}" in shown(edit).text
    assert "low-rank update" in shown(Edit(updates=edit.updates)).text
    shown(Edit(updates={}))


@pytest.mark.parametrize("prompts", [1, 3])
def test_a_trace_shows_the_tables_numbers(model: Any, prompts: int):
    texts = [f"{ODD.subject} is <in> {n}" for n in range(prompts)]
    trace = contaminating_substitution(model, an_edit(model), texts, ("a", "b"), ("mlp", "attn"), 2)
    card = shown(trace)
    assert card.text.count("MLP output") == card.text.count("attention output") == 2
    for name, group in trace.baselines.groupby("target_name"):
        assert f"P({name})" in card.text
        assert f"{group['vanilla'].mean():.3f} → {group['edited'].mean():.3f}" in card.text
    cells = trace.table if prompts == 1 else trace.by_role()
    strongest = cells.loc[cells["effect"].abs().idxmax()]
    assert f"{strongest['layer']}: {strongest['effect']:+.4f}" in card.text


def test_patches_show_curves_and_grids(model: Any):
    texts = [f"{ODD.subject} is in", f"{ODD.subject} is"]
    curve = patch_attention(model, an_edit(model), texts, ("a", "b"), 1)
    means: Any = curve.table.groupby(["target_name", "layer"])["probability"].mean()
    text = shown(curve).text
    for layer in range(model.n_layers):
        assert f"{layer}: {means['o_edit', layer]:.4f}" in text
    cells = patch_scores(model, an_edit(model), texts[0], ("a", "b"), 1)
    strongest = cells.table.loc[cells.table["effect"].abs().idxmax()]
    assert f"{strongest['effect']:+.4f}" in shown(cells).text


def test_drift_shows_its_first_cases(model: Any):
    texts = [f"{ODD.subject} is in {n}" for n in range(10)]
    drift = attention_drift(model, an_edit(model), texts, ODD.subject)
    text = shown(drift).text
    assert f"{drift.table['kl'][0]:.4f}" in text
    assert "head 3" in text
    assert "and 2 more" in text


def test_a_model_and_a_record(model: Any):
    text = shown(model).text
    assert f"{model.n_layers} layers, {model.n_heads} heads" in text
    assert model.model_hash in text
    prompt = TaskPrompt(text="A < B", target_true="x", target_new="y")
    tasks = {**dict.fromkeys(TASKS, ()), "relation": (prompt, prompt)}
    text = shown(Record(index=3, fact=ODD, tasks=tasks, split="test")).text
    assert "record 3, test" in text
    assert "A < B" in text
    assert "neighborhood" not in text


def test_colour_follows_size_and_sign_and_empty_cells_cost_nothing():
    drawn = heatmap([[0.0, 0.5], [-1.0, 1e-6]], ["a", "b"], limit=1.0)
    cells = re.findall(r'fill="(#\w+)" fill-opacity="([\d.]+)"><title>(\w), (\d): ([^<]+)', drawn)
    assert cells == [("#3d86c6", "0.50", "a", "1", "+0.5000"), ("#d1493f", "1.00", "b", "0", "-1.0000")]
    assert "nan" not in heatmap([[float("nan")]], ["a"], limit=1.0)


def test_nothing_heavy_is_imported():
    script = (
        "import sys; from driftlens import Record; import driftlens.display.cards;"
        "print(*{'torch', 'pandas', 'numpy', 'plotly', 'IPython'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
