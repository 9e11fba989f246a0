"""The report's tables once the edits are chosen: answers before and after, drift, texts, the path of γ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from driftlens.analyses.drift import attention_drift
from driftlens.clinics.answers import greedy_answers, says
from driftlens.clinics.path import Candidate, takes
from driftlens.clinics.probes import KINDS, Probe
from driftlens.data import Fact
from driftlens.evaluation.generation import generate
from driftlens.models import LensModel
from driftlens.models.prompts import tokenize_prompt
from driftlens.progress import OnProgress

__all__ = ["Visit", "answers_table", "drift_tables", "empty", "generations_table", "path_table"]

_SHOWN_TOKENS = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class Visit:
    """The data that all steps need."""

    model: LensModel
    seed: int
    batch_size: int
    on_progress: OnProgress

    def note(self, what: str, done: int = 0, total: int = 0) -> None:
        """Report progress."""
        self.on_progress(what, done, total)


def answers_table(
    visit: Visit, probes: Sequence[Probe], measured: Any, plain: Candidate, chosen: Candidate
) -> pd.DataFrame:
    """Tabulate every probe with the edited models' answers."""
    prompts = [probe.prompt for probe in probes]
    by_name = {"plain": plain, "recommended": chosen}
    said = {
        name: greedy_answers(visit.model, prompts, one.result.edit, batch_size=visit.batch_size) if prompts else []
        for name, one in by_name.items()
    }
    rows: list[dict[str, Any]] = []
    for number, probe in enumerate(probes):
        row: dict[str, Any] = {
            "kind": probe.kind,
            "held_out": probe.held_out,
            "group": probe.group,
            "prompt": probe.prompt,
            "distractor": probe.distractor,
            "failed_before": probe.failed_before,
            "answer": probe.answer,
            "before": probe.before,
            "probability": probe.probability,
        }
        row |= {name: _shown(said[name][number].text, said[name][number].continuation) for name in by_name}
        for name in by_name:
            row[f"{name}_keeps"] = says(said[name][number].continuation, probe.answer)
        for name, one in by_name.items():
            at = measured[(measured["restraint"] == one.restraint.name) & (measured["probe"] == number)].iloc[0]
            row[f"{name}_p_answer"], row[f"{name}_p_other"] = float(at["p_answer"]), float(at["p_other"])
        rows.append(row)
    columns = (
        "kind held_out group prompt distractor failed_before answer before probability plain recommended plain_keeps "
        "recommended_keeps plain_p_answer plain_p_other recommended_p_answer recommended_p_other"
    )
    table = pd.DataFrame(rows, columns=columns.split())
    return table.astype({"held_out": bool, "failed_before": bool, "plain_keeps": bool, "recommended_keeps": bool})


def _shown(answer: str, continuation: str) -> str:
    return answer or " ".join(continuation.split())[:30] or "…"


def drift_tables(
    visit: Visit, fact: Fact, probes: Sequence[Probe], candidates: Sequence[Candidate], chosen: Candidate
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """Tabulate the drift of the last token's attention; empty if the model has no layer above the edit."""
    model = visit.model
    if max(layer for one in candidates for layer in one.result.edit.layers) >= model.n_layers - 1:
        return empty("edit place kl max_subject prompts"), empty(_HEADS), {}
    edits = [one.result.edit for one in candidates]
    each = attention_drift(model, edits, [fact.text] * len(edits), fact.subject, batch_size=visit.batch_size)
    by_restraint = {one.restraint.name: float(kl) for one, kl in zip(candidates, each.table["kl"], strict=True)}
    places = {"the edit's prompt": [fact.text]}
    distracted = [probe.prompt for probe in probes if probe.kind == "distractor"]
    if distracted:
        places["distractor contexts"] = distracted
    rows: list[dict[str, Any]] = []
    heads: list[pd.DataFrame] = []
    for name, one in (("plain", candidates[0]), ("recommended", chosen)):
        for place, prompts in places.items():
            found: Any = attention_drift(model, one.result.edit, prompts, fact.subject, batch_size=visit.batch_size)
            means = found.table[["kl", "max_subject"]].mean()
            row = {"kl": float(means["kl"]), "max_subject": float(means["max_subject"]), "prompts": len(prompts)}
            rows.append({"edit": name, "place": place, **row})
            columns = ["kl", "drift_subject", "vanilla_subject", "edited_subject"]
            by_head = found.heads.groupby(["layer", "head"], as_index=False)[columns].mean()
            heads.append(by_head.assign(edit=name, place=place)[_HEADS.split()])
    return pd.DataFrame(rows), pd.concat(heads, ignore_index=True), by_restraint


_HEADS = "edit place layer head kl drift_subject vanilla_subject edited_subject"


def generations_table(
    visit: Visit, fact: Fact, probes: Sequence[Probe], plain: Candidate, chosen: Candidate
) -> pd.DataFrame:
    """Tabulate the texts of the three models, generated with the same random draws."""
    prompts = [fact.text, f"{fact.subject} is"]
    prompts += [next((one.prompt for one in probes if one.kind == kind), "") for kind in ("relation", "distractor")]
    prompts = list(dict.fromkeys(prompt for prompt in prompts if prompt))
    columns: dict[str, list[str]] = {"prompt": prompts}
    longest = max(len(tokenize_prompt(visit.model, prompt).ids) for prompt in prompts)
    for name, edit in (("vanilla", None), ("plain", plain.result.edit), ("recommended", chosen.result.edit)):
        texts = generate(visit.model, prompts, edit, seed=visit.seed, max_tokens=longest + _SHOWN_TOKENS)
        columns[name] = [one.continuation for one in texts]
    return pd.DataFrame(columns)


def path_table(
    candidates: Sequence[Candidate], chosen: Candidate, choosing: Any, drift: dict[str, float]
) -> pd.DataFrame:
    """Tabulate the candidates, a row each."""
    rows: list[dict[str, Any]] = []
    for one in candidates:
        own = choosing[choosing["restraint"] == one.restraint.name].set_index("kind")["stands"]
        rows.append(
            {
                "restraint": one.restraint.name,
                "gamma": one.restraint.gamma,
                "guards": one.restraint.guards,
                "recommended": one.restraint == chosen.restraint,
                "takes": takes(one, choosing),
                "p_new": one.probability,
                **{kind: float(own.get(kind, float("nan"))) for kind in KINDS},
                "drift": drift.get(one.restraint.name, float("nan")),
                "steps": len(one.result.history),
                "seconds": one.seconds,
            }
        )
    return pd.DataFrame(rows)


def empty(columns: str) -> pd.DataFrame:
    """An empty table with these columns."""
    return pd.DataFrame(columns=columns.split())
