"""Facts to edit, and benchmark records with the prompts that test the edit. Importing it is quick: no torch."""

from driftlens.data.fact import Fact
from driftlens.data.known_facts import KnownFact, load_known_facts
from driftlens.data.loading import DATASETS, dataset_path, load_records
from driftlens.data.record import TASKS, Record, TaskPrompt
from driftlens.data.texts import load_snippets, load_texts, true_texts

__all__ = [
    "DATASETS",
    "TASKS",
    "Fact",
    "KnownFact",
    "Record",
    "TaskPrompt",
    "dataset_path",
    "load_known_facts",
    "load_records",
    "load_snippets",
    "load_texts",
    "true_texts",
]
