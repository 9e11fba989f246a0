"""An argument parser with one-line errors, and argument types."""

import argparse
import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from typing_extensions import override

from driftlens.errors import DriftlensError, unknown_name

__all__ = [
    "Parser",
    "any_text",
    "context_lengths",
    "layer_list",
    "name_of",
    "number",
    "seed_number",
    "whole_number",
]

MOST = 1_000_000_000
"""The largest accepted count; a thousand million records, rows or steps are a typing error."""
_MOST_LAYERS = 10_000
_DIGITS = 4
"""Of the length and the number of context prefixes."""


class Parser(argparse.ArgumentParser):
    """A parser that raises a `DriftlensError` instead of exiting, and rejects empty values.

    `--data "$FILE"` with an unset variable passes an empty text, which could otherwise mean the default, the current
    folder or a name.
    """

    @override
    def error(self, message: str) -> NoReturn:
        """Called by argparse with its error message."""
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
        if not arg_string.strip() and action.type is not any_text:
            name = "/".join(action.option_strings) or action.dest
            raise argparse.ArgumentError(None, f"{name} is empty; give a value, or leave it out")
        return super()._get_value(action, arg_string)


def any_text(text: str) -> str:
    """An argument type: any text, even an empty one."""
    return text


def whole_number(least: int, most: int = MOST) -> Callable[[str], int]:
    """An argument type: a whole number from `least` to `most`."""

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
"""An argument type: a seed that every random number generator accepts."""


def number(*, above: float | None = None, least: float | None = None) -> Callable[[str], float]:
    """An argument type: a finite number greater than `above`, or not less than another bound."""
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


def name_of(kind: str, known: Sequence[str] | Callable[[], Sequence[str]]) -> Callable[[str], str]:
    """An argument type: one of the names `known` of a `kind`, which messages use.

    If `known` is a function, it is called for each text, so that names registered later are accepted.
    """

    def convert(text: str) -> str:
        names = known() if callable(known) else known
        if text not in names:
            raise argparse.ArgumentTypeError(str(unknown_name(kind, text, names)))
        return text

    return convert


def layer_list(text: str) -> tuple[int, ...]:
    """An argument type: layers, such as `5`, `3-8` or `3,4,7-9`, without duplicates and in ascending order."""
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
    """An argument type: the length and the number of context prefixes, `10x5` or `5x10,10x10`."""
    lengths: list[tuple[int, int]] = []
    for part in text.split(","):
        length, _, count = (piece.strip() for piece in part.partition("x"))
        numbers = [int(piece) for piece in (length, count) if piece.isdecimal() and len(piece) <= _DIGITS]
        if len(numbers) < 2 or not all(numbers):
            raise argparse.ArgumentTypeError(f"{text!r} does not name prefixes; expected e.g. 10x5 or 5x10,10x10")
        lengths.append((numbers[0], numbers[1]))
    return tuple(lengths)
