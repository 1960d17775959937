"""The versions that pyproject.toml asks for, held against the table of holes in docs/security.md."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
READS_FILES_OF_OTHERS = {"torch", "pillow", "onnx"}


def requirements() -> list[Requirement]:
    """Those of the project and of all its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [word for words in project["optional-dependencies"].values() for word in words]
    return [Requirement(word) for word in [*project["dependencies"], *extras]]


def table() -> dict[str, tuple[str, str]]:
    """Package to its floor and the reason."""
    text = (ROOT / "docs/security.md").read_text()
    return {
        name: (floor, reason) for name, floor, reason in re.findall(r"^\| (\w+) \| ([\d.]+) \| (.+) \|$", text, re.M)
    }


def test_floors_and_reasons_are_equal() -> None:
    """Every floor of the table, with a published hole as its reason, in every requirement of that package."""
    known = table()
    assert known.keys() >= READS_FILES_OF_OTHERS
    for name, (floor, reason) in known.items():
        assert re.search(r"CVE-\d{4}-\d+", reason), name
        asked = [str(item.specifier) for item in requirements() if item.name == name]
        assert asked
        assert set(asked) == {f">={floor}"}, name


def test_what_is_installed_is_no_older() -> None:
    """Each package of the table, where it is installed, against its floor."""
    for name, (floor, _) in table().items():
        assert Version(metadata.version(name)) >= Version(floor)
