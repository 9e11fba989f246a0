"""Facts to edit in, and the benchmark records whose prompts test the edit. Imports nothing heavy."""

from driftlens.data.fact import Fact
from driftlens.data.loading import load_records
from driftlens.data.record import TASKS, Record, TaskPrompt

__all__ = ["TASKS", "Fact", "Record", "TaskPrompt", "load_records"]
