"""Reference score (REF): how similar generated texts are to texts about the new fact (ROME's consistency).

1. A record's generated texts are joined, and so are its reference texts: Wikipedia snippets about things for which the
   edit's relation and new object are true.
2. Both become TF-IDF vectors of lower-case words of two or more letters: counts times
   idf = ln((1 + documents) / (1 + documents with the word)) + 1.  Unknown words are left out.
3. REF is 100 times the cosine of the two vectors.

The document frequencies come from all snippets (:meth:`TfIdf.fit`) or from the files distributed with ROME
(:meth:`TfIdf.load`), which the published code uses.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np
import pandas as pd

from driftlens.data import Record
from driftlens.errors import DriftlensError

_WORD = re.compile(r"\b\w\w+\b")


@dataclass(frozen=True, kw_only=True)
class TfIdf:
    """The weight of every known word."""

    idf: Mapping[str, float]

    @classmethod
    def fit(cls, documents: Iterable[str]) -> TfIdf:
        """Compute weights from a collection of texts.

        Raises:
            DriftlensError: there is no text.
        """
        count = 0
        having: Counter[str] = Counter()
        for document in documents:
            count += 1
            having.update(set(_words(document)))
        if not count:
            raise DriftlensError("no documents to count words in; give at least one text")
        return cls(idf={word: math.log((1 + count) / (1 + n)) + 1 for word, n in having.items()})

    @classmethod
    def load(cls, vocabulary: str | PathLike[str], idf: str | PathLike[str]) -> TfIdf:
        """Read weights from two files: a JSON object that maps words to indexes, and a NumPy array of weights.

        Raises:
            DriftlensError: a file cannot be read, or the two do not match.
        """
        try:
            with open(vocabulary, encoding="utf-8") as file:  # noqa: PTH123 (a PathLike need not be a Path)
                places: dict[str, int] = json.load(file)
            weights = np.load(idf, allow_pickle=False)
            return cls(idf={word: float(weights[place]) for word, place in places.items()})
        except (OSError, ValueError, IndexError, AttributeError, TypeError) as error:
            raise DriftlensError(
                f"cannot read TF-IDF statistics from {vocabulary} and {idf} ({error}); expected ROME's "
                "tfidf_vocab.json and idf.npy"
            ) from error

    def similarity(self, first: str, second: str) -> float:
        """Cosine of the two texts' vectors; 0 if a text has no known word."""
        one, other = self._vector(first), self._vector(second)
        lengths = math.sqrt(sum(x * x for x in one.values())) * math.sqrt(sum(x * x for x in other.values()))
        return sum(weight * other.get(word, 0.0) for word, weight in one.items()) / lengths if lengths else 0.0

    def _vector(self, text: str) -> dict[str, float]:
        counts = Counter(_words(text))
        return {word: n * self.idf[word] for word, n in counts.items() if word in self.idf}


def reference_scores(
    texts: pd.DataFrame,
    records: Sequence[Record],
    snippets: Mapping[tuple[str, str], Sequence[str]],
    tfidf: TfIdf,
) -> pd.DataFrame:
    """Compute the REF of each record that has generated texts and reference texts.

    Args:
        texts: a table with at least the columns ``record`` and ``text``
            (:func:`driftlens.evaluation.continuations`).
        records: the records those texts belong to.
        snippets: reference texts by (relation, object), e.g. ``driftlens.data.load_snippets()``.
        tfidf: the words' weights.

    Returns:
        One row per record: ``record``, ``reference``.

    Raises:
        DriftlensError: a column is missing.
    """
    for column in ("record", "text"):
        if column not in texts.columns:
            raise DriftlensError(f"the table has no column {column!r}; expected at least record and text")
    joined = {record: " ".join(map(str, of)) for record, of in texts.groupby("record")["text"]}
    rows: list[tuple[int, float]] = []
    for record in records:
        generated = joined.get(record.index)
        about = snippets.get((record.relation_id or "", record.target_new_id or ""), ())
        if generated is not None and about:
            rows.append((record.index, 100 * tfidf.similarity(generated, " ".join(about))))
    return pd.DataFrame(rows, columns=["record", "reference"])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
