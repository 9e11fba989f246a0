"""Files are whole or absent, and what cannot be written is one line."""

import errno
import os
from pathlib import Path

import pytest

from driftlens.errors import DriftlensError
from driftlens.files import atomic_path, writable_folder


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_the_file_appears_whole_and_keeps_its_suffix(tmp_path: Path):
    target = tmp_path / "table.csv.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".gz"
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(tmp_path) == [target.name]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException):
    target = tmp_path / "table.csv"
    target.write_text("old")

    def fill() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fill()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("moment", ["write", "flush"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_space(_: int) -> None:
        raise full

    def fill() -> None:
        with atomic_path(tmp_path / "table.csv") as temporary:
            temporary.write_text("half")
            if moment == "write":
                raise full

    if moment == "flush":
        monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DriftlensError, match=r"cannot write .*table\.csv: No space left on device; ") as caught:
        fill()
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_body_that_writes_nothing_and_a_missing_folder_are_told(tmp_path: Path):
    with pytest.raises(DriftlensError, match="cannot write"), atomic_path(tmp_path / "table.csv"):
        pass
    with (
        pytest.raises(DriftlensError, match="No such file"),
        atomic_path(tmp_path / "no" / "table.csv") as temporary,
    ):
        temporary.write_text("x")


def test_writable_folder_makes_the_folder_and_leaves_no_probe(tmp_path: Path):
    folder = writable_folder(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b"
    assert names(folder) == []
    assert writable_folder(folder) == folder


def test_writable_folder_refuses_files_and_unwritable_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(DriftlensError, match="it is a file"):
        writable_folder(file)
    with pytest.raises(DriftlensError, match="Not a directory"):
        writable_folder(file / "inner")

    def read_only(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(DriftlensError, match="Read-only file system; choose another folder"):
        writable_folder(tmp_path / "c")


def test_error_messages_are_one_line():
    assert str(DriftlensError("bad value 'a\nb';\n  say c")) == "bad value 'a b'; say c"
