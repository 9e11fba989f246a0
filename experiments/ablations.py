"""Shared code of the ablations: one editor, some records, and runs that differ in one setting (paper, 6 and E.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.benchmarks import FEWER, NONE, BenchmarkRun, Setting, records_for, settings_configuration
from experiments.comparisons import score_table
from experiments.main_table import run
from experiments.tuning import tuned

if TYPE_CHECKING:
    from experiments.study import Study

__all__ = [
    "GAMMAS",
    "SPECIFICITY",
    "SUCCESS",
    "about",
    "alone",
    "configured",
    "drawn",
    "gammas",
    "restrained",
    "runs_of",
    "specificity",
    "success",
]

GAMMAS = (5e-3, 2e-2, 4e-2, 8e-2)
"""The values of Table 10."""
SUCCESS = ("ES", "PS")
SPECIFICITY = ("NS", "RS", "DNS")
"""The scores that 6.1 averages."""


def gammas(study: Study, paper: tuple[float, ...] | None = None) -> tuple[float, ...]:
    """The γ that an ablation compares: those of `--gammas`, or else the paper's, by default those of Table 10."""
    return study.options.gammas or (GAMMAS if paper is None else paper)


def alone(study: Study, **changes: Any) -> Setting:
    """The editor without SADR."""
    editor = study.options.editor
    given: dict[str, Any] = {"editor": editor, "lr": tuned(study, editor).lr}
    return Setting(**(given | changes))


def restrained(study: Study, gamma: float, **changes: Any) -> Setting:
    """The editor with SADR of this γ."""
    return alone(study, sadr=True, gamma=gamma, **changes)


def runs_of(study: Study, settings: Mapping[str, Setting]) -> dict[str, BenchmarkRun]:
    """Run named settings on the ablations' records."""
    records = records_for(study, FEWER)
    return {name: run(study, setting, records) for name, setting in settings.items()}


def configured(study: Study, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The configuration that these runs' numbers depend on."""
    given = [setting for setting in settings.values() if setting != NONE]
    return settings_configuration(study, given, records_for(study, FEWER))


def success(run: BenchmarkRun, scores: Sequence[str] = SUCCESS) -> float:
    """Edit Success as defined in 6.1: the mean of ES and PS."""
    values: Any = run.scores["value"]
    return float(values[list(scores)].mean())


def specificity(run: BenchmarkRun) -> float:
    """Specificity as defined in 6.1: the mean of NS, RS and DNS."""
    return success(run, SPECIFICITY)


def drawn(runs: Mapping[str, BenchmarkRun]) -> pd.DataFrame:
    """All scores of all settings."""
    return score_table(runs)


def about(study: Study, runs: Mapping[str, BenchmarkRun]) -> str:
    """Describe model, records and editor in a sentence."""
    from driftlens.options.editing import editor_text

    first = next(iter(runs.values()))
    editor = next(run.editor for run in runs.values() if run.editor is not None)
    return (
        f"Model {study.model_name}, {study.model.n_layers} layers; {editor_text(editor).split(' + ')[0]}; "
        f"{len(first.records)} test records of {study.data_name}"
    )
