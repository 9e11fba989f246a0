"""WISE's settings for a model, tried on validation records: one line of JSON for each memory and `act_ratio`.

    python -m benchmarks.wise_settings --model demo --records 16 --layer 6 --lr 0.3 --beta 20 [--sadr 0.1]
    python -m benchmarks.wise_settings --model smollm2-135m --dtype bfloat16 --data merged_counterfact.json ...

α and γ are a quarter and a half of β unless given.  A memory is trained once, and its gate opened at several shares of
the edited prompts' smallest distance.  Validation records are those of the bundled data's validation split, elsewhere
those with an index from 1,200 on whose subject does not occur below.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS
from driftlens import SADR, WISE, Edit, Record, evaluate, load_model, load_records, summarize
from driftlens.editors import ContextSampling
from driftlens.edits import AddedNorm, Gated, routed

TASKS = ("rewrite", "paraphrase", "neighborhood", "relation", "distract_neighborhood")
SCORES = ("ES", "EM", "PS", "PM", "NS", "RS", "RM", "DNS", "Avg.S")
OPEN = ("rewrite", "paraphrase", "neighborhood", "relation")
FIRST = 1200


def validation_records(data: str, count: int) -> list[Record]:
    records = load_records(data)
    if data == "demo":
        own = [record for record in records if record.split == "validation"]
    else:
        tested = {record.fact.subject for record in records if record.index < FIRST}
        own = [record for record in records if record.index >= FIRST and record.fact.subject not in tested]
        # Few records have prompts of every task; in turn, about as many have each.
        having = [[one for one in own if one.tasks[task]] for task in ("relation", "paraphrase", "neighborhood")]
        return list({one.index: one for turn in zip(*having, strict=False) for one in turn}.values())[:count]
    step = max(1, len(own) // count)
    return own[::step][:count]


def gated_at(edit: Edit, smallest: float, act_ratio: float) -> Edit:
    (gate,) = edit.gates
    return Edit([Gated(change=gate.change, router=AddedNorm(threshold=act_ratio * smallest))], facts=edit.facts)


def measured(model: Any, records: Sequence[Record], edits: Sequence[Edit | None]) -> dict[str, float]:
    scores = summarize(evaluate(model, records, edits, tasks=TASKS), resamples=0)["value"]
    return {name: round(float(scores[name]), 1) for name in SCORES if name in scores}


def opened(model: Any, records: Sequence[Record], edits: Sequence[Edit]) -> dict[str, float]:
    """The share of each task's prompts that open the gate."""
    shares: dict[str, float] = {}
    for task in OPEN:
        beside = zip(records, edits, strict=True)
        asked = [(edit, prompt.text) for record, edit in beside for prompt in record.tasks[task]]
        acting = routed(model, [edit for edit, _ in asked], [model.encode(text).ids for _, text in asked])
        shares[task] = round(100 * sum(bool(one and one.changes) for one in acting) / max(1, len(asked)), 1)
    return shares


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--records", type=int, default=16)
    for name in ("--layer", "--steps", "--prefixes"):
        parser.add_argument(name, type=int)
    for name in ("--lr", "--alpha", "--beta", "--gamma", "--sadr"):
        parser.add_argument(name, type=float)
    parser.add_argument("--unedited", action="store_true")
    parser.add_argument("--ratios", default="0.3,0.5,0.7,0.88")
    parser.add_argument("--out", default=str(RESULTS / "wise-settings.jsonl"))
    options = parser.parse_args(arguments)
    tried(load_model(options.model, dtype=options.dtype, device="cpu"), options)


def printed(line: dict[str, Any], out: str) -> None:
    with Path(out).open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


def tried(model: Any, options: argparse.Namespace) -> None:
    records = validation_records(options.data, options.records)
    if options.unedited:
        printed(
            {"model": model.name, "records": len(records), "scores": measured(model, records, [None] * len(records))},
            options.out,
        )
        return
    changes: dict[str, Any] = {
        name: getattr(options, name) for name in ("layer", "steps", "lr", "alpha", "beta", "gamma")
        if getattr(options, name) is not None
    }  # fmt: skip
    if "beta" in changes:
        changes = {"alpha": changes["beta"] / 4, "gamma": changes["beta"] / 2} | changes
    if options.prefixes is not None:
        changes["sampling"] = ContextSampling(lengths=((10, options.prefixes),))
    if options.sadr is not None:
        changes["regularizers"] = (SADR(gamma=options.sadr),)
    editor = WISE.for_model(model, **changes)
    start = time.process_time()
    results = editor.edit_many(model, [record.fact for record in records])
    seconds = (time.process_time() - start) / len(records)
    smallest = [result.edit.gates[0].router.threshold / editor.act_ratio for result in results]
    ends = [result.history.iloc[-1] for result in results]
    told = {
        "model": model.name, "records": len(records), "layer": editor.layer, "lr": editor.lr, "steps": editor.steps,
        "alpha": editor.alpha, "beta": editor.beta, "gamma": editor.gamma, "sadr": options.sadr,
        "contexts": len(editor.contexts_for(model)), "seconds_per_edit": round(seconds, 2),
        "end": {name: round(sum(float(end[name]) for end in ends) / len(ends), 3)
                for name in ("nll", "distance_edited", "distance_irrelevant")},
    }  # fmt: skip
    for act_ratio in map(float, options.ratios.split(",")):
        edits = [gated_at(result.edit, own, act_ratio) for result, own in zip(results, smallest, strict=True)]
        line = {
            **told,
            "act_ratio": act_ratio,
            "scores": measured(model, records, edits),
            "opened": opened(model, records, edits),
        }
        printed(line, options.out)


if __name__ == "__main__":
    main()
