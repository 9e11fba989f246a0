"""Positions: found through characters, right for any tokenizer, any script and any padding."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from driftlens.data import Fact
from driftlens.errors import DriftlensError
from driftlens.models import RAW, LensModel
from driftlens.models.encoding import Encoding
from driftlens.models.prompts import (
    TokenizedPrompt,
    branched,
    find_subject,
    pad_rows,
    subject_last,
    subject_tokens,
    target_positions,
    tokenize_prompt,
)
from tests.support.places import SHARED


def text_of(model: LensModel, ids: Any) -> str:
    return model.tokenizer.decode(list(ids), skip_special_tokens=True)


# --- prompt and target ---


@pytest.mark.backend
def test_prompt_and_target_in_tokens(lens_model: LensModel):
    prompt = tokenize_prompt(lens_model, "The mother tongue of Danielle Darrieux is", "French")
    assert text_of(lens_model, prompt.ids[: prompt.n_prompt]) == "The mother tongue of Danielle Darrieux is"
    assert text_of(lens_model, prompt.target_ids) == " French"
    assert text_of(lens_model, prompt.ids[prompt.last : prompt.last + 1]) == " is"
    assert prompt.forced == prompt.ids[:-1]
    bare = tokenize_prompt(lens_model, "The mother tongue of Danielle Darrieux is")
    assert bare.ids == prompt.ids[: prompt.n_prompt]
    assert bare.target_ids == ()
    assert bare.forced == bare.ids
    assert bare.last == prompt.last


@pytest.mark.backend
def test_a_bos_shifts_every_position_by_one(lens_model: LensModel):
    prompt = tokenize_prompt(lens_model, "Toko Yasuda plays the", "guitar")
    first = 1 if lens_model.family == "llama" else 0
    assert lens_model.adds_bos is bool(first)
    tokens = subject_tokens(prompt, "Toko Yasuda")
    assert tokens.start == first
    assert text_of(lens_model, [prompt.ids[i] for i in tokens]) == "Toko Yasuda"
    assert subject_last(prompt, "Toko Yasuda") == tokens[-1]
    assert tokens_before(prompt, "Toko Yasuda") == tokens[-1]


def tokens_before(prompt: TokenizedPrompt, part: str) -> int:
    """By another way: the last token that starts before the end of `part` and stands for any text."""
    end = prompt.text.index(part) + len(part)
    return max(i for i, (start, stop) in enumerate(prompt.offsets) if start < end and stop > start)


@pytest.mark.backend
def test_subject_last_counts_from_the_given_occurrence(lens_model: LensModel):
    """In a distracted prompt the first occurrence counts, behind a context that names the subject the second."""
    text = "Paris is in Delft. The mayor of Paris is"
    prompt = tokenize_prompt(lens_model, text)
    first, second = subject_last(prompt, "Paris"), subject_last(prompt, "Paris", start=6)
    assert first < second
    assert prompt.offsets[second][1] == text.rindex("Paris") + len("Paris")
    assert find_subject(text, "Paris", start=6) == (text.rindex("Paris"), text.rindex("Paris") + 5)


WORDS = st.lists(
    st.sampled_from(
        ["Łódź", "Mělník", "東京", "🎸", "naïve", "is", "Paris", "e\u0301", "🧑\u200d🚀", "ʻOumuamua", "…"]
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(before=WORDS, subject=WORDS, after=WORDS, target=WORDS)
def test_any_script_that_splits_into_bytes(byte_tokenizer: Any, before: Any, subject: Any, after: Any, target: Any):
    """Characters of several bytes are several tokens here; every one of them belongs to its character."""
    name = " ".join(subject)
    text = " ".join([*before, name, *after])
    start = len(" ".join(before)) + 1
    model: Any = Stub(byte_tokenizer)
    prompt = tokenize_prompt(model, text, " ".join(target))
    assert byte_tokenizer.decode(prompt.ids[: prompt.n_prompt]) == text
    blank = "" if text.endswith("東京") else " "
    assert byte_tokenizer.decode(list(prompt.target_ids)) == blank + " ".join(target)
    tokens = subject_tokens(prompt, name, start=start)
    assert byte_tokenizer.decode([prompt.ids[i] for i in tokens]).strip() == name
    # Nothing of the subject is left over behind its last token.
    assert byte_tokenizer.decode(prompt.ids[tokens[-1] + 1 : prompt.n_prompt]) == " " + " ".join(after)


class Stub:
    """A model as far as tokens go."""

    name, n_ctx, frame, special_tokens = "stub", 10_000, RAW, ()

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> Encoding:
        from driftlens.models.encoding import encode

        return encode(self.tokenizer, [text])[0]

    def encode_many(self, texts: list[str], *, complete: bool = False) -> list[Encoding]:
        return [self.encode(text) for text in texts]


@pytest.fixture(scope="module")
def byte_tokenizer(checkpoints: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoints("gpt2"))


def with_tokens(whole: str, *offsets: tuple[int, int]) -> Any:
    """A model whose tokenizer cuts `whole` at these places, as some other tokenizer would."""

    class Cut(Stub):
        def encode(self, text: str) -> Encoding:
            assert text == whole
            return Encoding(ids=list(range(len(offsets))), offsets=list(offsets))

    return Cut(None)


def test_a_token_across_the_joint_is_the_targets():
    """A tokenizer that glues "is French" together leaves the prompt with what stands before."""
    model = with_tokens("It is French", (0, 2), (2, 12))
    prompt = tokenize_prompt(model, "It is", "French")
    assert prompt.n_prompt == 1
    assert prompt.target_ids == (1,)


def test_a_token_for_the_blank_alone_is_the_targets():
    """So do some tokenizers read; the model then has to predict the blank as well."""
    model = with_tokens("It is French", (0, 2), (2, 5), (5, 6), (6, 12))
    assert tokenize_prompt(model, "It is", "French").target_ids == (2, 3)


def test_a_subject_inside_larger_tokens():
    """Each token that holds a part of the subject is one of its tokens."""
    model = with_tokens("The Apple A5's price", (0, 0), (0, 6), (6, 14), (14, 20))
    prompt = tokenize_prompt(model, "The Apple A5's price")
    assert list(subject_tokens(prompt, "Apple A5")) == [1, 2]


def test_a_character_split_over_the_last_tokens_of_a_target():
    """Its parts all stand for the same character, and all are the target's."""
    model = with_tokens("by Ł", (0, 2), (2, 4), (3, 4))
    assert tokenize_prompt(model, "by", "Ł").target_ids == (1, 2)


# --- batches ---


@given(
    trunk=st.lists(st.integers(0, 3), max_size=4),
    tails=st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=4),
)
def test_sequences_that_begin_alike_are_one_row(trunk: list[int], tails: list[list[int]]):
    sequences = [trunk + tail for tail in tails]
    row = branched(sequences)
    for sequence, columns in zip(sequences, row.columns, strict=True):
        assert [row.ids[column] for column in columns] == sequence
        assert list(columns) == sorted(columns)
        # All that a token sees are the tokens before it in its own sequence.
        for at, column in enumerate(columns):
            seen = [c for c in range(column) if column < row.until[c]]
            assert seen == list(columns[:at])
    used = {column for columns in row.columns for column in columns}
    assert used == set(range(len(row.ids))) == set(range(len(row.until)))
    # Nothing that two sequences begin with in common stands there twice.
    assert len(row.ids) == len({tuple(own[: at + 1]) for own in sequences for at in range(len(own))})


@pytest.mark.backend
def test_rows_of_different_length(lens_model: LensModel):
    batch, shifts = pad_rows(lens_model, [(5, 6, 7), (8,), (9, 10)])
    assert batch.mask.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert batch.tokens[batch.mask].tolist() == [5, 6, 7, 8, 9, 10]
    assert shifts.tolist() == [0, 0, 0]


ROWS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, data=st.data())
def test_aligned_rows(rows: list[list[int]], data: st.DataObject):
    """The aligned tokens share a column, each row stands whole in its place, and no column is empty."""
    align = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
    model: Any = OnTheCpu()
    batch, shifts = pad_rows(model, rows, align=align)
    assert len({shift + a for shift, a in zip(shifts.tolist(), align, strict=True)}) == 1
    for tokens, mask, row, shift in zip(batch.tokens, batch.mask, rows, shifts.tolist(), strict=True):
        assert tokens[mask].tolist() == row
        assert mask.nonzero().flatten().tolist() == list(range(shift, shift + len(row)))
    assert batch.mask.any(0).all()


class OnTheCpu:
    device = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=4),
    right=st.booleans(),
)
def test_target_positions(lengths: list[tuple[int, int]], right: bool):
    """Each target token is predicted by the token before it, wherever the row stands."""
    prompts = [
        TokenizedPrompt(
            text="p", target="t", ids=tuple(range(100 * i, 100 * i + n + t)), offsets=((0, 0),) * (n + t), n_prompt=n
        )
        for i, (n, t) in enumerate(lengths)
    ]
    model: Any = OnTheCpu()
    align = None if right else [prompt.last for prompt in prompts]
    batch, shifts = pad_rows(model, [prompt.forced for prompt in prompts], align=align)
    rows, columns, ids = target_positions(prompts, shifts)
    found: list[list[int]] = [[] for _ in prompts]
    for row, column, token in zip(rows.tolist(), columns.tolist(), ids.tolist(), strict=True):
        assert batch.mask[row, column]
        assert int(batch.tokens[row, column]) == token - 1  # ids count up, so the token before is one less
        found[row].append(token)
    assert [tuple(tokens) for tokens in found] == [prompt.target_ids for prompt in prompts]


# --- mistakes ---


@pytest.mark.parametrize(("text", "target"), [("", "French"), ("   ", ""), ("\n", "French")])
def test_an_empty_prompt_is_one_line(byte_tokenizer: Any, text: str, target: str):
    model: Any = Stub(byte_tokenizer)
    with pytest.raises(DriftlensError, match="the prompt is empty"):
        tokenize_prompt(model, text, target)


def test_a_subject_that_is_not_there_is_one_line(byte_tokenizer: Any):
    model: Any = Stub(byte_tokenizer)
    prompt = tokenize_prompt(model, "The mother tongue of Danielle\nis")
    with pytest.raises(DriftlensError, match="the subject 'Toko' does not occur in") as error:
        subject_last(prompt, "Toko")
    assert "\n" not in str(error.value)
    with pytest.raises(DriftlensError, match="no token covers characters 90–95"):
        prompt.tokens_of(90, 95)


def test_a_target_without_a_token_of_its_own_is_one_line():
    model = with_tokens("It is French", (0, 2), (2, 5))
    with pytest.raises(DriftlensError, match="'French' has no token of its own behind 'It is'"):
        tokenize_prompt(model, "It is", "French")


def test_a_prompt_longer_than_the_context_is_one_line(byte_tokenizer: Any):
    model: Any = Stub(byte_tokenizer)
    model.n_ctx = n = len(tokenize_prompt(model, "Toko Yasuda plays", "the guitar").ids)
    tokenize_prompt(model, "Toko Yasuda plays", "the guitar")
    model.n_ctx -= 1
    message = f"has {n} tokens with its target, but stub reads at most {n - 1}; shorten it"
    with pytest.raises(DriftlensError, match=message):
        tokenize_prompt(model, "Toko Yasuda plays", "the guitar")


# --- the benchmark ---


@pytest.fixture(scope="module")
def counterfact() -> tuple[Any, list[Any]]:
    data, folder = SHARED / "data" / "merged_counterfact.json", SHARED / "models" / "counterfact-gpt2"
    if not data.is_file() or not folder.is_dir():
        pytest.skip(f"the benchmark's records and a model for them are not in {SHARED}")
    from transformers import AutoTokenizer

    from driftlens.data import load_records

    return Stub(AutoTokenizer.from_pretrained(folder)), load_records(data)


def test_every_record_of_the_benchmark(counterfact: tuple[Any, list[Any]]):
    """The tokens up to subject_last are the text up to the subject's end; the target's are what is left."""
    model, records = counterfact
    assert len(records) == 1678
    at_start = 0
    for record in records:
        fact: Fact = record.fact
        end = fact.prompt.index("{}") + len(fact.subject)
        for target in (fact.target_true, fact.target_new):
            prompt = tokenize_prompt(model, fact.text, target)
            last = subject_last(prompt, fact.subject)
            # This tokenizer puts a blank in front of every text.
            assert text_of(model, prompt.ids[: last + 1]).strip() == fact.text[:end].strip()
            assert text_of(model, prompt.ids[: prompt.n_prompt]).strip() == fact.text.strip()
            assert text_of(model, prompt.target_ids) == f" {target}"
            assert last < prompt.last
        at_start += fact.prompt.startswith("{}")
    assert at_start == 713


@pytest.mark.parametrize("number", [538, 1468])
def test_targets_that_end_inside_a_character(counterfact: tuple[Any, list[Any]], number: int):
    """The target's last token by itself is no text; its loss is still the whole target's."""
    model, records = counterfact
    fact = records[number].fact
    split = []
    for target in (fact.target_true, fact.target_new):
        prompt = tokenize_prompt(model, fact.text, target)
        split.append("\ufffd" in model.tokenizer.decode([prompt.target_ids[-1]]))
        assert model.tokenizer.decode(list(prompt.target_ids)) == f" {target}"
    assert any(split)
