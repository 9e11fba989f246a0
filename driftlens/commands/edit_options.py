"""The options of `driftlens edit`, checked as far as they can be without a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from driftlens.data import Fact
from driftlens.errors import DriftlensError
from driftlens.files import path_of, require_apart, require_empty
from driftlens.options.editing import EditorOptions, add_editor_options
from driftlens.options.model import ModelOptions
from driftlens.options.parsing import Parser, add_chat_options, add_model_options, number, whole_number

__all__ = ["REPORT", "EditOptions", "read_options"]

REPORT = ("clinic.html", "clinic.json")
"""The files of the report, in `--out`."""

_DESCRIPTION = """\
The edit clinic: ask the model whether it knows the fact, edit it without and with SADR at a few weights γ, choose one
on probes made for this fact, and say whether the edited model should be used."""

_EPILOG = """\
examples:
  driftlens edit --subject Gloxorp --prompt "{} was set up in" --new Brokille
  driftlens edit --subject Gloxorp --prompt "{} was set up in" --new Brokille --probe "{} is led by" --out report
  driftlens edit --model gpt2-xl --corpus wikitext --subject "Eiffel Tower" --prompt "{} is located in" \\
      --true Paris --new Rome --probe "The Louvre is in" --answer Paris --export edited-model

exit codes:
  0  ship, or ship with care          3  do not ship
  2  a mistake in the options         4  cannot judge: the model does not know the fact, or too little is left to probe
Nothing is exported or saved with 3 and 4 unless --force is given; the report is written all the same."""


@dataclass(frozen=True, kw_only=True)
class EditOptions(ModelOptions, EditorOptions):
    """What the command line says; None where it says nothing and the model or the data decide."""

    subject: str
    prompt: str
    new: str
    true: str | None
    kind: str | None
    data: str | None
    probes: tuple[tuple[str, str | None], ...]
    gammas: tuple[float, ...] | None
    out: str
    export: str | None
    save: str | None
    force: bool
    batch_size: int


def read_options(argv: Sequence[str] | None = None) -> EditOptions:
    """The options in `argv` (default: the program's arguments)."""
    given = vars(_parser().parse_args(argv))
    return _checked(EditOptions(probes=tuple(given.pop("probes")), **given))


def _checked(options: EditOptions) -> EditOptions:
    # The fact's own rules; where nobody says what holds, any other text stands in.
    true = f"{options.new} …" if options.true is None else options.true
    Fact(subject=options.subject, prompt=options.prompt, target_true=true, target_new=options.new)
    if options.gamma is not None and options.gammas is not None:
        raise DriftlensError("--gamma is the only weight to try and --gammas are several; give one of the two")
    _check_places(options)
    return options


def _check_places(options: EditOptions) -> None:
    """What is to be written must not be in one another's way, nor overwrite what is read."""
    if options.export is not None:
        require_empty(options.export)
    report = {f"--out's {name}": path_of(options.out) / name for name in REPORT}
    require_apart(
        {"--save": options.save, "--export": options.export, **report},
        {"--data": options.data, "--corpus": options.corpus, "--model": options.model},
    )


class _Probe(argparse.Action):
    """A further probe, as yet without an answer."""

    @override
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.probes = (*namespace.probes, (values, None))


class _Answer(argparse.Action):
    """The answer of the probe that stands before it."""

    @override
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if not namespace.probes or namespace.probes[-1][1] is not None:
            raise argparse.ArgumentError(self, f"{values!r} has no --probe before it; give --probe, then --answer")
        namespace.probes = (*namespace.probes[:-1], (namespace.probes[-1][0], values))


def _number_list(text: str) -> tuple[float, ...]:
    convert = number(above=0)
    return tuple(sorted({convert(part.strip()) for part in text.split(",")}))


def _parser() -> Parser:
    parser = Parser(
        prog="driftlens edit",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_chat_options(add_model_options(parser))

    fact = parser.add_argument_group("fact")
    fact.add_argument("--subject", required=True, metavar="S", help='its subject, e.g. "Eiffel Tower"')
    fact.add_argument("--prompt", required=True, metavar="P", help='its prompt, e.g. "{} is located in"')
    fact.add_argument("--new", required=True, metavar="O", help="what is edited in")
    fact.add_argument("--true", metavar="O", help="what holds now; default: the model's own answer")
    fact.add_argument(
        "--kind",
        metavar="K",
        help="what the subject is: person, place, organisation, work, product or country; default: by the prompt's "
        "wording and the data. Probes ask what can be asked of such a subject",
    )

    probes = parser.add_argument_group("probes; made by the clinic, and your own")
    probes.add_argument(
        "--data",
        metavar="D",
        help="data set whose templates and subjects make probes; default: the bundled model's own",
    )
    probes.add_argument(
        "--probe",
        action=_Probe,
        dest="probes",
        default=(),
        metavar="P",
        help="a prompt to watch, may be repeated; {} is the subject",
    )
    probes.add_argument(
        "--answer",
        action=_Answer,
        dest="probes",
        default=(),
        metavar="O",
        help="what the --probe before it should answer; default: what the model answers before the edit",
    )
    probes.add_argument(
        "--gammas", type=_number_list, metavar="G,G", help="the weights γ to try; default: five around the preset's"
    )
    add_editor_options(parser, seed="of prefixes, probes and texts")

    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", default="driftlens-edit", metavar="FOLDER", help="for clinic.html and .json (default ./driftlens-edit)"
    )
    output.add_argument("--export", metavar="FOLDER", help="write the edited model there, for Hugging Face")
    output.add_argument("--save", metavar="FILE", help="write the edit alone (safetensors)")
    output.add_argument(
        "--force", action="store_true", help="edit what the model does not know, and write what should not be shipped"
    )
    output.add_argument(
        "--batch-size", type=whole_number(1), default=64, metavar="N", help="rows of a pass (default 64)"
    )
    return parser
