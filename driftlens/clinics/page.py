"""The report as an HTML page: one file without scripts or downloads, legible on light and dark screens.

`page.html` is its template and `page.css` its style sheet; this module prepares the names, tables and maps that the
template shows. The functions read the public attributes of a :class:`driftlens.clinics.ClinicReport`, which calls them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from driftlens.display.html import card as small_card
from driftlens.display.html import faint, pairs, short, table
from driftlens.display.svg import heatmap
from driftlens.display.templates import render

__all__ = ["KIND_NAMES", "card", "chosen_text", "page", "percent"]

KIND_NAMES = {
    "paraphrase": "paraphrases",
    "relation": "other facts of the subject",
    "neighbour": "other subjects",
    "distractor": "other subjects behind the edited sentence",
    "yours": "your own",
}
_LONGEST = 300

_LOOKS = {"ship": "good", "ship with care": "care", "do not ship": "bad", "cannot judge": "none"}


def page(report: Any) -> str:
    """Render the whole page."""
    request = report.request
    edited = report.restraint is not None
    return render(
        "clinics/page.html",
        report=report,
        title=f"{request['prompt'].replace('{}', request['subject'], 1)} {request['target_new']}",
        new=request["target_new"],
        look=_LOOKS[report.verdict.name],
        edited=edited,
        chosen=chosen_text(report),
        knowledge=_knowledge(report),
        path_head=("restraint", *_PATH_HEAD),
        origin=_origin(report),
        **(_shown(report) if edited else {}),
    )


def _shown(report: Any) -> dict[str, Any]:
    """The parts of an edit that the page shows."""
    return {
        "path": [_line([one.restraint, *_path_cells(one)], chosen=bool(one.recommended)) for one in _rows(report.path)],
        "held_out": _held_out(report),
        "probes": _probes(report),
        "drift": _drift(report),
        "generations": [
            [short(str(one[name]), _LONGEST) for name in ("prompt", "vanilla", "plain", "recommended")]
            for one in report.generations.to_dict(orient="records")
        ],
    }


def card(report: Any) -> str:
    """Render the card at the end of a notebook cell."""
    request = report.request
    text = f"{request['prompt'].replace('{}', request['subject'], 1)} …"
    change = f"{request['target_true'] or '?'} → {request['target_new']}"
    told = {"prompt": text, "edit": change, "recommended": _restraint_text(report), "model": report.model}
    shown = [pairs(told), *(faint(reason) for reason in report.verdict.reasons)]
    if report.restraint is not None:
        rows = [[one.restraint, *_path_cells(one)] for one in _rows(report.path)]
        shown.append(table(("restraint", *_PATH_HEAD), rows, numbers=len(_PATH_HEAD)))
    return small_card("edit clinic", report.verdict.name, *shown)


def chosen_text(report: Any) -> str:
    """Name the edit that the verdict is about.  An edit that must not be shipped is not called recommended."""
    lead = "Recommended" if report.verdict.name.startswith("ship") else "Best of what was tried"
    return f"{lead}: {_restraint_text(report)}"


def percent(share: float) -> str:
    """Format a share in percent; a dash if there are no probes."""
    return f"{100 * share:.0f}" if share == share else "–"


def _knowledge(report: Any) -> dict[str, str]:
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
    return told


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


def _held_out(report: Any) -> list[dict[str, Any]]:
    """Shares of the held-out probes by kind."""
    lines: list[dict[str, Any]] = []
    for kind, name in KIND_NAMES.items():
        own: Any = report.scores[report.scores["kind"] == kind]
        probes: Any = report.probes[(report.probes["kind"] == kind) & report.probes["held_out"]]
        if not len(own):
            continue
        shares = own.set_index("restraint")["stands"]
        cells = [percent(float(shares.loc[name])) for name in ("plain", report.restraint.name)]
        kept = [percent(float(probes[f"{which}_keeps"].mean())) for which in ("plain", "recommended")]
        lines.append(_line([name, str(len(probes)), *cells, *kept]))
    return lines


def _probes(report: Any) -> list[dict[str, Any]]:
    """The probes by kind; for distractor probes, also the sentence that precedes them."""
    groups: list[dict[str, Any]] = []
    for kind, name in KIND_NAMES.items():
        own: Any = report.probes[report.probes["kind"] == kind]
        if len(own):
            before = own.iloc[0]["distractor"].strip() if kind == "distractor" else ""
            groups.append({"name": name, "distractor": before, "probes": _rows(own)})
    return groups


def _drift(report: Any) -> dict[str, Any] | None:
    """None if there is no attention above the edit."""
    if not len(report.drift):
        return None
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
    heads = (
        f"layer {one.layer} head {one.head}: {one.vanilla_subject:.2f} → {one.edited_subject:.2f}"
        for one in top.itertuples()
    )
    return {
        "rows": [
            _line([one.edit, one.place, str(one.prompts), f"{one.kl:.4g}", f"{one.max_subject:+.3f}"])
            for one in _rows(report.drift)
        ],
        "place": place,
        "heads": "; ".join(heads),
        "maps": maps,
    }


def _origin(report: Any) -> dict[str, str]:
    from driftlens.version import __version__

    return {
        "model": f"{report.model} ({report.model_hash})",
        "editor": report.editor,
        "second moment": report.edit.provenance.get("second_moment", "") if report.edit is not None else "",
        "seed": str(report.seed),
        "driftlens": __version__,
    }


def _restraint_text(report: Any) -> str:
    return "nothing was edited" if report.restraint is None else report.restraint.name


def _rows(of: Any) -> list[Any]:
    return list(of.itertuples())


def _line(cells: Sequence[str], *, chosen: bool = False) -> dict[str, Any]:
    return {"cells": cells, "chosen": chosen}
