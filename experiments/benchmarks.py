"""The runs behind the benchmark's tables: their records and settings, with one run shared by all tables that need it.

1. Records: among those reserved for measuring, repeatedly take one that has prompts of the task with the fewest records
   so far. Every score then rests on enough records, even if no record has all tasks (half of the paper's benchmark has
   paraphrases and neighbours, the other half relations).  A smaller selection is always the beginning of a larger one.
2. A setting is an editor with its changes to the preset; `None` is the unedited model.
3. A run (`driftlens.runs.benchmark`) is cached under a hash of everything its numbers depend on. Tables 1, 3, 6 and 10
   and Figures 6 and 7 never measure a setting twice, and an interrupted run continues.  Tables with fewer records take
   them from the main table's run if it has the setting.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from driftlens.data import Record, load_texts, true_texts
from driftlens.editors import GuardedSADR
from driftlens.editors.guarded import usual_guards
from driftlens.editors.restrained import with_guards
from driftlens.errors import DriftlensError
from driftlens.files import cache_folder
from driftlens.models.names import resolve
from driftlens.options.editing import applicable, make_editor
from driftlens.options.moments import choose_corpus, with_second_moments
from driftlens.runs import BenchmarkResult, benchmark
from driftlens.runs.manifest import configuration
from driftlens.runs.results import scores_of
from driftlens.runs.shards import settings_hash
from driftlens.runs.work import Measures
from driftlens.statistics.intervals import COLUMNS, numbered, summary_row

if TYPE_CHECKING:
    from driftlens.editors.base import Editor
    from experiments.study import Study

__all__ = [
    "EDITORS",
    "FEWER",
    "MAIN",
    "NONE",
    "BenchmarkRun",
    "Optimizing",
    "Setting",
    "computed",
    "editor_of",
    "optimizing",
    "other_subjects",
    "overlap",
    "records_for",
    "settings_configuration",
    "spread_over_tasks",
]

EDITORS = ("rome", "memit", "pmet")
MAIN = 200
"""The default number of records of the main tables."""
FEWER = 40
"""The default number of records of the ablations, which consist of many runs."""
EVERY_SCORE = ("paraphrase", "neighborhood", "relation", "reasoning")
"""Tasks that not every record has.  All have the rewrite prompt, and distractors come with their tasks."""
_PERPLEXITY_TEXTS = 30
_OTHERS = 200
_NAMES = {"alphaedit": "AlphaEdit"}  # all others' are capitals


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An editor and its changes to the model's preset.

    Attributes:
        editor: "rome", "memit", "pmet" or another registered one; "" means the unedited model.
        sadr: whether attention drift is restrained.
        gamma: γ; None means the preset's.
        heads: "selected" or "all".
        guards: μ and ν of guards, prompts about other things, used instead of SADR; None: no guards.
        lr, steps, kl: settings of the value optimisation; None means the preset's.
        texts: whether texts are generated (FL), which costs about as much as all prompts.
    """

    editor: str = ""
    sadr: bool = False
    gamma: float | None = None
    heads: str = "selected"
    guards: float | None = None
    lr: float | None = None
    steps: int | None = None
    kl: float | None = None
    texts: bool = True

    @property
    def name(self) -> str:
        """The name in the paper's tables, which do not distinguish settings of one editor."""
        name = _NAMES.get(self.editor, self.editor.upper())
        return (name + ("+SADR" if self.sadr else "+guards" if self.guards else "")) or "None"


NONE = Setting()


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchmarkRun:
    """The result of a setting: `nlls` and `records` as in `driftlens.runs.benchmark`, without missing NLLs."""

    setting: Setting
    editor: Editor | None
    nlls: pd.DataFrame
    records: pd.DataFrame

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every score with its intervals; the data's own groups of relation prompts as "RS, same type"."""
        tables = [scores_of(self.nlls, self.records)]
        relations = self.nlls[self.nlls["task"] == "relation"]
        for group in sorted({group for group in relations["group"] if isinstance(group, str)}, reverse=True):
            rows: Any = relations[relations["group"] == group]
            true, new = (rows[name].to_numpy(dtype=float) for name in ("nll_true", "nll_new"))
            parts = {"RS": (true < new).astype(float), "RM": np.exp(-true)}
            values = [summary_row(100 * part, numbered(rows["record"])) for part in parts.values()]
            index = [f"{score}, {group.replace('_', ' ')}" for score in parts]
            tables.append(pd.DataFrame(values, index=index, columns=list(COLUMNS)))
        return pd.concat(tables)

    def with_texts_of(self, run: BenchmarkRun) -> BenchmarkRun:
        """The same run with the fluency and perplexity that `run` measured on some of the records."""
        texts = ["fluency", "perplexity"]
        measured: Any = run.records.set_index("record")[texts].reindex(self.records["record"])
        return replace(self, records=self.records.assign(**{name: measured[name].to_numpy() for name in texts}))

    def of(self, records: Sequence[Record]) -> BenchmarkRun:
        """The same run on some of the records."""
        indices = [record.index for record in records]
        nlls, chosen = (
            table[table["record"].isin(indices)].reset_index(drop=True) for table in (self.nlls, self.records)
        )
        return replace(self, nlls=nlls, records=chosen)


def records_for(study: Study, default: int = MAIN) -> list[Record]:
    """The test records of a table: as many as the command line says, or `default`."""
    return spread_over_tasks(study.records, study.options.records or default)


def spread_over_tasks(records: Sequence[Record], most: int) -> list[Record]:
    """Choose at most `most` distinct records, in an order that balances the number of records per task."""
    waiting = {task: [record for record in records if record.tasks[task]] for task in EVERY_SCORE}
    waiting["rewrite"] = list(records)
    counts = dict.fromkeys(waiting, 0)
    chosen: dict[int, Record] = {}
    while len(chosen) < most:
        for of_task in waiting.values():
            while of_task and of_task[0].index in chosen:
                del of_task[0]
        left = [task for task, of_task in waiting.items() if of_task]
        if not left:
            break
        # Every record has a rewrite prompt, so that task is the last to lack one.
        record = waiting[min(left, key=lambda task: (counts[task], list(waiting).index(task)))][0]
        chosen[record.index] = record
        for task in waiting:
            counts[task] += task == "rewrite" or bool(record.tasks[task])
    return list(chosen.values())


def computed(study: Study, setting: Setting, records: Sequence[Record]) -> BenchmarkRun:
    """Compute a run on exactly these records; `--text-records N` limits fluency and perplexity to the first N."""
    few = study.options.text_records
    if setting.texts and few is not None and few < len(records):
        all_records = computed(study, replace(setting, texts=False), records)
        return replace(all_records.with_texts_of(computed(study, setting, records[:few])), setting=setting)
    editor = editor_of(study, setting)
    measures = Measures(
        generate=setting.texts, perplexity_texts=perplexity_texts(study) if setting.texts else None,
        seed=study.options.seed,
    )  # fmt: skip
    key = settings_hash([dict(configuration(study.model, editor, records, measures)), str(study.model.device.type)])
    if key not in study.measured:
        folder = cache_folder() / "benchmarks" / f"{study.model_name}-{setting.name}-{key}".replace("/", "-")
        if study.options.redo:
            shutil.rmtree(folder, ignore_errors=True)
        with study.shown(f"{setting.name}, records") as done:
            study.measured[key] = benchmark(
                study.model,
                records,
                editor,
                folder,
                generate=measures.generate,
                perplexity_texts=measures.perplexity_texts,
                edit_batch=study.options.batch_size,
                batch_size=2 * study.options.batch_size,
                seed=measures.seed,
                on_shard=lambda so_far, _, __: done(so_far, len(records)),
                on_wait=lambda: study.bars.console.print(
                    f"another process is computing the row “{setting.name}”; waiting for it"
                ),
            )
    found: BenchmarkResult = study.measured[key]
    nlls = found.nlls.dropna(subset=["nll_true", "nll_new"]).reset_index(drop=True)
    return BenchmarkRun(setting=setting, editor=editor, nlls=nlls, records=found.records)


def editor_of(study: Study, setting: Setting) -> Editor | None:
    """The preset with the changes of the command line, then those of the setting, and its second moments."""
    if not setting.editor:
        return None
    options = study.options
    own = {name: value for name in ("lr", "steps", "kl", "gamma") if (value := getattr(setting, name)) is not None}
    layers = options.layers
    if layers is not None and len(layers) > 1 and setting.editor == "rome":
        raise DriftlensError(
            f"--layers names {len(layers)} layers, but ROME is one of the editors here and edits one; give one layer, "
            "or leave it out"
        )
    # Settings that only some of a table's editors have are applied only to those.
    weight = options.second_moment_weight if setting.editor in ("memit", "pmet") else None
    hypernetworks = options.hypernetworks if setting.editor == "mend" else ()
    chosen = replace(
        options, editor=setting.editor, second_moment_weight=weight, hypernetworks=hypernetworks,
        **{"sadr": setting.sadr, "gamma": None, "sadr_heads": setting.heads if setting.sadr else None, **own},
    )  # fmt: skip
    if setting.sadr and setting.gamma is None:
        chosen = replace(chosen, gamma=options.gamma)
    editor = make_editor(study.model, applicable(chosen))
    if setting.guards is not None:
        guards = usual_guards(study.model, mu=setting.guards, nu=setting.guards, subjects=other_subjects(study))
        editor = with_guards(study.model, editor, guards)
    if editor.restrained_above >= study.model.n_layers - 1:
        raise DriftlensError(
            f"layer {editor.restrained_above} leaves no attention above the edit; {study.model.name} has layers 0 to "
            f"{study.model.n_layers - 1}, so choose --layers below the last"
        )
    # Their Cholesky factors cost more than many edits, so one set serves all settings of these layers.
    key = f"moments {editor.edited_layers} {editor.moment_samples}"
    if key not in study.measured:
        corpus = choose_corpus(options.model, options.corpus, study.all_records, given=options.second_moment)
        with study.shown("second moments, texts") as done:
            complete = with_second_moments(study.model, editor, corpus, on_texts=done)
        study.measured[key] = complete.given_second_moments
    return editor.with_second_moments(study.measured[key])


@runtime_checkable
class Optimizing(Protocol):
    """An editor that optimises for a number of steps."""

    @property
    def steps(self) -> int:
        """Its steps."""
        ...

    @property
    def lr(self) -> float:
        """Its learning rate."""
        ...


def optimizing(editor: Editor | None) -> Optimizing:
    """The editor, for a figure or `--tune` that varies its learning rate or steps."""
    if not isinstance(editor, Optimizing):
        name = "no edit" if editor is None else type(editor).__name__
        raise DriftlensError(
            f"{name} has no learning rate and no steps to vary; choose another editor, such as --editor rome"
        )
    return editor


def other_subjects(study: Study) -> tuple[str, ...]:
    """Subjects for guards; no prompt of a record that a table may use mentions them."""
    key = "other subjects"
    if key not in study.measured:
        told = "\n".join(_texts(spread_over_tasks(study.records, max(MAIN, study.options.records or 0))))
        names = dict.fromkeys(record.fact.subject for record in study.all_records)
        study.measured[key] = tuple(name for name in names if name not in told)[:_OTHERS]
    return study.measured[key]


def overlap(study: Study, records: Sequence[Record], guards: GuardedSADR) -> tuple[int, int]:
    """Count the guards that equal or end like one of the records' test prompts, and all guards."""
    made = guards.prompts(study.model, [record.fact for record in records])
    prompts = {text for record in records for text in _texts([record])}
    # A paraphrase follows an unrelated sentence, and a distracted prompt follows the edited one.
    alike = sum(any(text.endswith(guard) or guard.endswith(text) for text in prompts) for own in made for guard in own)
    return alike, sum(map(len, made))


def _texts(records: Sequence[Record]) -> list[str]:
    return [prompt.text for record in records for prompts in record.tasks.values() for prompt in prompts]


def perplexity_texts(study: Study) -> tuple[str, ...] | None:
    """The texts for ME-PPL: English, true statements of a local model's data, or the bundled model's own texts."""
    model = study.options.model
    if model == "demo":
        from driftlens.demo import corpus

        return tuple(islice(corpus(), _PERPLEXITY_TEXTS))
    if resolve(model)[1]:
        return true_texts(study.all_records)[:_PERPLEXITY_TEXTS]
    return tuple(load_texts())


def settings_configuration(
    study: Study, settings: Sequence[Setting], records: Sequence[Record], **more: Any
) -> dict[str, Any]:
    """The configuration that the numbers of these settings depend on, for an artifact's manifest."""
    from driftlens.runs.edit_cache import editor_identity
    from driftlens.version import __version__

    fact = ("subject", "prompt", "target_true", "target_new", "model")
    editors: dict[str, Mapping[str, str]] = {}
    for setting in settings:
        editor = editor_of(study, setting)
        if editor is not None:
            about = editor.provenance(study.model, records[0].fact)
            about = {name: text for name, text in about.items() if name not in fact}
            # Settings of one editor have one name in the paper.
            label = setting.name if setting.name not in editors else f"{setting.name} ({len(editors)})"
            editors[label] = {**about, "second_moment": editor_identity(study.model, editor)}
    return {
        "model": study.model_name,
        "dtype": str(study.model.dtype).removeprefix("torch."),
        "device": study.model.device.type,
        "editors": editors,
        "data": study.data_name,
        "data_hash": settings_hash([record.described() for record in records]),
        "records": len(records),
        "seed": study.options.seed,
        "driftlens": __version__,
        **more,
    }
