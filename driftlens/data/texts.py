"""Load texts that belong to no record: for perplexity, about the new facts, and true statements."""

import os
from collections.abc import Sequence

from driftlens.data.homes import fetch
from driftlens.data.joints import join
from driftlens.data.reading import read_nodes
from driftlens.data.record import Record
from driftlens.files import path_of

__all__ = ["load_snippets", "load_texts", "true_texts"]


def load_texts(source: str | os.PathLike[str] = "me_ppl") -> list[str]:
    """Load the texts of ME-PPL-50, downloaded at first use, or of a local JSON list of texts or of `{"Text": …}`.

    The paper measures perplexity on these texts, joined by blanks.
    """
    path = fetch("me_ppl") if source == "me_ppl" else path_of(source)
    return [(node if isinstance(node.value, str) else node.need("Text")).text() for node in read_nodes(path)]


def load_snippets(source: str | os.PathLike[str] = "attribute_snippets") -> dict[tuple[str, str], tuple[str, ...]]:
    """Load ROME's `attribute_snippets.json`: texts about things for which (relation, object) is true.

    The file is downloaded at first use (almost a gigabyte) or read from a local path. It is a list of `{"relation_id",
    "target_id", "samples": [{"text"}, …]}`.
    """
    path = fetch("attribute_snippets") if source == "attribute_snippets" else path_of(source)
    snippets: dict[tuple[str, str], tuple[str, ...]] = {}
    for node in read_nodes(path):
        key = (node.need("relation_id").text(), node.need("target_id").text())
        texts = tuple(sample.need("text").text() for sample in node.need("samples").items())
        snippets[key] = (*snippets.get(key, ()), *texts)
    return snippets


def true_texts(records: Sequence[Record]) -> tuple[str, ...]:
    """Return a dataset's true statements: the prompts of its records, each joined with its true target."""
    texts: list[str] = []
    for record in records:
        fact = record.fact
        texts.append(join(fact.text, fact.target_true))
        for task in ("rewrite", "paraphrase", "alias", "neighborhood", "relation"):
            texts += [join(prompt.text, prompt.target_true) for prompt in record.tasks[task]]
    return tuple(dict.fromkeys(texts))
