"""Fluency (FL): how varied the words are that an edited model generates (paper, 5.1, as in the published code).

1. Each of a record's generation prompts is continued to 100 tokens, prompt included, by top-5 sampling.
2. The text is split into words, and the entropies of its word bigrams (H₂) and trigrams (H₃) are computed in bits.
3. A text's value is (⅔ H₂ + 4⁄3 H₃) / 2; FL is 100 times the mean over the record's texts, and a table's value
   is the mean over records.

A model that repeats itself has a low FL; the goal is the unedited model's FL.

Word tokenizers: the published code uses nltk's ``word_tokenize``, whose sentence model must be downloaded
(``words="nltk-sentences"``, after ``nltk.download("punkt_tab")``).  The default, ``"nltk-words"``, applies the word
tokenizer inside it to the whole text.  It does not separate a full stop inside the text from the word before, so there
are fewer words and FL is a few points lower.  Compare only numbers of the same tokenizer; tables name it in the column
``words``.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pandas as pd

from driftlens.data import Record
from driftlens.edits import Edited
from driftlens.errors import DriftlensError, unknown_name
from driftlens.evaluation.generation import generate
from driftlens.evaluation.pairs import paired
from driftlens.models import LensModel
from driftlens.progress import OnDone

WORDS = ("nltk-words", "nltk-sentences")
WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def continuations(
    model: LensModel,
    records: Record | Sequence[Record],
    edits: Edited | Sequence[Edited | None] | None = None,
    *,
    top_k: int = 5,
    seed: int = 0,
    max_tokens: int = 100,
    batch_size: int = 64,
    on_rows: OnDone | None = None,
) -> pd.DataFrame:
    """Continue every record's generation prompts under the record's own edit; all records share batches.

    A record's texts depend on the seed, its index and its edit, not on the other records.

    Returns:
        One row per prompt: ``record`` (its index), ``prompt_index``, ``prompt`` and ``text`` (which includes the
        prompt).  Records without generation prompts have no rows.

    Raises:
        DriftlensError: the numbers of records and edits differ, or an error of
            :func:`driftlens.evaluation.generation.generate`.
    """
    pairs = paired(records, edits)
    asked = [(record, edit, at, prompt) for record, edit in pairs for at, prompt in enumerate(record.generation)]
    generated = generate(
        model,
        [prompt for *_, prompt in asked],
        [edit for _, edit, *_ in asked],
        top_k=top_k,
        seed=seed,
        keys=[(record.index, at) for record, _, at, _ in asked],
        max_tokens=max_tokens,
        batch_size=batch_size,
        on_rows=on_rows,
    )
    return pd.DataFrame(
        {
            "record": pd.Series([record.index for record, *_ in asked], dtype="int64"),
            "prompt_index": pd.Series([at for _, _, at, _ in asked], dtype="int64"),
            "prompt": pd.Series([prompt for *_, prompt in asked], dtype="object"),
            "text": pd.Series([result.text for result in generated], dtype="object"),
        }
    )


def fluency_scores(texts: pd.DataFrame, *, words: str = "nltk-words") -> pd.DataFrame:
    """Compute each record's FL from a table with at least the columns ``record`` and ``text``.

    Returns:
        One row per record, in order of appearance: ``record``, ``fluency``, ``texts`` (their number), ``words``.

    Raises:
        DriftlensError: a column is missing, or ``words`` is unknown or lacks its download.
    """
    for column in ("record", "text"):
        if column not in texts.columns:
            raise DriftlensError(f"the table has no column {column!r}; expected at least record and text")
    cut = _tokenizer(words)
    entropies = [100 * ngram_entropy(cut(clean(str(text)))) for text in texts["text"]]
    table = texts[["record"]].assign(fluency=entropies).groupby("record", sort=False)["fluency"]
    return table.agg(fluency="mean", texts="size").reset_index().assign(words=words)


def ngram_entropy(words: Sequence[str]) -> float:
    """(⅔ H₂ + 4⁄3 H₃) / 2 in bits; H = 0 for a text without an n-gram."""
    return sum(weight * _entropy(words, n) for n, weight in WEIGHTS.items()) / len(WEIGHTS)


def clean(text: str) -> str:
    """Normalise a text as the published code does: decompose compatibility characters and join paragraphs."""
    return unicodedata.normalize("NFKD", text).replace("\n\n", " ")


def _entropy(words: Sequence[str], n: int) -> float:
    counts = np.array(list(Counter(zip(*(words[k:] for k in range(n)), strict=False)).values()), dtype=np.float64)
    shares = counts / counts.sum() if len(counts) else counts
    # Adding 0 turns the -0 of a single n-gram, or of none, into 0.
    return float(-(shares * np.log2(shares)).sum()) + 0.0


@cache
def _tokenizer(words: str) -> Callable[[str], list[str]]:
    if words not in WORDS:
        raise unknown_name("way to cut words", words, WORDS)
    if words == "nltk-words":
        from nltk.tokenize.destructive import NLTKWordTokenizer

        return NLTKWordTokenizer().tokenize
    from nltk import word_tokenize

    try:
        word_tokenize("One. Two.")
    except LookupError:
        raise DriftlensError(
            'nltk\'s sentence model is not installed; run nltk.download("punkt_tab") once, or use words="nltk-words"'
        ) from None
    return word_tokenize
