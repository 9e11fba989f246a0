"""The terminal output of `driftlens edit`: the verdict, the path of γ, the changed probes, the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from driftlens.clinics.page import KIND_NAMES, chosen_text, percent
from driftlens.display.terminal import styled

if TYPE_CHECKING:
    from driftlens.clinics import ClinicReport
    from driftlens.display.terminal import Terminal

__all__ = ["tell"]

_COLOURS = {"ship": "green", "ship with care": "yellow", "do not ship": "red", "cannot judge": "bright_black"}
_MOST = 10


def tell(report: ClinicReport, written: Sequence[Path], console: Terminal) -> None:
    """Print the findings, then the verdict, then the files."""
    request, known = report.request, report.knowledge
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold")
    head.add_column(overflow="fold")
    text = request["prompt"].replace("{}", request["subject"], 1)
    lines = {
        "edit": f"{text} [{request['target_true'] or '?'} → {request['target_new']}]",
        "model": f"{report.model}, {report.editor}",
        "it answers": f"{known.answer or '(nothing)'}, probability {known.answer_probability:.2f}"
        + ("" if known.given else "; taken for what holds, since there is no --true"),
    }
    if report.restraint is not None and known.subject_kind is None:
        lines["beware"] = "nobody says what kind of thing the subject is, so few other facts are asked; say with --kind"
    for name, line in lines.items():
        head.add_row(name, line)
    console.print(head)
    if report.restraint is not None:
        console.print()
        console.print(_path(report))
        _tell_changed(report, console)
        _tell_drift(report, console)
    console.print()
    console.print(styled(report.verdict.name, f"bold {_COLOURS[report.verdict.name]}"))
    if report.restraint is not None:
        console.print(f"  {chosen_text(report)}; judged by the other half of the probes:", soft_wrap=True)
    for reason in report.verdict.reasons:
        console.print(f"  {reason}", soft_wrap=True)
    console.print()
    names = ", ".join(path.name for path in written)
    console.print(f"wrote {written[0].parent}: {names} ({report.seconds:.0f} s)", soft_wrap=True)


def _path(report: ClinicReport) -> Table:
    new = report.request["target_new"]
    table = _table(f"choosing a restraint: percent of one half of the probes where the right answer beats {new!r}")
    for name in ("restraint", "takes", "P(new)", "wordings", "other facts", "others", "distracted", "drift"):
        table.add_column(name, justify="left" if name in ("restraint", "takes") else "right", no_wrap=True)
    one: Any
    for one in report.path.itertuples():
        shares = [percent(share) for share in (one.paraphrase, one.relation, one.neighbour, one.distractor)]
        drift = f"{one.drift:.3g}" if one.drift == one.drift else "–"
        mark = "▸" if one.recommended else " "
        cells = [f"{mark} {_short(one.restraint)}", "yes" if one.takes else "no", f"{one.p_new:.2f}"]
        table.add_row(*cells, *shares, drift, style="bold" if one.recommended else "")
    return table


def _short(restraint: str) -> str:
    """Shorten a restraint's name for a terminal of 80 columns."""
    return restraint.replace("γ = ", "").replace("μ = ν = ", "")


def _tell_changed(report: ClinicReport, console: Terminal) -> None:
    changed: Any = report.changed
    if not len(changed):
        return
    # First what goes wrong under the recommendation, and of that what was held out.
    order = changed.assign(held=~changed["held_out"]).sort_values(["recommended_keeps", "held"], kind="stable")
    table = _table(f"{len(changed)} of {len(report.probes)} probes answered wrongly by one edit or both")
    for name in ("prompt", "should be", "plain", "recommended"):
        table.add_column(name, overflow="fold")
    for one in order.head(_MOST).itertuples():
        prompt = f"… {one.prompt[len(one.distractor) :]}" if one.distractor else one.prompt
        said = [
            text if keeps else styled(text, "red")
            for text, keeps in ((one.plain, one.plain_keeps), (one.recommended, one.recommended_keeps))
        ]
        table.add_row(prompt, one.answer, *said)
    console.print()
    console.print(table)
    if len(changed) > _MOST:
        console.print(f"and {len(changed) - _MOST} more in the report")
    kinds = {kind: int((~rows["recommended_keeps"]).sum()) for kind, rows in changed.groupby("kind", sort=False)}
    told = ", ".join(f"{n} {KIND_NAMES[str(kind)]}" for kind, n in kinds.items() if n)
    console.print(f"wrong under the recommendation: {told or 'none'}", soft_wrap=True)


def _tell_drift(report: ClinicReport, console: Terminal) -> None:
    if not len(report.drift):
        return
    by: Any = report.drift.set_index(["edit", "place"])["kl"]
    parts = [
        f"{place} {by[('plain', place)]:.3g} plain, {by[('recommended', place)]:.3g} recommended"
        for place in dict.fromkeys(report.drift["place"])
    ]
    heads: Any = report.heads
    heads = heads[heads["edit"] == "recommended"].nlargest(2, "kl")
    top = ", ".join(f"layer {one.layer} head {one.head}" for one in heads.itertuples())
    console.print()
    console.print(f"attention drift (Σ KL): {'; '.join(parts)}; most in {top}", soft_wrap=True)


def _table(heading: str) -> Table:
    return Table(
        title=heading, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0)
    )
