"""The explorer as one HTML file, for people without Python.

The page holds the precomputed numbers of every choice, as JSON in which no `<` can end the script element. It loads
nothing, which its content security policy enforces. The template `page.html` joins the front end (`view.html`,
`view.css`, `view.js`) with `page.js`, which looks up the numbers in the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from driftlens.display.templates import render
from driftlens.explorer.bench import Bench
from driftlens.explorer.view import edited_data, first_choice, grid_data, setup_data, unedited_data
from driftlens.progress import OnDone

__all__ = ["explorer_page"]


def explorer_page(
    bench: Bench,
    gammas: Sequence[float | None],
    windows: Sequence[int],
    *,
    editor: str = "ROME",
    start: str = "distract_neighborhood",
    on_grids: OnDone | None = None,
) -> bytes:
    """Make the page with every prompt of every exhibit, for every γ and every window.

    Args:
        bench: computes and caches the numbers.
        gammas: SADR's γ; None is the editor without SADR.
        windows: numbers of layers that a cell substitutes.
        editor: the editor's name.
        start: the task that is shown first.
        on_grids: called with the number of (exhibit, γ, window) that are done, and the number of all.
    """
    total, done = len(bench.exhibits) * len(gammas) * len(windows), 0
    # unedited by exhibit and prompt, edited by exhibit, γ and prompt, grids by exhibit, γ, prompt and window
    unedited: list[list[dict[str, Any]]] = []
    edited: list[list[list[dict[str, Any]]]] = []
    grids: list[list[list[list[str]]]] = []
    for at, exhibit in enumerate(bench.exhibits):
        prompts = range(len(exhibit.prompts))
        for gamma in gammas:
            for window in windows:
                bench.fill(at, prompts, gamma, window)
                done += 1
                if on_grids is not None:
                    on_grids(done, total)
        unedited.append([unedited_data(bench.reading(at, prompt, gammas[0])) for prompt in prompts])
        edited.append([[edited_data(bench, at, prompt, gamma) for prompt in prompts] for gamma in gammas])
        grids.append(
            [
                [[grid_data(bench, at, prompt, gamma, window) for window in windows] for prompt in prompts]
                for gamma in gammas
            ]
        )
    data = {
        "setup": setup_data(bench, gammas, windows, editor=editor),
        "choice": first_choice(bench, windows, start=start),
        "unedited": unedited,
        "edited": edited,
        "grids": grids,
    }
    return render("explorer/page.html", data=data).encode()
