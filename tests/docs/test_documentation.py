"""Every code block of the README and of docs/: run, or looked up where it is marked as not run.

Python blocks of a page run in order, in one namespace and in an empty folder, as a reader would run them.
"""

import csv
import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import driftlens
from driftlens.models import families
from driftlens.registry import EDITORS, REGULARIZERS
from tests.support import documentation
from tests.support.documentation import PAGES, Block, blocks, missing_imports, name
from tests.support.places import ROOT

ALL = [block for page in PAGES for block in blocks(page)]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
INDEX = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
LOOKED_UP = ("make ", "pip ", "export ")


def python_pages(*, slow: bool) -> list[Any]:
    pages: list[Any] = []
    for page in PAGES:
        run = [block for block in blocks(page) if block.language == "python" and not block.not_run]
        if run and any(block.slow for block in run) == slow:
            pages.append(pytest.param(run, id=name(page)))
    return pages


def commands(*, run: bool, slow: bool = False) -> list[Any]:
    return [
        pytest.param(block, command, id=f"{name(block.page)}:{block.line}: {command}")
        for block in ALL
        if block.language == "sh" and block.not_run != run and (block.slow == slow or not run)
        for command in block.commands()
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    # What a page registers is not there for the tests after it.
    monkeypatch.setattr("driftlens.models.families.FAMILIES", dict(families.FAMILIES))
    for registry in (EDITORS, REGULARIZERS):
        monkeypatch.setattr(registry, "_homes", dict(registry._homes))
    return tmp_path


def run_python(run: list[Block], capsys: pytest.CaptureFixture[str], *, slow: bool = False) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    capsys.readouterr()
    for block in run:
        if block.slow and not slow:
            return
        exec(block.compiled(), namespace)  # noqa: S102 (the documentation's own code)
        printed = capsys.readouterr().out
        if block.output is not None:
            documentation.assert_prints(printed, block.output)


def run_command(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command of driftlens or of the experiments prints, run in this process, where all is imported already."""
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        words = words[2].split(".", 1) + words[3:]
    package, *arguments = words
    if package == "driftlens":
        main = import_module("driftlens.commands.cli").main
    else:
        assert package == "experiments", f"{command}: mark the block as not run, or let it be a command of driftlens"
        main, arguments = import_module(f"experiments.{arguments[0]}").main, arguments[1:]
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as end:  # --help
        code = end.code
    printed = capsys.readouterr()
    assert not code, printed.err
    return printed.out


@pytest.mark.parametrize("run", [*python_pages(slow=False), *python_pages(slow=True)])
def test_python_blocks_run(run: list[Block], folder: Path, capsys: pytest.CaptureFixture[str]):
    run_python(run, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("run", python_pages(slow=True))
def test_slow_python_blocks_run(run: list[Block], folder: Path, capsys: pytest.CaptureFixture[str]):
    run_python(run, capsys, slow=True)


@pytest.mark.parametrize(("block", "command"), commands(run=True))
def test_commands_run(block: Block, command: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    if command.startswith(LOOKED_UP):
        look_up(command, capsys)
        return
    printed = run_command(command, capsys)
    if block.output is not None:
        documentation.assert_prints(printed, block.output)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("block", "command"), commands(run=True, slow=True))
def test_slow_commands_run(block: Block, command: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    run_command(command, capsys)


@pytest.mark.parametrize(("block", "command"), commands(run=False))
def test_what_a_command_names_is_there(block: Block, command: str, capsys: pytest.CaptureFixture[str]):
    look_up(command, capsys)


def look_up(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The make targets, extras, modules, options or files that a command names."""
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[0] == "make":
        for target in words[1:]:
            assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE), f"no make target {target}"
    elif words[:2] == ["pip", "install"]:
        for extra in re.findall(r"\[([\w,]+)\]", command):
            assert set(extra.split(",")) <= set(EXTRAS), command
    elif words[0] == "driftlens" or words[:2] == ["python", "-m"]:
        start = words[:3] if words[0] == "python" else words[:2]
        options = set(re.findall(r"--[a-z][\w-]*", run_command(shlex.join([*start, "--help"]), capsys)))
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options, f"{command}: unknown options {sorted(given - options)}"
    elif words[:2] == ["ray", "start"]:
        start_command = pytest.importorskip("ray.scripts.scripts").start
        options = {option for parameter in start_command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, command
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), f"{command}: no file {words[1]}"
    else:
        assert command.startswith(LOOKED_UP), f"{command}: not a command of driftlens"


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "python" and b.not_run], ids=lambda b: str(b.line))
def test_what_is_not_run_is_python_and_imports_what_is_there(block: Block):
    block.compiled()
    assert not missing_imports(block.code)


def test_every_block_says_its_language():
    assert {block.language for block in ALL} <= set(documentation.LANGUAGES)
    fences = sum(len(re.findall(r"^ *```\w*$", page.read_text(encoding="utf-8"), re.MULTILINE)) for page in PAGES)
    assert fences == sum(2 if block.output is None else 4 for block in ALL), "a fence is indented or not closed"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path = link.partition("#")[0]
        if path and not re.match(r"[a-z]+:", path):
            assert (page.parent / path).exists(), f"{name(page)}: no {link}"


def test_the_sitemap_names_every_page():
    pages = {name(page).removeprefix("docs/") for page in PAGES} - {"README.md"}
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert pages <= listed


@pytest.mark.parametrize("shown", ["value 0.50 of 12", "value 0.41 of 10", "values 0.41 of 12"])
def test_a_wrong_output_is_noticed(shown: str):
    documentation.assert_prints("value 0.41 of 12\n", "value 0.42 of 12")
    with pytest.raises(AssertionError):
        documentation.assert_prints("value 0.41 of 12\n", shown)


def test_the_api_names_everything_public():
    named = set(re.findall(r"`(\w+)`\]|^::: [\w.]+\.(\w+)$", INDEX, re.MULTILINE))
    assert set(driftlens.__all__) <= {name for pair in named for name in pair}


@pytest.mark.parametrize(("place", "folder"), [(0, "figures/smollm2-135m"), (1, "figures")])
def test_the_readmes_scores_are_those_of_table_3(place: int, folder: str):
    with (ROOT / folder / "table3.csv").open(encoding="utf-8", newline="") as file:
        scores = {(row["row"], row["score"]): row for row in csv.DictReader(file)}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| editor \|.*(?:\n\|.*)+", readme, re.MULTILINE)
    head, _, *rows = [line.strip("| ") for line in tables[place].splitlines()]
    columns = re.findall(r"\((\w+)\)", head)
    assert columns == ["ES", "PS", "NS", "RS", "DNS"]
    assert len(rows) == 7
    for row in rows:
        editor, *cells = row.split(" | ")
        for column, cell in zip(columns, cells, strict=True):
            score = scores["unedited" if editor == "none" else editor.replace(" ", ""), column]
            value, low, high = (float(score[key]) for key in ("value", "cluster_low", "cluster_high"))
            assert cell == f"{value:.1f} ± {(high - low) / 2:.1f}", (editor, column)
