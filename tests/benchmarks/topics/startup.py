"""Starting: `swa --help`, and the first training step of the digits after what importing torch takes anyway."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.figures import Figure
from benchmarks.size import Size
from benchmarks.turns import by_turns
from benchmarks.voice import Voice

HELP_ROUNDS = 10
HELP_BAR_S, FIRST_STEP_BAR_S = 0.35, 1.5
DIGITS = Path(__file__).parents[3] / "recipes/digits.yaml"
_LOADS_TORCH = """\
import sys
from swa_cli import cli
cli.run(["--help"])
print("torch" in sys.modules)
"""


def measure(size: Size, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """Processes by turns."""
    loads_torch = processes.run(["-c", _LOADS_TORCH]).out.splitlines()[-1] == "True"
    helps = by_turns(
        {"swa --help": lambda: processes.run(["-m", "swa_cli", "--help"]).wall_s}, rounds=HELP_ROUNDS, voice=voice
    )["swa --help"]
    starts = by_turns(
        {
            "first step": _first_step,
            "import torch, torchvision": lambda: processes.run(["-c", "import torch, torchvision"]).wall_s,
        },
        rounds=size.start_rounds,
        voice=voice,
    )
    first, imports = (statistics.median(each) for each in starts.values())
    figures = [
        Figure(
            "startup",
            "swa --help",
            statistics.median(helps),
            None,
            "s",
            statistics.median(helps),
            "s",
            HELP_BAR_S,
            "at most",
            note=f"fastest of {HELP_ROUNDS}: {min(helps):.2f} s",
        ),
        Figure("startup", "torch imported by --help", loads_torch, None, "times", loads_torch, "times", 0, "at most"),
        Figure(
            "startup",
            "first step of digits after import torch, torchvision",
            first,
            imports,
            "s",
            first - imports,
            "s",
            FIRST_STEP_BAR_S,
            "at most",
        ),
    ]
    return figures, {"help_s": helps, **starts}


def _first_step() -> float:
    """Seconds from the start of `swa train recipes/digits.yaml` to its first optimizer step."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "benchmarks.contestants.first_step", "train", DIGITS, f"--out={folder}", "--quiet"]
        return float(processes.run(words).out.splitlines()[-1])
