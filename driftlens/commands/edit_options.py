"""The options of `driftlens edit`, and their checks without a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import override

from driftlens.data import Fact
from driftlens.errors import DriftlensError
from driftlens.files import path_of, require_apart, require_empty
from driftlens.options.declaration import REQUIRED, Further, flag, option, read
from driftlens.options.editor import EDITOR, RESTRAINT, EditorOptions
from driftlens.options.model import MODEL, ChatOptions
from driftlens.options.parsing import number, seed_number, whole_number

__all__ = ["REPORT", "EditOptions", "read_options"]

REPORT = ("clinic.html", "clinic.json")
"""The files of the report, in `--out`."""

_DESCRIPTION = """\
The edit clinic: ask the model whether it knows the fact, edit it without a restraint, with SADR at a few weights γ and
with guards, choose one on probes made for this fact, and say whether the edited model should be used."""

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

_FACT = "fact"
_PROBES = "probes; made by the clinic, and your own"
_OUTPUT = "output"


class _Answer(argparse.Action):
    """The answer to the preceding probe, with that probe's number."""

    @override
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        probe = len(namespace.probe) - 1
        if probe < 0 or probe in dict(namespace.answer):
            raise argparse.ArgumentError(self, f"{values!r} has no --probe before it; give --probe, then --answer")
        namespace.answer = (*namespace.answer, (probe, values))


def _number_list(text: str) -> tuple[float, ...]:
    convert = number(above=0)
    return tuple(sorted({convert(part.strip()) for part in text.split(",")}))


def _guard_weights(text: str) -> tuple[float, ...]:
    return () if text.strip() == "0" else _number_list(text)


@dataclass(frozen=True, kw_only=True)
class EditOptions(EditorOptions, ChatOptions):
    """The options of `driftlens edit`; None means the default of the model or the data."""

    subject: str = option(REQUIRED, 'its subject, e.g. "Eiffel Tower"', "S", group=_FACT)
    prompt: str = option(REQUIRED, 'its prompt, e.g. "{} is located in"', "P", group=_FACT)
    new: str = option(REQUIRED, "the new answer", "O", group=_FACT)
    true: str | None = option(None, "the current answer; default: the model's own", "O", group=_FACT)
    kind: str | None = option(
        None,
        "what the subject is: person, place, organisation, work, product or country; default: guessed from the "
        "prompt's wording and the data. Probes ask what can be asked of such a subject",
        "K",
        group=_FACT,
    )

    data: str | None = option(
        None, "dataset whose templates and subjects make probes; default: the bundled model's own", "D", group=_PROBES
    )
    probe: tuple[str, ...] = option(
        (), "a prompt to watch, may be repeated; {} is the subject", "P", group=_PROBES, action=Further
    )
    answer: tuple[tuple[int, str], ...] = option(
        (),
        "the expected answer to the preceding --probe; default: the model's answer before the edit",
        "O",
        group=_PROBES,
        action=_Answer,
    )
    gammas: tuple[float, ...] | None = option(
        None, "the weights γ to try; default: five around the preset's", "G,G", _number_list, group=_PROBES
    )

    guards: tuple[float, ...] | None = option(
        None,
        "the weights μ = ν of guards to try beside SADR, 0: none; default: the model's, none with --gamma",
        "W,W",
        _guard_weights,
        group=_PROBES,
    )

    seed: int = option(0, "seed of prefixes, probes and texts (default %(default)s)", "N", seed_number, group=EDITOR)

    out: str = option("driftlens-edit", "for clinic.html and .json (default ./%(default)s)", "FOLDER", group=_OUTPUT)
    export: str | None = option(None, "write the edited model there, in Hugging Face format", "FOLDER", group=_OUTPUT)
    save: str | None = option(None, "write the edit alone (safetensors)", "FILE", group=_OUTPUT)
    force: bool = flag("edit a fact that the model does not know, and write what should not be shipped", group=_OUTPUT)
    batch_size: int = option(64, "rows of a pass (default %(default)s)", "N", whole_number(1), group=_OUTPUT)

    @property
    def probes(self) -> tuple[tuple[str, str | None], ...]:
        """The prompts to watch, each with its given answer, if any."""
        answers = dict(self.answer)
        return tuple((prompt, answers.get(number)) for number, prompt in enumerate(self.probe))


def read_options(argv: Sequence[str] | None = None) -> EditOptions:
    """Parse the options in `argv` (default: the program's arguments)."""
    return _checked(
        read(
            EditOptions,
            argv,
            prog="driftlens edit",
            description=_DESCRIPTION,
            epilog=_EPILOG,
            groups=(MODEL, _FACT, _PROBES, EDITOR, RESTRAINT, _OUTPUT),
        )
    )


def _checked(options: EditOptions) -> EditOptions:
    # Check the fact's rules; without --true, any other text serves as the true target.
    true = f"{options.new} …" if options.true is None else options.true
    Fact(subject=options.subject, prompt=options.prompt, target_true=true, target_new=options.new)
    if options.gamma is not None and options.gammas is not None:
        raise DriftlensError("--gamma is the only weight to try and --gammas are several; give one of the two")
    _check_places(options)
    if options.gamma is not None and options.guards is None:
        return replace(options, guards=())
    return options


def _check_places(options: EditOptions) -> None:
    """Check that output paths do not conflict with each other or overwrite an input."""
    if options.export is not None:
        require_empty(options.export)
    report = {f"--out's {name}": path_of(options.out) / name for name in REPORT}
    require_apart(
        {"--save": options.save, "--export": options.export, **report},
        {"--data": options.data, "--corpus": options.corpus, "--model": options.model},
    )
