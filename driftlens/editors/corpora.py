"""Text corpora for second moments: a name, a stream of texts, and a digest that identifies the texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from driftlens.errors import DriftlensError, unknown_name
from driftlens.files import path_of, read_file

# By name: repository, configuration, split, revision and the column that holds the text.
DATASETS = {
    "wikipedia": ("wikimedia/wikipedia", "20231101.en", "train", "b04c8d1ceb2f5cd4588862100d08de323dccfbaa", "text"),
    "wikitext": (
        "Salesforce/wikitext",
        "wikitext-103-raw-v1",
        "train",
        "b08601e04326c79dfdd32d625aee71d232d685c3",
        "text",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Texts that can be streamed repeatedly; `size` is their number, if known."""

    name: str
    digest: str
    texts: Callable[[], Iterator[str]]
    size: int | None = None

    def count(self, samples: int) -> int:
        """The number of texts read if at most `samples` are wanted; a remote corpus is assumed to have that many."""
        return samples if self.size is None else min(samples, self.size)


def open_corpus(source: str | PathLike[str] | Sequence[str] | Corpus) -> Corpus:
    """Open a corpus by name (``"demo"``, ``"wikipedia"``, ``"wikitext"``), from a text file, or from a list of texts.

    In a text file every non-empty line is a text.

    Raises:
        DriftlensError: the argument is neither a known name nor a readable file, or contains no text.
    """
    if isinstance(source, Corpus):
        return source
    if not isinstance(source, str | PathLike):
        # As JSON, so that no text can be confused with the border between two.
        digest = hashlib.sha256(json.dumps(list(source)).encode()).hexdigest()[:16]
        return Corpus(name=f"{len(source)} texts", digest=digest, texts=lambda: iter(source), size=len(source))
    name = str(source)
    if name == "demo":
        return _demo()
    if name in DATASETS:
        return _dataset(name)
    path = path_of(source)
    if path.exists():
        return _file(path)
    raise unknown_name("corpus", name, ["demo", *DATASETS], instead="or the path of a text file")


def _demo() -> Corpus:
    from driftlens.demo import CORPUS_DOCUMENTS, corpus, corpus_digest

    return Corpus(name="demo", digest=corpus_digest(), texts=corpus, size=CORPUS_DOCUMENTS)


def _file(path: Path) -> Corpus:
    digest = hashlib.sha256(read_file(path, "a text file as the corpus")).hexdigest()[:16]
    path = path.absolute()  # the reader may be another process

    def texts() -> Iterator[str]:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.strip():
                    yield line.strip()

    size = sum(1 for _ in texts())
    if not size:
        raise DriftlensError(f"the corpus {path} holds no text; give a file with a text on each line")
    return Corpus(name=path.name, digest=digest, texts=texts, size=size)


def _dataset(name: str) -> Corpus:
    repository, configuration, split, revision, column = DATASETS[name]

    def texts() -> Iterator[str]:
        import datasets

        try:
            stream: Any = datasets.load_dataset(
                repository, configuration, split=split, revision=revision, streaming=True
            )
            first = list(islice(iter(stream), 1))
        except Exception as error:
            raise DriftlensError(
                f"cannot reach the corpus {name!r} ({repository} on the Hugging Face hub: "
                f"{type(error).__name__}); go online once, or give a text file as the corpus"
            ) from error
        if not first:
            raise DriftlensError(f"the corpus {name!r} came back empty; give a text file as the corpus")
        for row in stream:
            text = str(row[column]).strip()
            if text:
                yield text

    return Corpus(name=name, digest=f"{repository}/{configuration}/{split}@{revision}", texts=texts)
