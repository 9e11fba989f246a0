"""All figures and tables, and a gallery of them: `python -m experiments.all`.

What is there already and was made with the same configuration is skipped, so an interrupted run goes on where it
stopped; edits and measurements are shared between the figures. One that fails is told in a line, the others are made.

For the bundled model on one core: half an hour for the figures of tokens and layers, a quarter of an hour for Tables 1,
3 and 6 (one set of runs), about as long for Figures 6 and 7 and Table 10. Each can be made alone:
python -m experiments.table3.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console

from driftlens.errors import DriftlensError
from driftlens.files import writable_folder
from driftlens.options.program import run_command
from experiments import (
    cases,
    figure3,
    figure4,
    figure5,
    figure6,
    figure7,
    figure9,
    figure10,
    figure11,
    gallery,
    table1,
    table2,
    table3,
    table4,
    table5,
    table6,
    table8,
    table10,
)
from experiments.artifacts import is_done
from experiments.command import Make, OtherDataNeededError, Recipe, configuration_of, make_one
from experiments.options import read_options
from experiments.study import open_study

ARTIFACTS: dict[str, Make | Recipe] = {
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
    **table8.ARTIFACTS,
    **table10.ARTIFACTS,
    **cases.ARTIFACTS,
}
"""In the order of the paper."""

OF_ROME_ALONE = {*figure11.ARTIFACTS, *table5.ARTIFACTS}
"""ROME-AWD is ROME without a gradient through attention: other editors have no such figures."""

_BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing."""
    options = read_options(argv, prog="python -m experiments.all", description=(__doc__ or "").strip())
    folder = writable_folder(options.out)
    out, errors = Console(highlight=False), Console(stderr=True, highlight=False, soft_wrap=True)
    start = time.perf_counter()
    failed: list[str] = []
    left_out: list[str] = []
    chosen = {name: make for name, make in ARTIFACTS.items() if options.editor == "rome" or name not in OF_ROME_ALONE}
    with open_study(options, errors) as study:
        for name, make in chosen.items():
            try:
                if not options.redo and is_done(name, folder, configuration_of(study, make), png=options.png):
                    out.print(f"{name} is there already", markup=False)
                    continue
                make_one(study, name, make, out, errors)
            except OtherDataNeededError as error:
                out.print(f"{name} is left out: {error}", markup=False, soft_wrap=True)
                left_out.append(name)
            except DriftlensError as error:
                errors.print(f"driftlens: {name}: {error}", markup=False)
                failed.append(name)
        gallery.write(folder, list(chosen), study)
    minutes = (time.perf_counter() - start) / 60
    wanted = len(chosen) - len(left_out)
    made = f"{wanted - len(failed)} of {wanted}"
    out.print(f"{made} figures and tables are in {options.out} ({minutes:.1f} minutes)", markup=False, soft_wrap=True)
    return _BAD_INPUT if failed else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
