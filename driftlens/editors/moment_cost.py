"""Estimate the cost of second moments over a corpus from a few of its texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from driftlens.editors.second_moment import stream_second_moments
from driftlens.models.timing import timed

if TYPE_CHECKING:
    from driftlens.editors.corpora import Corpus
    from driftlens.models import LensModel

__all__ = ["MomentCost", "moment_cost"]

_TEXTS = 40


@dataclass(frozen=True, kw_only=True)
class MomentCost:
    """The estimated time in seconds of second moments over a number of texts on this machine."""

    texts: int
    seconds: float

    def of(self, texts: int) -> float:
        """The estimated time in seconds for the first `texts` of them."""
        return self.seconds * min(texts, self.texts) / max(1, self.texts)


def moment_cost(model: LensModel, layers: Sequence[int], corpus: Corpus, samples: int) -> MomentCost:
    """The cost of :func:`driftlens.editors.second_moments`, from the first texts of the corpus."""
    few = list(islice(corpus.texts(), min(_TEXTS, samples)))
    if not few:
        return MomentCost(texts=0, seconds=0.0)
    stream_second_moments(model, layers, few[:1])  # the first pass makes room for what the others use
    seconds = timed(lambda: stream_second_moments(model, layers, few), model.device)
    texts = corpus.count(samples)
    return MomentCost(texts=texts, seconds=seconds / len(few) * texts)
