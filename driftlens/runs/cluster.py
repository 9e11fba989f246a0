"""Benchmark runs on several processes, GPUs and machines, with Ray (the extra ``cluster``).

1. Every worker is an actor with its own model, and its own GPU if there are GPUs.  The first worker determines the
   configuration and computes the second moments.  It sends them to the others, so machines share no files.
2. Shards go to any free worker and come back as tables.  The driver process writes them to the same folder and files as
   a run without workers, so that either kind of run can resume the other.
3. A worker that dies is restarted if the cluster has room, and its shard goes to the next free worker.  Machines can
   therefore leave and join during a run.
"""

from __future__ import annotations

import platform
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from driftlens.errors import DriftlensError
from driftlens.files import path_of
from driftlens.models.names import everywhere
from driftlens.progress import OnProgress
from driftlens.runs.benchmark import OnShard, check_records, counted, run
from driftlens.runs.connection import START_SECONDS, connected, no_room, ray_module, share, wait_for
from driftlens.runs.manifest import configuration
from driftlens.runs.results import BenchmarkResult
from driftlens.runs.work import Measures, Work

if TYPE_CHECKING:
    from os import PathLike

    from driftlens.data import Record
    from driftlens.editors.base import Editor
    from driftlens.models import LensModel
    from driftlens.runs.shards import Tables

__all__ = ["Recipe", "cluster_benchmark"]

RETRIES = 3
"""How often a shard is retried."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a worker loads and computes.

    Attributes:
        model: a name for :func:`driftlens.load_model`; a folder must exist on every machine.
        editor: an editor, or a function that makes one for a model; None does not edit.
        measures: what to measure.
        device: "cpu", "cuda" or "mps"; None uses GPUs if the cluster has any.
        dtype: as in :func:`driftlens.load_model`.
        edit_batch: facts optimised side by side.
        batch_size: rows at a time of everything else.
    """

    model: str
    editor: Editor | Callable[[LensModel], Editor | None] | None
    measures: Measures
    device: str | None = None
    dtype: str | None = None
    chat: bool = False
    system: str | None = None
    edit_batch: int = 16
    batch_size: int = 64

    def work(self) -> Work:
        """Load the model, make the editor."""
        from driftlens.models import load_model

        model = load_model(self.model, device=self.device, dtype=self.dtype, chat=self.chat, system=self.system)
        editor = self.editor(model) if callable(self.editor) else self.editor
        return Work(
            model=model,
            editor=editor,
            measures=self.measures,
            edit_batch=self.edit_batch,
            batch_size=self.batch_size,
        )


class Worker:
    """The actor that runs in a worker process.

    It has no state at the start, and every call passes the recipe.  A restarted worker has lost the state of its
    predecessor, and an exception in an actor's constructor looks like a worker that died.
    """

    def __init__(self) -> None:
        self._work: Work | None = None

    def ready(self) -> bool:
        """Return once the process has started."""
        return True

    def begin(self, how: Sequence[Any], records: Sequence[Record]) -> tuple[dict[str, Any], str]:
        """Return the configuration and the device; errors that concern all records are raised here."""
        work = self._ready(how)
        work.prepare()
        return configuration(work.model, work.editor, records, work.measures), str(work.model.device)

    def made(self, how: Sequence[Any]) -> tuple[str, str, Editor | None]:
        """For the other workers: driftlens's version, the model's hash, and the editor with what it took over its
        texts.
        """
        from driftlens.version import __version__

        work = self._ready(how)
        return __version__, work.model.model_hash, work.editor

    def prepared(self, how: Sequence[Any]) -> bool:
        """Return once model and editor are ready."""
        self._ready(how)
        return True

    def shard(self, how: Sequence[Any], start: int, records: Sequence[Record]) -> tuple[int, dict[str, Any]]:
        """Compute the tables of a shard, and return them with its number."""
        return start, self._ready(how)(records)

    def _ready(self, how: Sequence[Any]) -> Work:
        """Model and editor, made at the first call; ``how`` refers to the recipe and to the first worker's results."""
        if self._work is not None:
            return self._work
        from driftlens.version import __version__

        given: list[Any] = ray_module().get(list(how))
        recipe: Recipe = given[0]
        machine = platform.node()
        version, expected, editor = given[1] if len(given) > 1 else (__version__, None, recipe.editor)
        if version != __version__:
            raise DriftlensError(
                f"{machine} has driftlens {__version__} and the first worker's machine {version}; install the same one "
                "everywhere"
            )
        try:
            work = replace(recipe, editor=editor).work()
        except DriftlensError as error:
            raise DriftlensError(f"{error} (on {machine})") from None
        if expected not in (None, work.model.model_hash):
            raise DriftlensError(
                f"{recipe.model} on {machine} is another model than on the first worker's machine; put the same folder "
                "on every machine"
            )
        self._work = work
        return work


def cluster_benchmark(
    recipe: Recipe,
    records: Sequence[Record],
    folder: str | PathLike[str],
    *,
    workers: int | None = None,
    address: str | None = None,
    shard_size: int = 32,
    on_progress: OnProgress | None = None,
    on_shard: OnShard | None = None,
) -> BenchmarkResult:
    """Run :func:`driftlens.runs.benchmark` with its shards distributed over Ray workers: same folder, same tables.

    Args:
        recipe: model, editor and measures.
        records: the records.
        folder: the folder of this run, only on the machine of this process.
        workers: the number of workers; default one per GPU, or one per machine without GPUs.
        address: a running cluster ("auto" for the one on this machine); None starts a local cluster and stops it again.
        shard_size: as in :func:`driftlens.runs.benchmark`.
        on_progress: called with "records", the number of finished records, and the number of all.
        on_shard: as in :func:`driftlens.runs.benchmark`.

    Raises:
        DriftlensError: Ray is not installed, the cluster cannot be reached or is too small for the workers, a worker
            died repeatedly, or an error of :func:`driftlens.runs.benchmark`.
    """
    check_records(records, shard_size)
    tell = counted(len(records), on_progress, on_shard)
    with connected(address, workers) as ray, _told(ray):
        count, needs, device = share(ray, recipe.device, workers)
        recipe = replace(recipe, device=device, model=everywhere(recipe.model))
        # Held here as long as the run lasts: workers that are started again read them again.
        how = [ray.put(recipe)]
        # Started again as often as need be, but nothing is tried more often than this.
        actor = ray.remote(max_restarts=-1, max_task_retries=RETRIES, scheduling_strategy="SPREAD", **needs)(Worker)
        first = actor.remote()
        wait_for(ray, first.ready.remote())
        wanted, used = ray.get(first.begin.remote(how, records))

        def compute(missing: Mapping[int, Sequence[Record]]) -> Iterable[tuple[int, Tables]]:
            shared = [*how, first.made.remote(how)]
            ray.wait(shared[1:])
            workers = [first, *(actor.remote() for _ in range(min(count, len(missing)) - 1))]
            yield from _spread(ray, workers, shared, missing)

        session = {
            "model": recipe.model,
            "device": used,
            "workers": count,
            "edit_batch": recipe.edit_batch,
            "batch_size": recipe.batch_size,
        }
        return run(wanted, session, records, compute, path_of(folder), shard_size=shard_size, on_shard=tell)


def _spread(
    ray: Any, workers: Sequence[Any], how: Sequence[Any], missing: Mapping[int, Sequence[Record]]
) -> Generator[tuple[int, Tables]]:
    """Yield the shards' tables as they are finished.

    Ray's own pool waits for a dead worker to return, which never happens if the cluster has no room for it.  Here only
    workers that are ready get a shard.
    """
    waiting, free, died = deque(missing), deque[Any](), Counter[int]()
    running: dict[Any, tuple[Any, int | None]] = {worker.prepared.remote(how): (worker, None) for worker in workers}
    while waiting or any(start is not None for _, start in running.values()):
        while waiting and free:
            worker, start = free.popleft(), waiting.popleft()
            # Tried again by whichever worker is free, so not by Ray.
            call = worker.shard.options(max_task_retries=0).remote(how, start, missing[start])
            running[call] = (worker, start)
        done, _ = ray.wait(list(running), timeout=START_SECONDS)
        if not done and all(start is None for _, start in running.values()):
            raise no_room(ray)
        for call in done:
            worker, start = running.pop(call)
            try:
                found = ray.get(call)
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
                # The worker died, or its machine with the tables that were ready.
                if start is None and (running or free):
                    continue  # the others do its work
                if start is None or died[start] == RETRIES:
                    raise
                died[start] += 1
                waiting.appendleft(start)
                running[worker.prepared.remote(how)] = (worker, None)
                continue
            free.append(worker)
            if start is not None:
                yield found


@contextmanager
def _told(ray: Any) -> Generator[None]:
    """The original exception of a worker; a permanently dead worker becomes a one-line error."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, DriftlensError):
            raise DriftlensError(str(cause)) from None
        raise
    except ray.exceptions.RayActorError as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DriftlensError(
            f"a worker died {RETRIES + 1} times on one shard ({reason}); what is done is kept: go on with smaller "
            "batches, fewer workers or more memory"
        ) from error
