"""Store answers in one SQLite file, safely for concurrent annotators and a killed server.

An answer is a row identified by annotator and item, so an answer sent twice counts once.  Revisions increase with every
change, and only a later revision replaces a row, so answers may arrive in any order.  When :meth:`AnswerStore.put`
returns, the answer is on disk (write-ahead log, ``synchronous=FULL``).
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from driftlens.errors import DriftlensError
from driftlens.human.answers import Answer, AnswerSheet

__all__ = ["Annotator", "AnswerStore"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (id TEXT PRIMARY KEY, overview_token TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS annotator (
  name TEXT PRIMARY KEY, token TEXT NOT NULL UNIQUE, comment TEXT NOT NULL DEFAULT '',
  comment_revision INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS answer (
  annotator TEXT NOT NULL REFERENCES annotator (name), item TEXT NOT NULL, revision INTEGER NOT NULL,
  answer TEXT NOT NULL, received TEXT NOT NULL, PRIMARY KEY (annotator, item)
);
"""
_WAIT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """An annotator with a personal link."""

    name: str
    token: str


class AnswerStore:
    """The answers to one study.  Each thread opens its own."""

    def __init__(self, connection: sqlite3.Connection, study: str, overview_token: str) -> None:
        self._connection = connection
        self.study = study
        self.overview_token = overview_token

    @classmethod
    @contextmanager
    def open(cls, path: str | PathLike[str], *, study: str | None = None) -> Generator[AnswerStore]:
        """Open the database at ``path``; with ``study``, a study's hash, create it if it does not exist.

        Raises:
            DriftlensError: the database does not exist, cannot be opened, or holds another study's answers.
        """
        place = Path(path)
        if study is None and not place.is_file():
            raise DriftlensError(f"there are no answers at {path}; name the database that the server wrote")
        try:
            if not place.exists():
                place.touch(mode=0o600)  # tokens stand in it
            connection = sqlite3.connect(place, timeout=_WAIT_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise DriftlensError(f"cannot open the answers {path} ({error}); choose another folder") from error
        try:
            if study is not None:
                connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            yield cls(connection, *_study_of(connection, place, study))
        except sqlite3.OperationalError as error:
            raise DriftlensError(f"cannot use the answers {path} ({error}); try again") from error
        except sqlite3.DatabaseError as error:
            raise DriftlensError(f"{path} is not a database of answers ({error})") from error
        finally:
            connection.close()

    def invite(self, count: int) -> list[Annotator]:
        """Add annotators up to ``count`` and return all of them; existing links stay valid."""
        with self._transaction():
            known = self.annotators()
            for number in range(len(known) + 1, count + 1):
                self._connection.execute(
                    "INSERT INTO annotator (name, token) VALUES (?, ?)",
                    (f"annotator-{number:02d}", secrets.token_urlsafe(16)),
                )
        return self.annotators()

    def annotators(self) -> list[Annotator]:
        """All annotators, in order."""
        rows = self._connection.execute("SELECT name, token FROM annotator ORDER BY rowid")
        return [Annotator(name=name, token=token) for name, token in rows]

    def annotator(self, token: str) -> Annotator | None:
        """The annotator of a link, or None."""
        row = self._connection.execute("SELECT name, token FROM annotator WHERE token = ?", (token,)).fetchone()
        return None if row is None else Annotator(name=row[0], token=row[1])

    def put(self, annotator: Annotator, item: str, revision: int, answer: Mapping[str, Any]) -> int:
        """Store an answer unless a later revision exists, and return the stored revision."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO answer (annotator, item, revision, answer, received) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (annotator, item) DO UPDATE SET revision = excluded.revision, answer = excluded.answer, "
                "received = excluded.received WHERE excluded.revision > answer.revision",
                (annotator.name, item, revision, json.dumps(answer), _now()),
            )
            row = self._connection.execute(
                "SELECT revision FROM answer WHERE annotator = ? AND item = ?", (annotator.name, item)
            ).fetchone()
        return int(row[0])

    def put_comment(self, annotator: Annotator, revision: int, comment: str) -> int:
        """Store a comment unless a later revision exists, and return the stored revision."""
        with self._transaction():
            self._connection.execute(
                "UPDATE annotator SET comment = ?, comment_revision = ? WHERE name = ? AND comment_revision < ?",
                (comment, revision, annotator.name, revision),
            )
            row = self._connection.execute(
                "SELECT comment_revision FROM annotator WHERE name = ?", (annotator.name,)
            ).fetchone()
        return int(row[0])

    def known(self, annotator: Annotator) -> dict[str, Any]:
        """The data with which an annotator's page resumes: name, answers by item with revisions, comment."""
        rows = self._connection.execute(
            "SELECT item, revision, answer FROM answer WHERE annotator = ?", (annotator.name,)
        )
        answers = {item: {**json.loads(answer), "revision": revision} for item, revision, answer in rows}
        comment, revision = self._connection.execute(
            "SELECT comment, comment_revision FROM annotator WHERE name = ?", (annotator.name,)
        ).fetchone()
        comment_of: dict[str, Any] = {"text": comment, "revision": revision}
        return {"annotator": annotator.name, "answers": answers, "comment": comment_of}

    def sheets(self) -> list[AnswerSheet]:
        """The answers of all annotators who have given any."""
        found: list[AnswerSheet] = []
        for annotator in self.annotators():
            known = self.known(annotator)
            if known["answers"]:
                answers = tuple(Answer.read(answer, item=item) for item, answer in sorted(known["answers"].items()))
                found.append(
                    AnswerSheet(
                        study=self.study, annotator=annotator.name, session="server", answers=answers,
                        exported=_now(), comment=known["comment"]["text"], source=annotator.name,
                    )
                )  # fmt: skip
        return found

    @contextmanager
    def _transaction(self) -> Generator[None]:
        # IMMEDIATE waits for the lock at the beginning; a deferred transaction could fail half-way.
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _study_of(connection: sqlite3.Connection, place: Path, study: str | None) -> tuple[str, str]:
    if study is not None:
        connection.executescript(_SCHEMA)
        connection.execute(
            "INSERT INTO study (id, overview_token) SELECT ?, ? WHERE NOT EXISTS (SELECT 1 FROM study)",
            (study, secrets.token_urlsafe(16)),
        )
    row = connection.execute("SELECT id, overview_token FROM study").fetchone()
    if row is None:
        raise DriftlensError(f"{place} holds no study; name the database that the server wrote")
    if study is not None and row[0] != study:
        raise DriftlensError(
            f"{place} holds answers to another study ({row[0]}, not {study}); choose another folder (--out)"
        )
    return row[0], row[1]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
