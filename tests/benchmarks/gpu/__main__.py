"""The door of the benchmark on a GPU: measure a part, keep its figures, tell all that is known.

    PYTHONPATH=tests python -m benchmarks.gpu speed [--only TOPIC]... [--minutes M] [--cifar FILE] [--out DIR]
    PYTHONPATH=tests python -m benchmarks.gpu paper [--minutes M] [--epochs N] --cifar FILE [--out DIR]
    PYTHONPATH=tests python -m benchmarks.gpu table [--out DIR]

FILE is an archive of JPEG files of CIFAR-10, or a folder of them. Each part writes its section of DIR/gpu.json, the
table DIR/gpu.md and the picture DIR/gpu.png; the sections of other parts stay. `--device cpu --quick` shows without a
card that it works.

Exit code 0: every bar is met; 1: one is missed, or the time was too short; 2: no card, and nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import paper, results, speed

MET, MISSED, NO_CARD = 0, 1, 2
MINUTES = 8.5  # of a part


def main(words: Sequence[str] | None = None) -> int:
    """Measure one part; returns the exit code."""
    options = _options(words)
    if options.part == "table":
        return _told(options)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device; --device cpu --quick shows that the benchmark works", file=sys.stderr)
        return NO_CARD
    if options.device == "cpu" and not options.quick:
        print("error: --device cpu takes days at full size; add --quick", file=sys.stderr)
        return NO_CARD
    part = speed if options.part == "speed" else paper
    for section in part.measure(options):
        results.keep(options.out, options.part, section)
    return _told(options)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description="What make gpu measures.")
    parser.add_argument("part", choices=["speed", "paper", "table"])
    parser.add_argument("--only", choices=list(speed.TOPICS), action="append", help="this topic; may be repeated")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="at most, of this part")
    parser.add_argument("--epochs", type=int, help="of each run of `paper`; default: as many as the time allows")
    parser.add_argument("--cifar", type=Path, metavar="FILE", help="archive or folder of JPEG files of CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path("bench"), metavar="DIR", help="for gpu.json and what is kept")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="does it work; the figures mean nothing")
    options = parser.parse_args(words)
    if options.part == "paper" and options.cifar is None:
        parser.error("paper needs --cifar FILE: make gpu-paper CIFAR=FILE")
    options.out = options.out.resolve()
    return options


def _told(options: argparse.Namespace) -> int:
    """Write table and picture of all parts, and print the table."""
    table, is_met = results.tell(options.out)
    print(table)
    return MET if is_met else MISSED


if __name__ == "__main__":
    sys.exit(main())
