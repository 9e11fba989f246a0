"""From tables to plotly figures, and figures to files.

Every analysis draws through this module: one template, one diverging colour scale centred at zero, type of at least
12 px so that a figure survives print, exact values on hover.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from driftlens.files import atomic_path
from driftlens.roles import ROLES, SUBJECT_ROLES

if TYPE_CHECKING:
    from driftlens.trace import Trace

__all__ = ["figure_html", "figure_png", "plot_trace", "save_figure"]

_TEMPLATE = "plotly_white"
_FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
_INK, _FAINT = "#20242b", "#667080"
_DIVERGING = [
    (0.0, "#7f1d1d"),
    (0.12, "#b8352e"),
    (0.28, "#e07f5f"),
    (0.42, "#f6d3c1"),
    (0.5, "#fbfaf8"),
    (0.58, "#c9dcec"),
    (0.72, "#76a9d0"),
    (0.88, "#2f6fa8"),
    (1.0, "#12365f"),
]
"""Red: the probability falls; blue: it rises. The middle is almost white, and both ends are equally dark."""

_MODULE_TITLES = {"resid": "Hidden state", "mlp": "MLP output", "attn": "Attention output"}


def plot_trace(trace: Trace, *, title: str | None = None, note: str = "") -> go.Figure:
    """The trace's heatmaps: a column for each module, a row for each target, one colour scale for each row.

    One case shows its tokens, the edited subject's marked with an asterisk; several show token roles, each with its
    text in the first case. The edited layers are named under the axis.
    """
    n_cases = len(set(trace.baselines["case"]))
    cells, labels = _tokens(trace.table) if n_cases == 1 else _roles(trace.by_role())
    modules, targets = list(cells["module"].unique()), list(cells["target_name"].unique())
    layers: list[int] = sorted(cells["layer"].unique())
    frame = _Frame(
        columns=len(modules),
        rows=len(targets),
        panel_width=max(210.0, 20.0 * len(layers)),
        panel_height=max(140.0, 23.0 * len(labels)),
        left=20 + 7.3 * max(len(_plain(label)) for label in labels),
    )
    figure = frame.figure()
    for row, name in enumerate(targets, 1):
        of_target: Any = cells[cells["target_name"] == name]
        for column, module in enumerate(modules, 1):
            grid = of_target[of_target["module"] == module]
            figure.add_trace(_heatmap(grid, len(labels), layers, f"coloraxis{row}"), row, column)
        _add_scale(figure, frame, row, of_target["effect"], f"change of<br>P({_shown(trace, name)})")
        _write(figure, _baseline(trace, name), x=0, y=frame.vertical(figure, row)[1], anchor="left", up=30)
        for column, module in enumerate(modules, 1):
            head = f"<b>{_MODULE_TITLES.get(module, module)}</b>"
            middle = sum(frame.horizontal(figure, column)) / 2
            _write(figure, head, x=middle, y=frame.vertical(figure, row)[1], anchor="center", up=5, ink=_INK)
    ticks = [layer for layer in layers if _ticked(layer, len(layers), trace.edited_layers)]
    names = [f"<b>{layer}</b><br>edit" if layer in trace.edited_layers else str(layer) for layer in ticks]
    figure.update_xaxes(tickvals=ticks, ticktext=names, ticks="outside", ticklen=4, tickcolor="#c3c9d2", tickangle=0)
    figure.update_yaxes(tickvals=list(range(len(labels))), ticktext=labels, autorange="reversed")
    # Transparent ticks keep the labels off the panels.
    figure.update_yaxes(ticks="outside", ticklen=6, tickcolor="rgba(0,0,0,0)")
    shape = "1 layer" if trace.window == 1 else f"windows of {trace.window} layers"
    axis = "layer" if trace.window == 1 else f"layer at the centre of a window of {trace.window} layers"
    _write(figure, axis, x=0.5, y=0, anchor="center", up=-64, ink=_INK)
    parts = [Path(trace.model).name, note, f"edited activations substituted in {shape} of the vanilla model"]
    if n_cases > 1:
        parts.append(f"mean of {n_cases} prompts")
    if title is None:
        title = "Contaminating substitution" if n_cases > 1 else str(trace.baselines["prompt"].iloc[0])
    frame.style(figure, title, [part for part in parts if part])
    return figure


def save_figure(figure: go.Figure, path: str | PathLike[str]) -> list[Path]:
    """Write `path`.html, which needs no network, and `path`.png where a Chrome or Chromium is there to draw it.

    Without one a warning says so. Returns the files written.
    """
    stem = Path(path)
    written = [stem.with_name(f"{stem.name}.html")]
    with atomic_path(written[0]) as temporary:
        temporary.write_bytes(figure_html(figure))
    picture, problem = figure_png(figure)
    if picture is None:
        warnings.warn(f"{stem.name}.png is not written: {problem}", RuntimeWarning, stacklevel=2)
        return written
    written.append(stem.with_name(f"{stem.name}.png"))
    with atomic_path(written[1]) as temporary:
        temporary.write_bytes(picture)
    return written


def figure_html(figure: go.Figure) -> bytes:
    """A page that holds the figure and all it needs."""
    html: str = figure.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False})
    return html.encode()


def figure_png(figure: go.Figure, *, scale: float = 2.0) -> tuple[bytes | None, str]:
    """The figure as a PNG, or None and in one line why there is none."""
    try:
        return figure.to_image(format="png", scale=scale), ""
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        # kaleido missing, no browser, or one that does not start; plotly's advice is a page long.
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return None, f"{first.rstrip('.:')} (a picture needs the extra 'image' and a Chrome or Chromium)"


def _tokens(table: Any) -> tuple[pd.DataFrame, list[str]]:
    """Cells and row labels of a single case, by token."""
    first = table[table["target_name"] == table["target_name"].iloc[0]]
    tokens = first.drop_duplicates("token").sort_values("token")
    labels = [
        f"<b>{_escaped(text)}*</b>" if role in SUBJECT_ROLES else _escaped(text)
        for text, role in zip(tokens["token_text"], tokens["role"], strict=True)
    ]
    hover = [
        f"token {c.token} “{_escaped(c.token_text)}” ({c.role})<br>layer {c.layer}<br>"
        f"P {c.vanilla:.4f} → {c.probability:.4f} (edited model {c.edited:.4f})<br><b>{c.effect:+.4f}</b>"
        for c in table.itertuples()
    ]
    return table.assign(row=table["token"], hover=hover), labels


def _roles(grid: Any) -> tuple[pd.DataFrame, list[str]]:
    """Cells and row labels of an average over cases, by role."""
    present = [role for role in ROLES if role in set(grid["role"])]
    examples = dict(zip(grid["role"], grid["example"], strict=True))
    labels = [
        f"{role}{'*' if role in SUBJECT_ROLES else ''}  <i>{_escaped(_short(examples[role]))}</i>" for role in present
    ]
    hover = [
        f"{c.role}<br>layer {c.layer}<br><b>{c.effect:+.4f}</b> [{c.low:+.4f}, {c.high:+.4f}]<br>{c.cases} prompts"
        for c in grid.itertuples()
    ]
    return grid.assign(row=grid["role"].map(present.index), hover=hover), labels


def _heatmap(grid: pd.DataFrame, n_rows: int, layers: Sequence[int], scale: str) -> go.Heatmap:
    z = np.full((n_rows, len(layers)), np.nan)
    hover = np.full(z.shape, "", dtype=object)
    at = grid["row"].to_numpy(dtype=int), grid["layer"].map(list(layers).index).to_numpy(dtype=int)
    z[at], hover[at] = grid["effect"].to_numpy(dtype=float), grid["hover"].to_numpy()
    return go.Heatmap(
        z=z,
        x=list(layers),
        y=list(range(n_rows)),
        coloraxis=scale,
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        xgap=1,
        ygap=1,
    )


def _add_scale(figure: go.Figure, frame: _Frame, row: int, effects: Any, title: str) -> None:
    """A colour bar beside the row's panels, the same distance to both sides of zero, and above it what it measures."""
    bottom, top = frame.vertical(figure, row)
    # Not below a hundredth: where an edit does nothing, rounding must not be painted in full colour.
    largest = max(float(effects.abs().max()), 0.01)
    digits = 2 if largest >= 0.1 else 3
    ticks = [share * largest for share in (-1, -0.5, 0, 0.5, 1)]
    bar = {
        "tickvals": ticks,
        "ticktext": [f"{tick:+.{digits}f}".replace("-", "−") if tick else "0" for tick in ticks],
        "thickness": 14,
        "len": top - bottom,
        "y": (top + bottom) / 2,
        "x": 1.0,
        "xpad": 14,
        "ypad": 0,
        "outlinewidth": 0,
    }
    scale = {"colorscale": _DIVERGING, "cmin": -largest, "cmax": largest, "colorbar": bar}
    figure.update_layout({f"coloraxis{row}": scale})
    _write(figure, title, x=1, y=top, anchor="left", up=5, right=14, ink=_INK)


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where panels stand, in pixels, so that cells and type keep their size however many there are."""

    columns: int
    rows: int
    panel_width: float
    panel_height: float
    left: float
    right: float = 118
    top: float = 138
    bottom: float = 84
    between_columns: float = 28
    between_rows: float = 104

    @property
    def inner_width(self) -> float:
        return self.columns * self.panel_width + (self.columns - 1) * self.between_columns

    @property
    def inner_height(self) -> float:
        return self.rows * self.panel_height + (self.rows - 1) * self.between_rows

    def figure(self) -> go.Figure:
        """Empty panels that share their axes; every row names its layers, since the first may be far from the last."""
        shared: Any = "all"  # zooming in one panel zooms in all
        figure = make_subplots(
            rows=self.rows,
            cols=self.columns,
            shared_xaxes=shared,
            shared_yaxes=shared,
            horizontal_spacing=self.between_columns / self.inner_width,
            vertical_spacing=self.between_rows / self.inner_height if self.rows > 1 else 0.0,
        )
        figure.update_xaxes(showgrid=False, zeroline=False, showticklabels=True)
        return figure.update_yaxes(showgrid=False, zeroline=False)

    def vertical(self, figure: go.Figure, row: int) -> tuple[float, float]:
        """Bottom and top of a row of panels, as shares of the inner height."""
        return _domain(figure, "yaxis", (row - 1) * self.columns + 1)

    def horizontal(self, figure: go.Figure, column: int) -> tuple[float, float]:
        """Left and right of a column of panels, as shares of the inner width."""
        return _domain(figure, "xaxis", column)

    def style(self, figure: go.Figure, title: str, parts: Sequence[str]) -> None:
        """Title, subtitle of `parts`, broken where the figure ends, and the look that all figures share."""
        width = max(self.left + self.inner_width + self.right, 640)
        lines = _lines(parts, int((width - 30) / 6.6))
        head = wrap(title, int((width - 30) / 9.6)) or [""]
        top = self.top + 18 * (len(lines) - 1) + 24 * (len(head) - 1)
        figure.update_layout(
            template=_TEMPLATE,
            title={
                "text": "<br>".join(f"<b>{_escaped(line)}</b>" for line in head),
                "subtitle": {"text": "<br>".join(map(_escaped, lines)), "font": {"size": 13, "color": _FAINT}},
                "font": {"size": 18, "color": _INK},
                "x": 14 / width,
                "xanchor": "left",
                "yref": "container",
                "y": 1,
                "yanchor": "top",
                "pad": {"t": 18},
            },
            font={"family": _FONT, "size": 13, "color": _INK},
            width=width,
            height=top + self.inner_height + self.bottom,
            # What the smallest figure has too much goes to the right of the colour bar.
            margin={"l": self.left, "r": width - self.left - self.inner_width, "t": top, "b": self.bottom},
            hoverlabel={"align": "left", "font": {"size": 13, "family": _FONT}},
            plot_bgcolor="#eceef1",
        )


def _write(
    figure: go.Figure, text: str, *, x: float, y: float, anchor: str, up: float, right: float = 0, ink: str = _FAINT
) -> None:
    """Text, `up` and `right` so many pixels from a place given in shares of the inner width and height."""
    figure.add_annotation(
        text=text, x=x, y=y, xref="paper", yref="paper", xanchor=anchor, yanchor="bottom", align=anchor,
        showarrow=False, xshift=right, yshift=up, font={"size": 13, "color": ink},
    )  # fmt: skip


def _domain(figure: go.Figure, axis: str, number: int) -> tuple[float, float]:
    low, high = figure.layout[f"{axis}{'' if number == 1 else number}"].domain
    return float(low), float(high)


def _lines(parts: Sequence[str], width: int) -> list[str]:
    """The parts joined by dots, broken between parts."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return lines


def _ticked(layer: int, n_layers: int, edited: Sequence[int]) -> bool:
    step = max(1, round(n_layers / 12))
    # A label right beside an edited layer's would run into it.
    return layer in edited or (layer % step == 0 and not (step > 1 and {layer - 1, layer + 1} & set(edited)))


def _shown(trace: Trace, name: str) -> str:
    """A target's name, or for a single one without a name its text."""
    texts: Any = trace.baselines.loc[trace.baselines["target_name"] == name, "target"].unique()
    return _escaped(texts[0]) if name == "target" and len(texts) == 1 else name


def _baseline(trace: Trace, name: str) -> str:
    rows: Any = trace.baselines[trace.baselines["target_name"] == name]
    texts = rows["target"].unique()
    quoted = f" = “{_escaped(texts[0])}”" if len(texts) == 1 and name != "target" else ""
    vanilla, edited = rows["vanilla"].mean(), rows["edited"].mean()
    return f"P({_shown(trace, name)}){quoted}: vanilla model {vanilla:.3f}, edited model {edited:.3f}"


def _short(text: str, most: int = 22) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def _escaped(text: str) -> str:
    """Plotly reads labels as HTML; blanks at the ends of tokens are no news."""
    visible = text.strip() or text.replace("\n", "⏎").replace(" ", "␣")
    return visible.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "⏎")


def _plain(label: str) -> str:
    for tag in ("<b>", "</b>", "<i>", "</i>"):
        label = label.replace(tag, "")
    return label
