"""The final output of `driftlens evaluate`: each score with its name, beside the unedited model's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.table import Table

from driftlens.evaluation.scores import MAGNITUDES, NAMES, SCORES

if TYPE_CHECKING:
    from driftlens.display.terminal import Terminal
    from driftlens.runs import BenchmarkResult

__all__ = ["report", "scores_beside"]

_WIDE = 110
"""The least width of a terminal that also shows what each score counts."""
_WIDEST = 135
"""The least width of a terminal that also shows the second interval."""


def scores_beside(result: BenchmarkResult, unedited: BenchmarkResult | None) -> pd.DataFrame:
    """The scores, with the unedited model's in the columns ``unedited``, ``unedited_low`` and ``unedited_high``.

    Both models are scored on the same prompts: a record that could not be edited counts for neither.
    """
    from driftlens.runs.results import scores_of

    scores = result.scores
    if unedited is None:
        return scores
    place = ["record", "task", "prompt_index"]
    measured = result.nlls.loc[result.nlls[["nll_true", "nll_new"]].notna().all(axis=1), place]
    edited = result.records["problem"] == ""
    records: Any = unedited.records[unedited.records["record"].isin(result.records.loc[edited, "record"])]
    before: Any = scores_of(unedited.nlls.merge(measured, on=place), records, resamples=0)
    columns = {"value": "unedited", "low": "unedited_low", "high": "unedited_high"}
    return scores.join(before[list(columns)].rename(columns=columns))


def report(
    result: BenchmarkResult, scores: pd.DataFrame, folder: Path, names: Sequence[str], console: Terminal
) -> None:
    """Print the table and the files."""
    console.print(_table(scores, title=_title(result), width=console.width))
    console.print()
    console.print(f"wrote {folder}: {', '.join(names)}, manifest.json", soft_wrap=True)


def _title(result: BenchmarkResult) -> str:
    editor = result.manifest["configuration"]["editor"]
    failed = sum(1 for problem in result.records["problem"] if problem)
    title = f"{'no editor' if editor is None else editor['name']}, {len(result.records):,} records"
    return f"{title}, {failed:,} of them without an edit" if failed else title


def _table(scores: pd.DataFrame, *, title: str, width: int) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    beside = "unedited" in scores.columns
    table.add_column("score", no_wrap=True)
    table.add_column("", overflow="fold")
    numbers = ["edited" if beside else "value", "95 % interval", *(["unedited"] if beside else [])]
    for name in [*numbers, *(["of resampled records"] if width >= _WIDEST else []), "n"]:
        table.add_column(name, justify="right", no_wrap=True)
    if width >= _WIDE:
        table.add_column("counts", no_wrap=True)
    rows: Any = scores.loc[scores["n"] > 0].itertuples()
    for row in rows:
        score = str(row.Index)
        cells = [score, NAMES[score], _number(row.value), _interval(row.low, row.high)]
        if beside:
            cells.append(_number(row.unedited))
        if width >= _WIDEST:
            cells.append(_interval(row.cluster_low, row.cluster_high))
        cells.append(f"{int(row.n):,}")
        if width >= _WIDE:
            cells.append(_counted(score))
        table.add_row(*cells)
    return table


def _counted(score: str) -> str:
    """What a score counts, in a few words; `docs/metrics.md` explains it in full."""
    of = {magnitude: name for name, magnitude in MAGNITUDES.items()}.get(score, score)
    if of not in SCORES:
        return ""
    likelier = SCORES[of][1]
    other = "true" if likelier == "new" else "new"
    return f"P({likelier}), %" if of != score else f"P({likelier}) > P({other}), %"


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.2f}"


def _interval(low: float, high: float) -> str:
    return "–" if low != low else f"{low:.2f} – {high:.2f}"
