"""The notebooks: clean, the same in both formats, and executed from top to bottom in a real kernel, offline."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Page, needs_browser, visit
from tests.support.places import ROOT

jupytext: Any = pytest.importorskip("jupytext", reason="needs the extra 'notebook'")
nbformat: Any = pytest.importorskip("nbformat", reason="needs the extra 'notebook'")
for needed in ("nbclient", "ipykernel", "anywidget", "circuitsvis"):
    pytest.importorskip(needed, reason="needs the extra 'notebook'")

pytestmark = pytest.mark.timeout(600)  # a busy machine takes long to start a kernel

SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
OFFLINE = [script for script in SCRIPTS if script.stem != "05_a_real_model"]

# Fewer records and steps than a reader has: that every cell runs is seen on a few.
QUICK = {
    "02_attention_drift": "n_records, window = 2, 3",
    "03_sadr": 'n_records, gammas, changes = 1, (0.005,), {"steps": 6}',
    "04_your_model_your_fact": 'changes = {"steps": 8}',
}


def read(script: Path) -> Any:
    return jupytext.read(script)


def parametrised(notebook: Any, code: str) -> Any:
    changed = deepcopy(notebook)
    (cell,) = (cell for cell in changed.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source = code
    return changed


def execute(notebook: Any, folder: Path, timeout: int) -> Any:
    """Run it in a kernel of its own, with the repository as its folder."""
    from nbclient import NotebookClient

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRIFTLENS_CACHE", str(folder / "cache"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        where = {"metadata": {"path": str(ROOT)}}
        NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=where).execute()
    return notebook


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The outputs of each notebook's code cells; one kernel runs them all, emptied in between, to import torch once."""
    together = nbformat.v4.new_notebook()
    places: list[str] = []
    for script in OFFLINE:
        notebook = read(script)
        if script.stem in QUICK:
            notebook = parametrised(notebook, QUICK[script.stem])
        together.cells += [nbformat.v4.new_code_cell("%reset -f"), *notebook.cells]
        places += [script.stem] * (1 + len(notebook.cells))
    # Cell ids need only be there; two notebooks may have drawn the same.
    for at, cell in enumerate(together.cells):
        cell.id = f"cell-{at}"
    execute(together, tmp_path_factory.mktemp("notebooks"), timeout=240)
    found: dict[str, list[Any]] = {script.stem: [] for script in OFFLINE}
    for stem, cell in zip(places, together.cells, strict=True):
        if cell.cell_type == "code" and cell.source != "%reset -f":
            found[stem].append(cell.outputs)
    return found


def shown(outputs: list[Any], kind: str = "text/html") -> str:
    """What cells show of a kind, or `text` for what they print."""
    parts = [output.text for cell in outputs for output in cell if kind == "text" and output.output_type == "stream"]
    parts += [str(output.data[kind]) for cell in outputs for output in cell if kind in output.get("data", {})]
    return "\n".join(parts)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_both_formats_are_the_same_and_clean(script: Path):
    mine, pair = read(script), nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    advice = "write the .ipynb again: make notebooks"
    assert [(cell.cell_type, cell.source) for cell in pair.cells] == [
        (cell.cell_type, cell.source) for cell in mine.cells
    ], advice
    for cell in pair.cells:
        assert not cell.get("outputs"), advice
        assert cell.get("execution_count") is None, advice
    assert pair.metadata.kernelspec.name == "python3"
    prose = "\n".join(cell.source for cell in mine.cells if cell.cell_type == "markdown")
    assert 'device="cuda"' in prose
    assert "gpt-j-6b" in prose


def test_nothing_goes_wrong_and_nothing_needs_a_network(outputs: dict[str, list[Any]]):
    for stem, cells in outputs.items():
        kinds = {output.output_type for cell in cells for output in cell}
        assert "error" not in kinds, stem
        said = [output.text for cell in cells for output in cell if output.get("name") == "stderr"]
        assert said == [], stem
        assert not re.search(r'<(script|link|img)[^>]+(src|href)="?https?:|import .* from "https?:', shown(cells)), stem


def test_results_show_themselves(outputs: dict[str, list[Any]]):
    first = shown(outputs["01_first_trace"])
    for words in ("edit of one fact", "contaminating substitution", "record 0", "P(o_edit) while editing", "distract_"):
        assert words in first
    assert "attention drift" in shown(outputs["02_attention_drift"])
    for figure in ("Figure 4: ", "Figure 5: ", "Figure 10: "):
        assert figure in shown(outputs["02_attention_drift"])
    assert re.search(r"ρ = -?\d\.\d\d", shown(outputs["02_attention_drift"], "text"))
    for words in ("DNS", "heads over the limit", "all heads", "buys and costs"):  # γ may be escaped
        assert words in shown(outputs["03_sadr"])
    last = shown(outputs["04_your_model_your_fact"], "text")

    def found(pattern: str) -> str:
        (said,) = re.findall(pattern, last)
        return said

    assert "Vlordonia" in found("applied: (.*)")
    assert "Fropados" in found("restored: (.*)")
    assert "widget-view" in str(outputs["04_your_model_your_fact"])
    assert "a picture; run the cell to choose" in shown(outputs["04_your_model_your_fact"])


@needs_browser()
def test_the_attention_views_draw_themselves_offline(outputs: dict[str, list[Any]], tmp_path: Path):
    views = [
        html for html in map(shown, ([cell] for cell in outputs["02_attention_drift"])) if "CircuitsVis.render" in html
    ]
    assert len(views) == 2
    path = tmp_path / "view.html"
    path.write_text(f'<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">{views[1]}')

    async def look(tab: Page) -> None:
        import asyncio

        for _ in range(100):
            if await tab.evaluate("document.querySelectorAll('img, canvas').length >= 8"):  # a picture for each head
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("no head was drawn")
        assert "Head 7" in await tab.evaluate("document.body.innerText")

    page = visit(path, look)
    outside = [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == []


@pytest.mark.slow
@pytest.mark.parametrize("script", OFFLINE, ids=lambda script: script.stem)
def test_each_runs_as_it_is(script: Path, tmp_path: Path):
    execute(read(script), tmp_path, timeout=300)


@pytest.mark.slow
@pytest.mark.real
def test_the_real_model_runs_and_shows_the_failure(tmp_path: Path):
    from driftlens.errors import DriftlensError
    from driftlens.files import cache_folder
    from driftlens.models.published import PUBLISHED, obtain

    try:
        obtain(PUBLISHED["smollm2-135m"])
    except DriftlensError as error:
        pytest.skip(f"SmolLM2 cannot be fetched here: {error}")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(cache_folder() / "models")
    notebook = execute(read(ROOT / "notebooks" / "05_a_real_model.py"), tmp_path, timeout=580)
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert "SmolLM2-135M-Instruct" in shown(outputs)
    assert "distract_neighborhood" in shown(outputs)
    figures = [
        output for cell in outputs for output in cell if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    assert len(figures) == 2
