"""Read records from JSON or JSON Lines, with errors that name the exact place in the file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

from driftlens.errors import DriftlensError
from driftlens.files import read_file

__all__ = ["Node", "read_nodes"]

_BY_LINE = (".jsonl", ".ndjson")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A value in a parsed file together with its location, for error messages."""

    value: object
    file: Path
    record: int
    field: str = ""

    def message(self, problem: str) -> str:
        """The problem, preceded by file, record and field."""
        field = f", field {self.field}" if self.field else ""
        return f"{self.file}, record {self.record}{field}: {problem}"

    def fail(self, problem: str) -> NoReturn:
        """Raise the error that names file, record and field."""
        raise DriftlensError(self.message(problem))

    def get(self, key: str) -> "Node | None":
        """Return the entry `key` of this object, or None if it is absent or null.

        An empty list counts as an object without entries, because some programs write one that way.
        """
        if self.value == []:
            return None
        if not isinstance(self.value, dict):
            self.fail(f"expected an object, found {_kind(self.value)}")
        value = cast("dict[str, object]", self.value).get(key)
        return None if value is None else self._inner(value, f"{self.field}.{key}" if self.field else key)

    def need(self, key: str) -> "Node":
        """Return the required entry `key` of this object."""
        if self.value == []:
            self.fail(f"expected an object, found {_kind(self.value)}")
        node = self.get(key)
        if node is None:
            self._inner(None, f"{self.field}.{key}" if self.field else key).fail("is missing")
        return node

    def items(self) -> list["Node"]:
        """The entries of this list."""
        if not isinstance(self.value, list):
            self.fail(f"expected a list, found {_kind(self.value)}")
        values = cast("list[object]", self.value)
        return [self._inner(value, f"{self.field}[{place}]") for place, value in enumerate(values)]

    def kind(self) -> str:
        """Name this value's JSON type."""
        return _kind(self.value)

    def one_or_many(self) -> list["Node"]:
        """The entries of this list; a plain text counts as a list of one."""
        return [self] if isinstance(self.value, str) else self.items()

    def is_blank(self) -> bool:
        """Whether this is a text without visible characters."""
        return isinstance(self.value, str) and not self.value.strip()

    def text(self) -> str:
        """This string, which must contain a visible character."""
        if not isinstance(self.value, str):
            self.fail(f"expected a text, found {_kind(self.value)}")
        if not self.value.strip():
            self.fail("is empty")
        if not self.value.isprintable():
            # JSON can contain half of a surrogate pair, which is not a character and which no tokenizer accepts.
            try:
                self.value.encode()
            except UnicodeEncodeError as error:
                self.fail(f"character {error.start} is half of a surrogate pair, {error.object[error.start]!r}")
        return self.value

    def optional_text(self, key: str) -> str | None:
        """Return the text `key` of this object, or None if it is absent or null."""
        node = self.get(key)
        return None if node is None else node.text()

    def _inner(self, value: object, field: str) -> "Node":
        return Node(value=value, file=self.file, record=self.record, field=field)


def read_nodes(path: Path) -> Iterator[Node]:
    """Read the records of the file `path`: a JSON list of objects, or JSON Lines with an object on each line."""
    try:
        content = read_file(path, "a JSON file of records").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DriftlensError(f"{path} is damaged: line {line} is not UTF-8; fetch the file again") from error

    try:
        named = path.suffix.lower() in _BY_LINE and not content.lstrip().startswith("[")
        by_line = named or _begins_with_an_object(content)
        records = _lines(path, content) if by_line else json.loads(content)
    except json.JSONDecodeError as error:
        place = f"record {_record_at(content, error.pos)}, line {error.lineno}, column {error.colno}"
        raise DriftlensError(f"{path} is damaged: {place}: {error.msg}; mend it or fetch it again") from error
    except RecursionError as error:
        raise DriftlensError(f"{path} is no list of records: its JSON is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise DriftlensError(f"{path} is damaged: {error}; mend it or fetch it again") from error
    if not isinstance(records, list):
        raise DriftlensError(f"{path} is no list of records: its top level is {_kind(records)}")
    for number, record in enumerate(cast("list[object]", records)):
        yield Node(value=record, file=path, record=number)


def _begins_with_an_object(content: str) -> bool:
    """Whether the first non-blank line is a whole object and other lines follow it."""
    lines = content.split("\n")
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    if not lines[first].lstrip().startswith("{") or not any(line.strip() for line in lines[first + 1 :]):
        return False
    try:
        json.loads(lines[first])
    except json.JSONDecodeError:
        return False
    return True


def _lines(path: Path, content: str) -> list[object]:
    """Read the objects of JSON Lines; blank lines are skipped."""
    records: list[object] = []
    # Not `splitlines`, because a text may contain Unicode line separators.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            place = f"record {len(records)}, line {number}, column {error.colno}"
            raise DriftlensError(f"{path} is damaged: {place}: {error.msg}; mend it or fetch it again") from error
    return records


def _record_at(content: str, position: int) -> int:
    """Return the number of the record that contains `position`: how many records end before it."""
    decoder = json.JSONDecoder()
    number, start = 0, content.find("[") + 1
    while True:
        while start < len(content) and content[start] in " \t\r\n,":
            start += 1
        try:
            _, start = decoder.raw_decode(content, start)
        except json.JSONDecodeError:
            return number
        if start > position:
            return number
        number += 1


def _kind(value: object) -> str:
    names = {"dict": "an object", "list": "a list", "str": "a text", "bool": "a boolean", "NoneType": "null"}
    return names.get(type(value).__name__, "a number")
