"""An argument parser whose complaints are one line, the options that say which model, and types of arguments."""

import argparse
import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn, TypeAlias

from typing_extensions import override

from driftlens.errors import DriftlensError, unknown_name

__all__ = [
    "Parser",
    "add_chat_options",
    "add_model_options",
    "context_lengths",
    "layer_list",
    "name_of",
    "number",
    "seed_number",
    "whole_number",
]

MOST = 1_000_000_000
"""No count on a command line is larger: a thousand million records, rows or steps are a slip of the finger."""
_MOST_LAYERS = 10_000
_DIGITS = 4
"""Of the length and the number of context prefixes."""


Group: TypeAlias = argparse._ArgumentGroup  # pyright: ignore[reportPrivateUsage]
"""What `add_argument_group` returns; argparse has no public name for it."""


class Parser(argparse.ArgumentParser):
    """Raises a `DriftlensError` where argparse would print its usage and leave, and for any option without a value.

    `--data "$FILE"` with an unset variable is an empty text, which would otherwise be taken for the default, for the
    current folder, or for a name.
    """

    @override
    def error(self, message: str) -> NoReturn:
        """What argparse calls with its complaint."""
        start = "unrecognized arguments: "
        unknown = message.removeprefix(start).split("=")[0].split(" ")[0]
        if message.startswith(start) and unknown.startswith("--"):
            options = [name for name in self._option_string_actions if name.startswith("--")]
            near = get_close_matches(unknown, options, n=2, cutoff=0.6)
            if near:
                message = f"unknown option {unknown}; did you mean {' or '.join(near)}?"
                raise DriftlensError(f"{message} ({self.prog} --help lists all options)")
        raise DriftlensError(f"{message}; {self.prog} --help lists all options")

    @override
    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if not arg_string.strip():
            name = "/".join(action.option_strings) or action.dest
            raise argparse.ArgumentError(None, f"{name} is empty; give a value, or leave it out")
        return super()._get_value(action, arg_string)


def add_model_options(parser: argparse.ArgumentParser, title: str = "model") -> Group:
    """Declare `--model`, `--device`, `--device-map` and `--dtype` in a group, which is returned for more."""
    group = parser.add_argument_group(title)
    group.add_argument(
        "--model", default="demo", metavar="NAME", help="demo (default), a Hugging Face name or a local folder"
    )
    group.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps; default: cuda where there is one")
    group.add_argument(
        "--device-map",
        metavar="MAP",
        type=name_of("device map", ("auto", "balanced", "sequential")),
        help="for a model too big for one device: auto fills all GPUs, then main memory, then reads the rest from disk "
        "in each pass (also balanced and sequential, as in Hugging Face); default: one device",
    )
    group.add_argument(
        "--dtype",
        metavar="D",
        help="float32, bfloat16, float16; default: the checkpoint's. On a CPU, bfloat16 is faster only where the "
        "processor computes in it (AVX512-BF16, AMX), which driftlens profile tells",
    )
    return group


def add_chat_options(group: Group) -> None:
    """Declare `--chat` and `--system` in the model's group."""
    group.add_argument(
        "--chat",
        action="store_true",
        help="put the model's own chat template around every prompt, which then is a user's message; the answer begins "
        "where the assistant's does",
    )
    group.add_argument(
        "--system", metavar="TEXT", help="the chat's system prompt; default: the template's own; '' for an empty one"
    )


def whole_number(least: int, most: int = MOST) -> Callable[[str], int]:
    """A type for arguments: a whole number from `least` to `most`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            bound = f", and of at most {most:,}" if value > most else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}{bound}")
        return value

    return convert


seed_number = whole_number(0, 2**63 - 1)
"""A type for arguments: what every generator of random numbers takes for a seed."""


def number(*, above: float | None = None, least: float | None = None) -> Callable[[str], float]:
    """A type for arguments: a finite number, `above` some bound or at least another."""
    bound = f"above {above:g}" if above is not None else f"of at least {least:g}"

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = value > above if above is not None else value >= (least or 0)
        if not (math.isfinite(value) and inside):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {bound}")
        return value

    return convert


def name_of(kind: str, known: Sequence[str]) -> Callable[[str], str]:
    """A type for arguments: one of the names `known`; `kind` says what they are names of."""

    def convert(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(str(unknown_name(kind, text, known)))
        return text

    return convert


def layer_list(text: str) -> tuple[int, ...]:
    """A type for arguments: layers, such as `5`, `3-8` or `3,4,7-9`; each once, in ascending order."""
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise argparse.ArgumentTypeError(f"{text!r} does not name layers; expected e.g. 5, 3-8 or 3,4,5")
        if max(len(first), len(last)) > len(str(_MOST_LAYERS)) or int(last or first) > _MOST_LAYERS:
            raise argparse.ArgumentTypeError(f"{text!r} names a layer beyond {_MOST_LAYERS}; no model has so many")
        own = range(int(first), int(last or first) + 1)
        if not own or (layers and own[0] <= layers[-1]):
            raise argparse.ArgumentTypeError(f"the layers {text!r} are not in ascending order")
        layers += own
    return tuple(layers)


def context_lengths(text: str) -> tuple[tuple[int, int], ...]:
    """A type for arguments: tokens of a context prefix and how many such prefixes, `10x5` or `5x10,10x10`."""
    lengths: list[tuple[int, int]] = []
    for part in text.split(","):
        length, _, count = (piece.strip() for piece in part.partition("x"))
        numbers = [int(piece) for piece in (length, count) if piece.isdecimal() and len(piece) <= _DIGITS]
        if len(numbers) < 2 or not all(numbers):
            raise argparse.ArgumentTypeError(f"{text!r} does not name prefixes; expected e.g. 10x5 or 5x10,10x10")
        lengths.append((numbers[0], numbers[1]))
    return tuple(lengths)
