"""The rows of the main table; runs of fewer records are taken from theirs if the settings are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from driftlens.data import Record
from experiments.benchmarks import EDITORS, NONE, BenchmarkRun, Setting, computed, editor_of, records_for
from experiments.tuning import tuned

if TYPE_CHECKING:
    from experiments.study import Study

__all__ = ["main_settings", "run", "settings_of"]


def main_settings(study: Study) -> list[Setting]:
    """The rows of the main table."""
    return settings_of(study, EDITORS)


def settings_of(study: Study, editors: Sequence[str]) -> list[Setting]:
    """No edit, and every editor without and with SADR, tuned on request."""
    rows = [NONE]
    for editor in editors:
        found = tuned(study, editor)
        rows += [Setting(editor=editor, lr=found.lr), Setting(editor=editor, sadr=True, gamma=found.gamma, lr=found.lr)]
    return rows


def run(study: Study, setting: Setting, records: Sequence[Record]) -> BenchmarkRun:
    """Return the run of a setting on these records: from memory, from disk, or computed."""
    main = records_for(study)
    held = {record.index for record in main}
    if len(records) < len(main) and all(record.index in held for record in records):
        wanted = _identity(study, setting)
        for row in main_settings(study):
            if row.texts >= setting.texts and _identity(study, row) == wanted:
                return computed(study, row, main).of(records)
    return computed(study, setting, records)


def _identity(study: Study, setting: Setting) -> tuple[str, ...]:
    """Identifies a setting once presets are filled in."""
    editor = editor_of(study, setting)
    if editor is None:
        return ()
    about = editor.provenance(study.model, study.records[0].fact)
    return about["editor"], about["settings"], about["regularizers"]
