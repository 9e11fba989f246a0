"""The verdict: one of four, by rules on the held-out probes, with the numbers that it rests on.

==============  ====================================================================================================
verdict         when
==============  ====================================================================================================
cannot judge    the model does not know the fact, or there are fewer than :data:`ENOUGH` held-out probes of the
                subject's other relations or of distractor contexts
do not ship     the edit does not take; or fewer than :data:`CARE` of the held-out probes keep their answer; or fewer
                than :data:`CARE_KIND` of one kind
ship with care  the edit takes, but fewer than :data:`SHIP` keep their answer, or it does not reach half of the
                held-out paraphrases, or one of the user's own probes goes wrong
ship            the edit takes, and at least :data:`SHIP` keep their answer
==============  ====================================================================================================

A probe keeps its answer if the edited model still gives it greedily.  That is stricter than being more probable than
the new target: a third answer is no better.  The bounds are a choice. SHIP allows one of 20 probes to change, although
the model was sure of all of them. At CARE, one answer in five has changed, and anyone who asks about the subject will
meet such an answer. A single kind may be hit harder than the whole, because edits leak most into relations of one type,
but by no more than a third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from driftlens.clinics.probes import Probe

__all__ = ["CARE", "CARE_KIND", "ENOUGH", "NEEDED", "SHIP", "Verdict", "judge", "scarce"]

SHIP = 0.95
CARE = 0.8
CARE_KIND = 2 / 3
ENOUGH = 3
"""The least number of held-out probes of relations, and of distractor contexts."""

NEEDED = ("relation", "distractor")
"""The kinds of probes that a verdict requires."""

VERDICTS = ("ship", "ship with care", "do not ship", "cannot judge")

NAMES = {
    "paraphrase": "paraphrases",
    "relation": "other facts of the subject",
    "neighbour": "facts of other subjects",
    "distractor": "facts of other subjects behind the edited sentence",
    "yours": "your own probes",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One of :data:`VERDICTS`, with the reasons, a sentence each, the deciding ones first."""

    name: str
    reasons: tuple[str, ...]


def judge(
    *,
    objection: str | None,
    taken: bool,
    probability: float,
    kept: Mapping[str, tuple[int, int]],
    paraphrases: tuple[int, int],
    plain: int | None = None,
    kind_known: bool = True,
) -> Verdict:
    """Apply the rules of the module.

    Args:
        objection: why the model cannot be asked (:class:`driftlens.clinics.knowledge.Knowledge`).
        taken: whether the edit takes.
        probability: P(o_edit) after the edit's prompt.
        kept: by kind, how many held-out probes keep their answer, and their number; "yours" are the user's.
        paraphrases: the number of held-out paraphrases in which the new target wins, and their number.
        kind_known: whether the kind of subject is known, and therefore what it can be asked.
        plain: the number of held-out probes that keep their answer without a restraint, if one is recommended.
    """
    lacking = sum(max(0, ENOUGH - kept.get(kind, (0, 0))[1]) for kind in NEEDED)
    # The user's own probes replace those that could not be made.
    counts = {kind: pair for kind, pair in kept.items() if pair[1] and (kind != "yours" or lacking)}
    good, asked = (sum(pair[at] for pair in counts.values()) for at in (0, 1))
    told = [f"P(new) behind the edit's prompt is {probability:.2f}"]
    told += [f"{right} of {n} held-out {NAMES[kind]} keep their answer" for kind, (right, n) in counts.items()]
    if plain is not None and asked:
        told.append(f"{good} of these {asked} keep it in all, without a restraint {plain}")
    if paraphrases[1]:
        told.append(f"the new answer wins in {paraphrases[0]} of {paraphrases[1]} held-out paraphrases")
    own = kept.get("yours", (0, 0))
    if own[1]:
        told.append(f"{own[0]} of {own[1]} of your own probes are answered as they should be")
    if objection is not None:
        return Verdict(name="cannot judge", reasons=(objection, *told))
    if not taken:
        return Verdict(name="do not ship", reasons=("the edit does not take", *told))
    few = (
        [kind for kind in NEEDED if kept.get(kind, (0, 0))[1] < ENOUGH]
        if kept.get("yours", (0, 0))[1] < lacking
        else []
    )
    if good < CARE * asked and asked >= ENOUGH:
        return Verdict(
            name="do not ship",
            reasons=(
                f"it changes {asked - good} of {asked} answers that should have stayed; at most {_in(CARE)} may",
                *told,
            ),
        )
    hit = [kind for kind, (right, n) in counts.items() if n >= ENOUGH and right < CARE_KIND * n]
    if hit:
        right, n = counts[hit[0]]
        reason = f"it changes {n - right} of {n} {NAMES[hit[0]]}; of one kind at most a third may"
        return Verdict(name="do not ship", reasons=(reason, *told))
    if few:
        own_known = kept.get("yours", (0, 0))[1]
        return Verdict(name="cannot judge", reasons=(_too_few(few, lacking - own_known, kind_known=kind_known), *told))
    doubts = _doubts(good, asked, paraphrases, own)
    return Verdict(name="ship with care" if doubts else "ship", reasons=(*doubts, *told))


def scarce(probes: Sequence[Probe], *, kind_known: bool) -> str | None:
    """What is missing for a verdict, known before anything is edited; None if nothing is missing.

    The user's own probes replace any that the clinic could not make, as far as the unedited model answers them.
    """
    held = {kind: sum(one.held_out for one in probes if one.kind == kind) for kind in NEEDED}
    own = sum(one.kind == "yours" and not one.failed_before for one in probes)
    lacking = sum(max(0, ENOUGH - n) for n in held.values()) - own
    few = [kind for kind, n in held.items() if n < ENOUGH]
    return _too_few(few, lacking, kind_known=kind_known) if few and lacking > 0 else None


def _too_few(kinds: Sequence[str], lacking: int, *, kind_known: bool) -> str:
    names = " and ".join(NAMES[kind] for kind in kinds)
    hint = "" if kind_known else ", or say with --kind what kind of thing the subject is, and so what it can be asked"
    return (
        f"the model is sure of too few {names} to probe: {ENOUGH} must be held out; add {lacking} --probe that it "
        f"answers rightly, about the subject or about others like it{hint}"
    )


def _in(share: float) -> str:
    return f"{100 * (1 - share):.0f} %"


def _doubts(good: int, asked: int, paraphrases: tuple[int, int], own: tuple[int, int]) -> Sequence[str]:
    doubts: list[str] = []
    if good < SHIP * asked:
        doubts.append(f"it changes {asked - good} of {asked} answers that should have stayed, more than {_in(SHIP)}")
    if paraphrases[1] and 2 * paraphrases[0] < paraphrases[1]:
        doubts.append("it hardly reaches other wordings of the fact")
    if own[0] < own[1]:
        doubts.append(f"{own[1] - own[0]} of your own probes go wrong")
    return doubts
