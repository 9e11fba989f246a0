"""Chats: prompts in the tokenizer's own template, the subject found inside, the answer where the assistant's begins.

What the model reads is the template's own rendering, tokenised by plain Hugging Face.
"""

from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from driftlens import (
    ROME,
    DriftlensError,
    Fact,
    LensModel,
    Record,
    TaskPrompt,
    attention_drift,
    clinic,
    contaminating_substitution,
    evaluate,
    generate,
    load_model,
    patch_attention,
    patch_scores,
)
from driftlens.data import TASKS
from driftlens.models.chat import chat_frame
from driftlens.models.prompts import subject_last, subject_tokens, tokenize_prompt
from driftlens.runs import cached_edits
from tests.support.edited import changes, random_edit
from tests.support.plain import PlainModel
from tests.support.tiny import BRIDGE

pytestmark = pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")

CHATML = (
    "{% for message in messages %}{{ '<|endoftext|>' + message['role'] + '\n' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|endoftext|>assistant\n' }}{% endif %}"
)
# As Llama 2's and Gemma's: the system prompt inside the user's message, or refused.
INSTRUCT = (
    "{{ '<|endoftext|>[INST] ' }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ message['content'] | trim }}{% endfor %}"
    "{{ ' [/INST]' }}"
)
SYSTEM = "Help Toko Yasuda."
PROMPT, SUBJECT = "What does Toko Yasuda play?", "Toko Yasuda"


def folder_with(template: str, checkpoint: Path, folder: Path) -> Path:
    copytree(checkpoint, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def chat_folder(request: Any, checkpoints: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny chat models; Llama's tokenizer puts a BOS in front of plain text."""
    return folder_with(CHATML, checkpoints(request.param), tmp_path_factory.mktemp("chat") / request.param)


class ByHand:
    def __init__(self, folder: Path, system: str | None) -> None:
        self.plain, self.system = PlainModel(folder), system

    def text(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return self.plain.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def ids(self, text: str) -> list[int]:
        return self.plain.tokenizer(text, add_special_tokens=False)["input_ids"]

    def probability(self, prompt: str, target: str, edits: Any = ()) -> float:
        ids, n_prompt = self.ids(self.text(prompt) + target), len(self.ids(self.text(prompt)))
        _, logits = self.plain.run(torch.tensor([ids]), edits=edits)
        own = [float(logits[0, at - 1].log_softmax(-1)[ids[at]]) for at in range(n_prompt, len(ids))]
        return float(np.exp(np.mean(own)))


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_every_function_reads_the_templates_own_rendering(chat_folder: Path, system: str | None):
    model = load_model(chat_folder, device="cpu", chat=True, system=system)
    by_hand = ByHand(chat_folder, system)
    edit = random_edit(model, 0, 1)
    ids = by_hand.ids(by_hand.text(PROMPT))
    read = tokenize_prompt(model, PROMPT)
    assert list(read.ids) == ids
    # Inside the message, although the system prompt names the subject, too.
    decoded = model.tokenizer.decode(list(read.ids[: subject_last(read, SUBJECT) + 1]))
    assert decoded.endswith("What does Toko Yasuda")
    assert model.tokenizer.decode([read.ids[at] for at in subject_tokens(read, SUBJECT)]).strip() == SUBJECT

    wanted = [by_hand.probability(PROMPT, "guitar", edits) for edits in ((), changes(edit))]
    for function in (contaminating_substitution, patch_attention, patch_scores):
        result = function(model, edit, PROMPT, "guitar", window=1)
        assert result.baselines[["vanilla", "edited"]].to_numpy()[0] == pytest.approx(wanted, rel=1e-4)
    trace = contaminating_substitution(model, edit, PROMPT, "guitar", "mlp", 1, subject=SUBJECT)
    texts = trace.table.drop_duplicates("token")
    assert "".join(texts["token_text"]) == by_hand.text(PROMPT)
    of_subject = texts[texts["role"].str.contains("subject token")]
    assert list(of_subject["token"]) == list(subject_tokens(read, SUBJECT))

    prompt = TaskPrompt(text=PROMPT, target_true="guitar", target_new="piano")
    fact = Fact(subject=SUBJECT, prompt="{} plays the", target_true="a", target_new="b")
    record = Record(index=0, fact=fact, tasks={**dict.fromkeys(TASKS, ()), "relation": (prompt,)})
    nlls = [evaluate(model, record, one)["nll_true"].iloc[0] for one in (None, edit)]
    assert np.exp(np.negative(nlls)) == pytest.approx(wanted, rel=1e-4)
    (answer,) = generate(model, [PROMPT], edit, top_k=1, max_tokens=len(ids) + 1)
    _, logits = by_hand.plain.run(torch.tensor([ids]), edits=changes(edit))
    assert answer.ids == (*ids, int(logits[0, -1].argmax()))
    assert answer.text == f"{PROMPT}\n{answer.continuation}"
    assert attention_drift(model, edit, PROMPT, SUBJECT).table["prompt"].tolist() == [PROMPT]


def test_an_edit_made_in_a_chat(chat_folder: Path, tmp_path: Path):
    """Its context prefixes stand in the message; it is not a plain text's edit, in no cache and by no name."""
    plain = load_model(chat_folder, device="cpu")
    model, by_hand = plain.chat(), ByHand(chat_folder, None)
    assert plain.chat(SYSTEM).frame.before.endswith("user\n")
    assert not plain.frame
    fact = Fact(subject=SUBJECT, prompt="What does {} play?", target_true="piano", target_new="guitar")
    for context in ("{}", "I wonder. {}"):
        editor = ROME(layer=1, steps=1, lr=1e-12, contexts=(context,), second_moment=torch.eye(model.d_mlp))
        result = editor.edit(model, fact)
        wanted = by_hand.probability(context.replace("{}", fact.text), "guitar")
        assert result.history["probability"].iloc[0] == pytest.approx(wanted, rel=1e-4)
    assert result.edit.provenance["chat"] == by_hand.text("{}")
    editor = ROME(layer=1, steps=2, contexts=("{}",), second_moment=torch.eye(model.d_mlp))
    edits = [cached_edits(one, editor, [fact], tmp_path)[0] for one in (plain, model, plain.chat(SYSTEM))]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert not torch.equal(edits[0].updates[1].left, edits[1].updates[1].left)


def test_a_template_without_a_system_prompt(checkpoints: Any, tmp_path: Path):
    folder = folder_with(INSTRUCT, checkpoints("llama"), tmp_path / "model")
    model, by_hand = load_model(folder, device="cpu", chat=True), ByHand(folder, None)
    assert list(tokenize_prompt(model, PROMPT).ids) == by_hand.ids(by_hand.text(PROMPT))
    read = tokenize_prompt(model, PROMPT, "guitar")
    assert list(read.ids) == by_hand.ids(by_hand.text(PROMPT) + " guitar")  # the template ends in a plain "]"
    with pytest.raises(DriftlensError, match="does not take with a system prompt; leave that out"):
        load_model(folder, device="cpu", chat=True, system=SYSTEM)


def test_an_empty_system_prompt_is_none_of_the_templates_own(checkpoints: Any, tmp_path: Path):
    """A template with a default of its own, as SmolLM2-Instruct's: "" takes its place, None leaves it."""
    default = "{% if messages[0]['role'] != 'system' %}{{ 'system\nBe kind.\n' }}{% endif %}"
    folder = folder_with(default + CHATML, checkpoints("llama"), tmp_path / "model")
    plain = load_model(folder, device="cpu", chat=True)
    assert "Be kind" in plain.frame.before
    for model in (plain.chat(""), load_model(folder, device="cpu", chat=True, system="")):
        assert "Be kind" not in model.frame.before
        by_hand = ByHand(folder, "")
        assert list(tokenize_prompt(model, PROMPT).ids) == by_hand.ids(by_hand.text(PROMPT))
    with pytest.raises(DriftlensError, match="is blank"):
        plain.chat(" ")


def test_what_is_no_chat(checkpoints: Any):
    with pytest.raises(DriftlensError, match="no chat template"):
        load_model(checkpoints("gpt2"), device="cpu", chat=True)
    with pytest.raises(DriftlensError, match="belongs to a chat"):
        load_model(checkpoints("gpt2"), device="cpu", system=SYSTEM)


class Tokenizer:
    """A template as far as a frame needs one."""

    chat_template = "there"

    def __init__(self, render: Any) -> None:
        self.render = render

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        return self.render(messages)


@pytest.mark.parametrize(
    "render",
    [
        lambda messages: f"{len(messages[-1]['content'])}: {messages[-1]['content']}",  # changes with the message
        lambda messages: messages[-1]["content"].upper(),  # changes the message
        lambda messages: messages[-1]["content"] * 2,
        lambda messages: f"user: {messages[-1]['content']}\n",  # drops the system prompt
    ],
)
def test_a_template_that_cannot_be_split_is_refused(render: Any):
    with pytest.raises(DriftlensError, match="chat template"):
        chat_frame(Tokenizer(render), "Be brief.")


def test_the_clinic_and_the_command_line(chat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from driftlens.options.program import run_command
    from driftlens.trace import main

    model = load_model(chat_folder, device="cpu", chat=True)
    report = clinic(model, subject=SUBJECT, prompt="{} plays", new="guitar", true="piano")
    assert report.verdict.name == "cannot judge"  # a random model knows nothing
    typed = ["--subject", SUBJECT, "--prompt", "{} plays", "--true", "piano", "--new", "guitar"]
    corpus = tmp_path / "corpus.txt"
    words = [chr(97 + a) + chr(97 + b) for a in range(26) for b in range(26)]  # enough for every dimension
    corpus.write_text("".join(f"{' '.join(words[at : at + 15])}\n" for at in range(0, 660, 7)))
    options = [
        "--layer",
        "0",
        "--steps",
        "2",
        "--corpus",
        str(corpus),
        "--device",
        "cpu",
        "--no-png",
        "--contexts",
        "3x1",
    ]
    chat = ["--model", str(chat_folder), "--chat", "--system", SYSTEM, "--out", str(tmp_path / "out")]
    assert run_command(main, [*typed, *options, *chat]) == 0
    table = pd.read_csv(tmp_path / "out" / "trace.csv", keep_default_na=False)
    read = table[(table["module"] == "mlp") & (table["layer"] == 0) & (table["target_name"] == "o_true")]
    assert "".join(read["token_text"]) == ByHand(chat_folder, SYSTEM).text(f"{SUBJECT} plays")
    capsys.readouterr()


def test_an_answer_ends_where_the_assistants_turn_does(chat_folder: Path):
    """A plain text goes on past EOS, as in the published code; after a chat's answer only another turn could follow."""
    plain = load_model(chat_folder, device="cpu")
    model = plain.chat()
    limit = len(tokenize_prompt(model, PROMPT).ids) + 12
    (free,) = generate(model, [PROMPT], max_tokens=limit, stop_at_eos=False)
    new = free.ids[free.n_prompt :]
    assert len(new) == 12
    model.tokenizer.eos_token_id = new[5]  # this model's own: it was loaded here
    (ended,) = generate(model, [PROMPT], max_tokens=limit)
    assert ended.ids == free.ids[: free.n_prompt + new.index(new[5])]
    assert len(generate(plain, ["The"], max_tokens=20)[0].ids) == 20


def test_layers_of_one_model_are_shared(chat_folder: Path):
    """A chat is another way to read, not another model."""
    plain = load_model(chat_folder, device="cpu")
    chat: LensModel = plain.chat()
    edit = random_edit(plain, 0, 1)
    with edit.applied(chat):
        assert torch.equal(plain.W_out(1), chat.W_out(1))
    assert chat.model_hash == plain.model_hash
