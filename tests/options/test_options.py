"""Options declared as fields of dataclasses: what the command line makes of them."""

from dataclasses import dataclass, fields
from typing import Any

import pytest

from driftlens.commands.compare_options import CompareOptions
from driftlens.commands.trace_options import read_options
from driftlens.errors import DriftlensError
from driftlens.options.declaration import REQUIRED, Further, flag, flag_of, option, read
from driftlens.options.editor import EDITOR, RESTRAINT, EditorOptions
from driftlens.options.parsing import any_text, whole_number
from driftlens.registry import EDITORS


@dataclass(frozen=True, kw_only=True)
class Base:
    seed: int = option(0, "seed (default %(default)s)", "N", whole_number(0), group="second")
    png: bool = flag("turns off the PNG", default=True, group="second")


@dataclass(frozen=True, kw_only=True)
class Run(Base):
    names: list[str] = option(REQUIRED, "names", "NAME", nargs="+", positional=True)
    data_set: str = option(REQUIRED, lambda: "the data", "D", group="first")
    texts: tuple[str, ...] = option((), "may be repeated", "T", flags=("--text", "-t"), action=Further, group="first")
    page: int | None = option(None, "a page", "N", whole_number(1), nargs="?", const=1)
    system: str | None = option(None, "any text", "TEXT", any_text)
    dry_run: bool = flag("write nothing")
    seed: int = option(7, "another seed (default %(default)s)", "N", whole_number(0), group="second")
    computed: int = 5

    def __post_init__(self) -> None:
        if self.page == 13:
            raise DriftlensError("no such page")


def run(*argv: str) -> Run:
    return read(
        Run, argv, prog="run", description="What it does.", epilog="examples:\n  run a", groups=("first", "second")
    )


def test_fields_become_options_and_their_defaults_hold():
    assert run("a", "b", "--data-set", "d") == Run(names=["a", "b"], data_set="d")
    given = run("a", "--data-set=d", "--text", "x", "-t", "y", "--page", "--dry-run", "--no-png", "--seed", "3")
    assert given == Run(
        names=["a"], data_set="d", texts=("x", "y"), page=1, dry_run=True, png=False, seed=3, computed=5
    )
    assert run("a", "--data-set", "d", "--page", "4").page == 4
    assert run("a", "--data-set", "d", "--seed", "1", "--seed", "2").seed == 2  # the last one holds
    assert run("a", "--dat", "d").data_set == "d"  # as long as it is one option's beginning
    assert run("a", "--data-set", "d", "--system", "").system == ""
    assert run("a", "--data-set", "d", "--text", "x").texts == ("x",)  # nothing stays from the call before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a"], "the following arguments are required: --data-set; run --help lists all options"),
        (["--data-set", "d"], "the following arguments are required: NAME"),
        (["a", "--data-set", ""], "--data-set is empty; give a value, or leave it out"),
        (["a", "--data-set", "d", "--seed", "x"], "argument --seed: 'x' is not a whole number of at least 0"),
        (["a", "--data-set", "d", "--png"], "unknown option --png; did you mean --no-png"),
        (["a", "--data-set", "d", "--page", "13"], "no such page"),
        (["a", "--data-set", "d", "--computed", "1"], "unrecognized arguments: --computed 1"),
    ],
)
def test_what_is_refused_is_one_line(argv: list[str], message: str):
    with pytest.raises(DriftlensError) as caught:
        run(*argv)
    assert str(caught.value).startswith(message)


def test_the_help_has_groups_in_order_defaults_and_examples(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        run("--help")
    assert end.value.code == 0
    out = capsys.readouterr().out
    positions = [
        out.index(text)
        for text in ("What it does.", "\nfirst:", "the data", "\nsecond:", "turns off the PNG", "  run a")
    ]
    assert positions == sorted(positions)
    assert "another seed (default 7)" in out
    assert "--computed" not in out


@pytest.mark.parametrize(
    ("given", "named"), [({"gamma": 1.0}, "--gamma"), ({"hypernetworks": ("f",)}, "--hypernetwork")]
)
def test_no_editor_has_no_settings(given: dict[str, Any], named: str):
    assert EditorOptions(editor="none", seed=3).seed == 3
    with pytest.raises(DriftlensError, match=f"edits nothing; leave {named} out"):
        EditorOptions(editor="none", **given)


def test_a_system_prompt_may_be_empty():
    assert read_options(["--chat", "--system", ""]).system == ""
    with pytest.raises(DriftlensError, match="--device is empty"):
        read_options(["--device", ""])


def test_each_side_of_a_comparison_has_the_settings_that_concern_it():
    options = CompareOptions(against="memit+sadr", gamma=0.5, second_moment_weight=10.0, steps=3)
    baseline, challenger = options.baseline.editor, options.challenger.editor
    assert baseline == EditorOptions(editor="rome", steps=3)
    assert challenger == EditorOptions(editor="memit", sadr=True, gamma=0.5, second_moment_weight=10.0, steps=3)


def test_an_editor_registered_later_is_an_option(monkeypatch: pytest.MonkeyPatch):
    def edited(name: str) -> str:
        return read(EditorOptions, ["--editor", name], prog="x", description="", groups=(EDITOR, RESTRAINT)).editor

    with pytest.raises(DriftlensError, match="unknown editor 'toy'"):
        edited("toy")
    monkeypatch.setattr(EDITORS, "_homes", {**EDITORS._homes, "toy": "toys:Toy"})
    assert edited("toy") == "toy"


def test_a_flag_says_what_it_turns_off():
    assert [flag_of(item) for item in fields(Base)] == ["--seed", "--no-png"]
