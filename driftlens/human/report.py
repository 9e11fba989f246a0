"""Table 9: wins, losses, ties and agreement of every setting, as a figure, LaTeX or plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from driftlens.human.agreement import OUTCOMES
from driftlens.human.comparison import CRITERIA

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from driftlens.human.agreement import Agreement

__all__ = ["TITLES", "agreement_figure", "agreement_latex", "cells", "rows_by_setting"]

_SHOWN = ("specificity", "success", "fluency")
"""The criteria in the order of the paper's table."""
TITLES = {criterion.name: criterion.title for criterion in CRITERIA}


def agreement_figure(found: Agreement, *, title: str = "Human evaluation") -> go.Figure:
    """The table as a figure, with 95 % bootstrap intervals over pairs in brackets."""
    from driftlens.plots import plot_table

    rows: list[dict[str, str]] = []
    rules: list[int] = []
    for own in rows_by_setting(found):
        if rows:
            rules.append(len(rows))
        for at, row in enumerate(own):
            head = f"{row['challenger']} vs. {row['baseline']}" if at == 0 else ""
            rows.append({"": head, "Metric": TITLES[row["criterion"]], **cells(row)})
    most = {name: max(row[name] for own in rows_by_setting(found) for row in own) for name in ("pairs", "annotators")}
    note = [
        f"{most['pairs']} pairs a row",
        f"{most['annotators']} annotators",
        "win: the first-named system is preferred",
        "brackets: 95 % bootstrap intervals over pairs",
    ]
    if found.excluded:
        note.append(f"{len(found.excluded)} left out for failing checks")
    return plot_table(pd.DataFrame(rows), title=title, note=" · ".join(note), left=2, rules=rules)


def agreement_latex(found: Agreement) -> str:
    """The table for a paper that loads ``booktabs`` and ``multirow``: percent, and κ times 100 as in the paper."""
    names = [(f"vs. {row['setting']}", TITLES[row["criterion"]]) for own in rows_by_setting(found) for row in own]
    rows = [
        [*(f"{100 * row[name]:.2f}" for name in OUTCOMES), *(_hundred(row[name]) for name in ("fleiss", "randolph"))]
        for own in rows_by_setting(found)
        for row in own
    ]
    columns = ["Win (%)", "Loss (%)", "Tie (%)", "Fleiss' κ", "Randolph's κ"]
    table = pd.DataFrame(rows, index=pd.MultiIndex.from_tuples(names), columns=columns)
    styled: Any = table.style.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
    latex: str = styled.to_latex(hrules=True, column_format="llrrrrr", multirow_align="t")
    return latex.replace("κ", r"$\kappa$")


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Format a row of :attr:`Agreement.table`: numbers with their intervals, shares in percent."""
    return {
        **{f"{name.capitalize()} (%)": _with_interval(row, name, 100.0, 1) for name in OUTCOMES},
        "Fleiss' κ": _with_interval(row, "fleiss", 1.0, 2),
        "Randolph's κ": _with_interval(row, "randolph", 1.0, 2),
    }


def rows_by_setting(found: Agreement) -> list[list[dict[str, Any]]]:
    """The rows of every setting, in the order of the paper's table."""
    rows: list[dict[str, Any]] = found.table.to_dict("records")  # pyright: ignore[reportAssignmentType]
    return [
        sorted((row for row in rows if row["setting"] == setting), key=lambda row: _SHOWN.index(row["criterion"]))
        for setting in dict.fromkeys(row["setting"] for row in rows)
    ]


def _with_interval(row: Mapping[str, Any], name: str, scale: float, digits: int) -> str:
    value, low, high = (scale * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if value != value:
        return "–"
    text = f"{value:.{digits}f}"
    text = text if low != low else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"
    return text.replace("-", "−")


def _hundred(kappa: float) -> str:
    return "–" if kappa != kappa else f"{100 * kappa:.2f}"
