"""The terminal output of `driftlens trace`: the edit, the probabilities, the strongest cells, the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from driftlens.analyses.windows import window_layers
from driftlens.options.editing import editor_text

if TYPE_CHECKING:
    from driftlens.commands.trace_study import TraceRun
    from driftlens.display.terminal import Terminal

__all__ = ["note", "report", "title"]

_STRONGEST = 2
FLOOR = 0.001
"""Smaller effects, below a tenth of a percent, are not ranked."""


def title(run: TraceRun) -> str:
    """The figure's title: the edit."""
    fact = run.study.fact
    return f"{fact.text} {fact.target_true} → {fact.target_new}"


def note(run: TraceRun) -> str:
    """The figure's subtitle: the editor and the traced prompts."""
    text = f"{editor_text(run.editor)} · {run.study.name}, {run.study.task.replace('_', ' ')}"
    return f"{text} · caution: {run.doubts.partition(':')[0].partition(';')[0]}" if run.doubts else text


def report(run: TraceRun, written: Sequence[Path], console: Terminal) -> None:
    """Print the tables."""
    fact = run.study.fact
    steps = f"{len(run.result.history)} of {run.editor.most_steps}"
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold")
    head.add_column(overflow="fold")
    lines = {
        "edited": f"{fact.text} [{fact.target_true} → {fact.target_new}], {run.study.name}",
        "subject": fact.subject,
        "editor": f"{editor_text(run.editor)}, {steps} steps, {run.seconds:.1f} s",
        "model": f"{run.trace.model}, {len(set(run.trace.table['layer']))} layers",
    }
    for name, text in lines.items():
        head.add_row(name, text)
    console.print(head)
    console.print()
    console.print(_probabilities(run, console.width))
    console.print()
    console.print(_strongest(run))
    console.print()
    console.print(f"wrote {written[0].parent}: {', '.join(path.name for path in written)}", soft_wrap=True)


def _probabilities(run: TraceRun, width: int) -> Table:
    table = _table("probabilities, before → after the edit")
    table.add_column("prompt", no_wrap=True)
    table.add_column("P(o_true)", no_wrap=True)
    table.add_column("P(o_edit)", no_wrap=True)
    means = ["true_before", "true_after", "edit_before", "edit_after"]
    traced = run.probabilities["task"] != "the edit"
    # The distractor is the same sentence in all of them.
    texts = [
        ("… " if prompt.distractor else "") + prompt.text[len(prompt.distractor) :] for prompt in run.study.prompts
    ]
    shown = [(run.study.fact.text, run.probabilities.loc[~traced, means].iloc[0])]
    shown += list(zip(texts, (row for _, row in run.probabilities.loc[traced, means].iterrows()), strict=True))
    if len(texts) > 1:
        mean = run.probabilities.loc[traced, means].mean()
        shown.append((f"mean of {len(texts)} {run.study.task.replace('_', ' ')} prompts", mean))
    room = max(20, width - 2 * len("0.000 → 0.000") - 6)
    for text, row in shown:
        true, edit = (f"{row[f'{name}_before']:.3f} → {row[f'{name}_after']:.3f}" for name in ("true", "edit"))
        table.add_row(text if len(text) <= room else f"{text[: room - 1]}…", true, edit)
        if text == run.study.fact.text or text == texts[-1]:
            table.add_section()
    return table


def _strongest(run: TraceRun) -> Table:
    """The cells with the largest effect, for every module and target."""
    trace = run.trace
    n_cases, n_layers = len(run.study.prompts), len(set(trace.table["layer"]))
    cells: Any
    table = _table(
        f"strongest cells, window of {trace.window}" + (f", mean of {n_cases} prompts" if n_cases > 1 else "")
    )
    for column in ("module", "token", "layers"):
        table.add_column(column)
    table.add_column("change of", justify="right")
    table.add_column("", justify="right")
    if n_cases > 1:
        cells = trace.by_role()
        cells["where"] = cells["role"] + " (" + cells["example"].str.slice(0, 24) + ")"
    else:
        cells = trace.table.copy()
        cells["where"] = (
            cells["token"].astype(str) + " “" + cells["token_text"].str.strip() + "” (" + cells["role"] + ")"
        )
    for (module, target), group in cells.groupby(["module", "target_name"], sort=False):
        size = group["effect"].abs()
        order = size[size >= FLOOR].sort_values(ascending=False, kind="stable").index[:_STRONGEST]
        if not len(order):
            table.add_row(str(module), f"none changes it by {FLOOR:g} or more", "", f"P({target})", "")
        for row in group.loc[order].itertuples():
            layers = window_layers(int(row.layer), trace.window, n_layers)
            span = f"{layers[0]}–{layers[-1]}" if len(layers) > 1 else str(layers[0])
            table.add_row(str(module), str(row.where), span, f"P({target})", f"{row.effect:+.4f}")
    return table


def _table(heading: str) -> Table:
    return Table(
        title=heading, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0)
    )
