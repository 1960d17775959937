"""Training alone: images a second, data pipeline and saves included, against a bare loop on ready tensors.

Only epochs after the first count. The same processes tell of memory, where the bare loop's ready tensors are not held
in our favour: its peak without them, plus the dataset as uint8, one copy of the weights an average and 150 MB.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.contestants.bare import network
from benchmarks.data import num_test
from benchmarks.figures import Figure, rate
from benchmarks.jobs import Job, ours, theirs
from benchmarks.machine import precisions
from benchmarks.size import Size
from benchmarks.turns import by_turns
from benchmarks.voice import Voice

EPOCHS = 3
BAR = 0.97
ALLOWED_MB = 150.0
NUM_AVERAGES = 1


def measure(size: Size, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """Ours and the bare loop in each precision, by turns."""
    job = {"images": size.loop_images, "epochs": EPOCHS}
    contestants = {}
    for precision in precisions(size.device):
        contestants[f"bare, {precision}"] = partial(theirs, "bare", **job, options=(f"--precision={precision}",))
        contestants[f"swa, {precision}"] = partial(ours, **job, precision=precision)
    runs = by_turns(contestants, rounds=size.loop_rounds, voice=voice)
    figures = [
        rate(
            "loop",
            f"training, {precision}, against a bare loop",
            ours=_images_per_s(runs[f"swa, {precision}"]),
            theirs=_images_per_s(runs[f"bare, {precision}"]),
            bar=BAR,
        )
        for precision in precisions(size.device)
    ]
    figures.append(_memory(runs["swa, fp32"], runs["bare, fp32"]))
    return figures, {name: [vars(run) for run in jobs] for name, jobs in runs.items()}


def _images_per_s(runs: Sequence[Job]) -> float:
    return runs[0].images / statistics.median(seconds for run in runs for seconds in run.epochs_s[1:])


def _memory(mine: Sequence[Job], bare: Sequence[Job]) -> Figure:
    """Peak memory over the bare loop without its data."""
    num_images = mine[0].images + num_test(mine[0].images)
    dataset_mb = num_images * 3 * 32 * 32 / 1e6
    weights_mb = NUM_AVERAGES * sum(4 * parameter.numel() for parameter in network().parameters()) / 1e6
    peak = statistics.median(run.peak_mb for run in mine)
    peak_of_bare = statistics.median(run.peak_mb - run.phases["ready_mb"] for run in bare)
    return Figure(
        "loop",
        "peak memory over a bare loop",
        peak,
        peak_of_bare,
        "MB",
        peak - peak_of_bare,
        "MB",
        round(dataset_mb + weights_mb + ALLOWED_MB, 1),
        "at most",
        note="dataset + weights + 150 MB; the bare loop without its data",
    )
