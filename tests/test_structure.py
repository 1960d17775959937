"""The rooms of the house: who imports whom, read from the sources and held against DESIGN's rules."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import swa_cli

HOUSE = Path(swa_cli.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))
ROOMS = ("recipe", "metrics", "data", "models", "averaging", "checkpoint", "engine", "analysis", "report")
_BASE = {"errors", "import_path"}
_FOUNDATION = {*_BASE, "units", "recipe", "metrics", "data", "models", "averaging"}
MAY_IMPORT = {
    "recipe": {"errors", "units"},
    "metrics": _BASE,
    "data": {*_BASE, "temporary"},
    "models": _BASE,
    "averaging": {"errors"},
    "checkpoint": {*_FOUNDATION, "temporary"},
    "engine": {*_FOUNDATION, "checkpoint", "signals", "user_frames", "__version__"},
    "analysis": {*_FOUNDATION, "checkpoint", "engine", "report", "signals", "temporary"},
    "report": {"errors", "units", "user_frames", "metrics"},
}
ONLY_IN = {
    "typer": ("cli",),
    "rich": ("report",),
    "matplotlib": ("report",),
    "jinja2": ("report",),
    "yaml": ("recipe/yaml_document.py",),
}


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Every module that a file imports, with what is taken `from` it."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_each_room_keeps_to_its_imports(path: Path) -> None:
    """Imports of every file against the table of DESIGN 2, `recipe` and `report` without torch."""
    room = room_of(path)
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "swa_cli" and room in ROOMS:
            target = rest.split(".")[0]
            assert target == room or target in MAY_IMPORT[room], f"{path} imports {name}"
            assert (room, target) != ("report", "metrics") or rest.startswith("metrics.metric."), (
                f"{path} imports {name}"
            )
        if package in ("torch", "torchvision"):
            assert room not in ("recipe", "report", "errors.py", "cli"), f"{path} imports {name}"
        for library, homes in ONLY_IN.items():
            if package == library:
                here = str(path.relative_to(HOUSE))
                assert any(here == home or here.startswith(f"{home}/") for home in homes), f"{path} imports {name}"


def test_cli_takes_only_light_rooms_at_its_top() -> None:
    """Top-level imports of each command: errors, signals, units, recipe and report alone."""
    for path in (HOUSE / "cli").glob("*.py"):
        names = [name for name in imports(path, top_only=True) if name.startswith("swa_cli.")]
        assert {name.split(".")[1] for name in names} <= {
            "cli",
            "errors",
            "signals",
            "units",
            "recipe",
            "report",
            "__version__",
        }


WITHOUT_TORCH = [
    "--help",
    "train -h",
    "eval -h",
    "bn-update -h",
    "repeat -h",
    "sweep -h",
    "sweep digits swa.lr=0.1,x",
    "find-lr -h",
    "average -h",
    "soup -h",
    "export -h",
    "predict -h",
    "new",
    "recipes digits",
    "schema",
    "compare nowhere nowhere",
    "plan nowhere.yaml",
    "doctor nowhere.yaml",
    "plot -h",
    "report -h",
    "train nowhere.yaml",
    "train",
]
# The process that has imported the command line alone is forked for each command.
LOADED = """
import os, sys
from swa_cli import cli
for line in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    sys.argv = ["swa", *line.split()]
    try:
        cli.main()
    finally:
        print(f"{line}:", *sorted({"torch", "matplotlib", "pydantic", "rich"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, str]:
    """Which of the large packages are loaded when a command ends."""
    command = [sys.executable, "-c", LOADED, *WITHOUT_TORCH]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    found = (line.rpartition(":") for line in said)
    return {line: packages.strip() for line, _, packages in found if line in WITHOUT_TORCH}


@pytest.mark.parametrize("line", WITHOUT_TORCH)
def test_help_and_recipe_errors_come_without_torch(loaded: dict[str, str], line: str) -> None:
    """What is loaded: never torch or matplotlib, rich for errors and answers, pydantic not by the list of commands.

    Typer itself reads the words after a command with pydantic.
    """
    allowed = {"--help": set()} | {each: {"pydantic"} for each in WITHOUT_TORCH if each.endswith(" -h")}
    assert set(loaded[line].split()) <= allowed.get(line, {"pydantic", "rich"})


@pytest.mark.parametrize("path", sorted((HOUSE / "data").glob("*.py")), ids=lambda path: path.name)
def test_data_knows_no_exit_codes(path: Path) -> None:
    """What the data package takes from `errors`: no exit codes, as its caller says what a failure means."""
    taken = {name for name in imports(path) if name.startswith("swa_cli.errors")}
    assert taken <= {f"swa_cli.errors.{name}" for name in ("UserError", "RecipeError", "Problem", "did_you_mean")}


TRACED = """
import sys, trace_run
trace_run.main()
print("loaded:", *{"torch._dynamo", "sympy", "torchvision", "torchmetrics"} & set(sys.modules))
"""


@pytest.fixture(scope="module")
def traced() -> str:
    """What a process says that traces a whole run of the digits, and then what it has loaded."""
    words, folder = [sys.executable, "-c", TRACED], Path(__file__).parent
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_a_small_run_enters_few_files_and_parses_its_recipe_once(traced: str) -> None:
    """The trace of the digits against the 45 files of ours that may be entered before the first forward pass."""
    counts = re.search(r"first forward pass: (\d+) own files.*recipe parsed (\d+) times", traced)
    assert counts is not None, traced
    assert int(counts[1]) <= 45
    assert int(counts[2]) == 1


@pytest.mark.slow
def test_a_run_imports_no_more_than_it_needs(traced: str) -> None:
    """Modules that a whole run has loaded, averages and scores included, against four that take long to import."""
    assert traced.endswith("\nloaded:\n")
