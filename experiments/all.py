"""Make all figures and tables, and a gallery of them: `python -m experiments.all`.

Results that exist and were made with the same configuration are skipped, so an interrupted run continues where it
stopped; the figures share edits and measurements. If one fails, for whatever reason, one line reports it, and the
others are still made.

For the bundled model on one core: half an hour for the figures of tokens and layers, a quarter of an hour for Tables 1,
3 and 6 (one set of runs), about as long for Figures 6 and 7 and Table 10. Each can be made alone: python -m
experiments.table3.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from driftlens.display.terminal import standard_error, standard_output
from driftlens.errors import DriftlensError
from driftlens.files import output_folder
from driftlens.options.program import run_command
from experiments import (
    cases,
    damage,
    figure3,
    figure4,
    figure5,
    figure6,
    figure7,
    figure9,
    figure10,
    figure11,
    gallery,
    guards,
    sequences,
    table1,
    table2,
    table3,
    table4,
    table5,
    table6,
    table7,
    table8,
    table9,
    table10,
)
from experiments.artifacts import is_done, names_of
from experiments.command import ArtifactRecipe, Make, OtherDataNeededError, configuration_of, make_one
from experiments.options import read_options
from experiments.study import open_study

ARTIFACTS: dict[str, Make | ArtifactRecipe] = {
    **table1.ARTIFACTS,
    **figure3.ARTIFACTS,
    **figure4.ARTIFACTS,
    **table2.ARTIFACTS,
    **figure5.ARTIFACTS,
    **table3.ARTIFACTS,
    **figure6.ARTIFACTS,
    **figure7.ARTIFACTS,
    **figure9.ARTIFACTS,
    **figure10.ARTIFACTS,
    **table4.ARTIFACTS,
    **figure11.ARTIFACTS,
    **table5.ARTIFACTS,
    **table6.ARTIFACTS,
    **table7.ARTIFACTS,
    **table8.ARTIFACTS,
    **table9.ARTIFACTS,
    **table10.ARTIFACTS,
    **cases.ARTIFACTS,
}
"""In the order of the paper."""

BEYOND = {**guards.ARTIFACTS, **damage.ARTIFACTS, **sequences.ARTIFACTS}
"""Made only by their own modules; the gallery shows those that exist."""

OF_ROME_ALONE = {*figure11.ARTIFACTS, *table5.ARTIFACTS}
"""ROME-AWD is ROME without a gradient through attention, so other editors have no such figures."""

_OUR_FAULT, _BAD_INPUT = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Make everything that is missing."""
    options = read_options(argv, prog="python -m experiments.all", description=(__doc__ or "").strip())
    out, errors = standard_output(), standard_error()
    start = time.perf_counter()
    problems: dict[str, list[str]] = {}
    ours = False
    left_out: list[str] = []
    chosen = {name: make for name, make in ARTIFACTS.items() if options.editor == "rome" or name not in OF_ROME_ALONE}
    with output_folder(options.out, [*names_of(chosen), "README.md"]) as folder, open_study(options, errors) as study:
        study.configuration  # noqa: B018 (an error that affects all of them is reported once, and nothing is made)
        for name, make in chosen.items():
            try:
                if not options.redo and is_done(name, folder, configuration_of(study, make), png=options.png):
                    out.print(f"{name} is there already")
                    continue
                make_one(study, name, make, out, errors)
            except OtherDataNeededError as error:
                out.print(f"{name} is left out: {error}", soft_wrap=True)
                left_out.append(name)
            except BrokenPipeError:
                raise  # the reader of the output has gone away
            except Exception as error:  # noqa: BLE001 (whatever one raises, the others are still made)
                told = str(error) if isinstance(error, DriftlensError) else _fault(error)
                if told not in problems:
                    errors.print(f"driftlens: {name}: {told}")
                problems.setdefault(told, []).append(name)
                ours = ours or not isinstance(error, DriftlensError)
        for first, *others in problems.values():
            if others:
                errors.print(f"driftlens: {', '.join(others)}: the same as {first}")
        gallery.write(folder, [*chosen, *BEYOND], study)
    minutes = (time.perf_counter() - start) / 60
    wanted, failed = len(chosen) - len(left_out), sum(map(len, problems.values()))
    made = f"{wanted - failed} of {wanted}"
    out.print(f"{made} figures and tables are in {options.out} ({minutes:.1f} minutes)", soft_wrap=True)
    return _OUR_FAULT if ours else _BAD_INPUT if failed else 0


def _fault(error: Exception) -> str:
    """Describe an error in our own code in a line: its message, and where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno}); please report it"


if __name__ == "__main__":
    sys.exit(run_command(main))
