"""Run a whole clinic visit; the package's docstring lists its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from driftlens.clinics.findings import (
    Visit,
    answers_table,
    drift_tables,
    empty,
    generations_table,
    path_table,
)
from driftlens.clinics.generated import from_generations
from driftlens.clinics.knowledge import Knowledge, examine
from driftlens.clinics.path import Candidate, choose, measure, scores, takes
from driftlens.clinics.probes import KINDS, Probe, UserProbe, build_probes
from driftlens.clinics.relation import find_relation
from driftlens.clinics.report import ClinicReport
from driftlens.clinics.restraints import PLAIN, Restraint, editor_for, guards_beside, restraints
from driftlens.clinics.templates import known_relations, other_relations, peers_of
from driftlens.clinics.verdict import Verdict, judge, scarce
from driftlens.data import Fact, Record, load_records
from driftlens.editors.base import Editor
from driftlens.editors.guarded import GuardedSADR
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.models.prompts import tokenize_prompt
from driftlens.progress import OnProgress, of_stage, unseen

__all__ = ["clinic"]


def clinic(
    model: LensModel,
    fact: Fact | None = None,
    *,
    subject: str | None = None,
    prompt: str | None = None,
    new: str | None = None,
    true: str | None = None,
    records: Sequence[Record] | None = None,
    probes: Sequence[UserProbe | str] = (),
    editor: str | Editor | Callable[[float], Editor] = "rome",
    prepare: Callable[[Editor], Editor] | None = None,
    gammas: Sequence[float] | None = None,
    guards: Sequence[float] | None = None,
    kind: str | None = None,
    force: bool = False,
    avoid: Collection[str] = (),
    seed: int = 0,
    batch_size: int = 64,
    on_progress: OnProgress | None = None,
) -> ClinicReport:
    """Examine the model, edit over a path of γ, choose an edit, and judge it.

    Args:
        model: the vanilla model; it is not changed.
        fact: the edit request.  Without it, give ``subject``, ``prompt``, ``new`` and, if known, ``true``; by default
            ``true`` is the model's own greedy answer.
        subject: the subject.
        prompt: the prompt, with ``{}`` for the subject.
        new: the new target.
        true: the current target.
        records: a data set whose templates and subjects make probes besides the general English ones; default: the
            bundled model's own, or none for any other model.
        probes: the user's prompts, as text or with ``{}`` for the subject.
        editor: "rome", "memit" or "pmet" with the model's presets, an editor, or a function from γ to one.
        prepare: gives the editor its second moments, once, before the first edit; default: over its own corpus.
        gammas: the path of γ; default: five around the model's preset.
        guards: the weights μ = ν of guards; default: one, the model's; ``()``: none.
        kind: what the subject is ("person", "place", "organisation", "work", "product", "country"), which determines
            what else it can be asked; default: inferred from the wording of the prompt and from the records.
        force: edit even if the model does not know the fact.  The verdict is still "cannot judge".
        avoid: texts that must not be probes, because something else is to be measured on them.
        seed: seed of all random choices.
        batch_size: prompts at a time.
        on_progress: called with (step, number done, total); the numbers are 0 and 0 if the step has no count.

    Raises:
        DriftlensError: no fact or two, a prompt without ``{}`` or too long, an unknown editor or kind, a γ below 0.
    """
    start = time.perf_counter()
    visit = Visit(model=model, seed=seed, batch_size=batch_size, on_progress=on_progress or unseen)
    request, true = _requested(fact, subject, prompt, new, true)
    tokenize_prompt(model, request.text, request.target_new)
    path = restraints(model, editor_for(model, editor), gammas, guards)

    visit.note("ask the model")
    given = records if records is not None else (load_records("demo") if model.name == "demo" else ())
    relations = known_relations(model, given)
    relation = find_relation(relations, request.prompt)
    others, kind = other_relations(relations, relation, request.subject, kind)
    knowledge = examine(
        model,
        subject=request.subject,
        prompt=request.prompt,
        target_new=request.target_new,
        target_true=true,
        relation=relation,
        # For a subject of unknown kind, half of the possible questions make no sense.
        relations=others if kind is not None else (),
        subject_kind=kind,
        seed=seed,
        batch_size=batch_size,
    )
    known = knowledge.target_true
    asked = {
        "subject": request.subject,
        "prompt": request.prompt,
        "target_true": known,
        "target_new": request.target_new,
    }
    if (knowledge.objection is not None and not force) or not known or known == request.target_new:
        objection = knowledge.objection or f"the model has no answer to {request.text!r}; say with --true what holds"
        verdict = Verdict(name="cannot judge", reasons=(objection, "nothing was edited"))
        return _nothing(visit, asked, knowledge, verdict, editor_for(model, editor), time.perf_counter() - start)
    fact = replace(request, target_true=known)

    visit.note("build probes")
    built = build_probes(
        model,
        fact,
        relation=relation,
        others=others,
        peers=peers_of(relations, kind),
        generated=from_generations(model, fact, seed=seed, batch_size=batch_size),
        given=[UserProbe(prompt=one) if isinstance(one, str) else one for one in probes],
        avoid=avoid,
        seed=seed,
        batch_size=batch_size,
    )
    missing = scarce(built, kind_known=kind is not None)
    if missing is not None and not force:
        verdict = Verdict(name="cannot judge", reasons=(missing, "nothing was edited"))
        return _nothing(visit, asked, knowledge, verdict, editor_for(model, editor), time.perf_counter() - start)
    visit.note("second moments")
    prepared = _prepared(model, editor_for(model, editor), prepare)
    beside = guards_beside(model, built, fact, peers_of(relations, kind))
    candidates = _edits(visit, fact, editor, path, prepared, beside)
    told = _told(editor_for(model, editor))
    return _examined(visit, fact, asked, told, knowledge, built, candidates, start)


def _requested(
    fact: Fact | None, subject: str | None, prompt: str | None, new: str | None, true: str | None
) -> tuple[Fact, str | None]:
    """Return the request as a fact, and the current target if it is given.

    Raises:
        DriftlensError: no fact, two facts, or a partial one.
    """
    if (fact is None) == (subject is None and prompt is None and new is None):
        raise DriftlensError("give a fact, or subject, prompt and new")
    if fact is not None:
        return fact, fact.target_true
    if subject is None or prompt is None or new is None:
        raise DriftlensError("subject, prompt and new belong together; give all three, or a fact")
    # Checked by the fact's own rules, with a stand-in for a missing current target.
    return Fact(subject=subject, prompt=prompt, target_true=true or f"{new} …", target_new=new), true


def _examined(
    visit: Visit,
    fact: Fact,
    asked: dict[str, str],
    editor: str,
    knowledge: Knowledge,
    probes: Sequence[Probe],
    candidates: Sequence[Candidate],
    start: float,
) -> ClinicReport:
    """Evaluate the candidates on the probes: the choice, the findings and the verdict."""
    visit.note("ask the edited models")
    candidates, measured = measure(visit.model, fact, probes, candidates, batch_size=visit.batch_size)
    choosing = scores(probes, measured, held_out=False)
    chosen = choose(candidates, choosing)
    table = answers_table(visit, probes, measured, candidates[0], chosen)
    visit.note("measure attention")
    drift, heads, by_restraint = drift_tables(visit, fact, probes, candidates, chosen)
    visit.note("write on")
    generations = generations_table(visit, fact, probes, candidates[0], chosen)
    held_out = scores(probes, measured, held_out=True)
    return ClinicReport(
        fact=fact,
        request=asked,
        model=visit.model.title,
        model_hash=visit.model.model_hash,
        editor=editor,
        knowledge=knowledge,
        verdict=_verdict(knowledge, chosen, choosing, table, held_out),
        restraint=chosen.restraint,
        edit=chosen.result.edit,
        plain=candidates[0].result.edit,
        path=path_table(candidates, chosen, choosing, by_restraint),
        scores=held_out,
        probes=table,
        drift=drift,
        heads=heads,
        generations=generations,
        seconds=time.perf_counter() - start,
        seed=visit.seed,
    )


def _prepared(model: LensModel, plain: Editor, prepare: Callable[[Editor], Editor] | None) -> Editor:
    return plain.settled(model) if prepare is None else prepare(plain)


def _edits(
    visit: Visit,
    fact: Fact,
    editor: str | Editor | Callable[[float], Editor],
    path: Sequence[Restraint],
    prepared: Editor,
    guards: GuardedSADR,
) -> list[Candidate]:
    """Make an edit for each restraint, all with the second moments of ``prepared``."""
    found: list[Candidate] = []
    moments = prepared.given_second_moments
    for restraint in path:
        own = editor_for(visit.model, editor, restraint, guards)
        if moments:
            own = own.with_second_moments(moments)
        what = f"edit {len(found) + 1} of {len(path)}, {restraint.name}"
        visit.note(what, 0, own.most_steps)
        start = time.perf_counter()
        (result,) = own.edit_many(visit.model, [fact], on_step=of_stage(visit.on_progress, what))
        found.append(Candidate(restraint=restraint, result=result, seconds=time.perf_counter() - start))
    return found


def _verdict(knowledge: Knowledge, chosen: Candidate, choosing: Any, table: Any, held_out: Any) -> Verdict:
    kept: dict[str, tuple[int, int]] = {}
    plain = 0
    for kind in KINDS:
        own = table[(table["kind"] == kind) & (table["held_out"] | (kind == "yours")) & ~table["failed_before"]]
        if kind != "paraphrase":
            kept[kind] = (int(own["recommended_keeps"].sum()), len(own))
            plain += int(own["plain_keeps"].sum()) if kind != "yours" else 0
    rows = held_out[(held_out["restraint"] == chosen.restraint.name) & (held_out["kind"] == "paraphrase")]
    n = int(rows["n"].sum())
    wins = round(float((rows["stands"] * rows["n"]).sum())) if n else 0
    return judge(
        objection=knowledge.objection,
        taken=takes(chosen, choosing),
        probability=chosen.probability,
        kept=kept,
        paraphrases=(wins, n),
        plain=plain if chosen.restraint != PLAIN else None,
        kind_known=knowledge.subject_kind is not None,
    )


def _nothing(
    visit: Visit, asked: dict[str, str], knowledge: Knowledge, verdict: Verdict, editor: Editor, seconds: float
) -> ClinicReport:
    return ClinicReport(
        fact=None,
        request=asked,
        model=visit.model.title,
        model_hash=visit.model.model_hash,
        editor=_told(editor),
        knowledge=knowledge,
        verdict=verdict,
        restraint=None,
        edit=None,
        plain=None,
        path=empty("restraint"),
        scores=empty("restraint kind stands probability n"),
        probes=empty("kind"),
        drift=empty("edit"),
        heads=empty("edit"),
        generations=empty("prompt"),
        seconds=seconds,
        seed=visit.seed,
    )


def _told(editor: Editor) -> str:
    layers = ", ".join(map(str, editor.edited_layers))
    return f"{type(editor).__name__} at layer{'s' if len(editor.edited_layers) > 1 else ''} {layers}"
