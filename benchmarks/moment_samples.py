"""How many texts a second moment needs, and what its shipped form costs: `python -m benchmarks.moment_samples`.

ROME's value does not depend on the second moment, so every fact is optimised once.  For each number of texts the edit
is then written along that second moment's direction C⁻¹ k and evaluated: success (ES, PS), specificity (NS, RS, DNS).
The direction is compared with that of all the texts.  Records come from the end of the file, where no table is
measured and no test subject occurs; the folder of `--parts` keeps second moments of stretches of text between calls.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from measuring import RESULTS
from safetensors.torch import load_file, save_file

from driftlens import ROME, Edit, LensModel, Record, evaluate, load_model, load_records, summarize
from driftlens.editors import SecondMoment, open_corpus, stream_second_moments
from driftlens.editors.shipped import rounded
from driftlens.edits import LowRankUpdate
from experiments.benchmarks import spread_over_tasks

TASKS = ("rewrite", "paraphrase", "neighborhood", "relation", "distract_neighborhood")
SCORES = ("ES", "PS", "NS", "RS", "DNS")


def validation(path: str, first: int, count: int) -> list[Record]:
    records = load_records(path)
    tested = {record.fact.subject for record in records[:first]}
    return spread_over_tasks([record for record in records[first:] if record.fact.subject not in tested], count)


def cumulated(model: LensModel, layer: int, texts: Sequence[str], counts: Sequence[int], parts: Path) -> dict[int, Any]:
    """The second moment over the first so many texts, and their tokens."""
    total, tokens, found = torch.zeros(model.d_mlp, model.d_mlp, dtype=torch.float64), 0, {}
    for first, last in zip([0, *counts], counts, strict=False):
        path = parts / f"part_{first}_{last}.safetensors"
        if not path.exists():
            some = texts[first:last]
            moments = stream_second_moments(model, [layer], some)
            size = sum(min(len(model.encode(text).ids), model.n_ctx) for text in some)
            save_file({str(layer): moments[layer], "tokens": torch.tensor([size])}, path)
        part = load_file(path)
        total, tokens = total + part[str(layer)].double() * int(part["tokens"]), tokens + int(part["tokens"])
        found[last] = ((total / tokens).float(), tokens)
    return found


def rewritten(edit: Edit, layer: int, key: torch.Tensor, full: torch.Tensor, moment: SecondMoment) -> Edit:
    """The same value written along another second moment's direction (Eq. 3)."""
    update = edit.updates[layer]
    left, right = update.left[:, 0].double(), update.right[0].double()
    residual = right * (key.double() @ left)
    mean = full.double() @ left  # the mean key, up to its length
    other = moment.solve(mean[None])[0]
    other = other / other.norm()
    changed = LowRankUpdate(
        left=other[:, None].to(update.left), right=(residual / (key.double() @ other))[None].to(update.right)
    )
    return Edit(updates={layer: changed}, provenance=edit.provenance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="merged_counterfact.json")
    parser.add_argument("--texts", required=True, help="a text file, a text on each line")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--first", type=int, default=1200, help="the first record that is not a test record")
    parser.add_argument("--records", type=int, default=20)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--parts", type=Path, default=Path("out/moment-samples"))
    options = parser.parse_args()
    options.parts.mkdir(parents=True, exist_ok=True)
    model = load_model(options.model, dtype=options.dtype)
    editor = ROME.for_model(model)
    texts = [*open_corpus(options.texts).texts()]
    moments = cumulated(model, editor.layer, texts, options.counts, options.parts)
    most = options.counts[-1]
    full, tokens = moments[most]
    variants: dict[str, Any] = {f"{count} texts": (SecondMoment(C), size) for count, (C, size) in moments.items()}
    variants[f"{most} texts, as shipped"] = (SecondMoment(rounded(full)), tokens)
    variants["none (identity)"] = (SecondMoment(torch.eye(model.d_mlp)), 0)
    editor = replace(editor, second_moment=SecondMoment(full))

    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in ("unedited", *variants)}
    cosines: dict[str, list[float]] = {name: [] for name in variants}
    records = validation(options.data, options.first, options.records)
    for done, record in enumerate(records, 1):
        result = editor.edit(model, record.fact)
        left = result.edit.updates[editor.layer].left[:, 0].double()
        rows["unedited"].append(evaluate(model, record, tasks=TASKS))
        for name, (moment, _) in variants.items():
            edit = rewritten(result.edit, editor.layer, result.keys[editor.layer], full, moment)
            cosines[name].append(float(left @ edit.updates[editor.layer].left[:, 0].double()))
            rows[name].append(evaluate(model, record, edit, tasks=TASKS))
        write(options, rows, cosines, variants, done)


def write(options: Any, rows: Any, cosines: Any, variants: Any, done: int) -> None:
    found = {}
    for name, tables in rows.items():
        scores = summarize(pd.concat(tables, ignore_index=True))
        found[name] = {
            "tokens": variants[name][1] if name in variants else None,
            "cosine_with_most": round(sum(cosines[name]) / done, 5) if name in variants else None,
            "scores": {
                score: {key: round(float(scores.loc[score, key]), 2) for key in ("value", "low", "high", "n")}
                for score in SCORES
            },
        }
    told = {"model": options.model, "dtype": options.dtype, "records": done, "variants": found}
    (RESULTS / f"moment-samples-{options.model}.json").write_text(json.dumps(told, indent=1) + "\n")
    print(f"{done} records", flush=True)
    for name, of in found.items():
        print(f"  {name}:", *(f"{score} {of['scores'][score]['value']:.1f}" for score in SCORES), flush=True)


if __name__ == "__main__":
    main()
