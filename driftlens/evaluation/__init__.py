"""Evaluation: per-prompt NLLs of edited models, what they write, and the scores that are made of both."""

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
