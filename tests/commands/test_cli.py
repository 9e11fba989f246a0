"""The command line: exit codes, one-line messages, and commands found by name."""

import subprocess
import sys
import types
from collections.abc import Sequence

import pytest

from driftlens.commands import cli
from driftlens.errors import DriftlensError
from driftlens.options.program import run_command
from driftlens.version import __version__


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "driftlens", *arguments], capture_output=True, text=True, check=False)


def command_raising(error: BaseException):
    def main(argv: Sequence[str] | None = None) -> int:
        raise error

    return main


def test_version_and_help():
    assert run("--version").stdout == f"driftlens {__version__}\n"
    assert run().stdout == run("--help").stdout
    assert run().returncode == 0
    assert "  trace  " in run().stdout


def test_unknown_commands_and_options_end_with_two():
    done = run("trcae")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "driftlens: unknown command 'trcae'; did you mean 'trace' or 'train-mend' or 'compare'?\n"
    assert run("--colour").returncode == 2


def test_a_command_gets_the_arguments_after_its_name(monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []

    def main(argv: list[str]) -> int:
        seen.append(argv)
        return 5

    command = types.ModuleType("driftlens.commands.trace")
    monkeypatch.setattr(command, "main", main, raising=False)
    monkeypatch.setitem(sys.modules, "driftlens.commands.trace", command)
    assert run_command(cli.main, ["trace", "--record", "3", "--help"]) == 5
    assert seen == [["--record", "3", "--help"]]


def test_mistakes_are_one_line_on_stderr(capsys: pytest.CaptureFixture[str]):
    assert run_command(command_raising(DriftlensError("bad\nvalue"))) == 2
    assert capsys.readouterr() == ("", "driftlens: bad value\n")


def test_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert run_command(command_raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "driftlens: interrupted\n")


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(command_raising(ZeroDivisionError()))


def test_a_closed_pipe_is_quiet():
    script = (
        "import sys; from driftlens.options.program import run_command\n"
        "def main(argv=None):\n"
        "    while True:\n"
        "        sys.stdout.write('x' * 1_000_000)\n"
        "sys.exit(run_command(main))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141
