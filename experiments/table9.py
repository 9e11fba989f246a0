"""Table 9: texts of edited models compared in pairs, without and with SADR (paper, E.4), and the page for annotators.

For ROME, PMET and MEMIT 20 pairs of texts are generated.  Beside the table lie `table9_annotate.html`, which shows the
60 pairs to people, and `table9_key.json`, with which `driftlens agree` reads what they answered.

No people were asked here.  So that the table can be laid out, its wins and losses are those of an *automatic judge*
with three rules, which knows nothing but words:

1. Edit success: naming the new object counts +1, naming the old one −1; the higher sum wins.
2. Specificity: of the sentences after the first, the share that name the new object; the lower one wins.
3. Fluency: the text's n-gram entropy (FL); higher by 10 points or more wins.

--records chooses how many pairs (default 20).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftlens.data import Record
from driftlens.errors import DriftlensError
from driftlens.evaluation.fluency import fluency_scores
from driftlens.files import atomic_path, cache_folder
from driftlens.human import CRITERIA, Comparison, Systems, TextPair, comparison_page, write_pairs
from driftlens.human.agreement import OUTCOMES, Counts
from driftlens.options.program import run_command
from driftlens.plots import plot_table
from driftlens.runs.edit_cache import cached_edits
from driftlens.statistics.intervals import corrected_interval
from experiments.artifacts import Artifact, Claim, Number
from experiments.benchmarks import Setting, editor_of, records_for, settings_configuration
from experiments.cases import names
from experiments.command import ArtifactRecipe, command
from experiments.paper_numbers import TABLE_9
from experiments.study import Study
from experiments.tuning import tuned

PAIRS = 20
"""The number of pairs of each editor, as in the paper."""
CHECKS = 2
ORDER = ("specificity", "success", "fluency")
EDITORS = ("rome", "pmet", "memit")
LEAST_FLUENCY = 10.0
"""A smaller difference of FL is a tie."""
PAPER_ANSWERS = 20 * 2 * 9
"""Pairs × models × annotators in a row of the paper's table."""


def table9(study: Study) -> Artifact:
    """Tabulate editors × criteria by the automatic judge; also write the annotators' page and its key."""
    pairs = [pair for editor in EDITORS for pair in _pairs(study, editor)]
    n_spare = CHECKS if len(pairs) > len(EDITORS) * CHECKS else 0
    of = {editor: [pair for pair in pairs if pair.setting == editor.upper()] for editor in EDITORS}
    counted = [pair for own in of.values() for pair in own[: len(own) - n_spare]]
    spares = [own[len(own) - n_spare + at] for at, own in enumerate(list(of.values())[:n_spare])]
    _write_study(study, counted, spares)
    judged = pd.DataFrame([_judged(pair, fluency) for pair, fluency in zip(counted, _fluencies(counted), strict=True)])
    drawn = pd.DataFrame([_row(judged, editor.upper(), criterion) for editor in EDITORS for criterion in ORDER])
    n_pairs = len(counted) // len(EDITORS)
    about = f"{study.model_name}, {n_pairs} pairs an editor from {study.data_name}"
    return Artifact(
        name="table9",
        title="Table 9. Texts compared in pairs, by an automatic judge",
        caption=(
            "**No people were asked: wins, losses and ties are an automatic judge's, and say nothing about what people "
            "would prefer.** It counts names and n-grams: edit success by whether a text names the new or the old "
            "object, specificity by how many of the sentences after the first name the new object, fluency by n-gram "
            f"entropy. {about}; texts of at most 100 tokens; in brackets 95 % bootstrap intervals over pairs. The "
            f"paper's percentages are multiples of 1/{PAPER_ANSWERS} (20 pairs × 2 models × 9 annotators); 28.33 is "
            f"102 answers; one judge gives multiples of 1/{n_pairs} and has no κ. To ask people, send them "
            "[table9_annotate.html](table9_annotate.html), which is the paper's Figures 12 and 13, and read their "
            "answers with `driftlens agree ANSWERS.json --key table9_key.json`."
        ),
        figure=plot_table(
            pd.DataFrame([_cells(row) for row in drawn.to_dict("records")]),
            title="Texts compared in pairs, by an automatic judge (no people)",
            note=f"{about} · win: the text with SADR is preferred · brackets: 95 % bootstrap intervals over pairs · "
            "paper: win / loss / tie of nine annotators on GPT-J and Llama3-8b, and Fleiss' κ × 100",
            left=2,
            rules=[len(ORDER) * at for at in range(1, len(EDITORS))],
        ),
        drawn=drawn,
        cases=judged,
        numbers=[
            Number(
                name=f"vs. {editor.upper()}: {_title(criterion)}, win",
                paper=f"{TABLE_9[editor.upper(), criterion]['win']:.2f} "
                f"({round(TABLE_9[editor.upper(), criterion]['win'] * PAPER_ANSWERS / 100)}/{PAPER_ANSWERS})",
                here=_share(_of(drawn, editor.upper(), criterion), "win"),
            )
            for editor in EDITORS
            for criterion in ORDER
        ],
        claims=[
            Claim(
                claim=f"Annotators find that SADR {claim}.",
                answer="cannot be told",
                because=f"No people were asked. By the automatic judge it wins and loses {_listed(drawn, criteria)}.",
            )
            for claim, criteria in (
                ("improves specificity and fluency", ("specificity", "fluency")),
                ("maintains edit success", ("success",)),
            )
        ],
    )


def _settings(study: Study, editor: str) -> tuple[Setting, Setting]:
    found = tuned(study, editor)
    return Setting(editor=editor, lr=found.lr), Setting(editor=editor, sadr=True, gamma=found.gamma, lr=found.lr)


def _records(study: Study) -> list[Record]:
    """The pairs' records and those of the attention checks."""
    wanted = (study.options.records or PAIRS) + CHECKS
    found = records_for(study, wanted) if study.options.records is None else study.records[:wanted]
    if not found:
        raise DriftlensError(f"{study.data_name} holds no records to compare texts on; choose other --data")
    return found


def _pairs(study: Study, editor: str) -> list[TextPair]:
    records = _records(study)
    facts = [record.fact for record in records]
    edits = [
        cached_edits(
            study.model, _complete(study, setting), facts, cache_folder() / "edits",
            batch_size=study.options.batch_size,
        )
        for setting in _settings(study, editor)
    ]  # fmt: skip
    with study.shown(f"table9, texts of {editor.upper()}") as done:
        return write_pairs(
            study.model, records, *edits, setting=editor.upper(), seed=study.options.seed,
            batch_size=2 * study.options.batch_size, on_rows=done,
        )  # fmt: skip


def _complete(study: Study, setting: Setting) -> Any:
    editor = editor_of(study, setting)
    assert editor is not None
    return editor


def _write_study(study: Study, pairs: Sequence[TextPair], spares: Sequence[TextPair]) -> None:
    """Write the page that shows the pairs to people, and the key to their answers."""
    systems = {
        editor.upper(): Systems(baseline=editor.upper(), challenger=f"{editor.upper()} + SADR") for editor in EDITORS
    }
    made = Comparison.of(
        pairs, systems, spares=spares, checks=CHECKS, seed=study.options.seed, about={"model": study.model_name}
    )
    folder = Path(study.options.out)
    made.save(folder / "table9_key.json")
    with atomic_path(folder / "table9_annotate.html") as temporary:
        temporary.write_bytes(comparison_page(made))


def _fluencies(pairs: Sequence[TextPair]) -> list[tuple[float, float]]:
    texts = [pair.prompt + text for pair in pairs for text in (pair.baseline, pair.challenger)]
    values = fluency_scores(pd.DataFrame({"record": range(len(texts)), "text": texts}))["fluency"].tolist()
    return list(zip(values[::2], values[1::2], strict=True))


def _judged(pair: TextPair, fluency: tuple[float, float]) -> dict[str, Any]:
    """A pair with its scores and the judge's answers."""
    texts = (pair.baseline, pair.challenger)
    scores = {
        "success": [_success(pair, text) for text in texts],
        "specificity": [-_failures(pair, text) for text in texts],
        "fluency": list(fluency),
    }
    least = {"fluency": LEAST_FLUENCY}
    told: dict[str, Any] = {
        "editor": pair.setting,
        "prompt": pair.prompt,
        "target_true": pair.fact.target_true,
        "target_new": pair.fact.target_new,
        "baseline": pair.baseline,
        "challenger": pair.challenger,
    }
    for criterion, (ours, theirs) in scores.items():
        told[f"{criterion}_baseline"], told[f"{criterion}_challenger"] = ours, theirs
        told[criterion] = outcome(theirs - ours, least.get(criterion, 0.0))
    return told


def outcome(gain: float, least: float) -> str:
    """Win, loss or tie by a difference of scores; differences of zero or below `least` are ties."""
    if gain == 0 or abs(gain) < least:
        return "tie"
    return "win" if gain > 0 else "loss"


def _success(pair: TextPair, text: str) -> float:
    return float(names(pair.fact.target_new, text)) - float(names(pair.fact.target_true, text))


def _failures(pair: TextPair, text: str) -> float:
    """The share of the sentences after the first that name the new object."""
    later = re.split(r"(?<=[.!?])\s+", text.strip())[1:]
    return float(np.mean([names(pair.fact.target_new, sentence) for sentence in later])) if later else 0.0


def _row(judged: pd.DataFrame, editor: str, criterion: str) -> dict[str, Any]:
    answers = judged.loc[judged["editor"] == editor, criterion]
    counts = np.array([[answer == name for name in OUTCOMES] for answer in answers], dtype=np.int64)
    row: dict[str, Any] = {"editor": editor, "criterion": criterion, "pairs": len(counts)}
    for at, name in enumerate(OUTCOMES):
        share = _share_of(at)
        row[name] = share(counts)
        row[f"{name}_low"], row[f"{name}_high"] = corrected_interval(share, counts)
        row[f"{name}_paper"] = TABLE_9[editor, criterion][name] / 100
    return {**row, "kappa_paper": TABLE_9[editor, criterion]["kappa"] / 100}


def _share_of(category: int) -> Callable[[Counts], float]:
    return lambda counts: float(counts[:, category].mean())


def _cells(row: dict[str, Any]) -> dict[str, str]:
    paper = TABLE_9[row["editor"], row["criterion"]]
    first = row["criterion"] == ORDER[0]
    return {
        "": f"{row['editor']} + SADR vs. {row['editor']}" if first else "",
        "Metric": _title(row["criterion"]),
        **{f"{name.capitalize()} (%)": _share(row, name) for name in OUTCOMES},
        "Paper: win / loss / tie": " / ".join(f"{paper[name]:.2f}" for name in OUTCOMES),
        "κ": f"{paper['kappa']:.2f}",
    }


def _share(row: Any, name: str) -> str:
    return f"{100 * row[name]:.1f} [{100 * row[f'{name}_low']:.0f}, {100 * row[f'{name}_high']:.0f}]"


def _of(drawn: pd.DataFrame, editor: str, criterion: str) -> Any:
    return drawn[(drawn["editor"] == editor) & (drawn["criterion"] == criterion)].iloc[0]


def _title(criterion: str) -> str:
    return next(each.title for each in CRITERIA if each.name == criterion)


def _listed(drawn: pd.DataFrame, criteria: Sequence[str]) -> str:
    parts = [
        f"{100 * _of(drawn, editor.upper(), criterion)['win']:.0f} : "
        f"{100 * _of(drawn, editor.upper(), criterion)['loss']:.0f} % ({_title(criterion).lower()}, {editor.upper()})"
        for criterion in criteria
        for editor in EDITORS
    ]
    return ", ".join(parts)


def configuration(study: Study) -> dict[str, Any]:
    """The configuration for the manifest."""
    settings = [setting for editor in EDITORS for setting in _settings(study, editor)]
    return settings_configuration(study, settings, _records(study), max_tokens=100, judge=1, checks=CHECKS)


ARTIFACTS = {"table9": ArtifactRecipe(make=table9, configuration=configuration)}
main = command(ARTIFACTS, __doc__)

if __name__ == "__main__":
    sys.exit(run_command(main))
