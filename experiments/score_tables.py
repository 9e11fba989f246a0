"""Shared code of Tables 1, 3 and 6: the rows, the picture, and the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from driftlens.plots import plot_table
from experiments.artifacts import Number
from experiments.benchmarks import EDITORS, BenchmarkRun, Optimizing, Setting, records_for, settings_configuration
from experiments.comparisons import cell, value_of
from experiments.main_table import main_settings, run
from experiments.paper_numbers import Row
from experiments.tuning import tuned, tuning_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from experiments.study import Study

__all__ = [
    "about",
    "configured",
    "note",
    "numbers",
    "pairs",
    "picture",
    "prompts_of",
    "rows_of",
    "runs_of",
    "settings_text",
    "there",
]

_DIGITS = {"FL": 1, "PPL": 2}


def rows_of(study: Study, *, sadr: bool = True) -> dict[str, BenchmarkRun]:
    """The rows of the main table by their names in the paper, or those without SADR."""
    return runs_of(study, [each for each in main_settings(study) if sadr or not each.sadr])


def runs_of(study: Study, settings: Sequence[Setting]) -> dict[str, BenchmarkRun]:
    """Runs of these settings on the table's records, by their names in the paper."""
    records = records_for(study)
    return {each.name: run(study, each, records) for each in settings}


def configured(study: Study) -> dict[str, Any]:
    """The configuration that the main table's numbers depend on, and how settings were chosen."""
    found = {editor: tuned(study, editor).told() for editor in EDITORS} if study.options.tune is not None else {}
    return settings_configuration(study, main_settings(study), records_for(study), tuned=found)


def pairs(rows: Mapping[str, BenchmarkRun]) -> list[tuple[str, BenchmarkRun, BenchmarkRun]]:
    """Every editor with its runs without and with SADR."""
    names = [name for name in rows if f"{name}+SADR" in rows]
    return [(name, rows[name], rows[f"{name}+SADR"]) for name in names]


def there(rows: Mapping[str, BenchmarkRun], scores: Sequence[str]) -> list[str]:
    """The scores that the data has."""
    return [score for score in scores if any(not np.isnan(value_of(run, score)) for run in rows.values())]


def prompts_of(rows: Mapping[str, BenchmarkRun]) -> pd.DataFrame:
    """Every prompt's NLLs in every row."""
    return pd.concat([run.nlls.assign(row=name) for name, run in rows.items()], ignore_index=True)


def picture(
    rows: Mapping[str, BenchmarkRun], scores: Sequence[str], *, title: str, note: str, rules: Sequence[int] = ()
) -> go.Figure:
    """Draw editors × scores; for an editor with and without SADR, the better score is bold."""
    scores = there(rows, scores)
    columns = {"Editor": [name.replace("+", " + ") for name in rows]}
    for score in scores:
        columns[_head(score)] = [cell(run, score, _DIGITS.get(score, 1)) for run in rows.values()]
    bold: list[tuple[int, int]] = []
    names = list(rows)
    for name, alone, restrained in pairs(rows):
        for column, score in enumerate(scores, 1):
            better = _better(score, alone, restrained, rows.get("None"))
            bold += [(names.index(name) + offset, column) for offset in better]
    rules = rules or [at for at, name in enumerate(names) if f"{name}+SADR" in rows]
    return plot_table(pd.DataFrame(columns), title=title, note=note, rules=rules, bold=bold)


def _head(score: str) -> str:
    """Two lines: a group of prompts is named under its score."""
    return score.replace("Avg.S", "Avg. S").replace(", ", "\n")


def _better(score: str, alone: BenchmarkRun, restrained: BenchmarkRun, none: BenchmarkRun | None) -> list[int]:
    """Mark the better of the two, as 0 and 1; both or none if they are equal or unknown."""
    values = np.array([value_of(alone, score), value_of(restrained, score)])
    if np.isnan(values).any():
        return []
    if score in ("FL", "PPL"):
        # Neither direction is better in itself: what counts is the distance from the unedited model (5.1).
        if none is None or np.isnan(value_of(none, score)):
            return []
        values = -np.abs(values - value_of(none, score))
    return [at for at in (0, 1) if values[at] >= values[1 - at]]


def numbers(rows: Mapping[str, BenchmarkRun], paper: Mapping[str, Row], scores: Sequence[str]) -> list[Number]:
    """The paper's numbers for GPT-J beside ours, editor by editor."""
    return [
        Number(
            name=f"{name.replace('+', ' + ')}: {score.replace('Avg.S', 'Avg. S')}",
            paper=f"{printed:.2f}" if (printed := paper.get(name, {}).get(score)) is not None else "–",
            here=cell(run, score, 2),
        )
        for name, run in rows.items()
        for score in there(rows, scores)
    ]


def settings_text(rows: Mapping[str, BenchmarkRun]) -> str:
    """Describe every editor's settings in a sentence."""
    from driftlens.options.editing import editor_text

    parts: list[str] = []
    for row in rows.values():
        if (editor := row.editor) is not None:
            told = [f"lr {editor.lr:g}", f"{editor.steps} steps"] if isinstance(editor, Optimizing) else []
            parts.append(", ".join([editor_text(editor), *told]))
    return f"{'; '.join(parts)}."


def about(study: Study, rows: Mapping[str, BenchmarkRun]) -> str:
    """Describe model, records and settings for a caption."""
    first = next(iter(rows.values()))
    chosen = tuning_text(study)
    few = study.options.text_records
    texts = f" (fluency and perplexity: the first {few})" if few is not None and few < len(first.records) else ""
    return (
        f"Model {study.model_name}, {study.model.n_layers} layers, {str(study.model.dtype).removeprefix('torch.')}; "
        f"{len(first.records)} test records of {study.data_name}{texts}. {settings_text(rows)}"
        f"{' ' if chosen else ''}{chosen}"
    )


def note(study: Study, rows: Mapping[str, BenchmarkRun]) -> str:
    """The same for the note under a picture."""
    first = next(iter(rows.values()))
    return (
        f"Model {study.model_name} · {len(first.records)} test records of {study.data_name} · in brackets half of a "
        "95 % interval that resamples records"
    )
