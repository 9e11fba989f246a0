"""Fluency, perplexity and the reference score against numbers worked out by hand and by plain Hugging Face."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from driftlens.data import TASKS, Fact, Record
from driftlens.errors import DriftlensError
from driftlens.evaluation import (
    TfIdf,
    continuations,
    fluency_scores,
    perplexities,
    reference_scores,
    summarize_records,
)
from driftlens.evaluation.fluency import clean, ngram_entropy
from driftlens.models import LensModel
from tests.support.edited import changes, random_edit
from tests.support.plain import PlainModel
from tests.support.tiny import one_family

FACT = Fact(subject="Toko Yasuda", prompt="{} plays the", target_true="guitar", target_new="metal")
RECORDS = [
    Record(
        index=index,
        fact=FACT,
        tasks=dict.fromkeys(TASKS, ()),
        generation=prompts,
        relation_id="P1303",
        target_new_id="Q5994",
    )
    for index, prompts in (
        (4, ("Toko Yasuda plays", "Toko Yasuda", "Toko Yasuda plays")),
        (2, ()),
        (9, ("Danielle Darrieux is",)),
    )
]
TEXTS = ("The Eiffel Tower is located in Paris", " and Apple A5 is produced by Apple in Yokohama.")


# --- fluency ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "bigrams", "trigrams"),
    [
        # All different: 4 bigrams, 3 trigrams.
        ("a b c d e", 2.0, math.log2(3)),
        # ab ba ab ba ab: shares 3/5 and 2/5; aba bab aba bab: 1/2 and 1/2.
        ("a b a b a b", -0.6 * math.log2(0.6) - 0.4 * math.log2(0.4), 1.0),
        # One bigram, again and again.
        ("a a a a a", 0.0, 0.0),
        # ab, bc; abc.
        ("a b c", 1.0, 0.0),
        ("a b", 0.0, 0.0),
        ("a", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_entropies_by_hand(words: str, bigrams: float, trigrams: float):
    expected = (2 / 3 * bigrams + 4 / 3 * trigrams) / 2
    assert ngram_entropy(words.split()) == pytest.approx(expected)
    assert math.copysign(1, ngram_entropy(words.split())) == 1


def test_fluency_is_the_mean_over_a_records_texts():
    texts = pd.DataFrame({"record": [4, 9, 4], "text": ["a b c d e", "x y z", "q q q q"]})
    table = fluency_scores(texts)
    first = 100 * (2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2
    assert table["record"].tolist() == [4, 9]
    assert table["fluency"].tolist() == pytest.approx([first / 2, 100 * (2 / 3) / 2])
    assert table["texts"].tolist() == [2, 1]
    assert set(table["words"]) == {"nltk-words"}


def test_words_are_nltks_and_texts_are_cleaned_as_published():
    # "can't" is two words, the comma is one, the last full stop is one.
    texts = pd.DataFrame({"record": [0], "text": ["It can't, he said."]})
    words = ["It", "ca", "n't", ",", "he", "said", "."]
    assert fluency_scores(texts)["fluency"].item() == pytest.approx(100 * ngram_entropy(words))
    assert clean("one\n\ntwo\nthree… ﬁve") == "one two\nthree... five"


def test_fluency_says_what_is_missing():
    texts: Any = pd.DataFrame({"record": [0], "text": ["a"]})
    with pytest.raises(DriftlensError, match="no column 'text'"):
        fluency_scores(texts[["record"]])
    with pytest.raises(DriftlensError, match="unknown way to cut words 'nltk-word'; did you mean 'nltk-words'"):
        fluency_scores(texts, words="nltk-word")


def test_the_published_tokenizer_says_how_to_get_its_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(DriftlensError, match=r'nltk\.download\("punkt_tab"\)') as caught:
        fluency_scores(pd.DataFrame({"record": [0], "text": ["a"]}), words="nltk-sentences")
    assert "\n" not in str(caught.value)


@one_family
@pytest.mark.backend
def test_continuations_are_each_records_own(lens_model: LensModel):
    edits = [random_edit(lens_model, 0, 1), None, random_edit(lens_model, 1, 1)]
    table: Any = continuations(lens_model, RECORDS, edits, max_tokens=24)
    assert table.columns.tolist() == ["record", "prompt_index", "prompt", "text"]
    assert table[["record", "prompt_index"]].values.tolist() == [[4, 0], [4, 1], [4, 2], [9, 0]]
    assert all(row.text.startswith(row.prompt) for row in table.itertuples())
    assert table["text"].nunique() == 4
    # Whatever is evaluated beside a record, its texts stay.
    alone = continuations(lens_model, RECORDS[2], edits[2], max_tokens=24)
    assert alone["text"].tolist() == table["text"].tolist()[3:]
    again = continuations(lens_model, RECORDS[0], edits[0], max_tokens=24, seed=1)
    assert again["text"].tolist() != table["text"].tolist()[:3]
    empty = continuations(lens_model, RECORDS[1])
    assert empty.empty
    assert fluency_scores(empty).empty


# --- perplexity ---------------------------------------------------------------------------------------------


@pytest.mark.backend
@pytest.mark.parametrize("limit", [7, 100])
def test_perplexity_is_that_of_plain_hugging_face(exact_model: LensModel, checkpoint_folder: Path, limit: int):
    plain = PlainModel(checkpoint_folder, dtype=torch.float64)
    edits = [None, random_edit(exact_model, 0, 1), random_edit(exact_model, 1, 2), random_edit(exact_model, 2, 0, 2)]
    table = perplexities(exact_model, edits, texts=TEXTS, max_tokens=limit, batch_size=3)
    ids = plain.tokenizer(" ".join(TEXTS))["input_ids"][:limit]
    assert table["record"].tolist() == [0, 1, 2, 3]
    assert set(table["tokens"]) == {len(ids)}
    for edit, found in zip(edits, table["perplexity"], strict=True):
        log_probs = plain.run(torch.tensor([ids]), edits=changes(edit))[1][0].log_softmax(-1)
        total = sum(float(log_probs[at - 1, ids[at]]) for at in range(1, len(ids)))
        # Divided by all tokens, the first among them, though it is not predicted.
        assert found == pytest.approx(math.exp(-total / len(ids)), rel=1e-5)


@one_family
def test_perplexity_of_one_edit_and_of_none(exact_model: LensModel):
    edit = random_edit(exact_model, 0, 1)
    both = perplexities(exact_model, [None, edit], texts=TEXTS, records=RECORDS[:2])
    assert both["record"].tolist() == [4, 2]
    assert perplexities(exact_model, edit, texts=TEXTS)["perplexity"].item() == pytest.approx(both["perplexity"][1])
    assert perplexities(exact_model, None, texts=TEXTS)["perplexity"].item() == pytest.approx(both["perplexity"][0])
    assert perplexities(exact_model, [], texts=TEXTS).empty


@one_family
def test_perplexity_says_what_is_missing(exact_model: LensModel):
    with pytest.raises(DriftlensError, match="tokens of text; perplexity needs 2 or more"):
        perplexities(exact_model, None, texts=["a"], max_tokens=1)
    with pytest.raises(DriftlensError, match="3 records but 1 edits"):
        perplexities(exact_model, None, texts=TEXTS, records=RECORDS)


# --- reference ----------------------------------------------------------------------------------------------


def test_weights_and_cosine_by_hand(tmp_path: Path):
    # Three documents: "guitar" stands in two of them, "metal" in one; "a" has one letter and is no word.
    documents = ["Guitar, a guitar!", "guitar metal", "river"]
    tfidf = TfIdf.fit(documents)
    guitar, rare = math.log(4 / 3) + 1, math.log(4 / 2) + 1
    assert tfidf.idf == pytest.approx({"guitar": guitar, "metal": rare, "river": rare})
    dot = 2 * guitar * guitar
    lengths = math.hypot(2 * guitar, rare) * guitar
    assert tfidf.similarity("guitar guitar metal", "a Guitar unknown") == pytest.approx(dot / lengths)
    assert tfidf.similarity("guitar metal", "metal guitar") == pytest.approx(1)
    assert tfidf.similarity("guitar", "river") == 0
    assert tfidf.similarity("unknown", "guitar") == 0

    vocabulary, weights = tmp_path / "tfidf_vocab.json", tmp_path / "idf.npy"
    vocabulary.write_text(json.dumps({"river": 0, "guitar": 2, "metal": 1}))
    np.save(weights, np.array([rare, rare, guitar]))
    assert TfIdf.load(vocabulary, weights) == tfidf


def test_reference_scores_join_a_records_texts():
    tfidf = TfIdf.fit(["guitar metal", "river guitar"])
    texts = pd.DataFrame({"record": [4, 4, 9], "text": ["a guitar", "some metal", "river"]})
    snippets = {("P1303", "Q5994"): ["guitar", "metal"]}
    table = reference_scores(texts, RECORDS, snippets, tfidf)
    assert table["record"].tolist() == [4, 9]
    assert table["reference"].tolist() == pytest.approx([100, 0])
    # Without texts about the new fact there is nothing to compare with.
    unknown = [replace(record, target_new_id=None) for record in RECORDS]
    assert reference_scores(texts, unknown, snippets, tfidf).empty


def test_reference_says_what_is_wrong(tmp_path: Path):
    with pytest.raises(DriftlensError, match="no documents"):
        TfIdf.fit([])
    vocabulary, weights = tmp_path / "tfidf_vocab.json", tmp_path / "idf.npy"
    vocabulary.write_text(json.dumps({"river": 3}))
    np.save(weights, np.ones(2))
    for place in (weights, tmp_path / "absent.npy"):
        with pytest.raises(DriftlensError, match=r"cannot read TF-IDF statistics .*expected ROME's"):
            TfIdf.load(vocabulary, place)


# --- summary ------------------------------------------------------------------------------------------------


def test_records_are_what_is_averaged():
    fluent: Any = pd.DataFrame({"record": [0, 1, 2], "fluency": [600.0, 620.0, 610.0]})
    both = pd.DataFrame({"record": [0, 1], "perplexity": [40.0, 50.0], "reference": [10.0, 30.0]})
    summary: Any = summarize_records(both, fluent)
    assert summary.index.tolist() == ["FL", "REF", "PPL"]
    assert summary["value"].tolist() == [610, 20, 45]
    assert summary["n"].tolist() == [3, 2, 2]
    # Student's t of two degrees of freedom is 4.3027; the standard error is 10 / √3.
    factor = math.exp(4.30265 * 10 / math.sqrt(3) / 610)
    assert summary.loc["FL", ["low", "high"]].tolist() == pytest.approx([610 / factor, 610 * factor])
    assert (summary["low"] > 0).all()
    assert summary.loc["REF", "high"] <= 100
    assert summary.loc["PPL", ["cluster_low", "cluster_high"]].tolist() == [40, 50]
    with pytest.raises(DriftlensError, match="expected record and one of fluency, reference, perplexity"):
        summarize_records(fluent[["record"]])
