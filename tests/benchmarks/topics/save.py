"""What a safe save costs: `checkpoint.save` against plain torch.save + fsync of the same bytes."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import Figure
from benchmarks.size import Size
from benchmarks.turns import by_turns, seconds
from benchmarks.voice import Voice
from swa_cli.checkpoint import reader

ROUNDS = 15
NUM_TENSORS, NUM_VALUES = 100, 1 << 18  # 100 tensors of 1 MiB
BAR = 1.5


def measure(size: Size, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """Both by turns, on the disk of the working directory."""
    content = {"model": {f"layer{index}": torch.randn(NUM_VALUES) for index in range(NUM_TENSORS)}}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        plain, ours = Path(folder, "plain.pt"), Path(folder, "last.pt")

        def save_plainly() -> None:
            with plain.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())

        def save_safely() -> None:
            reader.save(ours, content, keep=ours.with_name("previous.pt"))

        times = by_turns(
            {"checkpoint.save": lambda: seconds(save_safely), "torch.save": lambda: seconds(save_plainly)},
            rounds=ROUNDS,
            voice=voice,
        )
    mine, other = (statistics.median(each) for each in times.values())
    name = f"save of {NUM_TENSORS * NUM_VALUES * 4 >> 20} MiB against torch.save + fsync"
    return [Figure("save", name, 1e3 * mine, 1e3 * other, "ms", mine / other, "x", BAR, "at most")], times
