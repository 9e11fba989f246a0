"""The options of `driftlens trace`, checked as far as they can be without a model."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from driftlens.analyses.substitution import MODULES, Module
from driftlens.data import TASKS
from driftlens.errors import DriftlensError
from driftlens.options.editing import EditorOptions, add_editor_options
from driftlens.options.model import ModelOptions
from driftlens.options.parsing import Parser, add_chat_options, add_model_options, name_of, whole_number

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


@dataclass(frozen=True, kw_only=True)
class TraceOptions(ModelOptions, EditorOptions):
    """What the command line says; None where it says nothing and the model or the data decide."""

    data: str | None
    record: int | None
    subject: str | None
    prompt: str | None
    true: str | None
    new: str | None
    test_prompt: tuple[str, ...]
    test_target: tuple[str, ...]
    task: str | None
    prompt_index: int | None
    max_prompts: int
    modules: tuple[Module, ...]
    window: int | None
    target: str
    batch_size: int
    out: str
    png: bool
    explore: int | None

    @property
    def typed(self) -> bool:
        """Whether the fact stands on the command line."""
        return self.subject is not None

    @property
    def target_names(self) -> tuple[str, ...]:
        """What the traced probabilities are called in tables and figures."""
        return {"true": ("o_true",), "new": ("o_edit",), "both": ("o_true", "o_edit")}[self.target]


def read_options(argv: Sequence[str] | None = None) -> TraceOptions:
    """The options in `argv` (default: the program's arguments)."""
    given = vars(_parser().parse_args(argv))
    module = given.pop("module")
    options = TraceOptions(
        modules=MODULES if module == "all" else (module,),
        test_prompt=tuple(given.pop("test_prompt")),
        test_target=tuple(given.pop("test_target")),
        **given,
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


def _parser() -> Parser:
    parser = Parser(
        prog="driftlens trace",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_chat_options(add_model_options(parser))

    fact = parser.add_argument_group("fact, from a data set or typed")
    fact.add_argument(
        "--data",
        metavar="D",
        help="demo (default for the bundled model and for folders), "
        "real (five famous facts; default for other models) or a JSON file like merged_counterfact.json",
    )
    fact.add_argument("--record", type=whole_number(0), metavar="N", help="record of the data set, from 0 (default 0)")
    fact.add_argument("--subject", metavar="S", help='typed fact: its subject, e.g. "Eiffel Tower"')
    fact.add_argument("--prompt", metavar="P", help='its prompt with {} for the subject, e.g. "{} is located in"')
    fact.add_argument("--true", metavar="O", help="what holds now")
    fact.add_argument("--new", metavar="O", help="what is edited in")
    fact.add_argument(
        "--test-prompt",
        action="append",
        default=[],
        metavar="P",
        help="a prompt to trace, may be repeated (default: the edit's own prompt)",
    )
    fact.add_argument(
        "--test-target", action="append", default=[], metavar="O", help="the right answer to it (default: --true)"
    )

    add_editor_options(parser)

    trace = parser.add_argument_group("trace")
    trace.add_argument(
        "--task",
        type=name_of("task", TASKS),
        metavar="T",
        help=f"which of the record's prompts: {', '.join(TASKS)}; default: distract_neighborhood, where "
        "there is none relation; with a typed fact a distract task puts the edited sentence in front",
    )
    trace.add_argument("--prompt-index", type=whole_number(0), metavar="N", help="only this prompt of the task, from 0")
    trace.add_argument(
        "--max-prompts",
        type=whole_number(1),
        default=5,
        metavar="N",
        help="how many of the task's prompts at most (default 5); several are averaged by token role",
    )
    trace.add_argument(
        "--module",
        default="all",
        type=name_of("module", (*MODULES, "all")),
        metavar="M",
        help="resid, mlp, attn or all (default)",
    )
    trace.add_argument(
        "--window",
        type=whole_number(1),
        metavar="K",
        help="layers substituted together; default: the paper's 6 of 28, scaled to the model's depth: "
        "max(1, round(6 · layers / 28))",
    )
    trace.add_argument(
        "--target",
        default="both",
        type=name_of("target", _TARGETS),
        metavar="T",
        help="true, new or both (default): the probability of which answer",
    )
    trace.add_argument(
        "--batch-size",
        type=whole_number(1),
        default=128,
        metavar="N",
        help="rows of a pass (default 128); halved when memory runs out",
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        default="driftlens-trace",
        metavar="FOLDER",
        help="for trace.html, .png, .parquet, .csv, edit.safetensors (default ./driftlens-trace)",
    )
    output.add_argument("--no-png", dest="png", action="store_false", help="no PNG, which needs a Chrome or Chromium")
    output.add_argument(
        "--explore",
        type=whole_number(1),
        nargs="?",
        const=1,
        metavar="RECORDS",
        help="also explore.html, one page to look around in without Python: tasks, modules, windows, answers, with and "
        "without SADR; a number takes in as many records from --record on (about a minute each)",
    )
    return parser
