"""Tables as CSV that a spreadsheet opens without computing what stands in them.

A cell that begins with `=`, `+`, `-` or `@` is a formula to a spreadsheet, and may run programs or send data away;
tokens and targets of other people's files begin as they like. Such a text gets an apostrophe in front, a spreadsheet's
own mark of a text. The parquet file beside the CSV holds every text as it is.
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
    # The writer does not quote a carriage return, which ends a row all the same.
    cell = cell.replace("\r\n", "\n").replace("\r", "\n")
    if not cell.lstrip().startswith(_BEGINNINGS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell  # a number, such as -0.5
