"""Read annotators' answers from the page's files or from a server's database."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from driftlens.errors import DriftlensError
from driftlens.files import reason_of
from driftlens.human.answers import AnswerSheet
from driftlens.human.store import AnswerStore

__all__ = ["read_answers"]


def read_answers(paths: Iterable[str | PathLike[str]]) -> list[AnswerSheet]:
    """Read sheets from files of the page, from a server's export (a list of sheets) or from its SQLite database.

    Of several files of one session, the last export counts.

    Raises:
        DriftlensError: a file is missing or contains something else.
    """
    sheets: list[AnswerSheet] = []
    for path in paths:
        sheets += _sheets_of(Path(path))
    if not sheets:
        raise DriftlensError("there are no answers yet; name at least one file of answers")
    return _told_apart(_newest(sheets))


def _sheets_of(path: Path) -> list[AnswerSheet]:
    try:
        with path.open("rb") as file:
            is_database = file.read(16) == b"SQLite format 3\0"
        if is_database:
            with AnswerStore.open(path) as store:
                return store.sheets()
        told: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DriftlensError(
            f"cannot read the answers {path}: {reason_of(error)}; name files that the page downloaded"
        ) from error
    except DriftlensError:
        raise
    except (ValueError, RecursionError) as error:
        raise DriftlensError(f"{path} is not JSON ({error}); name files that the page downloaded") from error
    return [AnswerSheet.read(each, str(path)) for each in (told if isinstance(told, list) else [told])]


def _newest(sheets: Sequence[AnswerSheet]) -> list[AnswerSheet]:
    kept: dict[tuple[str, str, str], AnswerSheet] = {}
    for sheet in sheets:
        key = (sheet.study, sheet.annotator, sheet.session)
        if key not in kept or kept[key].exported <= sheet.exported:
            kept[key] = sheet
    return list(kept.values())


def _told_apart(sheets: Sequence[AnswerSheet]) -> list[AnswerSheet]:
    """Add numbers to the names of annotators who gave the same name."""
    seen: dict[tuple[str, str], int] = {}
    named: list[AnswerSheet] = []
    for sheet in sheets:
        key = (sheet.study, sheet.annotator)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] == 1:
            named.append(sheet)
            continue
        warnings.warn(
            f"two annotators are called {sheet.annotator!r} ({sheet.source}); the second counts as another person",
            RuntimeWarning,
            stacklevel=3,
        )
        named.append(replace(sheet, annotator=f"{sheet.annotator} ({seen[key]})"))
    return named
