"""Long runs: what was computed once is kept on disk, and an interrupted run goes on where it stopped."""

from driftlens.runs.benchmark import BenchmarkResult, Progress, benchmark
from driftlens.runs.edit_cache import cached_edits
from driftlens.runs.shards import sharded

__all__ = ["BenchmarkResult", "Progress", "benchmark", "cached_edits", "sharded"]
