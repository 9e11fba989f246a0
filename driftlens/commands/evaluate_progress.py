"""Show the progress of a benchmark run: a live line in a terminal, an occasional plain line in a log.

The remaining time is estimated from the records of this session only, because existing results cost nothing.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pandas as pd

from driftlens.display.durations import duration
from driftlens.evaluation import summarize
from driftlens.options.moments import cost_text
from driftlens.progress import Pace

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from driftlens.display.terminal import Terminal
    from driftlens.editors.base import Editor
    from driftlens.editors.moment_cost import MomentCost
    from driftlens.runs.shards import Tables

__all__ = ["Shown", "shown_progress"]

_SCORES = ("ES", "PS", "NS", "RS", "DNS")
_QUIET_SECONDS = 60.0


class Shown:
    """The progress display of a run."""

    def __init__(self, errors: Terminal, total: int, bars: Bars) -> None:
        self.errors, self.total, self.bars = errors, total, bars
        self.done = 0
        self._here = 0  # records done in this session
        self._pace, self._pace_of_texts = Pace(), Pace()
        self._told = time.monotonic()
        self._pieces: list[pd.DataFrame] = []
        self._failed = 0
        self._scores = ""
        self._unedited = 0
        self._line = bars.add_task("records", total=total, stage="", scores="", left="")

    def stage(self, name: str) -> None:
        """Show the current stage."""
        self.bars.update(self._line, stage=name)

    def texts_to_read(self, editor: Editor, cost: MomentCost) -> None:
        """Announce the texts of second moments."""
        self._pace_of_texts.begin()
        text = cost_text(editor, cost)
        if text:
            self.errors.print(text)

    def texts(self, done: int, total: int) -> None:
        """Show the number of finished texts of second moments."""
        left = self._pace_of_texts.left(done, total - done)
        self.stage(f"second moments, {done:,} of {total:,} texts, {duration(left)} left")

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show the progress of a stage or of the records."""
        if stage != "records":
            self.stage(f"{stage} {done / max(total, 1):.0%}")
            return
        self.bars.update(self._line, completed=self.done, scores=self._scores, left=self._left(), stage="")
        now = time.monotonic()
        if not self.errors.is_terminal and self._here and now - self._told >= _QUIET_SECONDS:
            self._told = now
            told = f"{self.done:,} of {self.total:,} records  {self._left()}  {self._scores}"
            self.errors.print(" ".join(told.split()))

    def shard(self, done: int, tables: Tables, found: bool) -> None:
        """Take up the results of a shard."""
        if found:
            self._pace.begin()
        else:
            self._here += len(tables["records"])
        self.done = done
        self._pieces.append(tables["nlls"])
        self._failed += sum(1 for problem in tables["records"]["problem"] if problem)
        self._scores = self._running_scores()

    def unedited(self, stage: str, done: int, _: int) -> None:
        """Show the progress of the unedited model's run, which follows."""
        if stage == "records":
            self._unedited = done
        else:
            self.stage(f"unedited model, {self._unedited:,} of {self.total:,} records, {stage}")

    def close(self) -> None:
        """End the live line."""
        self.bars.stop()

    def _left(self) -> str:
        if not self._here or self.done == self.total:
            return ""
        return f"{duration(self._pace.left(self._here, self.total - self.done))} left"

    def _running_scores(self) -> str:
        pieces = [piece for piece in self._pieces if len(piece)]
        parts: list[str] = []
        if pieces:
            table = summarize(pd.concat(pieces), resamples=0)
            parts = [f"{name} {table.loc[name, 'value']:.1f}" for name in _SCORES if table.loc[name, "n"]]
        if self._failed:
            parts.append(f"{self._failed} without an edit")
        return " ".join(parts)


@contextmanager
def shown_progress(errors: Terminal, total: int) -> Generator[Shown]:
    """Yield the progress display of a run."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("records"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[scores]}", markup=False, style="bold"),
        TextColumn("{task.fields[stage]}", markup=False, style="dim"),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bars:
        yield Shown(errors, total, bars)
