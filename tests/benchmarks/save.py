"""What a safe save costs: `checkpoint.save` against plain torch.save + fsync of the same bytes, by turns.

Prints the median of each and their ratio; the bar is 1.5.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from swa_cli.training import checkpoint

ROUNDS = 15
NUM_TENSORS, NUM_VALUES = 100, 1 << 18  # 100 tensors of 1 MiB


def main() -> None:
    """Time both, alternating."""
    content = {"model": {f"layer{index}": torch.randn(NUM_VALUES) for index in range(NUM_TENSORS)}}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        plain, ours = Path(folder, "plain.pt"), Path(folder, "last.pt")
        seconds: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(ROUNDS):
            started = time.perf_counter()
            with plain.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            seconds["plain"].append(time.perf_counter() - started)
            started = time.perf_counter()
            checkpoint.save(ours, content, keep=ours.with_name("previous.pt"))
            seconds["ours"].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"save of {NUM_TENSORS * NUM_VALUES * 4 / 2**20:.0f} MiB, median of {ROUNDS}: plain torch.save + fsync"
        f" {medians['plain'] * 1000:.0f} ms, checkpoint.save {medians['ours'] * 1000:.0f} ms,"
        f" ratio {medians['ours'] / medians['plain']:.2f}"
    )


if __name__ == "__main__":
    main()
