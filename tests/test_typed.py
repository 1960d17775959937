"""What a type checker says of a program that uses the library face, against what its classes and functions take."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import swa_cli

HOUSE = Path(swa_cli.__file__).parent
PROGRAM = """\
from torch import nn

from swa_cli import SWA, WeightAverage, __version__, update_batchnorm
from swa_cli import WeigthAverage

average = WeightAverage(nn.Linear(1, 1), kind="mean")
reveal_type(average)
reveal_type(average.averaged_state())
reveal_type(SWA.bn_update)
reveal_type(update_batchnorm)
reveal_type(__version__)
average.update(3)
"""
EXPECTED = {  # line -> what is said of it; a type is the last word of what is revealed
    4: r'error: Module "swa_cli" has no attribute "WeigthAverage"',
    7: r'"swa_cli\.averaging\.average\.WeightAverage"$',
    8: r'"dict\[str, torch\._tensor\.Tensor\]"$',
    9: r"-> swa_cli\.averaging\.batchnorm\.BatchNormUpdate\"$",
    10: r"model: torch\.nn\.modules\.module\.Module, .* -> swa_cli\.averaging\.batchnorm\.BatchNormUpdate\"$",
    11: r'"str"$',
    12: r'error: Argument 1 to "update" of "WeightAverage" has incompatible type "int"',
}


def test_the_library_face_has_types(tmp_path: Path) -> None:
    """mypy's words on a small program: no name is Any, a wrong argument and a misspelt name are errors."""
    assert (HOUSE / "py.typed").is_file(), "without it a checker does not look into an installed package"
    (tmp_path / "program.py").write_text(PROGRAM)
    # With the package, the settings and the cache of `make lint`. The program alone would have mypy analyse torch anew
    # each time, since other modules are then seen: 18 s here, and again in the next `make lint`.
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", HOUSE, tmp_path / "program.py"],
        cwd=HOUSE.parent,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1, ended.stderr
    told = dict(re.findall(r"^(?:.*/)?program\.py:(\d+): (.*?)(?:  \[[\w-]+\])?$", ended.stdout, re.MULTILINE))
    assert told.keys() == {str(line) for line in EXPECTED}, ended.stdout
    for line, pattern in EXPECTED.items():
        assert re.search(pattern, told[str(line)]), told[str(line)]
