"""What is printed: other people's text is shown, never obeyed, whatever the stream takes."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from driftlens.display.spreadsheet import csv_bytes
from driftlens.display.terminal import Terminal, progress_bars, shown_warnings, styled
from driftlens.errors import DriftlensError, visible
from driftlens.options.program import run_command
from tests.support.places import ROOT

HOSTILE = (
    "[/]",
    "[bold]x[/bold]",
    "[link=file:///etc]x",
    ":rome:",
    "\x1b[31mred",
    "a\rb",
    "\x9b2J",
    "x\u202ey",
    "\x07",
)


def printed(*texts: object) -> str:
    stream = io.StringIO()
    Terminal(file=stream, width=200, force_terminal=False).print(*texts)
    return stream.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_every_way_to_print_shows_a_text_as_it_is(text: str):
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    stream = io.StringIO()
    with shown_warnings(Terminal(file=stream, soft_wrap=True)):
        warnings.simplefilter("always")
        warnings.warn(text, UserWarning, stacklevel=1)
    for seen in (printed(text), printed(table), printed(styled(text, "bold red")), stream.getvalue()):
        assert visible(text) in seen
        assert not set(seen) & set("\x1b\x07\r\x9b\u202e")


def test_styles_are_the_terminals_own():
    stream = io.StringIO()
    Terminal(file=stream, force_terminal=True, color_system="standard").print(styled("[/]\x1b[2J", "red"))
    assert stream.getvalue() == "\x1b[31m[/]\\x1b[2J\x1b[0m\n"


def test_progress_reads_no_markup():
    stream = io.StringIO()
    with progress_bars(Terminal(file=stream, force_terminal=True, width=80)) as bars:
        bars.add_task("edit [/] of [red]", total=1)
    assert "edit [/] of [red]" in stream.getvalue()


@given(st.text())
def test_a_message_is_one_line_that_a_terminal_can_show(text: str):
    line = str(DriftlensError(text))
    assert line.isprintable() or not set(line) - set(visible(line))
    assert "\n" not in line
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in line)
    line.encode()  # no halves of surrogate pairs


def test_a_value_of_a_megabyte_does_not_hide_the_advice():
    line = str(DriftlensError(f"unknown model {'x' * 10**6}; did you mean y?"))
    assert len(line) < 400
    assert line.endswith("; did you mean y?")


# --- streams of real processes ---

SCRIPT = """
import sys, warnings
from driftlens.options.program import run_command

def main(argv=None):
    from driftlens.display.terminal import standard_output, standard_error
    standard_output().print("γ = 0.01 [/] 法国")
    standard_error().print("Σ KL")
    open("made", "w").write("x")
    return 0

sys.exit(run_command(main))
"""


def run(tmp_path: Path, *, encoding: str = "utf-8", shell: str = "") -> subprocess.CompletedProcess[bytes]:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = f'"{sys.executable}" script.py {shell}'
    return subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_any_encoding_of_the_streams_will_do(tmp_path: Path, encoding: str):
    done = run(tmp_path, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding).startswith("γ = 0.01 [/]" if encoding == "utf-8" else "? = 0.01 [/] ??")
    assert (tmp_path / "made").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(
    ("shell", "code", "line"),
    [
        (">&-", 0, b"\xce\xa3 KL\n"),
        ("2>&-", 0, b""),
        (">&- 2>&-", 0, b""),
        (">/dev/full", 2, b"driftlens: the system refused to read or write: No space left on device\n"),
        (">/dev/full 2>/dev/full", 2, b""),
    ],
)
def test_closed_and_full_streams_cost_no_traceback(tmp_path: Path, shell: str, code: int, line: bytes):
    done = run(tmp_path, shell=shell)
    assert (done.returncode, done.stderr) == (code, line)


def test_an_argument_that_is_no_text_is_one_line(capsys: pytest.CaptureFixture[str]):
    def main(argv: object = None) -> int:
        raise AssertionError("it was called")

    assert run_command(main, ["--subject", "Eiffel\udcff"]) == 2
    assert capsys.readouterr().err == (
        "driftlens: the argument 'Eiffel\\udcff' is not UTF-8; type it in a terminal that is\n"
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(36, "File name too long", "a" * 400), f"cannot use {'a' * 200}…{'a' * 59}: File name too long"),
        (PermissionError(13, "Permission denied", "x"), "cannot use x: Permission denied"),
        (MemoryError(), "out of memory; give a smaller model, fewer records or a smaller --batch-size"),
    ],
)
def test_what_the_system_refuses_is_one_line(error: BaseException, line: str, capsys: pytest.CaptureFixture[str]):
    def main(argv: object = None) -> int:
        raise error

    assert run_command(main, []) == 2
    assert capsys.readouterr().err == f"driftlens: {line}\n"


def test_a_warning_of_a_command_is_a_line(capsys: pytest.CaptureFixture[str]):
    def main(argv: object = None) -> int:
        warnings.simplefilter("always")
        warnings.warn("left out\n3 records \x1b[2J", UserWarning, stacklevel=1)
        return 0

    assert run_command(main, []) == 0
    assert capsys.readouterr().err == "driftlens: left out 3 records \\x1b[2J\n"


def test_an_interrupt_while_an_experiment_is_imported_is_one_line(tmp_path: Path):
    # A module of that name stands in for pandas, which experiments import before anything of theirs runs.
    (tmp_path / "pandas.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)")
    # Not this process's own path, which other tests may have added to.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.figure3"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stderr, done.stdout) == (130, b"driftlens: interrupted\n", b"")


# --- spreadsheets ---


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", " =1", "\t=1", "\r=1"])
def test_no_cell_begins_like_a_formula(text: str):
    table = pd.DataFrame({"=head": [text], "token": ['a,"b"'], "n": [-1.5]})
    back = pd.read_csv(io.BytesIO(csv_bytes(table)), dtype=str)
    assert list(back.columns) == ["'=head", "token", "n"]
    assert list(back.iloc[0]) == ["'" + text.replace("\r", "\n"), 'a,"b"', "-1.5"]


def test_numbers_and_ordinary_texts_stay():
    table = pd.DataFrame({"text": ["-0.5", "+1e3", "a = b", ""], "x": [1.23456789, -2, 0, 4], "k": [1, 2, 3, 4]})
    assert csv_bytes(table, float_format="%.3g") == table.to_csv(index=False, float_format="%.3g").encode()
    assert csv_bytes(table.assign(x=float("nan"))) == table.assign(x=float("nan")).to_csv(index=False).encode()
