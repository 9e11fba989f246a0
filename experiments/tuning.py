"""Tune learning rate and γ for a model without a preset, on records that no table is measured on.

`--tune N` takes N records that are not among the test records and share no subject with them (from the data's
validation split if it has one), and chooses for each editor

1. the learning rate of the editor alone: among the preset's, half of it and twice of it, or those of `--lrs`. Of those
   whose edit success (mean of ES and PS) is within 2 points of the best, the one with the highest Avg. S is chosen;
2. γ: among the paper's values (C.2), or those of `--gammas`. Of those that cost at most 4 points of ES, the one with
   the highest Avg. S is chosen; if all cost more, the one that costs least.

Avg. S is the harmonic mean of those of its parts that the data has.  The manifest of every artifact lists what was
tried and chosen.  Without `--tune` the presets are used, and nothing is measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from driftlens.data import Record
from driftlens.errors import DriftlensError
from experiments.benchmarks import (
    EDITORS,
    BenchmarkRun,
    Setting,
    computed,
    editor_of,
    optimizing,
    records_for,
    spread_over_tasks,
)
from experiments.paper_numbers import AVERAGED, harmonic_mean

if TYPE_CHECKING:
    from experiments.study import Study

__all__ = ["Tuned", "TuningCandidate", "best_gamma", "best_lr", "tuned", "tuning_text", "validation_records"]

GAMMAS = (5e-3, 1e-2, 4e-2, 8e-2)
"""The values that the paper tried on its validation split (C.2)."""
LR_FACTORS = (0.5, 1.0, 2.0)
MOST_ES_LOST = 4.0
SUCCESS_MARGIN = 2.0


@dataclass(frozen=True, kw_only=True)
class TuningCandidate:
    """The tried settings and their scores in percent; γ is None for the editor alone."""

    lr: float
    gamma: float | None
    es: float
    ps: float
    average: float

    @property
    def success(self) -> float:
        """Edit success; PS may be missing."""
        return float(np.nanmean([self.es, self.ps]))


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The chosen settings of an editor; None leaves the preset's."""

    lr: float | None = None
    gamma: float | None = None
    tried: tuple[TuningCandidate, ...] = ()

    def told(self) -> dict[str, Any]:
        """The choice, for the manifest."""
        return {"lr": self.lr, "gamma": self.gamma, "tried": [asdict(one) for one in self.tried]}


def tuned(study: Study, editor: str) -> Tuned:
    """Return the choice for an editor, made once; an empty one without `--tune`."""
    options = study.options
    if options.tune is None:
        if options.lrs:
            raise DriftlensError("--lrs names what --tune tries; give --tune with a number of records, too")
        return Tuned()
    key = f"tuned {editor}"
    if key not in study.measured:
        study.measured[key] = _tune(study, editor)
    return study.measured[key]


def validation_records(study: Study, test: list[Record]) -> list[Record]:
    """The records to choose on."""
    wanted = study.options.tune or 0
    subjects = {record.fact.subject for record in test}
    split = [record for record in study.all_records if record.split == "validation"]
    others = [record for record in split or study.records if record.fact.subject not in subjects]
    chosen = spread_over_tasks(others, wanted)
    if len(chosen) < wanted:
        raise DriftlensError(
            f"--tune {wanted} finds only {len(chosen)} records of {study.options.data} beside the {len(test)} test "
            "records; give fewer to either (--records)"
        )
    return chosen


def best_lr(tried: list[TuningCandidate]) -> TuningCandidate:
    """Rule 1."""
    most = max(one.success for one in tried)
    return max((one for one in tried if one.success >= most - SUCCESS_MARGIN), key=lambda one: one.average)


def best_gamma(tried: list[TuningCandidate], alone: TuningCandidate) -> TuningCandidate:
    """Rule 2; `alone` is the editor without SADR."""
    cheap = [one for one in tried if one.es >= alone.es - MOST_ES_LOST]
    return max(cheap, key=lambda one: one.average) if cheap else max(tried, key=lambda one: one.es)


def tuning_text(study: Study) -> str:
    """Describe the choice in a sentence for captions; "" if there is none."""
    if study.options.tune is None:
        return ""
    found = [(editor, tuned(study, editor)) for editor in EDITORS]
    parts = [f"{editor.upper()} lr {each.lr:g}, γ {each.gamma:g}" for editor, each in found]
    return f"Chosen on {study.options.tune} other records: {'; '.join(parts)}."


def _tune(study: Study, editor: str) -> Tuned:
    options = study.options
    records = validation_records(study, records_for(study))

    def measure(setting: Setting) -> TuningCandidate:
        return _candidate(computed(study, setting, records))

    preset = optimizing(editor_of(study, Setting(editor=editor)))
    rates = options.lrs or (() if options.lr is not None else tuple(factor * preset.lr for factor in LR_FACTORS))
    alone = [measure(Setting(editor=editor, lr=lr, texts=False)) for lr in rates or (preset.lr,)]
    chosen = best_lr(alone)
    gammas = options.gammas or (GAMMAS if options.gamma is None else (options.gamma,))
    restrained = [
        measure(Setting(editor=editor, sadr=True, gamma=gamma, lr=chosen.lr, texts=False)) for gamma in gammas
    ]
    gamma = best_gamma(restrained, chosen).gamma
    return Tuned(lr=chosen.lr, gamma=gamma, tried=(*alone, *restrained))


def _candidate(run: BenchmarkRun) -> TuningCandidate:
    values: Any = run.scores["value"]
    parts = [float(values[score]) for score in AVERAGED if not np.isnan(values[score])]
    return TuningCandidate(
        lr=optimizing(run.editor).lr,
        gamma=run.setting.gamma,
        es=float(values["ES"]),
        ps=float(values["PS"]),
        average=harmonic_mean(parts) if min(parts) > 0 else 0.0,
    )
