"""Contestants as processes of their own, measured from outside; what they say is shown only if they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LAUNCH = Path(__file__).with_name("launch.py")
_TESTS = Path(__file__).parent.parent
_LINES_SHOWN = 20


class ContestantError(Exception):
    """A contestant ended with an error: there is nothing to compare with."""


@dataclass(frozen=True)
class Ended:
    """What a process took and said."""

    wall_s: float
    peak_mb: float
    workers_mb: float  # beside `peak_mb`: of its children, what they do not share with it
    out: str


def run(words: Sequence[str | Path], *, environment: dict[str, str] | None = None) -> Ended:
    """Run `python WORDS...` to its end.

    Args:
        words: What follows `python`.
        environment: Variables beside those of this process.

    Raises:
        ContestantError: It ended with another code than 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        report, said = Path(folder, "report.json"), Path(folder, "stderr.txt")
        with said.open("wb") as stderr:
            ended = subprocess.run(
                [sys.executable, _LAUNCH, report, sys.executable, *words],
                env={**os.environ, "PYTHONPATH": _python_path(), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                check=False,
            )
        if ended.returncode:
            lines = said.read_text(errors="replace").splitlines()[-_LINES_SHOWN:]
            command = " ".join(["python", *map(str, words)])
            raise ContestantError("\n".join([f"{command} ended with code {ended.returncode}:", *lines]))
        return Ended(**json.loads(report.read_text()), out=ended.stdout.decode())


def _python_path() -> str:
    """Where this package is, then as before."""
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join([str(_TESTS), *before])
