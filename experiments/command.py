"""The command `python -m experiments.NAME`: read the options, make and write the artifacts, report the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from driftlens.display.terminal import Terminal, standard_error, standard_output, styled
from driftlens.errors import DriftlensError
from driftlens.files import output_folder
from experiments.artifacts import Artifact, names_of, write
from experiments.options import read_options
from experiments.study import Study, open_study

__all__ = ["ArtifactRecipe", "Make", "OtherDataNeededError", "command", "configuration_of", "make_one"]

Make = Callable[[Study], Artifact]


COMPARE_GAMMAS = {"figure6", "figure7", "table10", "guards_curve"}
"""Artifacts that use `--gammas` themselves; for all others, `--tune` tries these values."""


class OtherDataNeededError(DriftlensError):
    """An artifact needs data or training that is missing: an error if it is made alone, but not among all artifacts."""


@dataclass(frozen=True, kw_only=True)
class ArtifactRecipe:
    """How to make an artifact whose numbers depend on more, or other things, than the study's configuration."""

    make: Make
    configuration: Callable[[Study], dict[str, Any]]


def configuration_of(study: Study, recipe: Make | ArtifactRecipe) -> dict[str, Any]:
    """Everything that the artifact's numbers depend on."""
    return recipe.configuration(study) if isinstance(recipe, ArtifactRecipe) else study.configuration


def command(
    artifacts: Mapping[str, Make | ArtifactRecipe], doc: str | None, *, program: str | None = None
) -> Callable[[Sequence[str] | None], int]:
    """Make the `main` of an experiment's module; the module's docstring is its help."""
    name = program or "-".join(dict.fromkeys(name.rstrip("abcd") for name in artifacts))

    def main(argv: Sequence[str] | None = None) -> int:
        options = read_options(argv, prog=f"python -m experiments.{name}", description=(doc or "").strip())
        errors = standard_error()
        if options.gammas and options.tune is None and not COMPARE_GAMMAS.intersection(artifacts):
            raise DriftlensError("--gammas names what --tune tries; give --tune with a number of records, too")
        # The folder is checked before hours of work, not after.
        with output_folder(options.out, names_of(artifacts)), open_study(options, errors) as study:
            for artifact, make in artifacts.items():
                make_one(study, artifact, make, standard_output(), errors)
        return 0

    return main


def make_one(study: Study, name: str, recipe: Make | ArtifactRecipe, out: Terminal, errors: Terminal) -> None:
    """Make and write one artifact, and print its claims."""
    start = time.perf_counter()
    artifact = recipe.make(study) if isinstance(recipe, ArtifactRecipe) else recipe(study)
    problem = write(artifact, study.options.out, configuration_of(study, recipe), png=study.options.png)
    if problem:
        errors.print(f"{name}.png is not written: {problem}")
    seconds = time.perf_counter() - start
    out.print(styled(artifact.title, "bold"), f"({seconds:.0f} s)", soft_wrap=True)
    for number in artifact.numbers:
        out.print(f"  {number.name}: paper {number.paper}, here {number.here}", soft_wrap=True)
    for claim in artifact.claims:
        out.print(f"  {claim.claim}", styled(claim.answer, "bold"), soft_wrap=True)
    out.print(f"  wrote {study.options.out}/{name}.html and what belongs to it", soft_wrap=True)
