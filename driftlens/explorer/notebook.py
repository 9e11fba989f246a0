"""The explorer in Jupyter: widgets above, and below them four drawings that follow every choice.

A change asks the `Bench`, which computes what it has not computed yet: another module, answer or cell costs nothing, a
window or a prompt one grid, a γ an edit. Drawings are HTML with inline SVG (`driftlens.display`), so nothing but
ipywidgets itself is needed in the browser.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np

from driftlens.analyses.substitution import MODULES
from driftlens.analyses.windows import default_window, window_layers
from driftlens.display.html import card, faint, plain, row, short, table, token
from driftlens.display.svg import bars, heatmap
from driftlens.explorer.bench import Bench
from driftlens.explorer.page import explorer_page
from driftlens.explorer.readings import Floats, Reading
from driftlens.files import atomic_path, path_of

__all__ = ["Explorer"]

_MODULES = {"hidden state": "resid", "MLP output": "mlp", "attention output": "attn"}
_TARGETS = {"o_true, the right answer": 0, "o_edit, the edited one": 1}
_START = ("distract_neighborhood", "relation", "rewrite")


class Explorer(widgets.VBox):
    """The widgets; `choices` has the controls by name, `drawn` the drawings, `save` writes the page for others."""

    def __init__(self, bench: Bench, gammas: Sequence[float | None], windows: Sequence[int], *, editor: str) -> None:
        self.bench, self.gammas, self.windows, self.editor = bench, tuple(gammas), tuple(windows), editor
        layers, heads = bench.model.n_layers - 1, bench.model.n_heads - 1
        usual = min(windows, key=lambda window: abs(window - default_window(bench.model.n_layers)))
        records = [(f"{one.name}: {one.fact.subject}", at) for at, one in enumerate(bench.exhibits)]
        self.choices: dict[str, Any] = {
            "record": _drop("record", records),
            "task": _drop("task", []),
            "prompt": _drop("prompt", []),
            "gamma": _toggle([(bench.label(editor, gamma), gamma) for gamma in gammas]),
            "module": _toggle(list(_MODULES.items()), "attn"),
            "window": _toggle(list(windows), usual),
            "target": _toggle(list(_TARGETS.items())),
            "token": _drop("cell: token", []),
            "layer": _slide("layer", layers),
            "head_layer": _slide("head: layer", layers),
            "head": _slide("head", heads),
        }
        self.drawn = {name: widgets.HTML() for name in ("fact", "grid", "next", "heads", "attention")}
        self._filling = False
        self._fill("task", "prompt")
        for name, control in self.choices.items():
            control.observe(partial(self._changed, name), names="value")
        self._strongest(cell=True, head=True)
        self._draw()
        c, d = self.choices, self.drawn
        super().__init__(
            [
                d["fact"],
                _line(c["record"], c["task"], c["prompt"]),
                _line(_said("editor", c["gamma"]), _said("layers at a time", c["window"])),
                _line(_said("put in", c["module"]), _said("probability of", c["target"])),
                _line(widgets.VBox([_line(c["token"], c["layer"]), d["grid"]]), d["next"]),
                _line(widgets.VBox([_line(c["head_layer"], c["head"]), d["heads"]]), d["attention"]),
            ]
        )

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the page that needs no Python, with every choice of this explorer computed beforehand."""
        page = explorer_page(self.bench, self.gammas, self.windows, editor=self.editor, start=self._value("task"))
        with atomic_path(path) as temporary:
            temporary.write_bytes(page)
        return path_of(path)

    # --- what is chosen ---

    def _value(self, name: str) -> Any:
        return self.choices[name].value

    @property
    def _reading(self) -> Reading:
        return self.bench.reading(self._value("record"), self._value("prompt"), self._value("gamma"))

    @property
    def _grid(self) -> Floats:
        """[tokens, layers, 2 + candidates] of the chosen module."""
        chosen = (self._value(name) for name in ("record", "prompt", "gamma", "window"))
        return self.bench.grid(*chosen)[MODULES.index(self._value("module"))]

    def _effects(self) -> Floats:
        return self._grid[..., self._value("target")] - self._reading.vanilla[self._value("target")]

    def _drifts(self) -> Floats:
        """[heads, layers]: more attention to the edited subject's last token, or attention moved at all."""
        before, after = self._reading.attention
        at = self._reading.subject
        change = after[..., at] - before[..., at] if at >= 0 else np.abs(after - before).sum(-1) / 2
        return change.T

    # --- what follows a choice ---

    def _changed(self, name: str, _: Any) -> None:
        if self._filling:
            return
        self.drawn["grid"].value = plain(faint("computing …"))
        if name in ("record", "task"):
            self._fill(*(("task", "prompt") if name == "record" else ("prompt",)))
        elsewhere = name in ("record", "task", "prompt")
        if elsewhere or name in ("gamma", "module", "window", "target"):
            self._strongest(cell=True, head=elsewhere or name == "gamma")
        self._draw()

    def _fill(self, *names: str) -> None:
        """New options of these controls; a task that the record has stays."""
        exhibit = self.bench.exhibits[self._value("record")]
        prompts = list(enumerate(exhibit.prompts))
        self._filling = True
        if "task" in names:
            before = self.choices["task"].value
            self.choices["task"].options = [(task.replace("_", " "), task) for task in exhibit.tasks]
            first = next((task for task in (before, *_START) if task in exhibit.tasks), next(iter(exhibit.tasks)))
            self.choices["task"].value = first
        own = [(short(asked.text, 90), at) for at, (task, asked) in prompts if task == self._value("task")]
        # Prompts may begin alike; options must differ.
        self.choices["prompt"].options = [(f"{n}. {text}", at) for n, (text, at) in enumerate(own, 1)]
        self.choices["prompt"].value = own[0][1]
        self._filling = False

    def _strongest(self, *, cell: bool, head: bool) -> None:
        self._filling = True
        if cell:
            labels = [(f"{at}: {token(text)}", at) for at, text in enumerate(self._reading.tokens)]
            at, layer = _largest(self._effects())
            self.choices["token"].options = labels
            self.choices["token"].value, self.choices["layer"].value = at, layer
        if head:
            number, layer = _largest(self._drifts())
            self.choices["head"].value, self.choices["head_layer"].value = number, layer
        self._filling = False

    # --- drawings ---

    def _draw(self) -> None:
        reading, target = self._reading, self._value("target")
        name = ("o_true", "o_edit")[target]
        exhibit = self.bench.exhibits[self._value("record")]
        labels = [token(text) for text in reading.tokens]
        bold = {at for at, role in enumerate(reading.roles) if "subject token" in role}
        edited = list(self.bench.edit(self._value("record"), self._value("gamma")).layers)
        cell, head = (self._value("token"), self._value("layer")), (self._value("head"), self._value("head_layer"))
        layers = window_layers(cell[1], self._value("window"), self.bench.model.n_layers)
        where = f"“{labels[cell[0]]}”, layers {layers.start}–{layers.stop - 1}"

        changes = (
            f"P({answer}) {reading.vanilla[at]:.3f} → {reading.edited[at]:.3f}"
            for at, answer in enumerate((reading.prompt.target_true, reading.prompt.target_new))
        )
        fact = exhibit.fact
        title = f"{fact.text} {fact.target_true} → {fact.target_new}"
        said = f"{reading.prompt.text} … in the edited model: {', '.join(changes)}"
        self.drawn["fact"].value = card(exhibit.name, title, faint(said))

        effects = self._effects()
        limit = max(0.01, float(np.abs(effects).max()))
        drawn = heatmap(
            effects.tolist(),
            labels,
            limit=limit,
            heading=f"change of P({name}), full colour at ± {limit:.3f}",
            bold_rows=bold,
            bold_columns=edited,
            chosen=cell,
        )
        with_cell = self._grid[cell]
        found = f"{where}: {reading.vanilla[target]:.3f} → {with_cell[target]:.3f} ({effects[cell]:+.3f})"
        self.drawn["grid"].value = plain(row(drawn), faint(found))

        columns = (reading.vanilla, reading.edited, with_cell)
        self.drawn["next"].value = _next_tokens(reading, columns)

        drifts = self._drifts()
        seen = f"change of attention to “{labels[reading.subject]}”" if reading.subject >= 0 else "attention moved"
        names = [f"head {number}" for number in range(len(drifts))]
        limit = max(0.01, float(np.abs(drifts).max()))
        heads = heatmap(drifts.tolist(), names, limit=limit, heading=seen, bold_columns=edited, chosen=head)
        self.drawn["heads"].value = plain(row(heads))
        before, after = reading.attention[:, head[1], head[0]].tolist()
        heading = f"what the last token attends to, layer {head[1]}, head {head[0]}"
        drawn = bars(labels, before, after, heading=heading, bold=bold)
        self.drawn["attention"].value = plain(row(drawn), faint("grey: unedited model, blue: edited"))


def _next_tokens(reading: Reading, columns: Sequence[Floats]) -> str:
    answers = zip((reading.prompt.target_true, reading.prompt.target_new), ("o_true", "o_edit"), strict=True)
    rows = [(f"{answer} ({name})", *(f"{c[at]:.3f}" for c in columns)) for at, (answer, name) in enumerate(answers)]
    order = sorted(range(len(reading.candidates)), key=lambda at: -max(c[2 + at] for c in columns))
    rows += [(f"token {token(reading.candidates[at])}", *(f"{c[2 + at]:.3f}" for c in columns)) for at in order]
    rows.append(("all other tokens", *(f"{max(0.0, 1 - c[2:].sum()):.3f}" for c in columns)))
    return card(
        "probabilities",
        "What the model says next",
        table(("", "unedited", "edited", "unedited + cell"), rows, numbers=3),
    )


def _largest(values: Floats) -> tuple[int, int]:
    at, column = np.unravel_index(int(np.abs(values).argmax()), values.shape)
    return int(at), int(column)


def _line(*parts: Any) -> widgets.HBox:
    return widgets.HBox(list(parts), layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start"))


# The width of the description is given everywhere: JupyterLab's own 80 pixels cut long ones and set short ones apart.
_STYLE = {"description_width": "initial"}


def _drop(name: str, options: Sequence[Any]) -> Any:
    layout = widgets.Layout(width="auto", max_width="42em", margin="2px 1.5em 2px 2px")
    return widgets.Dropdown(description=name, options=options, layout=layout, style=_STYLE)


def _toggle(options: Sequence[Any], value: Any = None) -> Any:
    layout = widgets.Layout(width="auto", margin="2px 1.5em 2px 2px")
    buttons = widgets.ToggleButtons(options=options, style={"button_width": "auto"}, layout=layout)
    values = [one[1] if isinstance(one, tuple) else one for one in options]
    # By index: None, the editor without SADR, would be taken for no choice at all.
    buttons.index = values.index(value) if value is not None else 0
    return buttons


def _said(name: str, buttons: Any) -> widgets.HBox:
    """Buttons and their name before them; their own description would stand above, without a gap to its neighbours."""
    return widgets.HBox([widgets.Label(name), buttons])


def _slide(name: str, most: int) -> Any:
    return widgets.IntSlider(
        description=name, min=0, max=max(most, 0), continuous_update=False, style=_STYLE,
        layout=widgets.Layout(width="18em"),
    )  # fmt: skip
