"""The explorer as one HTML file, for people without Python.

Every choice is computed beforehand and lies in the page: numbers as 16-bit integers in base64 (steps of 1/65535),
names as JSON in which no `<` can end the script that holds it. The page loads nothing, and its content security policy
forbids it to. Its looks and its behaviour are `page.css` and `page.js`, plain and without a library, put into the
template `page.html`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from driftlens.analyses.substitution import MODULES
from driftlens.analyses.windows import default_window
from driftlens.display.templates import render
from driftlens.explorer.bench import Bench
from driftlens.explorer.readings import Floats, Reading

__all__ = ["explorer_page"]

_MODULES = {"resid": "hidden state", "mlp": "MLP output", "attn": "attention output"}


def explorer_page(
    bench: Bench,
    gammas: Sequence[float | None],
    windows: Sequence[int],
    *,
    editor: str = "ROME",
    start: str = "distract_neighborhood",
    on_grids: Callable[[int, int], None] | None = None,
) -> bytes:
    """The page with every prompt of every exhibit, each under every γ and with every window.

    Args:
        bench: what computes them; it keeps what it has made.
        gammas: SADR's γ, None for the editor without it.
        windows: layers that a cell substitutes.
        editor: what to call the editor.
        start: the task that is shown first.
        on_grids: called with the number of (exhibit, γ, window) done, and of all.
    """
    total, done = len(bench.exhibits) * len(gammas) * len(windows), 0
    exhibits: list[dict[str, Any]] = []
    for at, exhibit in enumerate(bench.exhibits):
        prompts = range(len(exhibit.prompts))
        edits: list[list[dict[str, Any]]] = []
        for gamma in gammas:
            for window in windows:
                bench.fill(at, prompts, gamma, window)
                done += 1
                if on_grids is not None:
                    on_grids(done, total)
            edits.append([_edited(bench, at, prompt, gamma, windows) for prompt in prompts])
        fact = exhibit.fact
        exhibits.append(
            {
                "name": exhibit.name,
                "fact": {"text": fact.text, "subject": fact.subject, "true": fact.target_true, "new": fact.target_new},
                "prompts": [
                    _prompt(task, bench.reading(at, prompt, gammas[0]))
                    for prompt, (task, _) in enumerate(exhibit.prompts)
                ],
                "edits": edits,
            }
        )
    model = bench.model
    data = {
        "model": model.title,
        "editor": editor,
        "layers": model.n_layers,
        "heads": model.n_heads,
        "edited_layers": sorted({layer for gamma in gammas for layer in bench.edit(0, gamma).layers}),
        "modules": [[name, _MODULES[name]] for name in MODULES],
        "windows": list(windows),
        "gammas": [bench.label(editor, gamma) for gamma in gammas],
        "start": start,
        "start_window": min(range(len(windows)), key=lambda at: abs(windows[at] - default_window(model.n_layers))),
        "exhibits": exhibits,
    }
    return render("explorer/page.html", data=data).encode()


def _prompt(task: str, reading: Reading) -> dict[str, Any]:
    prompt = reading.prompt
    return {
        "task": task,
        "group": prompt.group,
        "text": prompt.text,
        "distractor": prompt.distractor,
        "answers": [prompt.target_true, prompt.target_new],
        "tokens": reading.tokens,
        "roles": reading.roles,
        "subject": reading.subject,
        "attention": _packed(reading.attention[0]),
    }


def _edited(bench: Bench, at: int, prompt: int, gamma: float | None, windows: Sequence[int]) -> dict[str, Any]:
    reading = bench.reading(at, prompt, gamma)
    return {
        "candidates": reading.candidates,
        "vanilla": _packed(reading.vanilla),
        "edited": _packed(reading.edited),
        "attention": _packed(reading.attention[1]),
        "grids": [_packed(bench.grid(at, prompt, gamma, window)) for window in windows],
    }


def _packed(values: Floats) -> str:
    """Numbers between 0 and 1 as little-endian 16-bit integers in base64; what is no number as 0."""
    steps = np.rint(np.nan_to_num(values, nan=0.0).clip(0, 1) * 65535)
    return base64.b64encode(steps.astype("<u2").tobytes()).decode("ascii")
