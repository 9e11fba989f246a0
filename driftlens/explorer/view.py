"""The data that the explorer's front end reads, as JSON; `view.js` draws it, on a page and in a notebook.

Numbers are 16-bit integers in base64, in steps of 1/65535. Choices are indexes, e.g. of the record or of γ.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from driftlens.analyses.substitution import MODULES
from driftlens.analyses.windows import default_window
from driftlens.explorer.bench import Bench
from driftlens.explorer.readings import Floats, Reading

__all__ = ["edited_data", "first_choice", "grid_data", "setup_data", "unedited_data"]

_MODULES = {"resid": "hidden state", "mlp": "MLP output", "attn": "attention output"}


def setup_data(bench: Bench, gammas: Sequence[float | None], windows: Sequence[int], *, editor: str) -> dict[str, Any]:
    """The names of all choices; this computes no edit."""
    return {
        "model": bench.model.title,
        "layers": bench.model.n_layers,
        "heads": bench.model.n_heads,
        "modules": [[name, _MODULES[name]] for name in MODULES],
        "windows": list(windows),
        "gammas": [bench.label(editor, gamma) for gamma in gammas],
        "exhibits": [
            {
                "name": one.name,
                "fact": {
                    "text": one.fact.text,
                    "subject": one.fact.subject,
                    "true": one.fact.target_true,
                    "new": one.fact.target_new,
                },
                "prompts": [
                    {
                        "task": task,
                        "group": prompt.group,
                        "text": prompt.text,
                        "answers": [prompt.target_true, prompt.target_new],
                    }
                    for task, prompt in one.prompts
                ],
            }
            for one in bench.exhibits
        ],
    }


def first_choice(bench: Bench, windows: Sequence[int], *, start: str) -> dict[str, Any]:
    """The choice that is shown first: the first prompt of the task `start`, attention output, and the usual window."""
    tasks = [task for task, _ in bench.exhibits[0].prompts]
    usual = default_window(bench.model.n_layers)
    return {
        "record": 0,
        "prompt": tasks.index(start) if start in tasks else 0,
        "gamma": 0,
        "module": len(MODULES) - 1,
        "window": min(range(len(windows)), key=lambda at: abs(windows[at] - usual)),
        "target": 0,
        "cell": None,
        "head": None,
    }


def unedited_data(reading: Reading) -> dict[str, Any]:
    """A prompt's tokens, and the unedited model's attention."""
    return {
        "tokens": reading.tokens,
        "roles": reading.roles,
        "subject": reading.subject,
        "attention_unedited": _packed(reading.attention[0]),
    }


def edited_data(bench: Bench, exhibit: int, prompt: int, gamma: float | None) -> dict[str, Any]:
    """The probabilities of both models on a prompt, and the edited model's attention."""
    reading = bench.reading(exhibit, prompt, gamma)
    return {
        "layers": list(bench.edit(exhibit, gamma).layers),
        "candidates": reading.candidates,
        "vanilla": _packed(reading.vanilla),
        "edited": _packed(reading.edited),
        "attention_edited": _packed(reading.attention[1]),
    }


def grid_data(bench: Bench, exhibit: int, prompt: int, gamma: float | None, window: int) -> str:
    """The grid of contaminating substitution: `[modules, tokens, layers, 2 + candidates]`."""
    return _packed(bench.grid(exhibit, prompt, gamma, window))


def _packed(values: Floats) -> str:
    """Numbers between 0 and 1 as little-endian 16-bit integers in base64; NaN becomes 0."""
    steps = np.rint(np.nan_to_num(values, nan=0.0).clip(0, 1) * 65535)
    return base64.b64encode(steps.astype("<u2").tobytes()).decode("ascii")
