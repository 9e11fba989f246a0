"""One rule for what stands between a prompt and its target, held by every function that takes text.

What a model reads is written out by hand here, case by case, and tokenised by plain Hugging Face.
"""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from driftlens import (
    ROME,
    DriftlensError,
    Fact,
    LensModel,
    Record,
    TaskPrompt,
    attention_drift,
    contaminating_substitution,
    evaluate,
    generate,
    patch_attention,
    patch_scores,
)
from driftlens.clinics.answers import greedy_answers
from driftlens.data import TASKS, true_texts
from driftlens.data.joints import distractor, join, without_blanks
from driftlens.edits import Edit
from tests.support.edited import changes, random_edit
from tests.support.plain import PlainModel

# A prompt as somebody gives it, what is left of it, and what stands before the target.
CASES = {
    "plain": ("Toko Yasuda plays the", "Toko Yasuda plays the", " "),
    "blank": ("Toko Yasuda plays the ", "Toko Yasuda plays the", " "),
    "blanks": ("Toko Yasuda plays the   ", "Toko Yasuda plays the", " "),
    "tab": ("Toko Yasuda plays the\t", "Toko Yasuda plays the", " "),
    "no-break space": ("Toko Yasuda plays the\u00a0", "Toko Yasuda plays the", " "),
    "newline": ("Toko Yasuda plays:\n", "Toko Yasuda plays:\n", ""),
    "newlines": ("Toko Yasuda plays:\n\n", "Toko Yasuda plays:\n\n", ""),
    "Windows newline": ("Toko Yasuda plays:\r\n", "Toko Yasuda plays:\r\n", ""),
    "blank and newline": ("Toko Yasuda plays: \n", "Toko Yasuda plays: \n", ""),
    "newline and blanks": ("Toko Yasuda plays:\n  ", "Toko Yasuda plays:\n", ""),
    "decomposed": ("Toko Yasuda plays in a cafe\u0301", "Toko Yasuda plays in a cafe\u0301", " "),
    "emoji": ("Toko Yasuda plays the 🧑\u200d🚀", "Toko Yasuda plays the 🧑\u200d🚀", " "),
    "Chinese": ("Toko Yasuda 法国的首都是", "Toko Yasuda 法国的首都是", ""),
    "Chinese with a colon": ("Toko Yasuda 法国的首都是：", "Toko Yasuda 法国的首都是：", ""),
    "Japanese": ("Toko Yasuda フランスの首都は", "Toko Yasuda フランスの首都は", ""),
    "Thai": ("Toko Yasuda เมืองหลวงคือ", "Toko Yasuda เมืองหลวงคือ", ""),
    "Korean": ("Toko Yasuda 수도는", "Toko Yasuda 수도는", " "),
    "Chinese before": ("法国 Toko Yasuda is in", "法国 Toko Yasuda is in", " "),
    "special token": ("Toko Yasuda plays<|endoftext|>", "Toko Yasuda plays<|endoftext|>", ""),
    "special token and blank": ("Toko Yasuda plays<|endoftext|> ", "Toko Yasuda plays<|endoftext|>", ""),
    "question": ("What does Toko Yasuda play?", "What does Toko Yasuda play?", " "),
}
ONE_OF_A_KIND = ("blanks", "newline and blanks", "Chinese", "special token and blank")
"""For every function that takes text: the rule itself is tested on all."""
TARGETS = ("guitar", "巴黎 piano")


@pytest.mark.parametrize("name", CASES)
def test_the_rule(name: str):
    given, kept, between = CASES[name]
    assert without_blanks(given) == kept
    for target in TARGETS:
        assert join(given, f" {target} ", special_tokens=["<|endoftext|>"]) == f"{kept}{between}{target}"
    if "<" not in given:
        assert join(given, "guitar") == f"{kept}{between}guitar"
        assert distractor(given, "guitar") == f"{kept}{between}guitar. "


@given(st.text(), st.text(alphabet=" \t\u00a0\u2003", max_size=3), st.text(min_size=1))
def test_blanks_at_the_end_never_count(prompt: str, blanks: str, target: str):
    assert join(prompt + blanks, target) == join(prompt, target)
    assert join(prompt, target).startswith(without_blanks(prompt))


class ByHand:
    """P(target), exp of the mean log-probability, from plain Hugging Face and the two texts written out."""

    def __init__(self, folder: Path, edit: Edit) -> None:
        self.plain, self.edit = PlainModel(folder), edit

    def ids(self, text: str) -> list[int]:
        ids = self.plain.tokenizer(text)["input_ids"]
        return ids[1:] if ids[:2] == [0, 0] else ids  # <|endoftext|> is BOS here; what is written out counts

    def probability(self, prompt: str, whole: str, *, edited: bool) -> float:
        ids, n_prompt = self.ids(whole), len(self.ids(prompt))
        _, logits = self.plain.run(torch.tensor([ids]), edits=changes(self.edit) if edited else [])
        own = [float(logits[0, at - 1].log_softmax(-1)[ids[at]]) for at in range(n_prompt, len(ids))]
        return float(np.exp(np.mean(own)))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def read(request: Any, checkpoints: Any) -> tuple[LensModel, ByHand]:
    """A model, without and with a BOS of its own, and the same by hand under the same edit."""
    from tests.support.tiny import load_tiny

    model = load_tiny(checkpoints(request.param))
    edit = random_edit(model, 0, 1)
    return model, ByHand(checkpoints(request.param), edit)


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_every_function_reads_what_is_written_by_hand(read: Any, name: str):
    model, by_hand = read
    given, kept, between = CASES[name]
    target = "guitar" if between else "巴黎"
    whole = f"{kept}{between}{target}"
    wanted = [by_hand.probability(kept, whole, edited=edited) for edited in (False, True)]
    edit = by_hand.edit

    trace = contaminating_substitution(model, edit, given, f" {target}\t", module="mlp", window=1)
    curve = patch_attention(model, edit, given, target, window=1)
    scores = patch_scores(model, edit, given, target, window=1)
    for result in (trace, curve, scores):
        assert result.baselines[["vanilla", "edited"]].to_numpy()[0] == pytest.approx(wanted, rel=1e-4)

    prompt = TaskPrompt(text=given, target_true=target, target_new="drums")
    fact = Fact(subject="Toko Yasuda", prompt="{} is", target_true="a", target_new="b")
    record = Record(index=0, fact=fact, tasks={**dict.fromkeys(TASKS, ()), "relation": (prompt,)})
    nlls = [evaluate(model, record, one)["nll_true"].iloc[0] for one in (None, edit)]
    assert np.exp(np.negative(nlls)) == pytest.approx(wanted, rel=1e-4)
    assert true_texts([record])[1] == f"{kept}{between}{target}" or "<" in given

    ids = by_hand.ids(kept)
    (generation,) = generate(model, [given], edit, top_k=1, max_tokens=len(ids) + 1)
    _, logits = by_hand.plain.run(torch.tensor([ids]), edits=changes(edit))
    assert generation.ids == (*ids, int(logits[0, -1].argmax()))
    assert generation.prompt == kept
    assert generation.text.startswith(kept)
    (answer,) = greedy_answers(model, [given], edit)
    assert answer.continuation.startswith(generation.continuation) or "\ufffd" in generation.continuation

    drift: Any = attention_drift(model, edit, given, "Toko Yasuda")
    again = attention_drift(model, edit, kept, "Toko Yasuda")
    assert np.allclose(drift.heads["kl"], again.heads["kl"])
    layer = int(drift.heads["layer"].max())
    patterns = [
        values(by_hand.plain, layer, ids, changes(one)).log() for one in (None, edit)
    ]  # [heads, tokens], of the last token
    kl = (patterns[0].exp() * (patterns[0] - patterns[1])).sum(-1)
    assert drift.heads.loc[drift.heads["layer"] == layer, "kl"].to_numpy() == pytest.approx(kl.numpy(), rel=1e-3)


def values(plain: PlainModel, layer: int, ids: list[int], edits: Any) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    plain.run(torch.tensor([ids]), edits=[*edits, ("pattern", layer, seen.append)])
    return seen[0][0, :, -1]


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_an_edit_is_optimised_on_what_is_written_by_hand(read: Any, name: str):
    """With a rate of 0 the value stays, so that the first step's NLL is the unedited model's own."""
    model, by_hand = read
    given, kept, between = CASES[name]
    target = "guitar" if between else "巴黎"
    prompt = given.replace("Toko Yasuda", "{}")
    fact = Fact(subject="Toko Yasuda", prompt=prompt, target_true="drums", target_new=target)
    assert fact.text == kept
    editor = ROME(layer=1, steps=1, lr=1e-12, contexts=("{}",), second_moment=torch.eye(model.d_mlp))
    history = editor.edit(model, fact).history
    wanted = by_hand.probability(kept, f"{kept}{between}{target}", edited=False)
    assert history["probability"].iloc[0] == pytest.approx(wanted, rel=1e-4)


def test_a_prompt_that_begins_with_bos_gets_no_second(read: Any):
    model, by_hand = read
    text = "<|endoftext|>Toko Yasuda plays the"
    assert model.encode(text).ids == by_hand.ids(text)
    assert model.encode(text).ids[:2].count(0) == 1
    result = contaminating_substitution(model, by_hand.edit, text, "guitar", module="mlp")
    wanted = [by_hand.probability(text, f"{text} guitar", edited=edited) for edited in (False, True)]
    assert result.baselines[["vanilla", "edited"]].to_numpy()[0] == pytest.approx(wanted, rel=1e-4)
    if model.adds_bos:  # the same tokens as without the BOS written out
        assert model.encode(text).ids == model.encode("Toko Yasuda plays the").ids


def test_a_subjects_place_is_filled_wherever_a_prompt_stands(read: Any):
    model, by_hand = read
    fact = Fact(subject="Toko Yasuda", prompt="{} plays the", target_true="guitar", target_new="piano")
    edit = Edit(updates=by_hand.edit.updates, facts=(fact,))
    for template in ("{} plays the", "The one who is called {} plays the"):
        text = template.replace("{}", "Toko Yasuda")
        for function in (contaminating_substitution, patch_attention, patch_scores):
            filled, written = (function(model, edit, one, "guitar") for one in (template, text))
            assert filled.baselines.equals(written.baselines)
        filled, written = (attention_drift(model, edit, one, "Toko Yasuda") for one in (template, text))
        assert filled.table.equals(written.table)
    # Code has braces as well: an edit that knows no subject leaves them alone.
    plain = contaminating_substitution(model, by_hand.edit, "{} plays the", "guitar", module="mlp")
    assert set(plain.baselines["prompt"]) == {"{} plays the"}


def test_a_typed_test_prompt_may_name_the_subject_as_braces():
    from driftlens.commands.trace_options import read_options
    from driftlens.commands.trace_study import choose_study

    typed = ["--subject", "Toko Yasuda", "--prompt", "{} plays the", "--true", "guitar", "--new", "piano"]
    options = read_options([*typed, "--test-prompt", "{} is known for her", "--task", "distract_relation"])
    (prompt,) = choose_study(options).prompts
    assert prompt.text == "Toko Yasuda plays the piano. Toko Yasuda is known for her"


@pytest.mark.parametrize(("text", "asked"), [("who is it", "who is it?"), ("who is it?", "who is it?"), ("a? ", "a?")])
def test_a_zsre_question_ends_in_one_mark(text: str, asked: str):
    from driftlens.data.reading import Node
    from driftlens.data.zsre import parse_zsre

    value = {"subject": "A", "src": "Where is A?", "answers": ["X"], "alt": "Y", "loc": text, "loc_ans": "Z"}
    record = parse_zsre(Node(value=value, file=Path("zsre.json"), record=0))
    assert [prompt.text for prompt in record.tasks["neighborhood"]] == [asked]


def test_a_prompt_of_blanks_alone_is_empty():
    with pytest.raises(DriftlensError, match="the prompt is empty"):
        TaskPrompt(text=" \n", target_true="a", target_new="b")
