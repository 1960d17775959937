"""What every contestant trains, and how it tells its phases."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

NETWORK = "preresnet20"
BATCH_SIZE = 128
LEARNING_RATE, AVERAGING_RATE = 0.05, 0.02
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
CROP = 4


def first_averaged(epochs: int) -> int:
    """The epoch, from 1, whose end is the first to be averaged: the last quarter of them, and two at least."""
    return epochs - max(2, epochs // 4) + 1


def options() -> argparse.ArgumentParser:
    """The options that all have."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    return parser


class StepClock:
    """The phases of a contestant: seconds from one lap to the next."""

    def __init__(self) -> None:
        now = time.monotonic()
        self._last = now
        self._phases: dict[str, Any] = {"import_s": now - float(os.environ.get("BENCH_STARTED", now)), "epochs_s": []}

    def lap(self, phase: str) -> None:
        """What was done since the last lap was this phase."""
        self._phases[phase] = self._since_last()

    def epoch(self) -> None:
        """It was an epoch."""
        self._phases["epochs_s"].append(self._since_last())

    def tell(self, **more: float | int | str) -> None:
        """Print the phases as one line of JSON."""
        print(json.dumps({**self._phases, **more}))

    def _since_last(self) -> float:
        before, self._last = self._last, time.monotonic()
        return self._last - before
