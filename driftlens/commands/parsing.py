"""An argument parser whose complaints are one line, and types for the numbers that commands take."""

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from driftlens.errors import DriftlensError

__all__ = ["Parser", "number", "whole_number"]


class Parser(argparse.ArgumentParser):
    """Raises a `DriftlensError` where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        """What argparse calls with its complaint."""
        raise DriftlensError(f"{message}; {self.prog} --help lists all options")


def whole_number(least: int) -> Callable[[str], int]:
    """A type for arguments: a whole number, `least` or more."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return value

    return convert


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
