"""Figures: what they show is what the tables say, and files are whole, self-contained, or not there."""

# What plotly's figures hold is known once they are made.
# pyright: reportAttributeAccessIssue=false

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from driftlens.analyses.substitution import Trace
from driftlens.plots import figure_html, figure_png, plot_table, plot_trace, plot_tradeoffs, save_figure

ROLES = ["first subject token", "last subject token", "after subject", "test prompt", "last token"]
TEXTS = ["Eif", "fel <b>", " in", " Ben", " is"]


def made_up_trace(
    *,
    cases: int = 1,
    modules: tuple[str, ...] = ("resid", "mlp", "attn"),
    targets: int = 2,
    scale: float = 0.1,
    layers: int = 4,
) -> Trace:
    rng = np.random.default_rng(0)
    names = ["o_true", "o_edit"][:targets]
    rows = [
        {"case": case, "target_name": name, "target": f"{name} & {case}", "module": module, "token": token,
         "token_text": TEXTS[token], "role": ROLES[token], "layer": layer, "window": 2, "vanilla": 0.5, "edited": 0.25}
         for case in range(cases) for name in names for module in modules for token in range(5)
         for layer in range(layers)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    table["effect"] = scale * rng.standard_normal(len(table))
    table["probability"] = table["vanilla"] + table["effect"]
    baselines: Any = table[["case", "target_name", "target", "vanilla", "edited"]].drop_duplicates(ignore_index=True)
    baselines["prompt"] = "Eiffel <b> in Ben is"
    return Trace(table=table, baselines=baselines, model="some/model", window=2, edited_layers=(1,))


def heatmaps(figure: go.Figure) -> list[Any]:
    traces: Any = figure.data
    return [trace for trace in traces if trace.type == "heatmap"]


def test_a_panel_for_each_module_and_target_with_the_tables_values():
    trace = made_up_trace()
    panels = heatmaps(plot_trace(trace))
    assert len(panels) == 6
    grids = [
        trace.table[(trace.table["target_name"] == name) & (trace.table["module"] == module)]
        for name in ("o_true", "o_edit")
        for module in ("resid", "mlp", "attn")
    ]
    for panel, grid in zip(panels, grids, strict=True):
        np.testing.assert_array_equal(panel.z, grid.pivot(index="token", columns="layer", values="effect"))
        first = grid.iloc[0]
        hover = panel.customdata[0][0].replace("−", "-")
        assert f"{first['effect']:+.4f}" in hover
        assert f"0.5000 → {first['probability']:.4f}" in hover


def test_colours_are_centred_at_zero_and_all_panels_share_one_round_scale():
    trace = made_up_trace()
    layout = plot_trace(trace).layout
    largest = trace.table["effect"].abs().max()
    for axis in (layout.coloraxis, layout.coloraxis2):
        assert axis.cmin == -axis.cmax
        assert largest <= axis.cmax <= 2 * largest
        for value, text in zip(axis.colorbar.tickvals, axis.colorbar.ticktext, strict=True):
            assert float(text.replace("−", "-")) == pytest.approx(value, abs=1e-12)
    assert layout.coloraxis.cmax == layout.coloraxis2.cmax


@pytest.mark.parametrize(
    ("largest", "end"), [(0.0, 0.1), (1e-9, 0.1), (0.01, 0.1), (0.11, 0.2), (0.6, 0.6), (0.83, 1.0), (1.0, 1.0)]
)
def test_a_scale_ends_at_the_next_round_number_and_never_below_a_tenth(largest: float, end: float):
    trace = made_up_trace(modules=("attn",), targets=1)
    trace.table["effect"] *= largest / trace.table["effect"].abs().max()
    assert plot_trace(trace).layout.coloraxis.cmax == pytest.approx(end)


@pytest.mark.parametrize(("layers", "rows"), [(8, 2), (16, 2), (30, 2), (48, 6), (80, 6)])
def test_a_page_of_1280_pixels_shows_all_layers(layers: int, rows: int):
    figure = plot_trace(made_up_trace(layers=layers))
    layout = figure.layout
    assert layout.width <= 1280
    tops = {round(layout[axis].domain[1], 6) for axis in layout if axis.startswith("yaxis")}
    assert len(tops) == rows
    inner = layout.width - layout.margin.l - layout.margin.r
    across = (layout.xaxis.domain[1] - layout.xaxis.domain[0]) * inner
    assert across / layers >= 8
    # Tick labels of two digits, at about 0.6 of the type's size a digit, leave room between them.
    places = [(layout.xaxis.tickvals[at + 1] - layout.xaxis.tickvals[at]) * across / layers for at in range(3)]
    assert min(places) > 1.2 * layout.font.size


def test_the_mark_of_the_subject_is_explained():
    assert "* the edited subject" in plot_trace(made_up_trace()).layout.title.subtitle.text
    unmarked = made_up_trace()
    unmarked.table["role"] = "last token"
    assert "* " not in plot_trace(unmarked).layout.title.subtitle.text


def test_tokens_of_one_case_roles_of_several():
    one = plot_trace(made_up_trace())
    assert list(one.layout.yaxis.ticktext) == ["<b>Eif*</b>", "<b>fel &lt;b&gt;*</b>", "in", "Ben", "is"]
    trace = made_up_trace(cases=3)
    many = plot_trace(trace)
    labels = list(many.layout.yaxis.ticktext)
    assert [label.split("  ")[0].rstrip("*") for label in labels] == ROLES
    assert labels[1] == "last subject token*  <i>fel &lt;b&gt;</i>"
    grid = trace.by_role().query("target_name == 'o_true' and module == 'resid'")
    expected = grid.pivot(index="role", columns="layer", values="effect").loc[ROLES]
    np.testing.assert_allclose(heatmaps(many)[0].z, expected)
    assert "3 prompts" in heatmaps(many)[0].customdata[0][0]
    assert "mean of 3 prompts" in many.layout.title.subtitle.text


def test_words_say_what_is_shown():
    figure = made_up_trace().plot(title="A & B", note="ROME")
    written = " ".join([figure.layout.title.text, figure.layout.title.subtitle.text])
    written += " ".join(note.text for note in figure.layout.annotations)
    for words in ("A &amp; B", "model", "ROME", "window", "Attention output", "MLP output", "Hidden state"):
        assert words in written
    assert "change of<br>P(o_true)" in written
    assert "change of<br>P(o_edit)" in written
    assert "0.500" in written
    assert "<b>1</b><br>edit" in figure.layout.xaxis.ticktext
    assert made_up_trace().plot().layout.title.text == "<b>Eiffel &lt;b&gt; in Ben is</b>"


def test_type_is_legible_and_cells_keep_their_size():
    small, large = plot_trace(made_up_trace(modules=("attn",), targets=1)), plot_trace(made_up_trace())
    for figure in (small, large):
        sizes = [int(size) for size in re.findall(r'font":\{[^{}]*"size":\s*(\d+)', str(figure.to_json()))]
        assert min(sizes) >= 12

    def panel(figure: go.Figure) -> tuple[float, float]:
        layout = figure.layout
        across, up = layout.xaxis.domain, layout.yaxis.domain
        inner = layout.width - layout.margin.l - layout.margin.r, layout.height - layout.margin.t - layout.margin.b
        return round((across[1] - across[0]) * inner[0]), round((up[1] - up[0]) * inner[1])

    assert panel(small) == panel(large)


def test_a_page_needs_no_network():
    page = figure_html(plot_trace(made_up_trace(modules=("attn",), targets=1))).decode()
    assert "<html" in page
    assert "<title>Eiffel &lt;b&gt; in Ben is</title>" in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme:dark" in page
    assert not re.search(r'<(script|link)[^>]+(src|href)="http', page)


def test_both_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(go.Figure, "to_image", lambda *_, **__: b"a picture")
    written = save_figure(plot_trace(made_up_trace()), tmp_path / "trace.v1")
    assert [path.name for path in written] == ["trace.v1.html", "trace.v1.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.v1.html", "trace.v1.png"]
    assert written[1].read_bytes() == b"a picture"


def test_without_a_browser_the_page_is_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("\n\nKaleido requires Google Chrome to be installed.\n\nEither download\n")

    monkeypatch.setattr(go.Figure, "to_image", fail)
    figure = plot_trace(made_up_trace())
    with pytest.warns(RuntimeWarning, match=r"trace.png is not written: Kaleido requires Google Chrome"):
        written = save_figure(figure, tmp_path / "trace")
    assert [path.name for path in written] == ["trace.html"]
    assert "\n" not in figure_png(figure)[1]


@pytest.mark.slow
def test_a_real_picture():
    pytest.importorskip("kaleido")
    picture, problem = figure_png(plot_trace(made_up_trace()))
    if picture is None:
        pytest.skip(problem)
    assert picture.startswith(b"\x89PNG")


def test_a_single_prompt_that_is_averaged_by_role_has_a_row_for_each_role():
    # As experiments keep it: a role's first token stands for it, so that numbers are left out.
    roles = ["first subject token", "last subject token", "last token"]
    tokens = [0, 3, 9]
    cells = [
        {"case": 0, "target_name": "o_true", "target": "x", "module": "mlp", "token": token, "token_text": "a <b>",
         "role": role, "layer": layer, "window": 1, "probability": 0.5, "effect": 0.1 * token, "vanilla": 0.4,
         "edited": 0.2}
        for token, role in zip(tokens, roles, strict=True)
        for layer in range(2)
    ]  # fmt: skip
    baselines = [{"case": 0, "prompt": "p", "target_name": "o_true", "target": "x", "vanilla": 0.4, "edited": 0.2}]
    table, rows = pd.DataFrame(cells), pd.DataFrame(baselines)
    trace: Any = Trace(table=table, baselines=rows, model="m", window=1, edited_layers=(0,))
    (heatmap,) = (part for part in trace.plot().data if part.type == "heatmap")
    assert np.allclose(heatmap.z, [[0.0, 0.0], [0.3, 0.3], [0.9, 0.9]])


def test_cells_of_a_table_are_shown_as_they_are():
    table = pd.DataFrame({"a & b": ["<i>x</i>", "y"], "html": ["W<sub>l</sub>", "z"]})
    texts = [note.text for note in plot_table(table, title="<t>", html=["html"]).layout.annotations]
    assert "&lt;i&gt;x&lt;/i&gt;" in texts
    assert "<b>a &amp; b</b>" in texts
    assert "W<sub>l</sub>" in texts


def test_no_two_of_many_series_look_alike():
    """There are fewer colours than series; what comes back in one colour has another dash and another mark."""
    points = [
        {"panel": "p", "series": f"series {n}", "x": x, "y": float(n), "text": ""} for n in range(9) for x in (1, 10)
    ]
    figure: Any = plot_tradeoffs(pd.DataFrame(points), axes={"p": ("x", "y")}, title="t")
    looks = {(trace.line.color, trace.line.dash, trace.marker.symbol) for trace in figure.data}
    assert len(looks) == 9
