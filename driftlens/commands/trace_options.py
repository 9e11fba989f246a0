"""The options of `driftlens trace`, and their checks without a model."""

from collections.abc import Sequence
from dataclasses import dataclass

from driftlens.analyses.substitution import MODULES, Module
from driftlens.data import TASKS
from driftlens.errors import DriftlensError
from driftlens.options.declaration import Further, flag, option, read
from driftlens.options.editor import EDITOR, RESTRAINT, EditorOptions
from driftlens.options.model import MODEL, ChatOptions
from driftlens.options.parsing import name_of, whole_number

__all__ = ["TraceOptions", "read_options"]

_TARGETS = ("true", "new", "both")

_DESCRIPTION = """\
Edit one fact and trace the edit: put activations of the edited model into the unedited one, a token and a window of
layers at a time, and see which of them change its predictions (contaminating substitution)."""

_EPILOG = """\
examples:
  driftlens trace
  driftlens trace --record 12 --sadr
  driftlens trace --model smollm2-135m
  driftlens trace --editor memit --layers 1-3
  driftlens trace --data merged_counterfact.json --model gpt2-xl --record 7 --task relation
  driftlens trace --model gpt2-xl --corpus wikitext --subject "Eiffel Tower" --prompt "{} is located in" \\
      --true Paris --new Rome --task distract_neighborhood --test-prompt "Big Ben is located in" --test-target London
"""

_FACT = "fact, from a dataset or typed"
_TRACE = "trace"
_OUTPUT = "output"

_module_name = name_of("module", (*MODULES, "all"))


def _modules(text: str) -> tuple[str, ...]:
    """An argument type: a module, or all of them."""
    name = _module_name(text)
    return MODULES if name == "all" else (name,)


@dataclass(frozen=True, kw_only=True)
class TraceOptions(EditorOptions, ChatOptions):
    """The options of `driftlens trace`; None means the default of the model or the data."""

    data: str | None = option(
        None,
        "demo (default for the bundled model and for folders), real (five famous facts; default for other models) "
        "or a JSON file like merged_counterfact.json",
        "D",
        group=_FACT,
    )
    record: int | None = option(None, "record of the dataset, from 0 (default 0)", "N", whole_number(0), group=_FACT)
    subject: str | None = option(None, 'typed fact: its subject, e.g. "Eiffel Tower"', "S", group=_FACT)
    prompt: str | None = option(None, 'its prompt with {} for the subject, e.g. "{} is located in"', "P", group=_FACT)
    true: str | None = option(None, "the current answer", "O", group=_FACT)
    new: str | None = option(None, "the new answer", "O", group=_FACT)
    test_prompt: tuple[str, ...] = option(
        (), "a prompt to trace, may be repeated (default: the edit's own prompt)", "P", group=_FACT, action=Further
    )
    test_target: tuple[str, ...] = option(
        (), "the right answer to it (default: --true)", "O", group=_FACT, action=Further
    )

    task: str | None = option(
        None,
        f"which of the record's prompts: {', '.join(TASKS)}; default: distract_neighborhood, or relation if the "
        "record has none; with a typed fact a distract task puts the edited sentence in front",
        "T",
        name_of("task", TASKS),
        group=_TRACE,
    )
    prompt_index: int | None = option(None, "only this prompt of the task, from 0", "N", whole_number(0), group=_TRACE)
    max_prompts: int = option(
        5,
        "trace at most N of the task's prompts (default %(default)s); several are averaged by token role",
        "N",
        whole_number(1),
        group=_TRACE,
    )
    modules: tuple[Module, ...] = option(
        MODULES, "resid, mlp, attn or all (default)", "M", _modules, group=_TRACE, flags=("--module",)
    )
    window: int | None = option(
        None,
        "layers substituted together; default: the paper's 6 of 28, scaled to the model's depth: "
        "max(1, round(6 · layers / 28))",
        "K",
        whole_number(1),
        group=_TRACE,
    )
    target: str = option(
        "both",
        "trace the probability of this answer: true, new or both (default)",
        "T",
        name_of("target", _TARGETS),
        group=_TRACE,
    )
    batch_size: int = option(
        128, "rows of a pass (default %(default)s); halved if memory runs out", "N", whole_number(1), group=_TRACE
    )

    out: str = option(
        "driftlens-trace",
        "for trace.html, .png, .parquet, .csv, edit.safetensors (default ./%(default)s)",
        "FOLDER",
        group=_OUTPUT,
    )
    png: bool = flag("write no PNG, which needs a Chrome or Chromium", default=True, group=_OUTPUT)
    explore: int | None = option(
        None,
        "also write explore.html, an interactive page that needs no Python: tasks, modules, windows, answers, "
        "with and without SADR; a number includes that many records from --record on (about a minute each)",
        "RECORDS",
        whole_number(1),
        group=_OUTPUT,
        nargs="?",
        const=1,
    )

    @property
    def typed(self) -> bool:
        """Whether the fact is given on the command line."""
        return self.subject is not None

    @property
    def target_names(self) -> tuple[str, ...]:
        """The names of the traced probabilities in tables and figures."""
        return {"true": ("o_true",), "new": ("o_edit",), "both": ("o_true", "o_edit")}[self.target]


def read_options(argv: Sequence[str] | None = None) -> TraceOptions:
    """Parse the options in `argv` (default: the program's arguments)."""
    options = read(
        TraceOptions,
        argv,
        prog="driftlens trace",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        groups=(MODEL, _FACT, EDITOR, RESTRAINT, _TRACE, _OUTPUT),
    )
    _check_fact(options)
    return options


def _check_fact(options: TraceOptions) -> None:
    parts = {"--subject": options.subject, "--prompt": options.prompt, "--true": options.true, "--new": options.new}
    missing = [name for name, value in parts.items() if value is None]
    if len(missing) < len(parts) and missing:
        raise DriftlensError(f"a typed fact needs {', '.join(parts)}; {' and '.join(missing)} not given")
    if not missing and options.record is not None:
        raise DriftlensError("--record and a typed fact (--subject …) exclude each other; give one of them")
    if missing and (options.test_prompt or options.test_target):
        raise DriftlensError("--test-prompt goes with a typed fact; choose a record's prompts with --task")
    n_prompts, n_targets = len(options.test_prompt), len(options.test_target)
    if n_targets and n_targets not in (1, n_prompts):
        raise DriftlensError(
            f"{n_prompts} --test-prompt and {n_targets} --test-target; give one target for each prompt, or one for all"
        )
    if n_targets and not n_prompts:
        raise DriftlensError("--test-target is the right answer to a --test-prompt; give that too")
