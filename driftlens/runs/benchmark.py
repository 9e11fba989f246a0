"""Benchmark runs: a model and an editor on many records, stored in a folder from which the run can resume.

    folder/
      manifest.json      the run's configuration, and its sessions
      shards/            the tables of a few records each, with checksums

Every record's numbers depend on the record, the configuration and the seed, but not on other records, their order or
the number of processes.  A run can therefore be stopped at any moment and resumes with the missing shards.  Several
processes can share a run without communication: each computes a part, in the subfolder ``part-i-of-n``, and a run
without parts joins them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from driftlens.errors import DriftlensError
from driftlens.evaluation import TfIdf
from driftlens.files import path_of
from driftlens.progress import OnProgress
from driftlens.runs.manifest import claimed, configuration, now, open_manifest, write_manifest
from driftlens.runs.results import BenchmarkResult, counts, result_of
from driftlens.runs.shards import (
    Compute,
    Part,
    Tables,
    all_there,
    foreign_shard,
    settings_hash,
    shard_starts,
    sharded_by,
)
from driftlens.runs.work import Measures, Work

if TYPE_CHECKING:
    from driftlens.data import Record
    from driftlens.editors.base import Editor
    from driftlens.models import LensModel

__all__ = ["OnShard", "benchmark", "part_folder"]


OnShard: TypeAlias = Callable[[int, Tables, bool], None]
"""Called with the records done, the tables of the shard that was just done or found, and whether it was found."""


def benchmark(
    model: LensModel,
    records: Sequence[Record],
    editor: Editor | None,
    folder: str | PathLike[str],
    *,
    tasks: Iterable[str] | None = None,
    generate: bool = True,
    perplexity_texts: Sequence[str] | None = None,
    snippets: Mapping[tuple[str, str], Sequence[str]] | None = None,
    tfidf: TfIdf | None = None,
    edit_batch: int = 16,
    batch_size: int = 64,
    shard_size: int = 32,
    seed: int = 0,
    part: Part | None = None,
    on_progress: OnProgress | None = None,
    on_shard: OnShard | None = None,
    on_wait: Callable[[], None] | None = None,
) -> BenchmarkResult:
    """Edit each record separately and evaluate it under its edit; results in ``folder`` are reused.

    A fact that cannot be edited has no rows, and a prompt that cannot be measured has NaN.  ``problems`` lists both,
    and one warning counts them.

    Args:
        model: the vanilla model; it is not changed.
        records: the records, each with a unique ``index``.
        editor: the editor; None measures the vanilla model.
        folder: the folder of this run alone; it is created if necessary.
        tasks: the tasks; default all that the records have.
        generate: whether to continue the records' generation prompts, for FL and REF.
        perplexity_texts: texts for PPL, e.g. ``driftlens.data.load_texts()``; None skips PPL.
        snippets: reference texts for REF, e.g. ``driftlens.data.load_snippets()``; None skips REF.
        tfidf: the word weights for REF; default those of all ``snippets``.
        edit_batch: facts optimised side by side.
        batch_size: rows at a time of everything else.  If memory runs out, this and ``edit_batch`` are reduced; they
            change the numbers only by float rounding.
        shard_size: records in a shard, and so the most that an interruption can cost.  An existing folder keeps its
            size.
        seed: the seed of the generated texts.
        part: (i, n): compute every n-th shard, beginning with the i-th (from 1), and return only their tables.  When
            all parts are done, the same call without ``part`` joins them.
        on_progress: called with a stage, the amount done and the total.  The stages of a shard are "second moment",
            "edit", "evaluate", "generate" and "perplexity"; that of the run is "records".
        on_shard: called with the number of finished records, the tables of a shard, and whether it existed already.
        on_wait: called once if another process works in the folder; the call then waits for it and reuses its results.
            Without it, such a folder is an error.  A finished run can be read at any time.

    Raises:
        DriftlensError: the folder has another configuration, another process works in it, or it cannot be written; two
            records have the same index; an editor's error that concerns all records.
    """
    check_records(records, shard_size)
    measures = Measures(
        tasks=None if tasks is None else tuple(tasks),
        generate=generate,
        perplexity_texts=None if perplexity_texts is None else tuple(perplexity_texts),
        snippets=snippets,
        tfidf=tfidf,
        seed=seed,
    )
    total = sum(min(shard_size, len(records) - start) for start in shard_starts(len(records), shard_size, part))
    work = Work(
        model=model,
        editor=editor,
        measures=measures,
        edit_batch=edit_batch,
        batch_size=batch_size,
        on_progress=on_progress,
    )

    def compute(missing: Mapping[int, Sequence[Record]]) -> Iterable[tuple[int, Tables]]:
        work.prepare()
        return ((start, work(shard)) for start, shard in missing.items())

    return run(
        configuration(model, editor, records, measures),
        {"model": model.name, "device": str(model.device), "edit_batch": edit_batch, "batch_size": batch_size},
        records,
        compute,
        path_of(folder),
        shard_size=shard_size,
        part=part,
        on_shard=counted(total, on_progress, on_shard),
        on_wait=on_wait,
    )


def counted(total: int, on_progress: OnProgress | None, on_shard: OnShard | None) -> OnShard:
    """Return a callback for shards that calls `on_shard` and reports finished records to `on_progress`."""

    def tell(done: int, tables: Tables, found: bool) -> None:
        if on_shard is not None:
            on_shard(done, tables, found)
        if on_progress is not None:
            on_progress("records", done, total)

    return tell


def part_folder(folder: Path, part: Part) -> Path:
    """The folder of a part of the run in ``folder``."""
    return folder / f"part-{part[0]}-of-{part[1]}"


def check_records(records: Sequence[Record], shard_size: int) -> None:
    """Check the records and the shard size of a run.

    Raises:
        DriftlensError: there are no records, the shard size is below 1, or two records have the same index.
    """
    if not records or shard_size < 1:
        raise DriftlensError(f"{len(records)} records in shards of {shard_size}; expected at least one of both")
    indices = [record.index for record in records]
    if len(set(indices)) < len(indices):
        twice = next(index for at, index in enumerate(indices) if index in indices[:at])
        raise DriftlensError(f"two records have the index {twice}; give every record one of its own")


def run(
    wanted: Mapping[str, Any],
    session: Mapping[str, Any],
    records: Sequence[Record],
    compute: Compute[Record],
    folder: Path,
    *,
    shard_size: int,
    on_shard: OnShard,
    on_wait: Callable[[], None] | None = None,
    part: Part | None = None,
) -> BenchmarkResult:
    """Run a configuration: compute the shards that its folder lacks, and join all of them.

    Args:
        wanted: the configuration.
        session: the settings of this session, which affect only speed.
        records: the records.
        compute: yields the tables of shards of records; it raises errors that concern all records when it is called.
        folder: the folder of this run.
        shard_size: records in a shard, if the folder is new.
        on_shard: called with the number of finished records, a shard's tables, and whether they existed already.
        on_wait: as in :func:`benchmark`.
        part: as in :func:`benchmark`.
    """
    key = settings_hash(wanted)
    if part is not None:
        folder = part_folder(folder, part)
    manifest = open_manifest(folder, wanted)
    if manifest.get("finished"):
        size = int(manifest.get("shard_size", shard_size))

        def show(done: int, tables: Tables) -> None:
            on_shard(done, tables, True)  # noqa: FBT003 (a callback's)

        there = all_there(records, folder / "shards", size=size, key=key, on_shard=show, part=part)
        if there is not None:
            return result_of(there, manifest, len(records))
    with claimed(folder, on_wait):
        manifest = open_manifest(folder, wanted)
        # Unreadable shards may be replaced; those of another run may not.
        if (foreign := foreign_shard(folder / "shards", key)) is not None:
            raise DriftlensError(
                f"{folder} holds shards of another run ({foreign.name}), and no manifest that says which; choose "
                "another folder, or delete that one to start anew"
            )
        parts = sorted(folder.glob("part-*-of-*"))
        manifest.setdefault("shard_size", _size_of(parts, wanted) or shard_size)
        here: dict[str, Any] = {"started": now(), **session, "records": 0, "seconds": 0.0}
        start = time.perf_counter()
        computing = False

        def tell(**more: Any) -> None:
            here["seconds"] = round(time.perf_counter() - start, 1)
            write_manifest(folder, {**manifest, "sessions": [*manifest["sessions"], here], **more})

        def begun(missing: Mapping[int, Sequence[Record]]) -> Iterable[tuple[int, Tables]]:
            nonlocal computing
            tables = compute(missing)
            tell(finished=None)
            computing = True
            return tables

        def keep(done: int, tables: Tables) -> None:
            if computing:
                here["records"] += len(tables["records"])
                tell(finished=None)
            on_shard(done, tables, not computing)

        tables = sharded_by(
            records,
            begun,
            folder / "shards",
            size=int(manifest["shard_size"]),
            key=key,
            on_shard=keep,
            part=part,
            also=[each / "shards" for each in parts],
        )
        if computing or not manifest.get("finished"):
            tell(finished=now(), problems=counts(tables["problems"]))
        manifest = open_manifest(folder, wanted)
    return result_of(tables, manifest, len(records))


def _size_of(parts: Sequence[Path], wanted: Mapping[str, Any]) -> int | None:
    """The shard size of the run's parts; None if there are none."""
    for part in parts:
        with suppress(DriftlensError):
            if size := open_manifest(part, wanted).get("shard_size"):
                return int(size)
    return None
