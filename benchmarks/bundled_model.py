"""Does the bundled model show the paper's phenomenon and its cure?  ROME with and without SADR on test records.

    python benchmarks/bundled_model.py [--records 200]

The records are those that no setting was chosen on.  Prints a Markdown table of scores with 95 % intervals (1.96 · sem
over prompts) and writes it, with the per-prompt NLLs it rests on, to benchmarks/results/.
"""

import argparse
import time
from pathlib import Path

import pandas as pd

from driftlens import ROME, SADR, evaluate, load_model, load_records, summarize
from driftlens.editors import sadr_gamma

RESULTS = Path(__file__).parent / "results"
TASKS = ("rewrite", "paraphrase", "neighborhood", "relation", "distract_neighborhood")
COLUMNS = ("ES", "PS", "NS", "RS", "RS same type", "RS other type", "DNS")


def scores(nlls: pd.DataFrame) -> dict[str, str]:
    """The table's cells: percent and half the interval."""
    summaries = {"": summarize(nlls)}
    for group in ("same_type", "other_type"):
        summaries[f" {group.replace('_', ' ')}"] = summarize(nlls[nlls["group"] == group])
    cells: dict[str, str] = {}
    for column in COLUMNS:
        score, _, group = column.partition(" ")
        row = summaries[f" {group}" if group else ""].loc[score]
        cells[column] = f"{row['value']:.1f} ± {(row['high'] - row['low']) / 2:.1f}"
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=20)
    options = parser.parse_args()
    model = load_model("demo", device="cpu")
    records = [record for record in load_records("demo") if record.split == "test"][: options.records]
    facts = [record.fact for record in records]
    gamma = sadr_gamma(model)
    editors = {
        "none": None,
        "ROME": ROME.for_model(model),
        f"ROME + SADR (γ = {gamma:g})": ROME.for_model(model, regularizers=(SADR(gamma=gamma),)),
    }
    rows: list[dict[str, str]] = []
    tables: list[pd.DataFrame] = []
    for name, editor in editors.items():
        start = time.perf_counter()
        edits = None
        if editor is not None:
            edits = [result.edit for result in editor.edit_many(model, facts, batch_size=options.batch_size)]
        seconds = time.perf_counter() - start
        nlls = evaluate(model, records, edits, tasks=TASKS)
        tables.append(nlls.assign(editor=name))
        rows.append(
            {"editor": name, **scores(nlls), "seconds per edit": f"{seconds / len(facts):.2f}" if edits else "–"}
        )
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    text = "\n".join(lines)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bundled-model.md").write_text(f"{len(records)} test records, fp32, CPU\n\n{text}\n", encoding="utf-8")
    pd.concat(tables).to_parquet(RESULTS / "bundled-model-nlls.parquet", index=False)
    print(text)


if __name__ == "__main__":
    main()
