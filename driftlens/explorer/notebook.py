"""The explorer in Jupyter: an anywidget with the same front end as the page.

The front end writes the user's choice to `choice`, and Python writes the numbers to `shown`. A new module, answer, cell
or head needs no new numbers; a new window or prompt needs one grid, and a new γ an edit. The `Bench` caches all of
them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from driftlens.display.html import card, faint, probabilities, row, token
from driftlens.display.svg import heatmap
from driftlens.display.templates import source
from driftlens.errors import DriftlensError
from driftlens.explorer.bench import Bench
from driftlens.explorer.page import explorer_page
from driftlens.explorer.view import edited_data, first_choice, grid_data, setup_data, unedited_data
from driftlens.files import atomic_path, path_of

__all__ = ["Explorer"]


def _front_end() -> str:
    markup, style = (json.dumps(source(f"explorer/view.{kind}")) for kind in ("html", "css"))
    scripts = (source(f"explorer/{name}.js") for name in ("view", "widget"))
    return "\n".join((f"const markup = {markup};", f"const style = {style};", *scripts))


class Explorer(anywidget.AnyWidget):
    """The widget.

    Attributes:
        setup: the names of all choices.
        choice: the indexes of `record`, `prompt`, `gamma`, `module`, `window` and `target`, with `cell` as
            [token, layer] and `head` as [head, layer]; None is the strongest. Assign a new dictionary to change the
            view.
        shown: the numbers of the choice, or `error`, a line that says what went wrong.
    """

    _esm = _front_end()
    setup = traitlets.Dict().tag(sync=True)
    choice = traitlets.Dict().tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        bench: Bench,
        gammas: Sequence[float | None],
        windows: Sequence[int],
        *,
        editor: str,
        start: str = "distract_neighborhood",
    ) -> None:
        self.bench, self.gammas, self.windows, self.editor = bench, tuple(gammas), tuple(windows), editor
        first = first_choice(bench, windows, start=start)
        setup = setup_data(bench, gammas, windows, editor=editor)
        super().__init__(setup=setup, choice=first, shown=self._numbers(first))
        self.observe(self._answer, names="choice")

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the page that needs no Python, with every choice of this explorer computed beforehand."""
        task, _ = self.bench.exhibits[self.choice["record"]].prompts[self.choice["prompt"]]
        page = explorer_page(self.bench, self.gammas, self.windows, editor=self.editor, start=task)
        with atomic_path(path) as temporary:
            temporary.write_bytes(page)
        return path_of(path)

    def _answer(self, _: Any) -> None:
        try:
            self.shown = self._numbers(self.choice)
        except DriftlensError as error:
            self.shown = {"choice": _asked(self.choice), "error": str(error)}

    def _numbers(self, choice: dict[str, Any]) -> dict[str, Any]:
        exhibit, prompt, gamma, window = self._key(choice)
        return {
            "choice": _asked(choice),
            **unedited_data(self.bench.reading(exhibit, prompt, gamma)),
            **edited_data(self.bench, exhibit, prompt, gamma),
            "grid": grid_data(self.bench, exhibit, prompt, gamma, window),
        }

    def _key(self, choice: dict[str, Any]) -> tuple[int, int, float | None, int]:
        record, prompt, gamma, window = _asked(choice)
        return record, prompt, self.gammas[gamma], self.windows[window]

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and a picture of the current choice for viewers without widgets."""
        bundle: Any = super()._repr_mimebundle_(**options)
        if bundle is None or "error" in self.shown:
            return bundle
        data, metadata = bundle
        return {**data, "text/html": self._picture()}, metadata

    def _picture(self) -> str:
        key = self._key(self.choice)
        reading, fact = self.bench.reading(*key[:3]), self.bench.exhibits[key[0]].fact
        grid = self.bench.grid(*key)[self.choice["module"], ..., self.choice["target"]]
        effects = grid - reading.vanilla[self.choice["target"]]
        limit = max(0.01, float(np.abs(effects).max()))
        module = self.setup["modules"][self.choice["module"]][1]
        answer = (reading.prompt.target_true, reading.prompt.target_new)[self.choice["target"]]
        drawn = heatmap(
            effects.tolist(),
            [token(text) for text in reading.tokens],
            limit=limit,
            heading=f"change of P({answer}) with the edited model's {module}, full colour at ± {limit:.3f}",
            bold_rows={at for at, role in enumerate(reading.roles) if "subject token" in role},
            bold_columns=list(self.bench.edit(key[0], key[2]).layers),
        )
        change = probabilities(
            float(reading.vanilla[self.choice["target"]]), float(reading.edited[self.choice["target"]])
        )
        said = f"{reading.prompt.text} … in the edited model: P({answer}) {change}"
        return card(
            "explorer", f"{fact.text} {fact.target_true} → {fact.target_new}", faint(said), row(drawn),
            faint("a picture; run the cell to choose"),
        )  # fmt: skip


def _asked(choice: dict[str, Any]) -> list[int]:
    """The choices that need new numbers."""
    return [choice[name] for name in ("record", "prompt", "gamma", "window")]
