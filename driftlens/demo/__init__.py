"""The bundled invented world: the paths of its weights and benchmark records, and its texts.

Importing this needs no torch.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

SEED = 0
"""Seed of the bundled world, its tokenizer and its model."""

WEIGHTS = Path(__file__).parent / "weights"
"""Hugging Face folder of the bundled model."""

RECORDS = Path(__file__).parent / "records.json"
"""The world's facts as benchmark records."""

SECOND_MOMENTS = Path(__file__).parent / "second_moments"
"""Folder of the second moments of the bundled model's keys over `corpus()`."""

CORPUS_DOCUMENTS = 20_000

__all__ = ["CORPUS_DOCUMENTS", "RECORDS", "SECOND_MOMENTS", "SEED", "WEIGHTS", "corpus", "corpus_digest"]


def corpus() -> Iterator[str]:
    """Return the bundled world's text corpus: always the same documents, about 0.6 million tokens."""
    from driftlens.demo import documents
    from driftlens.demo.world import build_world

    return islice(documents.corpus(build_world(SEED)), CORPUS_DOCUMENTS)


@cache
def corpus_digest() -> str:
    """Compute a short hash of the corpus, from its number of documents and the first thousand of them."""
    text = "\0".join([str(CORPUS_DOCUMENTS), *islice(corpus(), 1000)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
