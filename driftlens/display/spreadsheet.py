"""Write tables as CSV in which a spreadsheet finds no formulas.

A spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` for a formula, which may run programs or send data
away, and texts from data files can begin with these characters. Such texts get a leading apostrophe, which marks a text
in spreadsheets. The parquet file beside the CSV holds every text unchanged.
"""

from __future__ import annotations

import pandas as pd

__all__ = ["csv_bytes"]

_BEGINNINGS = ("=", "+", "-", "@")


def csv_bytes(table: pd.DataFrame, *, float_format: str | None = None) -> bytes:
    """The table as UTF-8 without its index; `float_format` is pandas', such as "%.6g"."""
    safe = pd.DataFrame({place: table.iloc[:, place].map(_as_text) for place in range(table.shape[1])})
    safe.columns = [_as_text(name) for name in table.columns]
    return safe.to_csv(index=False, float_format=float_format).encode()


def _as_text(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    # The writer does not quote a carriage return, although it ends a row.
    cell = cell.replace("\r\n", "\n").replace("\r", "\n")
    if not cell.lstrip().startswith(_BEGINNINGS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell  # a number, such as -0.5
