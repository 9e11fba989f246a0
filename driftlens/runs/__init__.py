"""Long runs: results are stored on disk as they are computed, and an interrupted run resumes."""

from driftlens.runs.benchmark import benchmark, part_folder
from driftlens.runs.cluster import Recipe, cluster_benchmark
from driftlens.runs.edit_cache import cached_edits
from driftlens.runs.results import BenchmarkResult
from driftlens.runs.shards import sharded
from driftlens.runs.work import Measures

__all__ = [
    "BenchmarkResult",
    "Measures",
    "Recipe",
    "benchmark",
    "cached_edits",
    "cluster_benchmark",
    "part_folder",
    "sharded",
]
