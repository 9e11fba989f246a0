"""The public names: complete, consistent, and free until they are used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import driftlens

HEAVY = ("torch", "transformer_lens", "transformers", "pandas", "numpy", "plotly", "rich")


@pytest.mark.parametrize("module", ["driftlens", "driftlens.commands.cli", "driftlens.data", "driftlens.files"])
def test_importing_costs_nothing(module: str):
    script = f"import sys, {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_tables_of_public_names_agree():
    tree = ast.parse(Path(driftlens.__file__).read_text())
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == driftlens._HOMES
    assert sorted(driftlens.__all__) == sorted(driftlens._HOMES)


def test_every_public_name_is_there():
    for name in driftlens.__all__:
        assert getattr(driftlens, name) is getattr(importlib.import_module(driftlens._HOMES[name]), name)
        assert name in dir(driftlens)


def test_an_unknown_name_is_an_ordinary_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        driftlens.nonsense  # noqa: B018


def test_a_command_module_hides_no_public_name():
    script = (
        "import driftlens, driftlens.evaluate; from driftlens import evaluate; import sys; "
        "print(driftlens.evaluate.__module__, evaluate.__module__, sys.modules['driftlens.evaluate'].main.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*["driftlens.evaluation.nll"] * 2, "driftlens.commands.evaluate"]
