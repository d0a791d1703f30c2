"""The rules that the code's layout keeps (docs/architecture.md), and its style."""

import ast
from pathlib import Path

import pytest

from helpers.build_options import BACKENDS
from tests.conftest import ROOT
from tests.test_shell_scripts import lint

HELPERS = sorted((ROOT / "helpers").rglob("*.py"))

#: The longest function that a reader takes in at once, in lines.
LONGEST = 40


def imported(path: Path) -> set[str]:
    """The modules of helpers/ that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("helpers.")}


@pytest.mark.parametrize("name", ["bert_network", "tokenization", "quantization", "weights/__init__"])
def test_no_import_points_upwards(name):
    """Nor does any import of those imported."""
    seen, waiting = set(), {ROOT / "helpers" / f"{name}.py"}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        assert "backends" not in path.parts, f"{name} leads to {path}"
        places = [ROOT / module.replace(".", "/") for module in imported(path)]
        files = {place / "__init__.py" for place in places} | {place.with_suffix(".py") for place in places}
        waiting |= {file for file in files if file.exists()} - seen
    assert len(seen) > 1


def test_building_names_no_backend():
    text = (ROOT / "helpers" / "building.py").read_text(encoding="utf-8").lower()
    assert not [name for name in BACKENDS if name in text]


def test_functions_are_short():
    for path in HELPERS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < LONGEST, f"{path}: {node.name}"


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff_finds_nothing(arguments):
    lint("ruff", "-r requirements-dev.txt", *arguments, ".")
