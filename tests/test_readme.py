"""What README says, held against what is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_each_promise_names_tests_that_exist() -> None:
    """Every `test_...` in README against the functions in tests/."""
    names = {
        node.name
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    promised = set(re.findall(r"`(test_\w+)`", README))
    assert len(promised) > 15
    assert promised <= names, promised - names


def test_the_tree_has_every_file() -> None:
    """The names in README's tree against the files of swa_cli, room by room."""
    tree = README.partition("## The house")[2]
    told = set(re.findall(r"\b(\w+\.py)\b", tree))
    there = {path.name for path in (ROOT / "swa_cli").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert told == there
