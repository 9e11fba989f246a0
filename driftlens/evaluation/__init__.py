"""Evaluation: per-prompt NLLs of edited models, generated texts, and the scores computed from both."""

from driftlens.evaluation.fluency import continuations, fluency_scores
from driftlens.evaluation.nll import evaluate
from driftlens.evaluation.perplexity import perplexities
from driftlens.evaluation.reference import TfIdf, reference_scores
from driftlens.evaluation.scores import summarize, summarize_records

__all__ = [
    "TfIdf",
    "continuations",
    "evaluate",
    "fluency_scores",
    "perplexities",
    "reference_scores",
    "summarize",
    "summarize_records",
]
