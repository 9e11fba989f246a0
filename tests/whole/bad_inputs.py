"""Bad inputs for every command and for the Python API, and the folder of files that they name.

A case of the command line is a name and its arguments, which are run inside a folder made by `furnish`; `{model}`
stands for a small model that is whole. What is expected is the same for all: exit code 2, one line on stderr, nothing
on stdout, no file made or changed.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

LONG = "x" * 300
DIGITS = "9" * 400

RECORD = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "{} is located in",
        "relation_id": "P1",
        "subject": "Big Ben",
        "target_new": {"str": "Paris"},
        "target_true": {"str": "London"},
    },
    "paraphrase_prompts": ["Big Ben stands in"],
    "neighborhood_prompts": ["The Tower is located in"],
    "generation_prompts": ["Big Ben is"],
}


def changed(**parts: Any) -> list[Any]:
    """One record whose request is changed."""
    return [{**RECORD, "requested_rewrite": {**RECORD["requested_rewrite"], **parts}}]


DATA: dict[str, bytes] = {
    "good.json": json.dumps([RECORD]).encode(),
    "empty.json": b"[]",
    "nothing.json": b"",
    "object.json": b"{}",
    "null.json": b"null",
    "numbers.json": b"[1, 2]",
    "lists.json": b"[[], []]",
    "fieldless.json": b"[{}]",
    "half.json": b'[{"requested_rewrite": {}}]',
    "broken.json": b'[{"requested_rewrite": {"prompt": ',
    "bytes.json": b'["\xff\xfe"]',
    "utf16.json": json.dumps([RECORD]).encode("utf-16"),
    "deep.json": b"[" * 100_000,
    "digits.json": b"[" + b"1" * 5000 + b"]",
    "surrogate.json": json.dumps(changed(subject="Big \ud800Ben")).encode(),
    "subject_list.json": json.dumps(changed(subject=["Big Ben"])).encode(),
    "subject_empty.json": json.dumps(changed(subject=" ")).encode(),
    "target_number.json": json.dumps(changed(target_new={"str": 5})).encode(),
    "target_text.json": json.dumps(changed(target_new="Paris")).encode(),
    "prompt_null.json": json.dumps(changed(prompt=None)).encode(),
    "escape.json": json.dumps([{**RECORD, "paraphrase_prompts": [{"\x1b[2J": 1}]}]).encode(),
    "prompts_text.json": json.dumps([{**RECORD, "neighborhood_prompts": 7}]).encode(),
    "blank.txt": b"\n \n\t\n",
    "text.txt": b"A text of some words.\n",
}
"""Files of data, all but the first and the last of no use."""

SPOILT = [name for name in DATA if name.endswith(".json") and name != "good.json"]
PLACES = [
    "fifo",
    "folder",
    "loop",
    "/dev/zero",
    "/dev/null",
    "absent.json",
    LONG,
    f"~nosuchuser{LONG[:9]}/x",
    "good.json/x",
]
"""What is no file to read."""


def furnish(folder: Path, model: Path) -> None:
    """Everything that the cases name, in a new folder; `model` is a whole checkpoint of GPT-2's family."""
    for name, content in DATA.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "folder" / "file").write_text("x")
    (folder / "loop").symlink_to("loop")
    for name in ("trace.csv", "scores.csv", "clinic.json", "figure3.csv"):
        (folder / "blocked" / name).mkdir(parents=True)
    (folder / "edit.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    for name, spoil in MODELS.items():
        shutil.copytree(model, folder / name)
        spoil(folder / name)


def _config(**settings: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return spoil


def _file(name: str, content: bytes | None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)

    return spoil


def _tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


_NAME = "transformer.h.1.mlp.c_proj.weight"

MODELS: dict[str, Callable[[Path], None]] = {
    "m-no-config": _file("config.json", None),
    "m-empty-config": _file("config.json", b""),
    "m-list-config": _file("config.json", b"[]"),
    "m-bytes-config": _file("config.json", b"\xff\xfe"),
    "m-text-config": _file("config.json", b'"gpt2"'),
    "m-other": _config(architectures=["BertModel"], model_type="bert"),
    "m-architectures": _config(architectures=5),
    "m-unknown-type": _config(model_type="nonsense"),
    "m-no-layers": _config(n_layer=0),
    "m-word-layers": _config(n_layer="three"),
    "m-fewer-layers": _config(n_layer=2),
    "m-many-layers": _config(n_layer=10**6),
    "m-null-width": _config(n_embd=None),
    "m-negative-width": _config(n_embd=-48),
    "m-no-heads": _config(n_head=0),
    "m-odd-heads": _config(n_head=5),
    "m-vocabulary": _config(vocab_size=500),
    "m-activation": _config(activation_function="nonsense"),
    "m-quantised": _config(quantization_config={"quant_method": "gptq", "bits": 4}),
    "m-no-weights": _file("model.safetensors", None),
    "m-empty-weights": _file("model.safetensors", b""),
    "m-cut-weights": _cut,
    "m-text-weights": _file("model.safetensors", b"version https://git-lfs.github.com/spec/v1"),
    "m-missing": _tensors(lambda tensors: tensors.pop(_NAME)),
    "m-shape": _tensors(lambda tensors: tensors.update({_NAME: tensors[_NAME][:5].clone()})),
    "m-integers": _tensors(lambda tensors: tensors.update({_NAME: tensors[_NAME].int()})),
    "m-nan": _tensors(lambda tensors: tensors[_NAME].fill_(float("nan"))),
    "m-no-tokenizer": _file("tokenizer.json", None),
    "m-bad-tokenizer": _file("tokenizer.json", b"{}"),
}
"""Folders of models that cannot be used, and what is wrong with each."""

NAMES_OF_MODELS = [
    "",
    " ",
    "gtp2",
    "gpt2/",
    "/",
    "./absent",
    "a/b/c",
    "x.gguf",
    "good.json",
    "text.txt",
    LONG,
    "fifo",
    "loop",
]
NUMBERS = ["0", "-1", "1.5", "x", "nan", DIGITS, "1e3"]
EDITING = {
    "--layers": ["", "x", "-1", "3-1", "0-99999999999", DIGITS, "1,,2", "1-", "2,1"],
    "--seed": ["-1", "x", "1.5", str(2**64), DIGITS],
    "--lr": ["0", "-1", "x", "nan", "inf", "1e999"],
    "--gamma": ["-1", "x", "nan"],
    "--editor": ["", "roma", "ROME "],
    "--contexts": ["", "x", "0x5", "10x", "10x99999999999"],
    "--corpus": ["", "wikipaedia"],
}
"""Options that make the editor, and values that are none."""
FACT = ["--subject", "Big Ben", "--prompt", "{} is located in", "--new", "Paris"]
TYPED = [*FACT, "--true", "London"]

Case = tuple[str, list[str]]


def command_cases() -> list[Case]:
    """(command, arguments) of `driftlens` and of the experiments' modules.

    An option that commands share is declared once, so one command tries all its values and the others a few.
    """
    cases: list[Case] = [("", ["nonsense"]), ("", ["--nonsense"]), ("", ["trace", "evaluate"]), ("", [""])]
    cases += [("fetch", []), ("fetch", ["nonsense"]), ("fetch", ["a", "b"]), ("fetch", [""])]

    data = [*SPOILT, *PLACES, "", "dmeo", "text.txt", "Big\udcffBen"]
    for command, fact in (
        ("trace", []),
        ("evaluate", []),
        ("edit", FACT),
        ("profile", []),
        ("experiments.figure3", []),
    ):
        whole = ["--no-png"] if command in ("trace", "experiments.figure3") else []
        every = 1 if command == "trace" else 6
        cases += [(command, [*fact, *whole, "--data", one]) for one in data[::every]]
        cases += [(command, [*fact, *whole, "--model", one]) for one in NAMES_OF_MODELS[::every]]
        cases += [(command, [*fact, *whole, "--device", one]) for one in ("", "gpu", "cuda:99", "meta")[::every]]
        cases += [(command, [*fact, *whole, "--dtype", one]) for one in ("", "int8", "float")[::every]]

    for command, fact in (("trace", []), ("evaluate", []), ("edit", FACT), ("experiments.all", [])):
        outs = ["", "good.json", "good.json/x", "fifo", "loop", f"{LONG}/x", "/dev/null/x", "/proc/nope"]
        if command != "experiments.all":
            outs.append("blocked")
        cases += [(command, [*fact, "--out", one]) for one in outs]
        every = 1 if command == "trace" else 6
        for name, values in EDITING.items():
            cases += [(command, [*fact, name, one]) for one in values[::every]]

    cases += [
        ("trace", ["--model", "{model}", "--corpus", one]) for one in ("blank.txt", "fifo", "/dev/zero", "folder", LONG)
    ]
    cases += [("trace", ["--record", one]) for one in ("-1", "x", "99999", DIGITS)]
    cases += [("trace", ["--prompt-index", one]) for one in ("-1", "99999", "x")]
    for name in ("--max-prompts", "--window", "--batch-size", "--explore", "--steps", "--samples"):
        cases += [("trace", [name, one]) for one in NUMBERS[:: 2 if name in ("--window", "--steps") else 3]]
    cases += [("trace", [name, one]) for name in ("--task", "--module", "--target") for one in ("", "nonsense")]
    cases += [("trace", TYPED[:-2]), ("trace", [*TYPED, "--record", "0"]), ("trace", ["--test-prompt", "x"])]
    cases += [("trace", [*TYPED, "--test-prompt", "x", "--test-prompt", "y", *["--test-target", "z"] * 3])]
    cases += [("trace", ["--subject", s, "--prompt", p, "--new", n, "--true", t]) for s, p, n, t in TYPED_WRONG]

    for name in ("--limit", "--batch-size", "--edit-batch", "--shard-size", "--workers"):
        cases += [("evaluate", [name, one]) for one in NUMBERS[::3]]
    cases += [("evaluate", ["--tasks", one]) for one in ("", "nonsense", "rewrite,,", "rewrite;paraphrase")]
    cases += [("evaluate", ["--split", one]) for one in ("", "nonsense")]
    cases += [("evaluate", ["--perplexity-texts", one]) for one in ("", "numbers.json", "fifo", "absent.json", LONG)]
    cases += [("evaluate", ["--references", one]) for one in ("", "numbers.json", "fifo", "absent.json")]
    cases += [
        ("evaluate", ["--references", "good.json", "--no-generate"]),
        ("evaluate", ["--dry-run", "--workers", "2"]),
    ]
    cases += [("evaluate", ["--editor", "none", "--sadr"]), ("evaluate", ["--address", ""])]

    cases += [("edit", ["--subject", s, "--prompt", p, "--new", n, "--true", t]) for s, p, n, t in TYPED_WRONG]
    for name in ("--save", "--export"):
        cases += [
            ("edit", [*FACT, name, one]) for one in ("", "folder", "good.json/x", LONG, "/dev/null/x", "~nosuchuser/x")
        ]
    cases += [("edit", [*FACT, "--save", "a", "--export", "a"]), ("edit", [*FACT, "--export", "driftlens-edit"])]
    cases += [("edit", [*FACT, "--save", "driftlens-edit/clinic.json"]), ("edit", [*FACT, "--save", "driftlens-edit"])]
    cases += [
        ("edit", [*FACT, "--export", "m", "--save", "m/edit"]),
        ("edit", [*FACT, "--out", "m/r", "--export", "m"]),
    ]
    cases += [("edit", [*FACT, "--data", "good.json", "--save", "good.json"])]
    cases += [("edit", [*FACT, "--model", "{model}", "--save", "{model}/edit.safetensors"])]
    cases += [("edit", [*FACT, "--gammas", one]) for one in ("", "x", "1,,2", "0", "nan")]
    cases += [("edit", [*FACT, "--probe", ""]), ("edit", [*FACT, "--answer", "x"]), ("edit", FACT[:-2]), ("edit", [])]
    cases += [("edit", [*FACT, "--gamma", "1", "--gammas", "1"])]

    for name in ("--records", "--run", "--samples", "--full-samples", "--batch-size"):
        cases += [("profile", [name, one]) for one in NUMBERS[:: 2 if name == "--run" else 3]]
    cases += [("profile", ["--json", one]) for one in ("", "folder", "good.json/x", LONG, "/dev/null/x")]
    cases += [("profile", ["--data", "good.json", "--json", "good.json"]), ("profile", ["--editor", "rome+x"])]

    for name in ("--records", "--prompts", "--tune", "--batch-size"):
        cases += [("experiments.figure3", [name, one]) for one in NUMBERS[::3]]
    cases += [("experiments.table3", ["--lrs", one]) for one in ("", "x", "1,,2", "-1")]
    cases += [("experiments.table3", ["--nonsense"]), ("experiments.all", ["--records"])]
    return cases


TYPED_WRONG = [
    ("Big Ben", "Big Ben is in", "Paris", "Paris"),
    ("Big Ben", "It is in", "Paris", "London"),
    ("Big Ben", "{} and {} are in", "Paris", "London"),
    ("Big Ben", "{} near Big Ben is in", "Paris", "London"),
    ("", "{} is in", "Paris", "London"),
    ("\t", "{} is in", "Paris", "London"),
    ("Big Ben", "", "Paris", "London"),
    ("Big Ben", "{} is in", " ", "London"),
    ("Big\udcff", "{} is in", "Paris", "London"),
]
"""Facts that are none: subject, prompt, new target, true target."""


def model_cases() -> list[Case]:
    """Those that get as far as a model's folder: slower, a damaged folder each."""
    options = ["--data", "good.json", "--corpus", "text.txt"]
    cases: list[Case] = [("trace", ["--model", name, *options]) for name in MODELS]
    cases += [("evaluate", ["--model", name, *options]) for name in list(MODELS)[::4]]
    cases += [("profile", ["--model", name, "--data", "good.json"]) for name in list(MODELS)[1::6]]
    cases += [("trace", ["--model", "{model}", *options, "--layers", one]) for one in ("3", "99")]
    cases += [("trace", ["--model", "{model}", *options, "--layers", "2", "--sadr"])]
    cases += [
        ("edit", [*FACT, "--model", "{model}", "--prompt", "{} " + "is located in " * 40, "--corpus", "text.txt"])
    ]
    return cases
