"""The card of each kind of result, shown at the end of a notebook cell.

Every function takes a result and reads its public attributes. The result classes belong to packages above this one, so
they are not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftlens.display.html import card, faint, pairs, probabilities, row, short, table, token
from driftlens.display.svg import FALL, RISE, curves, heatmap, sparkline

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "attention_drift", "attention_patch", "edit", "edit_result", "joint_edit_result", "lens_model", "record",
    "score_patch", "trace",
]  # fmt: skip

_MOST = 8
"""The most lines of a table, so that a result of a thousand prompts does not fill the screen."""

_MODULES = {"resid": "hidden state", "mlp": "MLP output", "attn": "attention output"}
_COLOURS = {"o_true": RISE, "o_edit": FALL}


def edit_result(result: Any) -> str:
    """The request, the optimisation's settings, and the curves of probability and loss."""
    fact, history = result.fact, result.history
    parts = {
        "prompt": f"{fact.text} …",
        "subject": fact.subject,
        **_made_by(result.edit),
        "optimisation": f"{len(history)} steps{_last_terms(history)}",
    }
    drawn = row(
        sparkline(history["probability"].tolist(), heading="P(o_edit) while editing"),
        sparkline(history["loss"].tolist(), heading="loss", colour=FALL),
    )
    return card("edit of one fact", f"{fact.target_true} → {fact.target_new}", pairs(parts), drawn)


def joint_edit_result(result: Any) -> str:
    """The requests, each with the probability that the optimisation reached."""
    history: Any = result.history
    last: Mapping[int, float] = history.groupby("fact")["probability"].last().to_dict()
    rows = [
        (short(f"{fact.text} …"), fact.target_true, fact.target_new, f"{last[at]:.3f}" if at in last else "")
        for at, fact in enumerate(result.facts[:_MOST])
    ]
    facts = table(("prompt", "o_true", "o_edit", "P(o_edit) reached"), rows, numbers=1)
    title = f"{len(result.facts)} {'fact' if len(result.facts) == 1 else 'facts'} in one update"
    return card("joint edit", title, pairs(_made_by(result.edit)), facts, _more(len(result.facts)))


def edit(of: Any) -> str:
    """Where the edit comes from, and its size in each layer."""
    kept = of.provenance
    request = (
        kept.get("prompt", "").replace("{}", kept.get("subject", ""), 1) if "+" not in kept.get("prompt", "") else ""
    )
    title = f"{request}: {kept.get('target_true', '')} → {kept.get('target_new', '')}" if request else _kind(of)
    rows = [(str(change.site.layer), change.site.map, change.summary, _norm(change)) for change in of.changes]
    layers = table(("layer", "map", "change", "‖ΔW‖"), rows, numbers=1)
    return card("edit", title, pairs(_made_by(of, rank=False)), layers)


def trace(of: Any) -> str:
    """Probabilities in both models, and a heatmap for each target and module."""
    n_cases = len(set(of.baselines["case"]))
    cells: Any = of.table if n_cases == 1 else of.by_role()
    rows, names = ("token", "token_text") if n_cases == 1 else ("role", "role")
    maps = [
        _heatmaps(
            [
                (_MODULES.get(module, module), group[group["module"] == module])
                for module in map(str, dict.fromkeys(group["module"]))
            ],
            rows,
            names,
            of.edited_layers,
            head=f"change of P({target})",
        )
        for target, group in cells.groupby("target_name", sort=False)
    ]
    note = f"the edited model's outputs, {_windows(of.window)}, put into {of.model}"
    note += "; blue: rises, red: falls; bold: what is edited"
    return card("contaminating substitution", _title(of.baselines), _baselines(of.baselines), *maps, faint(note))


def attention_patch(of: Any) -> str:
    """The mean curve over layers."""
    means: Any = of.table.groupby(["target_name", "layer"], sort=False)["probability"].mean()
    lines = [
        (f"P({name})", _COLOURS.get(str(name), RISE), means[name].tolist())
        for name in dict.fromkeys(of.table["target_name"])
    ]
    vanilla: Any = of.baselines.groupby("target_name", sort=False)["vanilla"].mean()
    drawn = curves(lines, axis="layer", dashed=vanilla.tolist())
    note = f"vanilla attention weights, {_windows(of.window)}, in the edited model; dashed: vanilla model"
    return card("attention patching", _title(of.baselines), _baselines(of.baselines), drawn, faint(note))


def score_patch(of: Any) -> str:
    """A heatmap for each target."""
    single = len(set(of.baselines["case"])) == 1
    cells: Any = of.table if single else of.by_role()
    rows, names = ("token", "token_text") if single else ("role", "role")
    panels = [(f"change of P({name})", group) for name, group in cells.groupby("target_name", sort=False)]
    drawn = _heatmaps(panels, rows, names, of.edited_layers)
    note = (
        f"vanilla score of last token → this token, {_windows(of.window)}, in the edited model; blue: rises, red: falls"
    )
    return card("score patching", _title(of.baselines), _baselines(of.baselines), drawn, faint(note))


def attention_drift(of: Any) -> str:
    """The factors of the first cases, and which heads look more at the subject."""
    columns = ("kl", "max_subject", "max_others", "sum_subject", "hidden_cosine")
    rows = [
        (short(str(one["prompt"])), *(f"{one[name]:.4f}" for name in columns))
        for one in of.table.head(_MOST).to_dict("records")
    ]
    means: Any = of.heads.groupby(["head", "layer"], as_index=False)[["drift_subject"]].mean()
    means = means.rename(columns={"drift_subject": "effect"})
    names = means.assign(name="head " + means["head"].astype(str))
    heads = _heatmaps([("change of attention to the subject's last token", names)], "head", "name", ())
    n = len(of.table)
    title = f"{n} {'prompt' if n == 1 else 'prompts'}, layers {', '.join(map(str, of.layers))}"
    table_of = table(("prompt", *columns), rows, numbers=len(columns))
    return card("attention drift", title, table_of, _more(n), heads, faint("edited minus vanilla; blue: attends more"))


def lens_model(of: Any) -> str:
    """Size, backend, and what the self-check measured."""
    parts = {
        "family": of.family + (", attention and MLP in parallel" if of.parallel_blocks else ""),
        "size": f"{of.n_layers} layers, {of.n_heads} heads, width {of.d_model}, MLP {of.d_mlp}",
        "vocabulary": f"{of.d_vocab:,} tokens, context of {of.n_ctx:,}",
        "source": of.source,
        "weights": f"{str(of.dtype).removeprefix('torch.')} on {of.device}, hash {of.model_hash}",
    }
    return card("model", of.name, pairs(parts))


def record(of: Any) -> str:
    """The edit request, and for each task the number of prompts and the first of them."""
    fact = of.fact
    rows = [
        (
            name.replace("_", " "),
            str(len(prompts)),
            short(prompts[0].text, 80),
            prompts[0].target_true,
            prompts[0].target_new,
        )
        for name, prompts in of.tasks.items()
        if prompts
    ]
    title = f"{fact.text} {fact.target_true} → {fact.target_new}"
    head = ("task", "prompts", "the first", "target_true", "target_new")
    return card(f"record {of.index}" + (f", {of.split}" if of.split else ""), title, table(head, rows))


def _made_by(of: Any, *, rank: bool = True) -> dict[str, str]:
    kept = of.provenance
    layers = list(of.layers)
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
    ranks = {update.rank for update in of.updates.values()}
    size = f", rank {max(ranks)}" if rank and ranks else ""
    regularizers = kept.get("regularizers", "")
    return {
        "editor": f"{kept.get('editor', '')} {where if layers else ''}{size}".strip(),
        "regularizers": ""
        if regularizers == "()"
        else short(regularizers.removeprefix("(").removesuffix(")").removesuffix(","), 100),
        "model": Path(kept.get("model", "")).name,
    }


def _kind(of: Any) -> str:
    return "low-rank update" if len(of.updates) == len(of.changes) else "edit"


def _norm(change: Any) -> str:
    return f"{float(change.matrix().float().norm()):.4g}" if change.is_weights else ""


def _last_terms(history: pd.DataFrame) -> str:
    if not len(history):
        return ""
    last: Any = history.iloc[-1]
    names = [name for name in history.columns if name not in ("fact", "step", "loss", "probability")]
    terms = (f"{name.replace('_', ' ')} {last[name]:.3f}" for name in names if last[name])
    return "; at the end " + ", ".join(terms)


def _title(baselines: pd.DataFrame) -> str:
    prompts = list(dict.fromkeys(baselines["prompt"]))
    return short(str(prompts[0]), 100) if len(prompts) == 1 else f"mean of {len(set(baselines['case']))} prompts"


def _baselines(baselines: pd.DataFrame) -> str:
    groups: Any = baselines.groupby("target_name", sort=False)
    rows: list[Sequence[str]] = []
    for name, group in groups:
        answers = list(dict.fromkeys(group["target"]))
        answer = short(str(answers[0]), 40) if len(answers) == 1 else ""
        rows.append((f"P({name})", answer, probabilities(group["vanilla"].mean(), group["edited"].mean())))
    return table(("", "", "vanilla → edited model"), rows, numbers=1)


def _heatmaps(
    panels: Sequence[tuple[str, Any]], rows: str, names: str, edited_layers: Sequence[int], *, head: str = ""
) -> str:
    """Heatmaps side by side on one scale; `rows` is the column that identifies lines, `names` are their labels."""
    largest = max((float(cells["effect"].abs().max()) for _, cells in panels), default=0.0)
    limit = max(largest, 0.01)  # as in the figures: rounding must not be painted in full colour
    drawn: list[str] = []
    for heading, cells in panels:
        lines = list(dict.fromkeys(cells[rows]))
        layers: list[int] = sorted({int(layer) for layer in cells["layer"]})
        grid: Any = cells.pivot(index=rows, columns="layer", values="effect").loc[lines, layers]
        first: Any = cells.drop_duplicates(rows).set_index(rows).loc[lines]
        roles = first["role"].tolist() if "role" in first.columns else [""] * len(lines)
        drawn.append(
            heatmap(
                grid.to_numpy().tolist(),
                [token(str(name)) for name in (lines if names == rows else first[names])],
                limit=limit,
                heading=heading,
                columns=layers,
                bold_rows={at for at, role in enumerate(roles) if "subject token" in str(role)},
                bold_columns=set(edited_layers),
            )
        )
    scale = faint(f"{head}, full colour at ± {limit:.3f}" if head else f"full colour at ± {limit:.3f}")
    return scale + row(*drawn)


def _windows(window: int) -> str:
    return "one layer" if window == 1 else f"{window} layers"


def _more(n: int) -> str:
    return faint(f"and {n - _MOST} more") if n > _MOST else ""
