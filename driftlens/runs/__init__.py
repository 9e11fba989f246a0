"""Long runs: what was computed once is kept on disk, and an interrupted run goes on where it stopped."""

from driftlens.runs.edit_cache import cached_edits
from driftlens.runs.shards import sharded

__all__ = ["cached_edits", "sharded"]
