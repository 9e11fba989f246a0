"""Benchmark runs on several processes, GPUs and machines, with Ray (the extra ``cluster``).

1. Every worker is an actor that keeps one model, on a GPU of its own where there are GPUs.  The first one says what
   the run is about and takes the second moments; the others get them from it, so no machine needs another's files.
2. Shards go to whichever worker is free and come back as tables.  The process that was started writes them, into the
   same folder and files as a run without workers: either can go on where the other stopped.
3. A worker that dies is started again, and its shard with it.

Nothing is sent anywhere: usage statistics and dashboard are off.
"""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftlens.errors import DriftlensError
from driftlens.runs.benchmark import BenchmarkResult, Progress, check_records, run
from driftlens.runs.manifest import configuration
from driftlens.runs.work import Measures, Work

if TYPE_CHECKING:
    from os import PathLike

    from driftlens.data import Record
    from driftlens.editors.base import Editor
    from driftlens.models import LensModel
    from driftlens.runs.shards import Tables

__all__ = ["Recipe", "cluster_benchmark"]

_RETRIES = 3
_START_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a worker makes what it works with.

    Attributes:
        model: a name for :func:`driftlens.load_model`; a folder must be there on every machine.
        editor: an editor, or what makes one for a model; None leaves the model as it is.
        measures: what to measure.
        device: "cpu", "cuda" or "mps"; None takes a GPU where the cluster has some.
        dtype: as for :func:`driftlens.load_model`.
        edit_batch: facts optimised side by side.
        batch_size: rows at a time of everything else.
    """

    model: str
    editor: Editor | Callable[[LensModel], Editor | None] | None
    measures: Measures
    device: str | None = None
    dtype: str | None = None
    edit_batch: int = 16
    batch_size: int = 64

    def work(self) -> Work:
        """Load the model, make the editor."""
        from driftlens.models import load_model

        model = load_model(self.model, device=self.device, dtype=self.dtype)
        editor = self.editor(model) if callable(self.editor) else self.editor
        return Work(
            model=model,
            editor=editor,
            measures=self.measures,
            edit_batch=self.edit_batch,
            batch_size=self.batch_size,
        )


class Worker:
    """What runs in a process of its own.

    It begins with nothing, and every call says how to work: a worker that is started again knows nothing of what the
    one before it was told, and what an actor's constructor raises cannot be told from a worker that died.
    """

    def __init__(self) -> None:
        self._work: Work | None = None

    def ready(self) -> bool:
        """Whether the process is there."""
        return True

    def begin(self, how: Sequence[Any], records: Sequence[Record]) -> tuple[dict[str, Any], str]:
        """The configuration and the device; whatever is wrong for all records is raised here."""
        work = self._ready(how)
        work.prepare()
        return configuration(work.model, work.editor, records, work.measures), str(work.model.device)

    def made(self, how: Sequence[Any]) -> tuple[str, Editor | None]:
        """For the other workers: the model's hash, and the editor with what it took over its texts."""
        work = self._ready(how)
        return work.model.checkpoint_hash, work.editor

    def shard(self, how: Sequence[Any], start: int, records: Sequence[Record]) -> tuple[int, dict[str, Any]]:
        """The tables of a shard, and which one it is."""
        return start, self._ready(how)(records)

    def _ready(self, how: Sequence[Any]) -> Work:
        """Model and editor, made at the first call: ``how`` refers to the recipe and to what the first worker made."""
        if self._work is not None:
            return self._work
        given: list[Any] = _ray().get(list(how))
        recipe: Recipe = given[0]
        if len(given) == 1:
            work = recipe.work()
        else:
            expected, editor = given[1]
            work = replace(recipe, editor=editor).work()
            if work.model.checkpoint_hash != expected:
                raise DriftlensError(
                    f"{recipe.model} on {platform.node()} is another model than on the first worker's machine; put the "
                    "same folder on every machine"
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
    on_progress: Callable[[Progress], None] | None = None,
) -> BenchmarkResult:
    """:func:`driftlens.runs.benchmark` with its shards spread over Ray workers; the same folder, the same tables.

    Args:
        recipe: model, editor and what to measure.
        records: what to run.
        folder: the place of this run, on the machine of this process alone.
        workers: how many; default one per GPU, or per machine where there are no GPUs.
        address: of a running cluster ("auto" for the one on this machine); None starts one here and ends it again.
        shard_size: as in :func:`driftlens.runs.benchmark`.
        on_progress: called when a shard is done or found.

    Raises:
        DriftlensError: Ray is not installed, the cluster cannot be reached or has too little for so many workers, a
            worker died again and again, and all that :func:`driftlens.runs.benchmark` raises.
    """
    check_records(records, shard_size)
    total = len(records)

    def on_shard(done: int, tables: Tables, found: bool) -> None:
        if on_progress is not None:
            on_progress(Progress(done=done, total=total, tables=tables, found=found))

    with _cluster(address, workers) as ray, _told(ray):
        count, needs, device = _share(ray, recipe, workers)
        recipe = replace(recipe, device=device)
        # Held here as long as the run lasts: workers that are started again read them again.
        how = [ray.put(recipe)]
        # Started again as often as need be, but no shard is tried more often than this.
        actor = ray.remote(max_restarts=-1, max_task_retries=_RETRIES, **needs)(Worker)
        first = actor.remote()
        _wait(ray, first)
        wanted, used = ray.get(first.begin.remote(how, records))

        def compute(missing: Mapping[int, Sequence[Record]]) -> Iterable[tuple[int, Tables]]:
            from ray.util import ActorPool

            shared = [*how, first.made.remote(how)]
            ray.wait(shared[1:])
            pool: Any = ActorPool([first, *(actor.remote() for _ in range(min(count, len(missing)) - 1))])

            def give(one: Any, shard: tuple[int, Sequence[Record]]) -> Any:
                return one.shard.remote(shared, *shard)

            yield from pool.map_unordered(give, list(missing.items()))

        session = {
            "model": recipe.model,
            "device": used,
            "workers": count,
            "edit_batch": recipe.edit_batch,
            "batch_size": recipe.batch_size,
        }
        return run(wanted, session, records, compute, Path(folder), shard_size=shard_size, on_shard=on_shard)


def _ray() -> Any:
    # Before the import, which reads them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise DriftlensError(
            "several workers need Ray, which is not installed; install it with pip install 'driftlens[cluster]'"
        ) from None
    return ray


@contextmanager
def _cluster(address: str | None, workers: int | None) -> Generator[Any]:
    """Ray, connected; what was started is ended."""
    if workers is not None and workers < 1:
        raise DriftlensError(f"{workers} workers; expected at least 1")
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        settings: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
        if address is None:
            # More workers than cores are allowed: somebody asked for them.
            cores = max(os.cpu_count() or 1, workers or 1)
            settings |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
        else:
            settings |= {"address": address, "namespace": f"driftlens-{secrets.token_hex(4)}"}
        try:
            ray.init(**settings)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = "here" if address is None else f"at {address}"
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DriftlensError(f"cannot reach or start a Ray cluster {where}: {reason}") from error
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _told(ray: Any) -> Generator[None]:
    """What a worker raised, as it raised it; and a worker that is dead for good as a line."""
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
            f"a worker died {_RETRIES + 1} times on one shard ({reason}); what is done is kept: go on with smaller "
            "batches, fewer workers or more memory"
        ) from error


def _share(ray: Any, recipe: Recipe, workers: int | None) -> tuple[int, dict[str, float], str | None]:
    """How many workers, what each needs of the cluster, and its device."""
    resources: Mapping[str, float] = ray.cluster_resources()
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    device = recipe.device
    if device is not None and ":" in device:
        raise DriftlensError(
            f"device is {device!r}, but Ray gives every worker a GPU of its own; say 'cuda' or nothing"
        )
    if gpus and device in (None, "cuda"):
        if workers is not None and workers > gpus:
            raise DriftlensError(
                f"{workers} workers but {gpus} GPUs, and each keeps a model on its own; take {gpus} or the CPU"
            )
        return workers or gpus, {"num_gpus": 1, "num_cpus": 1}, "cuda"
    if device == "cuda":
        raise DriftlensError("device is 'cuda', but the cluster has no GPU; choose 'cpu'")
    count = workers or max(1, len(ray.nodes()))
    if count > cores:
        raise DriftlensError(f"{count} workers but the cluster has {cores} cores; take {cores} or fewer")
    # Ray gives a process as many threads as it has cores.
    return count, {"num_gpus": 0, "num_cpus": max(1, cores // max(count, len(ray.nodes())))}, device or "cpu"


def _wait(ray: Any, first: Any) -> None:
    try:
        ray.get(first.ready.remote(), timeout=_START_SECONDS)
    except ray.exceptions.GetTimeoutError:
        free = {name: value for name, value in ray.available_resources().items() if name in ("CPU", "GPU")}
        raise DriftlensError(
            f"no worker could be started within {_START_SECONDS} s (free in the cluster: {free or 'nothing'}); try "
            "again when others have ended, or with fewer workers"
        ) from None
