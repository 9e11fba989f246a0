"""Evaluation: per-prompt NLLs of edited models, and the scores that are made of them."""

from driftlens.evaluation.nll import evaluate
from driftlens.evaluation.scores import summarize

__all__ = ["evaluate", "summarize"]
