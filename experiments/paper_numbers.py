"""The paper's tables as printed, stored as text row by row, so that they can be compared by eye."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = [
    "AVERAGED",
    "MODEL",
    "TABLE_1",
    "TABLE_3",
    "TABLE_3_INTERVALS",
    "TABLE_6",
    "TABLE_7",
    "TABLE_8",
    "TABLE_9",
    "TABLE_10",
    "Row",
    "harmonic_mean",
]

Row = Mapping[str, float]
AVERAGED = ("ES", "PS", "NS", "RS", "DNS")
"""Avg. S is their harmonic mean (5.1)."""
MODEL = "GPT-J"
"""The model that the paper's text is about."""

_TABLE_1 = """
editor  ES    EM    PS    PM    NS    NM    RS    RM    DNS   DNM
None    20.86  0.64 17.70  0.40 82.43  6.18 79.73  8.83 61.99 13.81
ROME    99.88 99.39 99.58 80.26 79.45  6.04 11.94  3.29 30.42 10.45
MEMIT   99.94 96.79 99.52 62.42 82.52 10.38 17.44  5.36 30.55 14.91
PMET    99.40 91.03 92.67 54.75 81.49  6.22 27.68  5.01 39.79 12.66
"""

_TABLE_3 = """
model       editor     Avg.S ES         PS         NS         RS         DNS        FL
GPT-J       None       34.43 20.86(2.0) 17.70(1.8) 82.43(1.0) 79.73(2.1) 61.99(1.3) 621.96(0.9)
GPT-J       ROME       33.56 99.88(0.2) 99.58(0.3) 80.26(1.0) 11.94(1.7) 30.42(1.2) 620.58(1.2)
GPT-J       ROME+SADR  57.74 99.76(0.2) 96.36(0.9) 80.86(1.0) 27.75(2.3) 49.35(1.3) 623.00(1.0)
GPT-J       MEMIT      51.07 99.64(0.3) 95.47(1.0) 81.42(1.0) 25.78(2.3) 38.00(1.2) 622.71(1.0)
GPT-J       MEMIT+SADR 60.23 99.52(0.3) 93.21(1.2) 81.44(1.0) 34.68(2.5) 47.35(1.3) 623.60(0.9)
GPT-J       PMET       52.98 99.40(0.4) 92.67(1.3) 81.49(1.0) 27.68(2.3) 39.79(1.3) 621.18(1.1)
GPT-J       PMET+SADR  59.06 99.11(0.5) 89.09(1.5) 81.44(1.0) 33.33(2.5) 47.47(1.3) 622.18(1.0)
Llama-3     None       19.99  9.36(1.4)  9.48(1.4) 87.17(0.9) 92.66(1.4) 64.25(1.2) 617.19(1.3)
Llama-3     ROME       58.54 99.88(0.2) 99.52(0.3) 82.19(1.0) 29.38(2.4) 52.21(1.3) 617.23(1.8)
Llama-3     ROME+SADR  70.99 99.82(0.2) 96.90(0.8) 83.18(1.0) 47.67(2.6) 58.51(1.3) 618.39(1.7)
Llama-3     MEMIT      40.90 99.64(0.1) 99.52(0.3) 82.52(1.0) 17.44(2.0) 30.55(1.2) 605.99(4.3)
Llama-3     MEMIT+SADR 63.12 99.82(0.2) 98.87(0.5) 82.96(1.0) 35.38(2.5) 45.57(1.3) 618.38(1.9)
Llama-3     PMET       43.87 99.58(0.3) 99.40(0.4) 81.10(1.0) 19.84(2.1) 32.12(1.2) 610.65(3.4)
Llama-3     PMET+SADR  61.88 99.28(0.4) 97.02(0.8) 82.86(1.0) 34.68(2.5) 51.22(1.3) 617.91(1.6)
GPT-NeoX    None       31.87 17.04(1.8) 17.64(1.8) 80.62(1.0) 83.76(1.9) 58.34(1.3) 619.25(0.9)
GPT-NeoX    ROME       23.45 99.94(0.1) 98.75(0.5) 72.67(1.1) 15.11(1.9)  8.84(0.7) 579.82(6.6)
GPT-NeoX    ROME+SADR  54.81 99.76(0.2) 96.13(0.9) 73.96(1.1) 34.89(2.5) 34.95(1.2) 619.54(1.1)
GPT-NeoX    MEMIT      40.32 99.88(0.2) 90.46(1.4) 77.45(1.1) 35.24(2.5) 16.22(0.9) 615.19(2.2)
GPT-NeoX    MEMIT+SADR 45.26 97.38(0.8) 89.21(1.5) 77.45(1.1) 45.48(2.6) 18.49(1.0) 621.59(0.8)
GPT-NeoX    PMET       19.97 99.52(0.3) 95.23(1.0) 74.18(1.1) 12.29(1.7)  7.41(0.7) 510.25(9.8)
GPT-NeoX    PMET+SADR  31.16 99.40(0.4) 93.09(1.2) 75.33(1.1) 24.86(2.3) 11.61(0.8) 589.76(5.5)
"""

_TABLE_6 = """
model       editor     ES    EM    PS    PM    RES   NS    NM    RS    RM    DNS   DNM   OS    DOS   FL     PPL
TinyLlama   None       18.30  1.60 23.84  1.52 28.75 76.42  9.99 85.66 15.93 56.03 18.32 73.30 71.04 607.84 50.65
TinyLlama   ROME       93.92 74.38 91.24 51.84 50.99 75.50  9.85 19.28  5.11 47.05 17.18 72.94 70.98 607.21 50.64
TinyLlama   ROME+SADR  93.68 69.90 89.81 40.61 51.63 75.41  9.82 29.87  7.38 50.51 18.42 72.82 71.51 607.84 50.67
TinyLlama   MEMIT      96.90 71.99 95.05 47.73 48.69 73.84  9.62 22.18  5.75 32.64 13.48 72.82 70.20 605.31 50.66
TinyLlama   MEMIT+SADR 95.77 65.84 93.09 40.99 49.46 73.82  9.66 33.05  7.78 41.56 16.32 72.71 71.16 609.72 50.64
TinyLlama   PMET       90.52 62.21 85.46 36.47 28.97 75.86  9.93 28.67  7.49 49.09 17.75 72.88 70.86 607.88 50.66
TinyLlama   PMET+SADR  91.54 55.79 83.73 30.03 49.34 75.86  9.94 36.94  9.07 50.87 18.44 73.00 71.39 608.14 50.66
GPT-J       None       20.86  0.64 17.70  0.40 33.09 82.43  6.18 79.73  8.83 61.99 13.81 74.73 74.08 621.96 44.12
GPT-J       ROME       99.88 99.39 99.58 76.93 52.39 80.26  6.04 11.94  3.29 30.43 10.45 74.73 74.37 620.58 68.02
GPT-J       ROME+SADR  99.76 99.26 96.36 53.73 50.42 80.86  6.11 27.75  5.85 49.35 14.16 74.73 74.49 623.00 63.85
GPT-J       MEMIT      99.94 96.79 99.52 62.42 51.43 82.52 10.38 17.44  5.36 30.55 14.91 74.73 73.90 605.99 44.24
GPT-J       MEMIT+SADR 99.82 94.33 98.63 50.53 49.66 82.93 10.52 35.88  8.45 45.09 20.27 74.79 74.31 619.00 44.24
GPT-J       PMET       99.40 91.03 92.67 54.75 51.79 81.49  6.22 27.68  5.01 39.79 12.66 75.09 73.96 621.18 44.24
GPT-J       PMET+SADR  99.11 81.39 89.09 34.86 52.03 81.44  6.15 33.33  5.50 47.47 13.69 75.27 73.60 622.18 44.23
Llama-3     None        9.36  0.62  9.48  0.34 30.72 87.17 11.22 92.66 26.99 64.25 20.57 80.63 79.44 617.19 43.07
Llama-3     ROME       99.88 98.17 99.52 64.06 60.35 82.19 10.26 29.38  6.95 52.21 20.64 80.45 79.08 617.23 52.79
Llama-3     ROME+SADR  99.82 98.16 96.90 47.03 59.79 83.18 10.44 47.67 10.50 58.51 22.96 80.63 79.26 618.39 46.31
Llama-3     MEMIT      99.94 96.79 99.52 62.42 60.64 82.52 10.38 17.44  5.36 30.55 14.91 80.69 79.02 605.99 66.70
Llama-3     MEMIT+SADR 99.82 94.33 98.63 50.53 62.77 82.93 10.52 35.88  8.45 45.09 20.27 80.75 78.96 619.00 49.31
Llama-3     PMET       99.58 91.98 99.40 56.42 62.28 81.10 10.08 19.84  5.34 32.12 15.20 80.27 78.37 610.65 42.97
Llama-3     PMET+SADR  99.28 83.99 97.02 39.98 62.65 82.86 10.54 34.68  7.83 51.22 21.50 80.45 78.96 617.91 42.95
Llama-2-13B None       10.55  1.45 16.15  1.35 26.86 83.54 16.92 94.92 28.70 62.59 25.50 80.04 78.43 611.31 22.46
Llama-2-13B ROME       99.76 98.29 97.14 64.23 54.72 82.28 16.63 34.89 10.77 55.67 24.54 79.92 78.37 611.35 22.44
Llama-2-13B ROME+SADR  99.76 98.38 94.16 53.38 51.63 82.50 16.72 56.29 16.83 59.47 26.44 79.98 77.95 611.93 22.44
Llama-2-13B MEMIT      99.76 96.51 97.86 66.99 57.86 80.02 16.30 15.89  6.72 35.80 19.02 79.98 77.23 610.87 22.45
Llama-2-13B MEMIT+SADR 99.58 96.19 93.92 52.29 54.89 80.63 16.46 48.23 15.01 55.39 25.76 79.92 78.67 613.24 22.45
Llama-2-13B PMET       99.52 93.36 95.53 56.92 52.79 80.80 16.38 43.22 12.83 43.29 21.47 79.92 78.25 610.67 22.44
Llama-2-13B PMET+SADR  99.46 88.36 92.85 46.89 52.31 80.89 16.44 52.05 14.93 50.46 23.91 79.80 78.01 611.18 22.45
GPT-NeoX    None       17.04  0.82 17.64  0.50 31.28 80.62  7.52 83.76 14.51 58.34  5.80 78.13 76.46 619.25 41.75
GPT-NeoX    ROME       99.94 98.95 98.75 74.68 56.74 72.67  6.90 15.11  4.55  8.84  4.64 77.18 72.77 579.82 66.77
GPT-NeoX    ROME+SADR  99.76 98.37 96.13 59.12 53.80 73.96  7.07 34.89  7.57 34.95 12.76 77.29 75.92 619.54 66.72
GPT-NeoX    MEMIT      99.88 94.58 90.46 44.41 52.39 77.45  7.30 35.24  7.84 16.22  7.41 77.06 74.85 615.19 42.72
GPT-NeoX    MEMIT+SADR 97.38 81.49 89.21 40.26 50.10 77.45  7.35 45.48  8.83 18.49  8.21 76.64 75.92 621.59 42.82
GPT-NeoX    PMET       99.52 84.94 95.23 68.01 56.33 74.18  6.91 12.29  3.49  7.41  2.61 77.06 64.72 510.25 42.62
GPT-NeoX    PMET+SADR  99.40 86.77 93.09 55.06 54.72 75.33  7.00 24.86  6.15 11.61  5.00 76.34 71.57 589.76 42.69
"""

_TABLE_7 = """
editor     Avg.S ES     PS    NS    RS    DNS   FL
None       34.43  20.86 17.70 82.43 79.73 61.99 621.96
WISE       24.57 100.00 38.60 67.12 25.24  5.87 480.50
WISE+SADR  31.58 100.00 35.40 71.22 36.44 12.73 502.80
MEND       15.07  98.70 92.30 11.80 24.46  5.40 551.22
MEND+SADR  18.80  95.60 92.80 11.90 39.73  7.38 555.98
"""

_TABLE_8 = """
data             editor     Avg.S ES    PS    NS    RS    DNS   FL
CounterFact      None       27.45 16.36 17.68 82.87 -     62.74 622.13
CounterFact      ROME       59.88 99.93 99.29 78.45 -     29.44 620.13
CounterFact      ROME+SADR  74.82 99.86 96.36 79.99 -     48.62 623.39
zsRE+Wiki-recent None       53.30 53.00 54.27 73.45 68.19 35.42 -
zsRE+Wiki-recent ROME       42.41 99.96 97.79 76.54 18.81 31.83 -
zsRE+Wiki-recent ROME+SADR  55.81 99.96 95.38 76.78 34.59 36.81 -
"""

# Printed as "V.S. ROME"; ζ is Fleiss' κ times 100.
_TABLE_9 = """
editor criterion   win   loss  tie   kappa
ROME   specificity 28.33 17.50 54.17 73.96
ROME   success     25.83 19.72 54.45 76.71
ROME   fluency     51.67 32.78 15.55 72.14
PMET   specificity 37.78 31.67 30.55 73.74
PMET   success     35.28 39.17 25.55 69.09
PMET   fluency     50.28 27.78 21.94 66.76
MEMIT  specificity 37.22 24.72 38.06 76.46
MEMIT  success     21.94 12.23 65.83 64.44
MEMIT  fluency     47.78 35.28 16.94 68.03
"""

_TABLE_10 = """
editor    γ    ES     PS    NS    RS    DNS   FL
None      -     20.86 17.70 82.43 79.73 61.99 621.96
ROME      -    100.00 99.00 78.83 13.17 31.53 618.85
ROME+SADR 5e-3  99.80 95.60 79.55 33.83 49.08 622.24
ROME+SADR 2e-2  99.80 95.20 79.68 34.13 49.93 622.47
ROME+SADR 4e-2  99.80 95.60 79.75 34.13 50.66 623.02
ROME+SADR 8e-2  99.80 96.00 79.68 34.13 50.79 621.92
"""


def harmonic_mean(parts: Sequence[float]) -> float:
    """The harmonic mean, which defines Avg. S."""
    return len(parts) / sum(1 / part for part in parts)


def _cells(text: str) -> list[dict[str, str]]:
    head, *lines = (line.split() for line in text.strip().splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def _table(text: str, *keys: str) -> dict[tuple[str, ...], Row]:
    """Parse a table into rows by the texts in the columns `keys`; "-" means no number, and intervals are left out."""
    return {
        tuple(cells[key] for key in keys): {
            name: float(cell.split("(")[0]) for name, cell in cells.items() if name not in keys and cell != "-"
        }
        for cells in _cells(text)
    }


def _intervals(text: str, *keys: str) -> dict[tuple[str, ...], Row]:
    found: dict[tuple[str, ...], Row] = {}
    for cells in _cells(text):
        halves = {name: re.search(r"\((.*)\)", cell) for name, cell in cells.items()}
        found[tuple(cells[key] for key in keys)] = {
            name: float(half.group(1)) for name, half in halves.items() if half is not None
        }
    return found


TABLE_1 = {key[0]: row for key, row in _table(_TABLE_1, "editor").items()}
"""Editor → scores, GPT-J."""
TABLE_3 = _table(_TABLE_3, "model", "editor")
"""(model, editor) → scores; "+ours" is "+SADR" here."""
TABLE_3_INTERVALS = _intervals(_TABLE_3, "model", "editor")
"""The numbers in brackets there: half of a 95 % interval."""
TABLE_6 = _table(_TABLE_6, "model", "editor")
"""(model, editor) → scores."""
TABLE_7 = {key[0]: row for key, row in _table(_TABLE_7, "editor").items()}
"""Editor → scores, GPT-J."""
TABLE_8 = _table(_TABLE_8, "data", "editor")
"""(data, editor) → scores, GPT-J."""
TABLE_9 = _table(_TABLE_9, "editor", "criterion")
"""(editor, criterion) → percent and κ, GPT-J and Llama3-8b together."""
TABLE_10 = _table(_TABLE_10, "editor", "γ")
"""(editor, γ) → scores, GPT-J, 500 records."""
