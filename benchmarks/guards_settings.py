"""Which terms, which weights, which guards: restraints tried on validation records, a line of JSON each.

    python -m benchmarks.guards_settings --model demo --editor rome --records 48 --out FOLDER
    python -m benchmarks.guards_settings --model smollm2-135m --dtype bfloat16 --data merged_counterfact.json \\
        --corpus wikitext2_valid.txt --editor rome --scale 1 --gammas 0.5,1,2,4,8,32 --out FOLDER

Of each setting FOLDER keeps the scores and, for paired comparisons, the NLLs.  What is there is not measured again,
and processes that write to one folder share the settings among them.  The records are of the data's validation split,
or, where it has none, those that no table of 300 records is measured on, without a subject of one that is.
`--split test` measures the tables' records instead.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from driftlens import GuardedSADR, Record, evaluate, summarize
from driftlens.editors.restrained import with_guards, with_sadr
from experiments.benchmarks import Setting, editor_of, other_subjects, spread_over_tasks
from experiments.options import read_options
from experiments.study import Study, open_study

TASKS = ("rewrite", "paraphrase", "neighborhood", "relation", "distract_neighborhood")
SCORES = ("Avg.S", "ES", "EM", "PS", "PM", "NS", "RS", "RM", "DNS")
MOST = 300
"""Records that a table may be measured on."""


def settings(scale: float, gammas: Sequence[float], drifts: Sequence[float]) -> dict[str, dict[str, Any]]:
    """What is tried, by name: `gamma` alone is SADR, the rest are settings of `GuardedSADR`.

    `short` is as many steps as the preset has for an editor without a restraint.
    """
    middle = sorted(gammas)[len(gammas) // 2]
    found: dict[str, dict[str, Any]] = {"alone": {}}
    found |= {f"sadr {gamma:g}": {"gamma": gamma} for gamma in gammas}
    found |= {f"sadr {gamma:g}, short": {"gamma": gamma, "short": True} for gamma in gammas}

    def guards(name: str, mu: float = 1.0, nu: float = 1.0, **own: Any) -> None:
        found[f"guards {name}"] = {"mu": mu * scale, "nu": nu * scale, **own}
        found[f"guards {name}, short"] = {**found[f"guards {name}"], "short": True}

    for factor in (1, 0.5, 2, 0.25, 4):
        guards(f"x{factor:g}", factor, factor)
    for factor in (1, 2, 4):
        guards(f"mu x{factor}", factor, 0)
        guards(f"nu x{factor}", 0, factor)
    guards("12 + 6", distracted=6)
    guards("6 + 6", asked=6, distracted=6)
    guards("6 + 6, x0.5", 0.5, 0.5, asked=6, distracted=6)
    guards("24 + 2", asked=24)
    guards("12 + 0", distracted=0)
    guards("0 + 6", asked=0, distracted=6)
    guards("0 + 6, x0.5", 0.5, 0.5, asked=0, distracted=6)
    guards("8 + 2, 4 own words", asked=8, own_words=4)
    for drift in drifts:
        guards(f"drift {drift:g}", 0, 0, gamma_guards=drift)
        guards(f"x0.5, drift {drift:g}", 0.5, 0.5, gamma_guards=drift)
        guards(f"x1, drift {drift:g}", gamma_guards=drift)
    for gamma in dict.fromkeys((min(gammas), middle / 4, middle)):
        for factor in (1, 0.5, 0.25):
            guards(f"x{factor:g}, sadr {gamma:g}", factor, factor, gamma=gamma)
    return found


def records_of(study: Study, split: str, count: int) -> list[Record]:
    """The records to measure on."""
    test = spread_over_tasks(study.records, MOST)
    if split == "test":
        return spread_over_tasks(study.records, count)
    subjects = {record.fact.subject for record in test}
    kept = [record for record in study.all_records if record.split == "validation"] or study.records
    return spread_over_tasks([record for record in kept if record.fact.subject not in subjects], count)


def editor_for(study: Study, name: str, restraint: dict[str, Any]) -> Any:
    """The preset with this restraint."""
    own = dict(restraint)
    editor: Any = editor_of(study, Setting(editor=name, texts=False))
    if own.pop("short", False):
        editor = editor.changed(steps=editor.steps)  # given, they stay
    if set(own) == {"gamma"}:
        return with_sadr(study.model, editor, own["gamma"])
    if own:
        return with_guards(study.model, editor, GuardedSADR(subjects=other_subjects(study), **own))
    return editor


def measured(study: Study, name: str, restraint: dict[str, Any], records: list[Record], batch: int) -> Any:
    """Scores in percent and what an edit cost, and the NLLs."""
    editor = editor_for(study, name, restraint)
    start = time.perf_counter()
    results = editor.edit_many(study.model, [record.fact for record in records], batch_size=batch)
    seconds = time.perf_counter() - start
    nlls = evaluate(study.model, records, [result.edit for result in results], tasks=TASKS, batch_size=8 * batch)
    values = summarize(nlls, resamples=0)["value"]
    ends = [result.history.iloc[-1] for result in results]
    terms = [term for term in ("nll", "probability", "guard_answers", "guard_targets", "guard_attention", "sadr")
             if term in ends[0]]  # fmt: skip
    return {
        "steps": round(sum(len(result.history) for result in results) / len(results), 1),
        "most_steps": editor.steps,
        "end": {term: round(sum(float(end[term]) for end in ends) / len(ends), 4) for term in terms},
        "seconds_per_edit": round(seconds / len(records), 3),
        "scores": {score: round(float(values[score]), 1) for score in SCORES if score in values},
    }, nlls


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--model", "demo"), ("--data", "demo"), ("--editor", "rome")):
        parser.add_argument(name, default=default)
    for name in ("--dtype", "--corpus", "--device"):
        parser.add_argument(name)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--records", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--scale", type=float, default=0.25, help="μ = ν of ×1")
    parser.add_argument("--gammas", default="0.005,0.01,0.02,0.04,0.08")
    parser.add_argument("--drifts", default="0.02,0.1")
    parser.add_argument("--only", help="settings by name, separated by |; default: all")
    parser.add_argument("--out", required=True)
    options = parser.parse_args(arguments)
    tried = settings(options.scale, *([float(x) for x in text.split(",")] for text in (options.gammas, options.drifts)))
    chosen = options.only.split("|") if options.only else list(tried)
    given = [f"--{name}={value}" for name in ("model", "data", "dtype", "corpus", "device")
             if (value := getattr(options, name))]  # fmt: skip
    given.append(f"--records={MOST}")  # no guard's subject occurs in a prompt of these
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    with open_study(read_options(given, prog="guards_settings", description=""), Console(stderr=True)) as study:
        records = records_of(study, options.split, options.records)
        for name in chosen:
            stem = "-".join([study.model_name.rpartition("/")[2], options.editor, options.split, name])
            target = folder / (stem.replace(" ", "_").replace(",", "") + ".json")
            try:
                target.with_suffix(".claim").touch(exist_ok=False)
            except FileExistsError:
                continue
            told, nlls = measured(study, options.editor, tried[name], records, options.batch)
            nlls.to_parquet(target.with_suffix(".parquet"))
            line = {
                "model": study.model_name, "editor": options.editor, "split": options.split, "records": len(records),
                "setting": name, "restraint": tried[name], **told,
            }  # fmt: skip
            target.write_text(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
