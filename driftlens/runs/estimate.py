"""Estimate what a run would take on this machine, from a few records or from the phases of an edit.

1. :func:`try_out` processes one record, then a few together, as the run does.  Memory is extrapolated linearly from the
   two to the batch size of the run; the time per record is that of the second.  A larger batch is faster on a GPU, so
   the time is overestimated rather than underestimated.
2. :func:`estimate` adds up what `driftlens profile` has measured, for every editor.

How seconds and memory are measured says :mod:`driftlens.models.timing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from driftlens.data import Record
from driftlens.models.timing import Phase, most_bytes, timed
from driftlens.runs.profiling import EditorCost
from driftlens.runs.work import Work

__all__ = ["RunEstimate", "Trial", "estimate", "try_out"]

_RECORDS = 4


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The cost of a few records of a run, and the estimate for all of them.

    Attributes:
        records: the number of records tried.
        seconds: seconds per record.
        needed_bytes: the most memory that the run holds; 0 where the system does not tell.
        written_bytes: the tables of all records.
    """

    records: int
    seconds: float
    needed_bytes: float
    written_bytes: float


def try_out(work: Work, records: Sequence[Record], *, batch: int) -> Trial:
    """Process a few of ``records`` as the run would, and discard the results.

    Args:
        work: the work of the run.
        records: all records.
        batch: facts that the run has side by side.
    """
    model = work.model
    work.prepare()
    few = _typical(records, min(_RECORDS, work.edit_batch))
    work(few[:1])
    alone = most_bytes(model.device)
    kept: list[int] = []

    def together() -> None:
        kept[:] = [len(table.to_parquet(index=False)) for table in work(few).values()]
        if work.editor is not None:  # the unedited model is measured on the same records
            replace(work, editor=None)(few)

    seconds, most = timed(together, model.device) / len(few), most_bytes(model.device)
    growth = (most - alone) / (len(few) - 1) if len(few) > 1 else 0.0
    return Trial(
        records=len(few),
        seconds=seconds,
        needed_bytes=most + max(0.0, growth) * (batch - len(few)),
        written_bytes=sum(kept) / len(few) * len(records),
    )


def _typical(records: Sequence[Record], count: int) -> list[Record]:
    """Records spread evenly over the run, the one with the most prompts among them."""
    count = min(count, len(records))
    chosen = {at * len(records) // count: records[at * len(records) // count] for at in range(count)}
    longest = max(range(len(records)), key=lambda at: sum(map(len, records[at].tasks.values())))
    chosen.pop(0, None)
    return [records[longest], *(record for at, record in chosen.items() if at != longest)]


@dataclass(frozen=True, kw_only=True)
class RunEstimate:
    """Seconds that ``records`` records take with one editor: edits, evaluation and generation."""

    editor: str
    records: int
    edits: float
    evaluation: float
    generation: float

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return self.edits + self.evaluation + self.generation


def estimate(phases: Sequence[Phase], costs: Sequence[EditorCost], records: int) -> list[RunEstimate]:
    """Estimate a run over ``records`` records with each editor: records × (edit + evaluation + generation).

    The estimate excludes second moments, which are computed once.
    """
    by_name = {phase.name: phase.seconds for phase in phases}
    return [
        RunEstimate(
            editor=cost.editor,
            records=records,
            edits=records * cost.seconds,
            evaluation=records * by_name.get("evaluation", 0.0),
            generation=records * by_name.get("generation", 0.0),
        )
        for cost in costs
    ]
