"""The edit clinic on facts of the bundled model: is what it recommends better than the plain edit, and does it notice
what a model does not know?

    python benchmarks/clinic.py --facts 50

1. The clinic visits the first test records.  The records' own prompts are kept out of its probes; RS and DNS are then
   measured on them, with the plain edit and with the recommended one.  A case is won where the recommendation's share
   is higher, tied where it is the same (how many of these at 100 % is told), lost where it is lower.
2. It is asked about subjects that nobody bears (drawn as the world's names are, no --true), about facts of the world's
   subjects that the world does not have (no --true), and about prompts of another kind of subject (with --true).  It
   should edit none of them; but it should edit facts that the world has, also without --true.

`--part 0/2` does every second fact; parts are written beside each other, and the result is of all that are there.
"""

import argparse
import json
import platform
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from driftlens import LensModel, clinic, evaluate, load_model, load_records
from driftlens.data import Record
from driftlens.demo import SEED
from driftlens.demo.names import NameMaker
from driftlens.demo.relations import RELATIONS
from driftlens.demo.world import SUBJECTS, build_world

RESULTS = Path(__file__).parent / "results"
TASKS = {"ES": "rewrite", "PS": "paraphrase", "NS": "neighborhood", "RS": "relation", "DNS": "distract_neighborhood"}


def own_scores(model: LensModel, record: Record, edits: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The record's scores in percent, by edit."""
    found: dict[str, dict[str, float]] = {}
    for name, edit in edits.items():
        table = evaluate(model, record, edit, tasks=TASKS.values())
        rising = table["task"].isin(["rewrite", "paraphrase"])
        stands = np.where(rising, table["nll_new"] < table["nll_true"], table["nll_true"] < table["nll_new"])
        shares = table.assign(stands=100.0 * stands).groupby("task")["stands"].mean()
        found[name] = {score: float(shares[task]) for score, task in TASKS.items() if task in shares}
    return found


def visit(model: LensModel, record: Record) -> dict[str, Any]:
    own = [prompt.text for prompts in record.tasks.values() for prompt in prompts]
    start, cpu = time.perf_counter(), time.process_time()
    report = clinic(model, record.fact, avoid=own)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    line = {
        "record": record.index,
        "verdict": report.verdict.name,
        "reason": report.verdict.reasons[0],
        "gamma": report.gamma,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "probes": len(report.probes),
    }
    if report.edit is not None:
        assert not set(own) & set(report.probes["prompt"])
        line["kept"] = float(report.probes.query("held_out and kind != 'paraphrase'")["recommended_keeps"].mean())
        line |= own_scores(model, record, {"plain": report.plain, "recommended": report.edit})
    return line


def unknown(model: LensModel, count: int) -> dict[str, Any]:
    """How often nothing is edited where nothing should be."""
    world, rng = build_world(SEED), random.Random("driftlens clinic benchmark")
    names = set(world.facts_of)
    taught = {(fact.subject.name, fact.relation.id): fact.object for fact in world.facts}
    maker = NameMaker(rng, forbidden=" ".join(names))
    by_kind = {kind: [r for r in RELATIONS if r.subject_kind == kind] for kind in SUBJECTS}
    invented = [
        (name, rng.choice(by_kind[kind]))
        for kind in SUBJECTS
        for name in maker.draw(kind, count // 4 + 3, 0)
        if name not in names
    ][:count]
    lacking = [(s.name, r) for s in world.subjects for r in by_kind[s.kind] if (s.name, r.id) not in taught]
    foreign = [(s.name, r) for s in world.subjects for r in RELATIONS if r.subject_kind != s.kind]
    cases = {
        "invented subjects, no --true": [(*one, None) for one in invented],
        "facts that the world lacks, no --true": [(*one, None) for one in rng.sample(lacking, count)],
        "facts that the world lacks, --true given": [(*one, "any") for one in rng.sample(lacking, count)],
        "prompts of another kind of subject, --true given": [(*one, "any") for one in rng.sample(foreign, count)],
        "facts of the world, no --true (to be edited)": [
            (fact.subject.name, fact.relation, None) for fact in rng.sample(world.facts, count)
        ],
    }
    found: dict[str, Any] = {}
    for name, rows in cases.items():
        said = 0
        for subject, relation, true in rows:
            held_now = taught.get((subject, relation.id))
            new, other = rng.sample([o for o in world.objects[relation.object_kind] if o not in (subject, held_now)], 2)
            template = next(one for one in relation.templates if one.startswith("{}"))
            report = clinic(
                model, subject=subject, prompt=template, new=new, true=other if true else None, gammas=(), probes=()
            )
            said += report.verdict.name == "cannot judge" and report.edit is None
        found[name] = {"asked": len(rows), "said so": said}
    return found


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    edited = [line for line in lines if "plain" in line]
    result: dict[str, Any] = {"facts": len(lines), "edited": len(edited)}
    for which in ("plain", "recommended"):
        result[which] = {
            score: round(float(np.mean([line[which][score] for line in edited if score in line[which]])), 2)
            for score in TASKS
        }
    for score in ("RS", "DNS"):
        pairs = [(line["recommended"][score], line["plain"][score]) for line in edited if score in line["plain"]]
        result[f"{score} against plain"] = {
            "won": sum(a > b for a, b in pairs),
            "tied at 100": sum(a == b == 100 for a, b in pairs),
            "tied below": sum(a == b < 100 for a, b in pairs),
            "lost": sum(a < b for a, b in pairs),
        }
    both = [(line["recommended"], line["plain"]) for line in edited if {"RS", "DNS"} <= set(line["plain"])]
    result["both"] = {
        "neither lower, not 100 before: higher": sum(
            all(a[s] > b[s] or a[s] == b[s] == 100 for s in ("RS", "DNS")) for a, b in both
        ),
        "both higher": sum(all(a[s] > b[s] for s in ("RS", "DNS")) for a, b in both),
        "of": len(both),
    }
    result["verdicts"] = {
        name: sum(line["verdict"] == name for line in lines) for name in sorted({line["verdict"] for line in lines})
    }
    result["gammas"] = {
        str(g): sum(line["gamma"] == g for line in lines) for g in sorted({line["gamma"] for line in edited})
    }
    for what in ("seconds", "cpu_seconds"):
        result[f"median {what}"] = round(float(np.median([line[what] for line in lines])), 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=50)
    parser.add_argument("--unknown", type=int, default=20, help="cases of each kind of ignorance; 0: none")
    parser.add_argument("--part", default="0/1", help="which part of the facts, of how many")
    parser.add_argument("--lines", type=Path, default=Path("clinic-lines"), help="folder of the parts; resumed")
    options = parser.parse_args()
    model = load_model("demo", device="cpu")
    records = [record for record in load_records("demo") if record.split == "test"][: options.facts]
    part, parts = map(int, options.part.split("/"))
    options.lines.mkdir(parents=True, exist_ok=True)
    for record in records[part::parts]:
        path = options.lines / f"{record.index}.json"
        if not path.exists():
            path.write_text(json.dumps(visit(model, record)))
            print(path.read_text(), flush=True)
    paths = [options.lines / f"{record.index}.json" for record in records]
    lines = [json.loads(path.read_text()) for path in paths if path.exists()]
    ignorance = options.lines / "unknown.json"
    if options.unknown and not ignorance.exists():
        ignorance.write_text(json.dumps(unknown(model, options.unknown)))
    result = {
        "model": "demo",
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "facts asked for": len(records),
        **summary(lines),
        "nothing to edit": json.loads(ignorance.read_text()) if ignorance.exists() else None,
        "lines": lines,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "clinic-demo.json").write_text(json.dumps(result, indent=1))
    print(json.dumps({key: value for key, value in result.items() if key != "lines"}, indent=1))


if __name__ == "__main__":
    main()
