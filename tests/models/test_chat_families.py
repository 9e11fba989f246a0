"""The chat templates that families are published with: the subject inside, the answer where the assistant's begins.

The templates' own words are text here and no special tokens, since the tiny vocabularies have none; the context is
widened for them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driftlens import DriftlensError, Fact, Record, TaskPrompt, evaluate, load_model
from driftlens.data import TASKS
from driftlens.models.prompts import subject_last, subject_tokens, tokenize_prompt
from tests.models.test_chat import PROMPT, SUBJECT, SYSTEM, ByHand, folder_with
from tests.support.edited import changes, random_edit
from tests.support.tiny import BRIDGE

pytestmark = pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")

QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\\n' }}{%- endif %}{%- for message in messages %}{%- if message.role == 'user' or message.role == "
    "'assistant' %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | "
    "trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
GEMMA_3 = (  # the system prompt stands in the user's turn
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first_user_prefix = messages[0]['content'] + "
    "'\\n\\n' -%}{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set first_user_prefix = \"\" -%}"
    "{%- set loop_messages = messages -%}{%- endif -%}{%- for message in loop_messages -%}{{ '<start_of_turn>' + "
    "message['role'] + '\\n' + (first_user_prefix if loop.first else \"\") }}{{ message['content'] | trim }}"
    "{{ '<end_of_turn>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}{%- set "
    "loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}{%- for "
    "message in loop_messages %}{%- if loop.last and system_message is defined %}{{- '[INST] ' + "
    "system_message + '\\n\\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}"
    "{%- endif %}{%- endfor %}"
)
PHI_3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\\n' + message['content'] + "
    "'<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
TEMPLATES = {
    "qwen2": QWEN, "llama3": LLAMA_3, "gemma2": GEMMA_2, "gemma3": GEMMA_3, "mistral": MISTRAL, "phi3": PHI_3,
}  # fmt: skip


@pytest.fixture(params=TEMPLATES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(family: str, checkpoints: Any, tmp_path: Path) -> Path:
    folder = folder_with(TEMPLATES[family], checkpoints(family), tmp_path / family)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 256}))
    return folder


def test_the_published_template_is_read_as_it_renders(folder: Path, family: str):
    plain = load_model(folder, device="cpu")
    if family == "gemma2":
        with pytest.raises(DriftlensError, match="does not take with a system prompt; leave that out"):
            plain.chat(SYSTEM)
    edit = random_edit(plain, 0, 1)
    prompt = TaskPrompt(text=PROMPT, target_true="guitar", target_new="piano")
    fact = Fact(subject=SUBJECT, prompt="{} plays the", target_true="a", target_new="b")
    record = Record(index=0, fact=fact, tasks={**dict.fromkeys(TASKS, ()), "relation": (prompt,)})
    for system in (None,) if family == "gemma2" else (None, SYSTEM):
        model, by_hand = plain.chat(system), ByHand(folder, system)
        read = tokenize_prompt(model, PROMPT)
        assert list(read.ids) == by_hand.ids(by_hand.text(PROMPT))
        # In the user's words, although the system prompt names the subject, too.
        assert model.tokenizer.decode(list(read.ids[: subject_last(read, SUBJECT) + 1])).endswith(
            "What does Toko Yasuda"
        )
        assert model.tokenizer.decode([read.ids[at] for at in subject_tokens(read, SUBJECT)]).strip() == SUBJECT
        # Mistral's template puts a space in front of the assistant's words, the others end in a new line.
        answer = " guitar" if family == "mistral" else "guitar"
        wanted = [by_hand.probability(PROMPT, answer, edits) for edits in ((), changes(edit))]
        nlls = [evaluate(model, record, one)["nll_true"].iloc[0] for one in (None, edit)]
        assert np.exp(np.negative(nlls)) == pytest.approx(wanted, rel=1e-4)
