"""The explorer: its numbers against plain Hugging Face, and its page in a real headless Chromium."""

import json
import re
from pathlib import Path
from typing import Any

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
    assert editors_by_gamma(model, None)(0.25).steps == 80  # the presets' own number of steps with SADR
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
        (lambda model: Bench(model, (), lambda _: None, batch_size=0), "batch_size is 0"),
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
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["exhibits"][1]["fact"]["subject"] == '</script><b>Tom & "Jo"'
    labels = r"ROME <fast>, (\d+) steps;ROME <fast> \+ SADR γ = 0.5, (\d+) steps"
    assert re.fullmatch(labels, ";".join(data["gammas"]))
    assert [len(one["prompts"]) for one in data["exhibits"]] == [4, 4]


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
        close = {"abs": 6e-4}
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
    pytest.importorskip("ipywidgets", reason="needs the extra 'notebook'")
    from driftlens.explorer.notebook import Explorer

    return Explorer(bench, GAMMAS, WINDOWS, editor="ROME")


def numbers(html: str) -> list[float]:
    """Of a heatmap's cells, those with a colour, by their hover text."""
    return [float(text) for text in re.findall(r"<title>[^<]*: ([+-][\d.]+)</title>", html)]


def test_every_widget_changes_the_drawings(explorer: Any, bench: Bench):
    def check() -> None:
        value = {name: control.value for name, control in explorer.choices.items()}
        key = value["record"], value["prompt"], value["gamma"]
        reading, module = bench.reading(*key), list(SITES).index(value["module"])
        effects = bench.grid(*key, value["window"])[module, ..., value["target"]] - reading.vanilla[value["target"]]
        # Cells of less than a 500th of the scale are not drawn.
        large = np.abs(effects).max()
        drawn = effects[np.abs(effects) >= max(large, 0.01) / 500]
        np.testing.assert_allclose(numbers(explorer.drawn["grid"].value), drawn, atol=6e-5)
        own = bench.grid(*key, value["window"])[module, value["token"], value["layer"]]
        for number in own[:2]:
            assert f"{number:.3f}" in explorer.drawn["next"].value
        at = reading.attention[:, value["head_layer"], value["head"]]
        for before, after in at.T:
            assert f"{before:.3f} → {after:.3f}" in explorer.drawn["attention"].value

    assert explorer.choices["task"].value == "distract_neighborhood"
    check()
    steps: list[tuple[str, Any]] = [("module", "mlp"), ("window", 2), ("target", 1), ("gamma", 0.5)]
    steps += [(name, None) for name in ("token", "layer", "head", "head_layer")]  # to another than the strongest
    steps += [("task", "neighborhood"), ("prompt", 2), ("record", 1), ("task", "rewrite")]
    for name, value in steps:
        before = [drawing.value for drawing in explorer.drawn.values()]
        control = explorer.choices[name]
        control.value = (control.value + 1) % 3 if value is None else value
        check()
        # The two neighborhood prompts are the same text.
        assert name == "prompt" or [drawing.value for drawing in explorer.drawn.values()] != before
    assert "&lt;/script&gt;&lt;b&gt;Tom" in explorer.drawn["fact"].value


def test_the_editor_without_sadr_is_shown_as_chosen(explorer: Any):
    """Its value is None, which a row of buttons would otherwise show as nothing chosen."""
    fresh = type(explorer)(explorer.bench, explorer.gammas, explorer.windows, editor=explorer.editor)
    assert (fresh.choices["gamma"].index, fresh.choices["gamma"].value) == (0, None)


def test_the_widgets_page_is_the_commands(explorer: Any, page: Path, tmp_path: Path):
    explorer.editor = "ROME <fast>"
    assert explorer.save(tmp_path / "page.html").read_bytes() == page.read_bytes()
    with pytest.raises(DriftlensError, match="cannot write"):
        explorer.save(tmp_path / "nowhere" / "page.html")


def test_explore_takes_a_record_and_an_editor(model: Any):
    pytest.importorskip("ipywidgets", reason="needs the extra 'notebook'")
    from driftlens import explore

    editor = ROME(layer=0, steps=2, contexts=("{}",), second_moment=torch.eye(model.d_mlp))
    shown = explore(model, RECORDS[0], editor=editor, gammas=(None,), windows=(1,))
    assert "Eiffel Tower" in shown.drawn["fact"].value
    with pytest.raises(DriftlensError, match="window is 0"):
        explore(model, RECORDS[0], editor=editor, windows=(0,))


def test_without_ipywidgets_one_line_says_what_to_do(model: Any, monkeypatch: pytest.MonkeyPatch):
    import sys

    from driftlens import explore

    monkeypatch.delitem(sys.modules, "driftlens.explorer.notebook", raising=False)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(DriftlensError, match=r"needs ipywidgets .*driftlens\[notebook\].*--explore"):
        explore(model, RECORDS[0])
