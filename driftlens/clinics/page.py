"""The report as a page: one file, no script, nothing fetched, legible on light and dark screens.

All text of models and users is escaped where it is put in: a subject may hold `<` and `&`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from driftlens.display.html import card as small_card
from driftlens.display.html import escape, faint, pairs, row, short, table
from driftlens.display.svg import heatmap

if TYPE_CHECKING:
    from driftlens.clinics.report import ClinicReport

__all__ = ["KIND_NAMES", "card", "chosen_text", "page", "percent"]

KIND_NAMES = {
    "paraphrase": "paraphrases",
    "relation": "other facts of the subject",
    "neighbour": "other subjects",
    "distractor": "other subjects behind the edited sentence",
    "yours": "your own",
}
_LONGEST = 300

_STYLE = """
:root{color-scheme:light dark;--ink:#20242b;--ground:#fff;--soft:#667080;--line:#d7dce3;--good:#1f7a4d;--care:#9a6200;
--bad:#b8352e;--none:#56606e;--mark:#f6e3c4;--panel:#f6f7f9}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ee;--ground:#15181d;--soft:#9aa5b4;--line:#363d48;--good:#4cc38a;
--care:#e5a93b;--bad:#f07f73;--none:#a7b1bf;--mark:#4a3a1c;--panel:#1d2127}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1.5rem 1.25rem 4rem;background:var(--ground);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}
h1{font-size:1.5rem;line-height:1.3;margin:.2rem 0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.2rem 0 .4rem;border-top:1px solid var(--line);padding-top:1.1rem}
p{margin:.4rem 0;max-width:52rem}
.faint{color:var(--soft)}
.verdict{border-left:6px solid var(--none);background:var(--panel);padding:.8rem 1.1rem;margin:1rem 0;border-radius:4px}
.verdict b{display:block;font-size:1.3rem}
.verdict b::first-letter{text-transform:uppercase}
.verdict ul{margin:.4rem 0 0;padding-left:1.2rem}
.good{border-color:var(--good)}.good b{color:var(--good)}.care{border-color:var(--care)}.care b{color:var(--care)}
.bad{border-color:var(--bad)}.bad b{color:var(--bad)}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:.6rem 0;font-size:14px}
th,td{padding:.28rem .9rem .28rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:normal;white-space:nowrap}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tr.chosen td{background:var(--mark)}
td.wrong{color:var(--bad);font-weight:600}
td.text{overflow-wrap:anywhere;min-width:8rem}
.three{table-layout:fixed;width:100%;min-width:44rem}
.row{display:flex;flex-wrap:wrap;gap:.5rem 2rem}
svg{max-width:100%;height:auto}
"""

_LOOKS = {"ship": "good", "ship with care": "care", "do not ship": "bad", "cannot judge": "none"}


def page(report: ClinicReport) -> str:
    """The whole page."""
    request = report.request
    title = f"{request['prompt'].replace('{}', request['subject'], 1)} {request['target_new']}"
    parts = [_head(report, title), _verdict(report), _knowledge(report)]
    if report.gamma is not None:
        parts += [_path(report), _held_out(report), _probes(report), _drift(report), _generations(report)]
    parts.append(_origin(report))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Edit clinic: {escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head>\n<body>{''.join(parts)}</body></html>\n"
    )


def card(report: ClinicReport) -> str:
    """For the end of a notebook cell."""
    request = report.request
    text = f"{request['prompt'].replace('{}', request['subject'], 1)} …"
    change = f"{request['target_true'] or '?'} → {request['target_new']}"
    told = {"prompt": text, "edit": change, "recommended": _gamma_text(report.gamma), "model": report.model}
    shown = [pairs(told), *(faint(reason) for reason in report.verdict.reasons)]
    if report.gamma is not None:
        rows = [[f"{one.gamma:g}", *_path_cells(one)] for one in _rows(report.path)]
        shown.append(table(("γ", *_PATH_HEAD), rows, numbers=len(_PATH_HEAD)))
    return small_card("edit clinic", report.verdict.name, *shown)


def chosen_text(report: ClinicReport) -> str:
    """Which edit the verdict is about.  What must not be shipped is not recommended either."""
    lead = "Recommended" if report.verdict.name.startswith("ship") else "Best of what was tried"
    return f"{lead}: {_gamma_text(report.gamma)}"


def percent(share: float) -> str:
    """A share in percent; a dash where there is nothing to have a share of."""
    return f"{100 * share:.0f}" if share == share else "–"


def _head(report: ClinicReport, title: str) -> str:
    old = report.request["target_true"]
    before = f"instead of {old} · " if old else ""
    line = f"{before}{report.model} · {report.editor} · {report.seconds:.0f} s"
    return f'<div class="faint">Edit clinic</div><h1>{escape(title)}</h1><div class="faint">{escape(line)}</div>'


def _verdict(report: ClinicReport) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report.verdict.reasons)
    chosen = f"<div>{escape(chosen_text(report))}</div>" if report.gamma is not None else ""
    look = _LOOKS[report.verdict.name]
    return f'<div class="verdict {look}"><b>{escape(report.verdict.name)}</b>{chosen}<ul>{reasons}</ul></div>'


def _knowledge(report: ClinicReport) -> str:
    known = report.knowledge
    source = "as given" if known.given else "the model's own answer, since none was given"
    told = {
        "the model's answer": f"{known.answer or '(none)'}, probability {known.answer_probability:.3f}",
        "what holds": f"{known.target_true or '(nobody knows)'}, {source}; probability {known.true_probability:.3f}",
        "next token": f"entropy {known.entropy:.2f} nats",
        "steadiness": f"{known.steadiness:.3f}, the median over {known.wordings} wordings{_needed(known)}",
        "asked as": known.subject_kind or "of unknown kind, so few other facts are asked; --kind says it",
    }
    if known.control_certainty:
        told["certainty about the subject"] = (
            f"{known.certainty:.2f}; about {len(known.control_certainty)} invented names "
            f"{max(known.control_certainty):.2f} at most, {known.as_sure_of} as sure"
        )
    return _section("Does the model know it?", pairs(told))


def _needed(known: Any) -> str:
    return f"; a known answer has at least {known.needed:.3f}" if known.needed == known.needed else ""


_PATH_HEAD = (
    "takes",
    "P(new)",
    "paraphrases",
    "other facts",
    "other subjects",
    "distracted",
    "drift Σ KL",
    "steps",
    "s",
)


def _path_cells(one: Any) -> list[str]:
    shares = [percent(share) for share in (one.paraphrase, one.relation, one.neighbour, one.distractor)]
    drift = f"{one.drift:.3g}" if one.drift == one.drift else "–"
    return ["yes" if one.takes else "no", f"{one.p_new:.3f}", *shares, drift, str(one.steps), f"{one.seconds:.1f}"]


def _path(report: ClinicReport) -> str:
    rows = [
        _row([_gamma_text(one.gamma), *_path_cells(one)], numbers=len(_PATH_HEAD), chosen=bool(one.recommended))
        for one in _rows(report.path)
    ]
    text = (
        "Half of the probes choose γ. Told is how many of them stand, in percent: the right answer is likelier than "
        f"“{report.request['target_new']}” (of paraphrases: “{report.request['target_new']}” than what held before). "
        "Chosen is the γ that protects most among those with which the edit takes."
    )
    return _section("Choosing γ", _text(text), _table(("γ", *_PATH_HEAD), rows, numbers=len(_PATH_HEAD)))


def _held_out(report: ClinicReport) -> str:
    rows: list[str] = []
    for kind, name in KIND_NAMES.items():
        own: Any = report.scores[report.scores["kind"] == kind]
        probes: Any = report.probes[(report.probes["kind"] == kind) & report.probes["held_out"]]
        if not len(own):
            continue
        shares = own.set_index("gamma")["stands"]
        cells = [percent(float(shares.loc[gamma])) for gamma in (0.0, report.gamma)]
        kept = [percent(float(probes[f"{which}_keeps"].mean())) for which in ("plain", "recommended")]
        rows.append(_row([name, str(len(probes)), *cells, *kept], numbers=5))
    head = ("held-out probes", "n", "stand: plain", "chosen γ", "still said: plain", "chosen γ")
    return _section(
        "What was held out",
        _text(
            "The other half, on which the verdict rests, in percent: without SADR (plain) against the chosen γ. “Still "
            "said” is stricter than “stand”: the right answer is what the model says, and not a third one."
        ),
        _table(head, rows, numbers=5),
    )


def _probes(report: ClinicReport) -> str:
    parts: list[str] = []
    for kind, name in KIND_NAMES.items():
        own: Any = report.probes[report.probes["kind"] == kind]
        if not len(own):
            continue
        rows = [
            "<tr>"
            + _cell(one.prompt[len(one.distractor) :] if one.distractor else one.prompt, "text")
            + _cell(one.answer, "text")
            + _cell(f"{one.before} ({one.probability:.2f})", "text")
            + _cell(one.plain, "text" if one.plain_keeps else "text wrong")
            + _cell(one.recommended, "text" if one.recommended_keeps else "text wrong")
            + _cell("held out" if one.held_out else "choosing", "faint")
            + "</tr>"
            for one in own.itertuples()
        ]
        head = ("prompt", "should answer", "before", "plain", "recommended", "")
        parts.append(f"<h3>{escape(name)}</h3>")
        if kind == "distractor":
            parts.append(_text(f"Behind “{own.iloc[0]['distractor'].strip()}”"))
        parts.append(_table(head, rows))
    changed = len(report.changed)
    text = f"{changed} of {len(report.probes)} are answered wrongly with the plain edit or the recommended one."
    return _section("Probes", _text(text), *parts)


def _drift(report: ClinicReport) -> str:
    if not len(report.drift):
        return _section("Attention drift", _text("No attention lies above the edited layers, so none can drift."))
    rows = [
        _row([one.edit, one.place, str(one.prompts), f"{one.kl:.4g}", f"{one.max_subject:+.3f}"], numbers=3)
        for one in _rows(report.drift)
    ]
    head = ("edit", "place", "prompts", "Σ KL over heads", "Σ over layers of the largest rise at the subject")
    place = str(report.drift["place"].iloc[-1])
    own: Any = report.heads[report.heads["place"] == place]
    limit = max(float(own["drift_subject"].abs().max()), 0.01)
    maps: list[str] = []
    for which in ("plain", "recommended"):
        cells = own[own["edit"] == which].pivot_table(index="head", columns="layer", values="drift_subject")
        names = [f"head {head}" for head in cells.index]
        maps.append(
            heatmap(
                cells.to_numpy().tolist(), names, limit=limit, heading=which, columns=[int(n) for n in cells.columns]
            )
        )
    top = own[own["edit"] == "recommended"].nlargest(3, "kl")
    heads = "; ".join(
        f"layer {one.layer} head {one.head}: {one.vanilla_subject:.2f} → {one.edited_subject:.2f}"
        for one in top.itertuples()
    )
    text = (
        "Change of the last token's attention to the subject's last token by layer and head (blue: more than before), "
        f"{place}. The heads that drift most under the recommendation: {heads}."
    )
    return _section("Attention drift", _table(head, rows, numbers=3), _text(text), row(*maps))


def _generations(report: ClinicReport) -> str:
    head = ("prompt", "before", "plain", "recommended")
    rows = [
        "<tr>"
        + "".join(_cell(short(str(one[name]), _LONGEST), "text") for name in ("prompt", "vanilla", *head[2:]))
        + "</tr>"
        for one in report.generations.to_dict(orient="records")
    ]
    return _section(
        "What it writes",
        _text("Each prompt continued by the three models from the same random draws (top 5)."),
        _table(head, rows, look="three"),
    )


def _origin(report: ClinicReport) -> str:
    from driftlens.version import __version__

    told = {
        "model": f"{report.model} ({report.model_hash})",
        "editor": report.editor,
        "second moment": report.edit.provenance.get("second_moment", "") if report.edit is not None else "",
        "seed": str(report.seed),
        "driftlens": __version__,
    }
    return _section("Made by", pairs(told))


def _gamma_text(gamma: float | None) -> str:
    if gamma is None:
        return "nothing was edited"
    return f"SADR γ = {gamma:g}" if gamma else "plain, no SADR"


def _rows(of: Any) -> list[Any]:
    return list(of.itertuples())


def _section(name: str, *parts: str) -> str:
    return f"<h2>{escape(name)}</h2>{''.join(parts)}"


def _text(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _cell(text: str, look: str = "") -> str:
    return f'<td class="{look}">{escape(text)}</td>' if look else f"<td>{escape(text)}</td>"


def _row(cells: Sequence[str], *, numbers: int, chosen: bool = False) -> str:
    first = len(cells) - numbers
    inner = "".join(_cell(cell, "" if at < first else "n") for at, cell in enumerate(cells))
    return f'<tr class="chosen">{inner}</tr>' if chosen else f"<tr>{inner}</tr>"


def _table(head: Sequence[str], rows: Iterable[str], *, numbers: int = 0, look: str = "") -> str:
    first = len(head) - numbers
    names = "".join(
        f"<th>{escape(name)}</th>" if at < first else f'<th class="n">{escape(name)}</th>'
        for at, name in enumerate(head)
    )
    kind = f' class="{look}"' if look else ""
    return f'<div class="wide"><table{kind}><thead><tr>{names}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
