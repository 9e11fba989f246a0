"""The explorer: its numbers against plain Hugging Face, and its page in a real headless Chromium."""

import base64
import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from driftlens import ROME, SADR, DriftlensError, Fact, Record, TaskPrompt
from driftlens.analyses.windows import window_layers
from driftlens.data import TASKS
from driftlens.edits import Edit
from driftlens.explorer import Bench, default_windows, exhibits, explorer_page
from driftlens.explorer.bench import checked_gammas, checked_windows, editors_by_gamma
from driftlens.explorer.readings import Reading
from driftlens.models.prompts import tokenize_prompt
from tests.support.browser import Page, needs_browser, visit
from tests.support.edited import changes
from tests.support.plain import PlainModel

GAMMAS, WINDOWS = (None, 0.5), (1, 2)
SITES = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}


def record(index: int, subject: str, true: str, new: str) -> Record:
    fact = Fact(subject=subject, prompt="The {} is located in", target_true=true, target_new=new)
    distractor = f"{fact.text} {new}. "
    far = TaskPrompt(text="The Big Ben is located in", target_true="London", target_new=new, group="same_type")
    behind = TaskPrompt(text=distractor + far.text, target_true="London", target_new=new, distractor=distractor)
    tasks = {"neighborhood": (far, far), "distract_neighborhood": (behind,)}
    return Record(index=index, fact=fact, tasks={**dict.fromkeys(TASKS, ()), **tasks})


RECORDS = [record(0, "Eiffel Tower", "Paris", "New Rome"), record(7, '</script><b>Tom & "Jo"', "<i>Metz", "Kyiv")]


@pytest.fixture(scope="module")
def model(checkpoints: Any) -> Any:
    from tests.support.tiny import load_tiny

    return load_tiny(checkpoints("gpt2"))


@pytest.fixture(scope="module")
def plain(checkpoints: Any) -> PlainModel:
    return PlainModel(checkpoints("gpt2"))


@pytest.fixture(scope="module")
def bench(model: Any) -> Bench:
    editor = ROME(layer=0, steps=4, contexts=("{}",), second_moment=torch.eye(model.d_mlp), clamp_norm_factor=8.0)
    return Bench(model, exhibits(RECORDS), editors_by_gamma(model, editor))


@pytest.fixture(scope="module")
def page(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "explore.html"
    path.write_bytes(explorer_page(bench, GAMMAS, WINDOWS, editor="ROME <fast>"))
    return path


def next_probabilities(plain: PlainModel, reading: Reading, edits: Any) -> Any:
    ids = plain.tokenizer(reading.prompt.text)["input_ids"]
    return plain.run(torch.tensor([ids]), edits=edits)[1][0, -1].softmax(-1)[list(reading.candidate_ids)].numpy()


def test_a_reading_is_what_plain_models_say(bench: Bench, plain: PlainModel):
    reading = bench.reading(0, 3, None)
    edit = bench.edit(0, None)
    for values, attention, change in (
        (reading.vanilla, reading.attention[0], []),
        (reading.edited, reading.attention[1], changes(edit)),
    ):
        np.testing.assert_allclose(values[2:], next_probabilities(plain, reading, change), atol=1e-5)
        tokens = torch.tensor([plain.tokenizer(reading.prompt.text)["input_ids"]])
        for layer in range(bench.model.n_layers):
            seen: list[Any] = []
            plain.run(tokens, edits=[*change, ("pattern", layer, seen.append)])
            np.testing.assert_allclose(attention[layer], seen[0][0, :, -1], atol=1e-5)
    assert "".join(reading.tokens) == reading.prompt.text
    assert reading.roles[reading.subject] == "last subject token"
    # The five likeliest next tokens of each model are among the candidates.
    for edited in ([], changes(edit)):
        logits = plain.run(tokens, edits=edited)[1][0, -1]
        assert set(logits.topk(5).indices.tolist()) <= set(reading.candidate_ids)
    assert len(set(reading.candidate_ids)) == len(reading.candidate_ids) == len(reading.candidates)


def test_answers_are_read_over_all_of_their_tokens(bench: Bench, plain: PlainModel):
    reading = bench.reading(0, 3, None)
    for edited, values in (([], reading.vanilla), (changes(bench.edit(0, None)), reading.edited)):
        for target, value in zip(("London", "New Rome"), values[:2], strict=True):
            whole = tokenize_prompt(bench.model, reading.prompt.text, target)
            log = plain.run(torch.tensor([whole.ids]), edits=edited)[1][0].log_softmax(-1)
            own = [log[whole.n_prompt - 1 + k, token] for k, token in enumerate(whole.target_ids)]
            assert value == pytest.approx(float(torch.stack(own).mean().exp()), rel=1e-4)
    assert len(tokenize_prompt(bench.model, "x", "New Rome").target_ids) > 1


@pytest.mark.parametrize(
    ("module", "window", "token", "layer"), [("resid", 1, 3, 0), ("mlp", 2, 5, 1), ("attn", 2, -1, 2)]
)
def test_candidates_follow_the_substitution(
    bench: Bench, plain: PlainModel, module: str, window: int, token: int, layer: int
):
    reading = bench.reading(0, 3, None)
    grid = bench.grid(0, 3, None, window)
    assert grid.shape == (3, len(reading.tokens), bench.model.n_layers, 2 + len(reading.candidates))
    tokens = torch.tensor([plain.tokenizer(reading.prompt.text)["input_ids"]])
    put: list[Any] = []
    for n in window_layers(layer, window, bench.model.n_layers):
        seen: list[Any] = []
        plain.run(tokens, edits=[*changes(bench.edit(0, None)), (SITES[module], n, seen.append)])

        def substitute(output: Any, value: Any = seen[0][0, token]) -> Any:
            changed = output.clone()
            changed[0, token] = value
            return changed

        put.append((SITES[module], n, substitute))
    expected = next_probabilities(plain, reading, put)
    np.testing.assert_allclose(grid[list(SITES).index(module), token, layer, 2:], expected, atol=1e-5)


def test_everything_is_made_once(bench: Bench, model: Any):
    calls: list[Any] = []

    def editor_for(gamma: float | None) -> Any:
        calls.append(gamma)
        return bench.editor_for(gamma)

    own = Bench(model, exhibits(RECORDS[0]), editor_for)
    assert own.grid(0, 0, None, 1) is own.grid(0, 0, None, 1)
    assert own.reading(0, 0, None) is own.reading(0, 0, None)
    own.grid(0, 1, None, 2)
    assert calls == [None]
    own.keep(0, 0.5, Edit(updates={}))
    assert np.ptp(own.grid(0, 0, 0.5, 1), axis=(0, 1, 2)).max() == 0
    assert calls == [None]


def test_gamma_replaces_sadr_and_nothing_else(model: Any):
    class Other:
        def penalty(self, attention: Any) -> Any:
            return attention.edited.sum(dim=(0, 2, 3)) * 0

    other = Other()
    editor = ROME(layer=1, regularizers=(SADR(gamma=3.0), other))
    choose = editors_by_gamma(model, editor)
    assert choose(None).regularizers == (other,)
    assert choose(0.25).regularizers == (other, SADR(gamma=0.25))
    presets: Any = editors_by_gamma(model, None)(0.25)
    assert presets.steps == 80  # the presets' own number of steps with SADR
    assert checked_gammas(model, (0.0, None, 0.1)) == (None, 0.1)
    assert checked_gammas(model, None) == (None, 0.01)
    assert default_windows(28) == (1, 6, 12)
    assert checked_windows(model, (3, 1, 3)) == (1, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda model: exhibits([]), "no record to explore"),
        (lambda model: checked_gammas(model, (-1.0,)), "gamma is -1"),
        (lambda model: checked_gammas(model, ()), "no γ to explore"),
        (lambda model: checked_windows(model, (0,)), "window is 0; expected at least 1"),
        (lambda model: checked_windows(model, ()), "no window to explore"),
        (lambda model: Bench(model, (), cast(Any, None), batch_size=0), "batch_size is 0"),
    ],
)
def test_mistakes_are_one_line(model: Any, wrong: Any, message: str):
    with pytest.raises(DriftlensError, match=message) as raised:
        wrong(model)
    assert "\n" not in str(raised.value)


def test_a_page_holds_all_its_data_and_no_markup_of_others(page: Path):
    text = page.read_text()
    assert len(text) < 300_000
    assert not re.search(r"(src|href)=(?!\"data:)", text)
    assert text.count("</script>") == 2
    (held,) = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(held)
    assert data["setup"]["exhibits"][1]["fact"]["subject"] == '</script><b>Tom & "Jo"'
    labels = r"ROME <fast>, (\d+) steps;ROME <fast> \+ SADR γ = 0.5, (\d+) steps"
    assert re.fullmatch(labels, ";".join(data["setup"]["gammas"]))
    assert [len(one["prompts"]) for one in data["setup"]["exhibits"]] == [4, 4]


@needs_browser()
def test_the_page_in_a_browser(page: Path, bench: Bench):
    """No error, nothing fetched, and every control changes what is shown to what the bench says."""
    read = "[...document.querySelectorAll('#{} [role=gridcell]')].map(c => c.title)"
    choose = (
        "(() => {{ const s = document.getElementById('{}'); s.value = {!r}; s.dispatchEvent(new Event('change')); }})()"
    )
    click = "document.querySelectorAll('#{} input')[{}].click()"

    def expected(exhibit: int, prompt: int, gamma: float | None, window: int, module: int, target: int) -> list[float]:
        grid = bench.grid(exhibit, prompt, gamma, window)[module, ..., target]
        return (grid - bench.reading(exhibit, prompt, gamma).vanilla[target]).ravel().tolist()

    async def shown(tab: Page) -> list[float]:
        titles = await tab.evaluate(read.format("grid"))
        return [float(title.rsplit(" ", 1)[1].replace("−", "-")) for title in titles]

    async def use(tab: Page) -> None:
        # First the distracted prompt, attention, the window nearest to the paper's, o_true. Titles have 3 digits.
        close: dict[str, Any] = {"abs": 6e-4}
        assert await shown(tab) == pytest.approx(expected(0, 3, None, 1, 2, 0), **close)
        await tab.evaluate(click.format("module", 1))
        assert await shown(tab) == pytest.approx(expected(0, 3, None, 1, 1, 0), **close)
        await tab.evaluate(click.format("window", 1))
        assert await shown(tab) == pytest.approx(expected(0, 3, None, 2, 1, 0), **close)
        await tab.evaluate(click.format("target", 1))
        assert await shown(tab) == pytest.approx(expected(0, 3, None, 2, 1, 1), **close)
        before = await tab.evaluate("document.getElementById('heads').innerHTML")
        await tab.evaluate(click.format("gamma", 1))
        assert await shown(tab) == pytest.approx(expected(0, 3, 0.5, 2, 1, 1), **close)
        assert await tab.evaluate("document.getElementById('heads').innerHTML") != before
        await tab.evaluate(choose.format("task", "neighborhood"))
        assert await shown(tab) == pytest.approx(expected(0, 1, 0.5, 2, 1, 1), **close)
        await tab.evaluate(choose.format("prompt", "2"))
        assert await shown(tab) == pytest.approx(expected(0, 2, 0.5, 2, 1, 1), **close)
        assert "does not name the edited subject" in await tab.evaluate(
            "document.getElementById('heads-note').innerText"
        )
        await tab.evaluate(choose.format("task", "distract_neighborhood"))
        await tab.evaluate(choose.format("record", "1"))
        assert await shown(tab) == pytest.approx(expected(1, 3, 0.5, 2, 1, 1), **close)
        fact = await tab.evaluate("document.querySelector('h1').innerText")
        assert fact == 'The </script><b>Tom & "Jo" is located in <i>Metz Kyiv'

        # The keyboard moves the chosen cell; the sentence and the next tokens follow.
        await tab.evaluate('document.querySelector(\'#grid [data-row="2"][data-column="0"]\').click()')
        first = await tab.evaluate("document.getElementById('finding').innerText")
        for key in ("ArrowRight", "ArrowDown", "End", "Home", "ArrowRight"):
            await tab.press(key)
        chosen = (
            "[...document.querySelectorAll('#grid [aria-selected=true]')].map(c => Object.values(c.dataset).join())"
        )
        assert await tab.evaluate(chosen) == ["3,1"]
        assert await tab.evaluate("document.activeElement.dataset.row") == "3"
        assert await tab.evaluate("document.getElementById('finding').innerText") != first
        column = "[...document.querySelectorAll('#next tbody tr')].map(r => parseFloat(r.cells[3].innerText))"
        own = bench.grid(1, 3, 0.5, 2)[1, 3, 1]
        numbers = await tab.evaluate(column)
        assert numbers[:2] == pytest.approx(own[:2].tolist(), **close)
        assert sorted(numbers[2:-1]) == pytest.approx(sorted(own[2:].tolist()), **close)
        assert numbers[-1] == pytest.approx(1 - float(own[2:].sum()), abs=2e-3)

        # Attention of the chosen head, before and after.
        await tab.evaluate('document.querySelector(\'#heads [data-row="1"][data-column="2"]\').click()')
        rows = await tab.evaluate("[...document.querySelectorAll('#attention .number')].map(c => c.innerText)")
        weights = [[float(part) for part in row.split(" → ")] for row in rows]
        np.testing.assert_allclose(np.array(weights).T, bench.reading(1, 3, 0.5).attention[:, 2, 1], atol=6e-4)

        # Every control has a name, a narrow screen does not scroll sideways, and dark is dark.
        unnamed = "[...document.querySelectorAll('select, input')].filter(c => !c.labels.length).length"
        assert await tab.evaluate(unnamed) == 0
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        grounds = []
        for width, dark in ((1200, False), (360, False), (360, True)):
            await tab.look(width=width, dark=dark)
            assert await tab.evaluate(wide) <= 0
            grounds.append(await tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert grounds[0] == grounds[1] != grounds[2]

    seen = visit(page, use)
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [page.resolve().as_uri()]


@pytest.fixture
def explorer(model: Any, bench: Bench) -> Any:
    pytest.importorskip("anywidget", reason="needs the extra 'notebook'")
    from driftlens.explorer.notebook import Explorer

    return Explorer(bench, GAMMAS, WINDOWS, editor="ROME")


def unpacked(text: str) -> Any:
    return np.frombuffer(base64.b64decode(text), "<u2") / 65535


def test_python_answers_every_choice(explorer: Any, bench: Bench):
    assert explorer.setup["exhibits"][0]["prompts"][explorer.choice["prompt"]]["task"] == "distract_neighborhood"
    steps: list[dict[str, int]] = [{}, {"gamma": 1}, {"window": 0}, {"prompt": 1}, {"record": 1, "gamma": 0}]
    for step in steps:
        explorer.choice = {**explorer.choice, **step}
        choice, shown = explorer.choice, explorer.shown
        exhibit, prompt, gamma = choice["record"], choice["prompt"], GAMMAS[choice["gamma"]]
        reading = bench.reading(exhibit, prompt, gamma)
        assert shown["choice"] == [exhibit, prompt, choice["gamma"], choice["window"]]
        assert shown["layers"] == list(bench.edit(exhibit, gamma).layers)
        expected = {
            "vanilla": reading.vanilla,
            "edited": reading.edited,
            "attention_unedited": reading.attention[0],
            "attention_edited": reading.attention[1],
            "grid": bench.grid(exhibit, prompt, gamma, WINDOWS[choice["window"]]),
        }
        for name, values in expected.items():
            # Numbers are rounded to steps of 1/65535.
            np.testing.assert_allclose(unpacked(shown[name]), values.ravel(), atol=0.51 / 65535)
    before = explorer.shown
    explorer.choice = {**explorer.choice, "module": 0, "target": 1, "cell": [2, 1], "head": [0, 0]}
    assert explorer.shown == before  # none of these needs other numbers


def test_an_edit_that_fails_is_a_line(model: Any, bench: Bench):
    pytest.importorskip("anywidget", reason="needs the extra 'notebook'")
    from driftlens.explorer.notebook import Explorer

    def editor_for(gamma: float | None) -> Any:
        return bench.editor_for(gamma) if gamma is None else ROME(layer=99, steps=1)

    shown = Explorer(Bench(model, exhibits(RECORDS), editor_for), GAMMAS, WINDOWS, editor="ROME")
    assert "error" not in shown.shown
    shown.choice = {**shown.choice, "gamma": 1}
    assert "99" in shown.shown["error"]
    assert shown.shown["choice"][2] == 1
    shown.choice = {**shown.choice, "gamma": 0}
    assert "error" not in shown.shown


@needs_browser()
def test_the_widget_in_a_browser(explorer: Any, bench: Bench, tmp_path: Path):
    """Jupyter's part, carrying values between front end and Python, is played by the test; both ends are the real ones.

    Two views of one widget are side by side, as below two cells.
    """
    state = json.dumps({name: getattr(explorer, name) for name in ("setup", "choice", "shown")}).replace("<", "\\u003c")
    host = f"""
const values = {state}, listeners = [], unsent = {{}};
window.sent = [];
const changed = (name) => listeners.filter(([at]) => at === `change:${{name}}`).forEach(([, call]) => call());
const model = {{
  get: (name) => values[name],
  set: (name, value) => {{ values[name] = value; unsent[name] = value; changed(name); }},
  save_changes: () => window.sent.push({{ ...unsent }}),
  on: (name, call) => listeners.push([name, call]),
  off: (name, call) => {{
    const at = listeners.findIndex((one) => one[0] === name && one[1] === call);
    if (at >= 0) listeners.splice(at, 1);
  }},
}};
window.receive = (name, value) => {{ values[name] = value; changed(name); }};
window.views = ["first", "second"].map((id) => document.getElementById(id));
window.removals = window.views.map((el) => render({{ model, el }}));
window.listening = () => listeners.length;
"""
    path = tmp_path / "widget.html"
    script = f'<script type="module">{explorer._esm}\n{host}</script>'
    boxes = '<h1>A notebook</h1><div id="first" style="width: 700px"></div><div id="second"></div>'
    path.write_text(f'<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">{boxes}{script}')
    read = "[...views[{}].shadowRoot.querySelectorAll('#grid [role=gridcell]')].map(c => c.title)"

    def expected() -> list[float]:
        at = explorer.choice
        key = at["record"], at["prompt"], GAMMAS[at["gamma"]]
        grid = bench.grid(*key, WINDOWS[at["window"]])[at["module"], ..., at["target"]]
        return (grid - bench.reading(*key).vanilla[at["target"]]).ravel().tolist()

    async def use(tab: Page) -> None:
        async def settled() -> None:
            """Both directions, until neither end has anything to say."""
            while sent := await tab.evaluate("sent.splice(0)"):
                for change in sent:
                    explorer.set_state(change)
                await tab.evaluate(f"receive('shown', {json.dumps(explorer.shown)})")

        async def check() -> None:
            for view in (0, 1):
                titles = await tab.evaluate(read.format(view))
                values = [float(title.rsplit(" ", 1)[1].replace("−", "-")) for title in titles]
                assert values == pytest.approx(expected(), abs=6e-4)

        await check()
        click = "views[{}].shadowRoot.querySelectorAll('#{} input')[{}].click()"
        choose = (
            "(() => {{ const s = views[0].shadowRoot.getElementById('{}'); s.value = {!r};"
            " s.dispatchEvent(new Event('change')); }})()"
        )
        finding = "views[0].shadowRoot.getElementById('finding').innerText"
        steps = [
            (click.format(0, "gamma", 1), "gamma", 1),
            (click.format(1, "window", 0), "window", 0),
            (click.format(0, "module", 1), "module", 1),
            (click.format(1, "target", 1), "target", 1),
            (choose.format("task", "neighborhood"), "prompt", 1),
            (choose.format("prompt", "2"), "prompt", 2),
            (choose.format("record", "1"), "record", 1),
        ]
        for action, name, value in steps:
            await tab.evaluate(action)
            if name == "gamma":
                assert await tab.evaluate(finding) == "Computing …"
            await settled()
            assert explorer.choice[name] == value
            await check()
        assert "</script><b>Tom" in await tab.evaluate("views[0].shadowRoot.querySelector('h1').innerText")

        # A cell is chosen by mouse, then by keyboard; the other view and Python follow.
        cell = "views[{}].shadowRoot.querySelector('#grid [aria-selected=true]').dataset"
        await tab.evaluate('views[0].shadowRoot.querySelector(\'#grid [data-row="2"][data-column="0"]\').click()')
        await tab.press("ArrowRight")
        await settled()
        assert explorer.choice["cell"] == [2, 1]
        assert await tab.evaluate(f"[{cell.format(1)}.row, {cell.format(1)}.column].join()") == "2,1"

        # Python chooses; an error is a line, and the next choice draws again.
        for gamma in (0, 1):
            explorer.choice = {**explorer.choice, "gamma": gamma}
            await tab.evaluate(f"receive('choice', {json.dumps(explorer.choice)})")
            answer = explorer.shown if gamma else {"choice": explorer.shown["choice"], "error": "no <b>edit</b>"}
            await tab.evaluate(f"receive('shown', {json.dumps(answer)})")
            assert gamma or await tab.evaluate(finding) == "no <b>edit</b>"
        await settled()
        await check()

        # Neither the notebook's style nor its ids meet the widget's; a removed view listens no more.
        assert await tab.evaluate("getComputedStyle(document.querySelector('h1')).fontSize") == "32px"
        assert await tab.evaluate("document.getElementById('grid')") is None
        assert await tab.evaluate("views[0].scrollWidth - views[0].clientWidth") <= 0
        await tab.evaluate("removals.forEach(remove => remove())")
        assert await tab.evaluate("listening()") == 0

    seen = visit(path, use)
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [path.resolve().as_uri()]


def test_a_picture_is_shown_where_widgets_cannot_run(explorer: Any, bench: Bench):
    data, _ = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    effects = bench.grid(0, 3, None, 1)[2, ..., 0] - bench.reading(0, 3, None).vanilla[0]
    drawn = [float(text) for text in re.findall(r"<title>[^<]*: ([+-][\d.]+)</title>", data["text/html"])]
    # Cells of less than a 500th of the scale are not drawn.
    expected = effects[np.abs(effects) >= max(np.abs(effects).max(), 0.01) / 500]
    np.testing.assert_allclose(drawn, expected, atol=6e-5)
    explorer.choice = {**explorer.choice, "record": 1}
    assert "&lt;/script&gt;&lt;b&gt;Tom" in explorer._repr_mimebundle_()[0]["text/html"]


def test_the_widgets_page_is_the_commands(explorer: Any, page: Path, tmp_path: Path):
    explorer.editor = "ROME <fast>"
    assert explorer.save(tmp_path / "page.html").read_bytes() == page.read_bytes()
    with pytest.raises(DriftlensError, match="cannot write"):
        explorer.save(tmp_path / "nowhere" / "page.html")


def test_explore_takes_a_record_and_an_editor(model: Any):
    pytest.importorskip("anywidget", reason="needs the extra 'notebook'")
    from driftlens import explore

    editor = ROME(layer=0, steps=2, contexts=("{}",), second_moment=torch.eye(model.d_mlp))
    shown = explore(model, RECORDS[0], editor=editor, gammas=(None,), windows=(1,))
    assert shown.setup["exhibits"][0]["fact"]["subject"] == "Eiffel Tower"
    with pytest.raises(DriftlensError, match="window is 0"):
        explore(model, RECORDS[0], editor=editor, windows=(0,))


def test_without_anywidget_one_line_says_what_to_do(model: Any, monkeypatch: pytest.MonkeyPatch):
    import sys

    from driftlens import explore

    monkeypatch.delitem(sys.modules, "driftlens.explorer.notebook", raising=False)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(DriftlensError, match=r"needs anywidget .*driftlens\[notebook\].*--explore"):
        explore(model, RECORDS[0])
