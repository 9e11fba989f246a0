"""The clinic's result: tables, the edits and the verdict, also as JSON or as an HTML page.

The JSON (``schema`` is :data:`SCHEMA`; its number changes with every change that could break a reader) has the keys

``schema, driftlens, model, model_hash, editor, seed, seconds, fact`` (subject, prompt, target_true, target_new),
``verdict`` (name, reasons), ``knowledge`` (:class:`driftlens.clinics.knowledge.Knowledge`), ``recommended`` (restraint,
gamma and guards; null: nothing edited), ``recommended_gamma`` (0: without SADR), ``path, scores, probes, drift, heads,
generations`` (lists of the rows of the tables of :class:`ClinicReport`), ``second_moment``.  Numbers that are not
finite are null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from driftlens.clinics.knowledge import Knowledge
from driftlens.clinics.restraints import Restraint
from driftlens.clinics.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

    from driftlens.data import Fact
    from driftlens.edits import Edit

__all__ = ["SCHEMA", "ClinicReport"]

SCHEMA = "driftlens-clinic-2"

_TABLES = ("path", "scores", "probes", "drift", "heads", "generations")


@dataclass(frozen=True, kw_only=True, eq=False)
class ClinicReport:
    """The clinic's findings; the tables are empty if nothing was edited.

    Attributes:
        fact: the request; None if the model has no answer that could serve as ``target_true``.
        request: subject, prompt, target_true and target_new as far as they are known.
        model: the model's name.
        model_hash: the model's fingerprint.
        editor: a short description of the editor.
        knowledge: what the vanilla model knows.
        verdict: one of four, with reasons.
        restraint: the recommended one; None: nothing was edited.
        edit: the recommended edit.
        plain: the edit without a restraint.
        path: a row per restraint: ``restraint, gamma, guards, recommended, takes, p_new``, ``paraphrase, relation,
            neighbour, distractor, yours`` (shares of the choosing probes that stand), ``drift`` (Σ KL after the edit's
            prompt), ``steps, seconds``.
        scores: shares of held-out probes that stand: ``restraint, kind, stands, probability, n``.
        probes: a row per probe: ``kind, held_out, group, prompt, distractor, failed_before, answer, before,
            probability, plain, recommended`` (greedy answers), ``plain_keeps, recommended_keeps, plain_p_answer,
            plain_p_other, recommended_p_answer, recommended_p_other``.
        drift: a row per model and place: ``edit`` ("plain" or "recommended"), ``place`` ("the edit's prompt" or
            "distractor contexts"), ``kl``, ``max_subject``, ``prompts``.
        heads: ``edit, place, layer, head, kl, drift_subject, vanilla_subject, edited_subject``, means over prompts.
        generations: ``prompt, vanilla, plain, recommended``.
        seconds: duration of the whole visit.
        seed: seed of all random choices.
    """

    fact: Fact | None
    request: dict[str, str]
    model: str
    model_hash: str
    editor: str
    knowledge: Knowledge
    verdict: Verdict
    restraint: Restraint | None
    edit: Edit | None
    plain: Edit | None
    path: pd.DataFrame
    scores: pd.DataFrame
    probes: pd.DataFrame
    drift: pd.DataFrame
    heads: pd.DataFrame
    generations: pd.DataFrame
    seconds: float
    seed: int

    def __repr__(self) -> str:
        told = "nothing edited" if self.restraint is None else self.restraint.name
        return f"ClinicReport({self.request['subject']!r}: {self.verdict.name}, {told})"

    def _repr_html_(self) -> str:
        from driftlens.clinics.page import card

        return card(self)

    @property
    def gamma(self) -> float | None:
        """The recommended γ: 0 if SADR is not recommended, None if nothing was edited."""
        return None if self.restraint is None else self.restraint.gamma

    @property
    def changed(self) -> pd.DataFrame:
        """The probes whose answer is wrong under the recommendation or without a restraint.

        Probes that the unedited model fails as well are left out.
        """
        probes: Any = self.probes
        if not len(probes):
            return probes
        return probes[~(probes["plain_keeps"] & probes["recommended_keeps"]) & ~probes["failed_before"]]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the edits themselves, as plain Python values; see the module."""
        from driftlens.version import __version__

        return {
            "schema": SCHEMA,
            "driftlens": __version__,
            "model": self.model,
            "model_hash": self.model_hash,
            "editor": self.editor,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "fact": self.request,
            "verdict": {"name": self.verdict.name, "reasons": list(self.verdict.reasons)},
            "knowledge": _plain(asdict(self.knowledge)),
            "recommended": None
            if self.restraint is None
            else {"restraint": self.restraint.name, "gamma": self.gamma, "guards": self.restraint.guards},
            "recommended_gamma": self.gamma,
            "second_moment": self.edit.provenance.get("second_moment", "") if self.edit is not None else "",
            **{name: _rows(getattr(self, name)) for name in _TABLES},
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)

    def to_html(self) -> str:
        """A page that needs no network and no script, for light and dark screens."""
        from driftlens.clinics.page import page

        return page(self)


def _rows(table: Any) -> list[dict[str, Any]]:
    return [_plain(row) for row in table.to_dict(orient="records")]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    if not isinstance(value, str) and hasattr(value, "item"):
        value = value.item()  # NumPy's scalars
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
