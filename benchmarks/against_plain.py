"""driftlens against the plain way (`benchmarks/plain.py`): edits, evaluation and traces, side by side in one run.

    python -m benchmarks.against_plain [edit] [evaluate] [trace] [--model demo] [--rounds 3]

Without a name all three are measured.  Before a time is quoted, both sides' numbers are compared: the same losses at
every step, the same NLLs, the same probabilities.

- **edit**: `edit_many` of 1 to 64 facts, with and without SADR, against one by one; operations counted.
- **evaluate**: all prompts of 1 to 64 edited records against weights written and prompts read one by one.
- **trace**: the full grid of 32 records against one forward pass for each cell, timed on a sample of cells.
- **throughput**: edit and evaluation of 1 to 64 records at once, apart and together, and how far both sides' numbers
  are from each other.
"""

import argparse
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import plain as plainly
from benchmarks.measuring import in_turn, machine, matrix_product_peak, median, operations, ratio, write
from driftlens import ROME, SADR, Edit, contaminating_substitution, evaluate, load_model, load_records
from driftlens.analyses.windows import default_window, window_layers
from driftlens.data import Fact, Record
from driftlens.editors.second_moment import SecondMoment
from driftlens.edits import Dense, EditResult
from driftlens.models import LensModel
from driftlens.models.names import resolve
from driftlens.models.prompts import TokenizedPrompt, try_tokenize_prompts
from driftlens.models.published import PUBLISHED, obtain
from driftlens.models.sites import Site

TASK = "distract_neighborhood"


class Sides:
    """One model twice, and an editor's settings for both."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model: LensModel = load_model(options.model, device=options.device, dtype=options.dtype)
        published = PUBLISHED.get(options.model)
        self.folder = resolve(options.model)[0] if published is None else obtain(published).folder
        # Plain code stops at a prompt that is too long for the model.
        self.records = [r for r in load_records(options.data, limit=options.records) if readable(self.model, r)]
        self._plain: dict[str, plainly.PlainModel] = {}
        self.plain_dtype = getattr(torch, options.plain_dtype) if options.plain_dtype else self.model.dtype
        self.peak, self.plain_peak = (
            matrix_product_peak(dtype, self.model.device) for dtype in (self.model.dtype, self.plain_dtype)
        )

    def plain(self, *, attention: str = "sdpa") -> plainly.PlainModel:
        """Hugging Face's default attention, but where its maps are asked for: then only the eager one gives them."""
        if attention not in self._plain:
            self._plain[attention] = plainly.PlainModel.load(
                self.folder,
                device=self.model.device,
                dtype=self.plain_dtype,
                attention=attention,
            )
        return self._plain[attention]

    def editor(self, *, sadr: bool = False, steps: int | None = None, forced: bool = False) -> ROME:
        """The model's preset; `forced` never stops early, so that the number of steps is equal everywhere."""
        changes: dict[str, Any] = {"regularizers": (SADR(gamma=1e-2),)} if sadr else {}
        changes |= {"steps": steps} if steps else {}
        changes |= {"early_stop_loss": -math.inf} if forced else {}
        given = {"layer": self.options.layer, "lr": self.options.lr}
        changes |= {name: value for name, value in given.items() if value is not None}
        if self.options.model not in ("demo", *PUBLISHED):
            changes["second_moment"] = torch.eye(self.model.d_mlp)
        editor = ROME.for_model(self.model, **changes)
        self.settings(editor)  # contexts and the second moment are there once and for all
        return editor

    def settings(self, editor: ROME) -> plainly.PlainSettings:
        names = ("layer", "steps", "lr", "weight_decay", "kl_factor", "clamp_norm_factor", "early_stop_loss")
        gamma = next((reg.gamma for reg in editor.regularizers if isinstance(reg, SADR)), 0.0)
        return plainly.PlainSettings(
            contexts=editor.contexts_for(self.model), gamma=gamma, **{name: getattr(editor, name) for name in names}
        )

    def plain_edits(self, editor: ROME, records: list[Record]) -> list[plainly.PlainEdit]:
        own = editor.second_moment
        given = {editor.layer: own} if isinstance(own, SecondMoment) else None
        moment = editor._second_moments(self.model, [editor.layer], given)[editor.layer]
        plain = self.plain(attention="eager" if editor.regularizers else "sdpa")
        settings = self.settings(editor)
        return [plainly.edit(plain, r.fact, settings, lambda k: moment.solve(k[None])[0]) for r in records]


def readable(model: LensModel, record: Record) -> bool:
    prompts = [prompt for prompts in record.tasks.values() for prompt in prompts]
    pairs = [(prompt.text, target) for prompt in prompts for target in (prompt.target_true, prompt.target_new)]
    return all(isinstance(each, TokenizedPrompt) for each in try_tokenize_prompts(model, pairs))


def edits(sides: Sides) -> dict[str, Any]:
    """`edit_many` against one fact after the other, without SADR and with it."""
    found = {"rome": _edits(sides, sides.editor())}
    return found | {"sadr": _edits(sides, sides.editor(sadr=True))} if sides.options.sadr else found


def _edits(sides: Sides, editor: ROME) -> dict[str, Any]:
    few = sides.records[: sides.options.sample_facts]
    ours = editor.edit_many(sides.model, [r.fact for r in few])
    plain = sides.plain_edits(editor, few)
    for one, other in zip(ours, plain, strict=True):
        assert len(one.history) == len(other.losses)
        # Adam goes with the sign of small gradients, so rounding grows along the steps.
        assert abs(one.history["loss"].to_numpy() - other.losses).max() < 1e-2
    found: dict[str, Any] = {}
    for count in sides.options.counts:
        chosen = sides.records[:count]
        # The plain way costs the same a fact however many there are.
        part = chosen[: sides.options.sample_facts]

        def together(facts: list[Fact] = [r.fact for r in chosen]) -> object:  # noqa: B006
            return editor.edit_many(sides.model, facts, batch_size=len(facts))

        def one_by_one(part: list[Record] = part) -> object:
            return [editor.edit(sides.model, record.fact) for record in part]

        def plainly_one_by_one(part: list[Record] = part) -> object:
            return sides.plain_edits(editor, part)

        works = {"together": together, "one by one": one_by_one, "plain": plainly_one_by_one}
        times = in_turn(works, sides.options.rounds, sides.model.device)
        scale = columns_stepped(editor, sides, chosen) / columns_stepped(editor, sides, part)
        found[str(count)] = {
            "seconds_per_edit": {k: round(v / count, 4) for k, v in median(times, "together").items()},
            "plain_over_together": ratio(times, "plain", "together", scale),
            "one_by_one_over_together": ratio(times, "one by one", "together", scale),
            "share_of_peak": round(operations(together) / median(times, "together")["processor"] / sides.peak, 3),
        }
    counted = operations(lambda: editor.edit_many(sides.model, [r.fact for r in few], batch_size=len(few)))
    return {
        "steps": editor.steps,
        "by_facts": found,
        "operations_over_plain": round(counted / operations(lambda: sides.plain_edits(editor, few)), 4),
    }


def columns_stepped(editor: ROME, sides: Sides, records: list[Record]) -> float:
    """Columns that the plain way computes in all steps of these facts, which is what its time goes with: facts stop at
    different steps, and their prompts are of different lengths.
    """
    key = (repr(editor.regularizers), tuple(record.index for record in records))
    if key not in _columns:
        results = editor.edit_many(sides.model, [r.fact for r in records], batch_size=len(records))
        _columns[key] = stepped(sides, editor, records, [len(result.history) for result in results])
    return _columns[key]


_columns: dict[Any, float] = {}


def stepped(sides: Sides, editor: ROME, records: list[Record], steps: list[int]) -> float:
    """The same, where the steps are known."""
    settings = sides.settings(editor)
    widths = [plainly.edit_columns(sides.plain(), record.fact, settings) for record in records]
    return float(sum(n * columns for n, columns in zip(steps, widths, strict=True)))


def evaluated_columns(sides: Sides, records: list[Record]) -> float:
    """Columns that the plain way computes for all prompts of these records."""
    return float(sum(plainly.evaluation_columns(sides.plain(), record) for record in records))


def operations_by_step(work: Callable[[int], object], steps: float) -> float:
    """Operations of so many steps, read off two short runs: they are a + b · steps."""
    few, more = (operations(lambda n=n: work(n)) for n in (2, 3))
    return few + (more - few) * (steps - 2)


def evaluations(sides: Sides) -> dict[str, Any]:
    """All prompts of edited records, and edit and evaluation together."""
    editor = sides.editor(steps=5)
    records = sides.records[:64]
    ours = [r.edit for r in editor.edit_many(sides.model, [r.fact for r in records], batch_size=32)]
    plain = sides.plain()
    layer = editor.layer
    theirs = [
        plainly.PlainEdit(layer=layer, change=edit.updates[layer].matrix(), delta=torch.empty(0), losses=())
        for edit in ours
    ]
    found: dict[str, Any] = {"prompts": sum(len(p) for r in records for p in r.tasks.values())}
    table = evaluate(sides.model, records[:2], ours[:2])[["nll_true", "nll_new"]].to_numpy()
    reference = [pair for r, e in zip(records[:2], theirs[:2], strict=True) for pair in plainly.evaluate(plain, r, e)]
    assert abs(table - reference).max() < 1e-2
    for count in sides.options.counts:
        part = min(count, sides.options.sample_records)
        pairs = list(zip(records[:part], theirs[:part], strict=True))
        works = {
            "together": lambda n=count: evaluate(sides.model, records[:n], ours[:n], batch_size=256),
            "plain": lambda pairs=pairs: [plainly.evaluate(plain, record, edit) for record, edit in pairs],
        }
        times = in_turn(works, sides.options.rounds, sides.model.device)
        columns = [evaluated_columns(sides, records[:n]) for n in (count, part)]
        found[str(count)] = {
            "seconds_per_record": {k: round(v / count, 4) for k, v in median(times, "together").items()},
            "plain_over_together": ratio(times, "plain", "together", columns[0] / columns[1]),
        }
    return found


def throughput(sides: Sides) -> dict[str, Any]:
    """Edits with the model's preset and the evaluation under them, apart and together, for so many records at once."""
    editor = sides.editor()
    found: dict[str, Any] = {}
    for count in sides.options.counts:
        records = sides.records[:count]
        part = records[: min(count, sides.options.sample_facts)]
        results: list[EditResult] = []
        theirs: list[plainly.PlainEdit] = []
        tables: list[pd.DataFrame] = []
        pairs: list[tuple[float, float]] = []

        def edit(records: list[Record] = records, results: list[EditResult] = results) -> None:
            results[:] = editor.edit_many(sides.model, [r.fact for r in records], batch_size=len(records))

        def evaluated(
            records: list[Record] = records,
            results: list[EditResult] = results,
            tables: list[pd.DataFrame] = tables,
        ) -> None:
            tables[:] = [evaluate(sides.model, records, results, batch_size=256)]

        def plain_edit(part: list[Record] = part, theirs: list[plainly.PlainEdit] = theirs) -> None:
            theirs[:] = sides.plain_edits(editor, part)

        def plain_evaluated(
            part: list[Record] = part,
            theirs: list[plainly.PlainEdit] = theirs,
            pairs: list[tuple[float, float]] = pairs,
        ) -> None:
            plain = sides.plain()
            pairs[:] = [pair for r, own in zip(part, theirs, strict=True) for pair in plainly.evaluate(plain, r, own)]

        works = {"edit": edit, "evaluate": evaluated, "plain edit": plain_edit, "plain evaluate": plain_evaluated}
        times = in_turn(works, sides.options.rounds, sides.model.device)
        # The plain way's time goes with the columns it computes, so a part is scaled by these.
        steps = [len(result.history) for result in results]
        scales = {
            "edit": stepped(sides, editor, records, steps) / stepped(sides, editor, part, steps[: len(part)]),
            "evaluate": evaluated_columns(sides, records) / evaluated_columns(sides, part),
        }
        for name, scale in scales.items():
            times[f"plain {name}"] = [tuple(scale * t for t in each) for each in times[f"plain {name}"]]
        for side in ("", "plain "):
            both = zip(times[f"{side}edit"], times[f"{side}evaluate"], strict=True)
            times[f"{side}both"] = [tuple(map(sum, zip(*each, strict=True))) for each in both]
        # Under the same edits, so that only the evaluation differs.
        own = [Edit([Dense(site=Site(editor.layer), weight=other.change.to(sides.model.device))]) for other in theirs]
        table = evaluate(sides.model, part, own)[["nll_true", "nll_new"]].to_numpy()
        found[str(count)] = {
            "steps": steps,
            "seconds_per_record": {
                name: {kind: round(value / count, 4) for kind, value in median(times, name).items()}
                for name in ("edit", "evaluate", "both")
            },
            "over_plain": {name: ratio(times, f"plain {name}", name) for name in ("edit", "evaluate", "both")},
            **_operations(sides, works, times, records, steps, scales),
            "largest_loss_difference": max(
                float(abs(one.history["loss"].to_numpy()[: len(other.losses)] - other.losses[: len(one.history)]).max())
                for one, other in zip(results, theirs, strict=False)
            ),
            "largest_nll_difference": float(abs(table - pairs).max()),
        }
    return found


def _operations(
    sides: Sides,
    works: Mapping[str, Callable[[], object]],
    times: Mapping[str, list[Any]],
    records: list[Record],
    steps: list[int],
    scales: Mapping[str, float],
) -> dict[str, Any]:
    """Counted operations, the plain way's over ours, and each side's share of the peak."""
    part = records[: min(len(records), sides.options.sample_facts)]
    facts = [record.fact for record in records]

    def edit(n: int) -> None:
        sides.editor(steps=n, forced=True).edit_many(sides.model, facts, batch_size=len(facts))

    counted = {
        "edit": operations_by_step(edit, sum(steps) / len(steps)),
        "evaluate": float(operations(works["evaluate"])),
        "plain edit": scales["edit"]
        * operations_by_step(
            lambda n: sides.plain_edits(sides.editor(steps=n, forced=True), part),
            sum(steps[: len(part)]) / len(part),
        ),
        "plain evaluate": scales["evaluate"] * operations(works["plain evaluate"]),
    }
    return {
        "operations_over_plain": {n: round(counted[n] / counted[f"plain {n}"], 4) for n in ("edit", "evaluate")},
        "share_of_peak": {
            name: round(
                value / median(times, name)["processor"] / (sides.plain_peak if "plain" in name else sides.peak), 3
            )
            for name, value in counted.items()
        },
    }


def traces(sides: Sides) -> dict[str, Any]:
    """The full grid of all three modules against a forward pass for each cell."""
    records = [record for record in sides.records if record.tasks[TASK]][: sides.options.traced]
    editor = sides.editor(steps=5)
    edits = [r.edit for r in editor.edit_many(sides.model, [r.fact for r in records], batch_size=32)]
    prompts = [record.tasks[TASK][0] for record in records]
    targets = [(prompt.target_true, prompt.target_new) for prompt in prompts]
    plain, layer, n_layers = sides.plain(), editor.layer, sides.model.n_layers
    window = default_window(n_layers)
    loops = [
        plainly.PlainTrace(
            plain,
            plainly.PlainEdit(layer=layer, change=edit.updates[layer].matrix(), delta=torch.empty(0), losses=()),
            prompt.text,
            target,
        )
        for edit, prompt, target in zip(edits, prompts, targets, strict=True)
    ]
    parts = {None: "resid", 0: "mlp", 2: "attn"}
    cells = [
        (number, part, token, n)
        for number, loop in enumerate(loops)
        for part in parts
        for token in range(loop.n_tokens)
        for n in range(n_layers)
    ]
    sample = random.Random(0).sample(cells, min(sides.options.sample_cells, len(cells)))

    def grid() -> Any:
        modules = ("resid", "mlp", "attn")
        return contaminating_substitution(sides.model, edits, prompts, targets, modules, window, batch_size=256)

    def by_cell() -> list[list[float]]:
        return [
            loops[number].probabilities(
                plainly.PlainCell(part=part, token=token, layers=window_layers(n, window, n_layers))
            )
            for number, part, token, n in sample
        ]

    table = grid().table.set_index(["case", "module", "token", "layer", "target_name"])["probability"]
    for (number, part, token, n), seen in zip(sample, by_cell(), strict=True):
        for name, value in zip(("o_true", "o_edit"), seen, strict=True):
            assert abs(table[number, parts[part], token, n, name] - value) < 1e-2
    times = in_turn({"grid": grid, "cell by cell": by_cell}, sides.options.rounds, sides.model.device)
    scale = len(cells) / len(sample)
    return {
        "records": len(records),
        "cells": len(cells),
        "seconds_per_record": {k: round(v / len(records), 4) for k, v in median(times, "grid").items()},
        "plain_over_grid": ratio(times, "cell by cell", "grid", scale),
        "operations_over_plain": round(operations(grid) / (operations(by_cell) * scale), 4),
    }


MEASURES = {"edit": edits, "evaluate": evaluations, "trace": traces, "throughput": throughput}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[[], *MEASURES], help="default: all")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--records", type=int, default=80)
    parser.add_argument("--layer", type=int, help="edit layer; default: the model's preset")
    parser.add_argument("--lr", type=float, help="learning rate; default: the model's preset")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16, 32, 64], help="facts or records at once")
    parser.add_argument("--no-sadr", dest="sadr", action="store_false", help="leave edits with SADR out")
    parser.add_argument("--traced", type=int, default=32, help="records that are traced")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample-facts", type=int, default=4, help="facts that the plain way edits")
    parser.add_argument("--sample-records", type=int, default=4, help="records that the plain way evaluates")
    parser.add_argument("--sample-cells", type=int, default=150, help="cells that the plain way computes")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--plain-dtype", help="the plain way's precision, default: the same")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sides = Sides(options)
    name = Path(options.model).name + ("-bf16" if sides.model.dtype == torch.bfloat16 else "")
    name += f"-{options.threads}-threads" if options.threads > 1 else ""
    for what in options.what or MEASURES:
        settings = {k: v for k, v in vars(options).items() if k not in ("what", "device", "dtype", "data", "model")}
        result = {"model": name, "dtype": str(sides.model.dtype), **machine(sides.model.device), **settings}
        result |= {"matrix_product_gflops": round(sides.peak / 1e9, 1), "data": Path(options.data).name}
        write(f"{what}-against-plain-{name}-{sides.model.device.type}", result | {"found": MEASURES[what](sides)})


if __name__ == "__main__":
    main()
