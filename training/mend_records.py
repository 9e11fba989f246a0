"""Write records to train a MEND hypernetwork of the bundled model: `python -m training.mend_records FILE`.

They are facts of the subjects that no test record of the bundled data edits: what is tested was never seen in training,
neither as an edit nor as a neighbour.  Records of one subject in ten are for validation.
"""

import argparse
import random
import sys
from collections.abc import Sequence

from driftlens import load_records
from driftlens.demo import SEED
from driftlens.demo.world import World, build_world
from driftlens.files import path_of
from driftlens.options.parsing import Parser
from driftlens.options.program import run_command
from training.records import Json, record, write_records

VALIDATION = 0.1


def untested(world: World, tested: set[str]) -> World:
    """The part of a world whose subjects are not tested."""
    return World(
        seed=world.seed,
        subjects=tuple(subject for subject in world.subjects if subject.name not in tested),
        facts=tuple(fact for fact in world.facts if fact.subject.name not in tested),
        objects=world.objects,
    )


def mend_records(world: World, tested: set[str]) -> list[Json]:
    """A record of every fact of an untested subject, always the same ones."""
    rng = random.Random(f"driftlens MEND records {world.seed}")
    part = untested(world, tested)
    validation = {subject.name for subject in part.subjects if rng.random() < VALIDATION}
    facts = list(part.facts)
    rng.shuffle(facts)
    return [
        {**record(part, fact, rng), "split": "validation" if fact.subject.name in validation else "train"}
        for fact in facts
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file."""
    parser = Parser(prog="python -m training.mend_records", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", metavar="FILE", help="a JSON file in the schema of merged_counterfact.json")
    options: argparse.Namespace = parser.parse_args(argv)
    tested = {one.fact.subject for one in load_records("demo") if one.split == "test"}
    found = mend_records(build_world(SEED), tested)
    write_records(found, path_of(options.file))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
