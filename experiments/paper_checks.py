"""Inconsistencies in the paper, computed from its printed numbers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from experiments.paper_numbers import (
    AVERAGED,
    MODEL,
    TABLE_1,
    TABLE_3,
    TABLE_3_INTERVALS,
    TABLE_6,
    TABLE_7,
    TABLE_8,
    Row,
    harmonic_mean,
)

__all__ = ["Inconsistency", "inconsistencies"]

_RECORDS = 1678
"""The number of records that the authors published; each has one rewrite prompt, so ES is a share of this number."""


@dataclass(frozen=True, kw_only=True)
class Inconsistency:
    """A statement of the paper that its own numbers contradict."""

    where: str
    what: str


def inconsistencies() -> list[Inconsistency]:
    """List everything that follows from the printed numbers alone."""
    return [
        *_repeated_rows(),
        *_averages(),
        *_impossible_intervals(),
        *_tables_that_differ(),
        *_sentences(),
    ]


def _repeated_rows() -> list[Inconsistency]:
    """Rows of two models that agree in most columns to the last digit."""
    found: list[Inconsistency] = []
    keys = list(TABLE_6)
    for at, one in enumerate(keys):
        for other in keys[at + 1 :]:
            same = [name for name, value in TABLE_6[one].items() if TABLE_6[other][name] == value]
            if one[0] != other[0] and len(same) > len(TABLE_6[one]) / 2:
                differ = [name for name in TABLE_6[one] if name not in same]
                found.append(
                    Inconsistency(
                        where=f"Table 6, {one[0]} {one[1]}",
                        what=f"repeats {other[0]}'s {other[1]} in {len(same)} of {len(TABLE_6[one])} columns; only "
                        f"{', '.join(differ)} differ",
                    )
                )
    for editor, row in TABLE_1.items():
        other = TABLE_6["Llama-3", editor]
        if all(other[name] == value for name, value in row.items()):
            found.append(Inconsistency(where=f"Table 1, {MODEL} {editor}", what=f"is Llama-3's {editor} of Table 6"))
    return found


def _averages() -> list[Inconsistency]:
    """Compare Avg. S with the harmonic mean of the scores beside it; rounding moves it by a few hundredths."""
    found: list[Inconsistency] = []
    tables: list[tuple[str, Mapping[tuple[str, ...], Row]]] = [
        ("Table 3", TABLE_3),
        ("Table 7", {(editor,): row for editor, row in TABLE_7.items()}),
        ("Table 8", TABLE_8),
    ]
    for name, table in tables:
        for key, row in table.items():
            own = harmonic_mean([row[score] for score in AVERAGED if score in row])
            if abs(own - row["Avg.S"]) > 0.1:
                found.append(
                    Inconsistency(
                        where=f"{name}, {' '.join(key)}",
                        what=f"Avg. S is printed as {row['Avg.S']:.2f}; its parts' harmonic mean is {own:.2f}",
                    )
                )
    return found


def _impossible_intervals() -> list[Inconsistency]:
    """ES is a share of the records, so its interval follows from it."""
    found: list[Inconsistency] = []
    for key, row in TABLE_3.items():
        share = row["ES"] / 100
        half = 196 * math.sqrt(share * (1 - share) / _RECORDS)
        printed = TABLE_3_INTERVALS[key]["ES"]
        if abs(half - printed) > 0.1:
            found.append(
                Inconsistency(
                    where=f"Table 3, {' '.join(key)}",
                    what=f"ES {row['ES']:.2f} has the interval {half:.1f} on {_RECORDS} records, not {printed:.1f}; "
                    f"Table 6 has ES {TABLE_6[key]['ES']:.2f}, whose interval it is",
                )
            )
    return found


def _tables_that_differ() -> list[Inconsistency]:
    """Tables 1, 3 and 6 report the same runs."""
    found: list[Inconsistency] = []
    pairs: list[tuple[str, str, tuple[str, ...], Row, Row]] = [
        ("Table 3", "Table 6", key, row, TABLE_6[key]) for key, row in TABLE_3.items()
    ]
    pairs += [
        ("Table 1", "Table 6", (MODEL, editor), row, TABLE_6[MODEL, editor])
        for editor, row in TABLE_1.items()
        if editor == "ROME"  # MEMIT's and PMET's are equal
    ]
    pairs.append(("Table 1", "Table 3", (MODEL, "ROME"), TABLE_1["ROME"], TABLE_3[MODEL, "ROME"]))
    for one, other, key, row, others in pairs:
        differ = [
            f"{name} {row[name]:.2f} and {others[name]:.2f}"
            for name in row
            if name in others and abs(row[name] - others[name]) > 0.011
        ]
        if differ:
            found.append(Inconsistency(where=f"{one} and {other}, {' '.join(key)}", what=", ".join(differ)))
    return found


def _sentences() -> list[Inconsistency]:
    """Compare statements of the text with the tables they refer to."""
    edits = [(model, editor) for model, editor in TABLE_6 if "+" not in editor and editor != "None"]
    rows = [(key, TABLE_6[key], TABLE_6[key[0], f"{key[1]}+SADR"]) for key in edits]

    def worst(score: str) -> tuple[float, str]:
        return min((after[score] - before[score], " ".join(key)) for key, before, after in rows)

    def best(score: str) -> tuple[float, str]:
        return max((100 * (after[score] / before[score] - 1), " ".join(key)) for key, before, after in rows)

    ps, ps_of = worst("PS")
    res, res_of = worst("RES")
    rs, rs_of = best("RS")
    es, es_of = worst("ES")
    none, edited = TABLE_6["GPT-NeoX", "None"], TABLE_6["GPT-NeoX", "ROME+SADR"]
    odd, cured = TABLE_6["TinyLlama", "PMET"], TABLE_6["TinyLlama", "PMET+SADR"]
    return [
        Inconsistency(
            where="5.2: “less than a 3% decrease” of Rewrite and Generalization",
            what=f"PS falls by up to {-ps:.2f} points ({ps_of}); in Table 3 by "
            f"{_fall(MODEL, 'ROME', 'PS'):.2f} ({MODEL} ROME) and {_fall(MODEL, 'PMET', 'PS'):.2f} ({MODEL} PMET)",
        ),
        Inconsistency(
            where="E.1: the decline of RES is “consistently below 3%”", what=f"it is {-res:.2f} points for {res_of}"
        ),
        Inconsistency(
            where="Abstract and 1: improvements of up to 130.9 % and 295.8 % at 0.19 % of edit success",
            what=f"these are GPT-NeoX ROME's, whose gains are {_gain('GPT-NeoX', 'ROME', 'RS'):.1f} % and "
            f"{_gain('GPT-NeoX', 'ROME', 'DNS'):.1f} % at {_fall('GPT-NeoX', 'ROME', 'ES'):.2f} points; the largest "
            f"gain of RS in Table 3 is {_gain(MODEL, 'ROME', 'RS'):.1f} % ({MODEL} ROME), in Table 6 {rs:.1f} % "
            f"({rs_of}), and ES falls by up to {-es:.2f} points ({es_of})",
        ),
        Inconsistency(
            where="Table 6, GPT-NeoX None",
            what=f"DNM is {none['DNM']:.2f}, less than half of ROME + SADR's {edited['DNM']:.2f}, though DNS is "
            f"{none['DNS']:.2f} against {edited['DNS']:.2f}",
        ),
        Inconsistency(
            where="Table 6, TinyLlama PMET",
            what=f"RES is {odd['RES']:.2f}, near the unedited model's {TABLE_6['TinyLlama', 'None']['RES']:.2f}, "
            f"and {cured['RES']:.2f} with SADR; nowhere else does SADR move it by more than "
            f"{_largest_change('RES', but=('TinyLlama', 'PMET')):.2f}",
        ),
        Inconsistency(
            where="3.1 and C.1: 1,683 records",
            what=f"the published benchmark has {_RECORDS:,}; 5.2 says “Table 4” for 3",
        ),
    ]


def _fall(model: str, editor: str, score: str) -> float:
    """The fall in Table 3, in points."""
    return TABLE_3[model, editor][score] - TABLE_3[model, f"{editor}+SADR"][score]


def _gain(model: str, editor: str, score: str) -> float:
    """The gain in Table 3, in percent of the score without SADR."""
    return 100 * (TABLE_3[model, f"{editor}+SADR"][score] / TABLE_3[model, editor][score] - 1)


def _largest_change(score: str, *, but: tuple[str, str]) -> float:
    return max(
        abs(row[score] - TABLE_6[model, editor.removesuffix("+SADR")][score])
        for (model, editor), row in TABLE_6.items()
        if editor.endswith("+SADR") and (model, editor.removesuffix("+SADR")) != but
    )
