"""Whole jobs: `swa train` against the documentation script and against Lightning, from start to scores.

The bars are for 10,000 images and 3 epochs, on a processor that gains by bf16. A smaller run is extrapolated from its
parts, and says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.figures import Figure, faster
from benchmarks.jobs import Job, ours, theirs
from benchmarks.machine import precisions
from benchmarks.size import JOB_EPOCHS, JOB_IMAGES, LONG_JOB_S, Size
from benchmarks.turns import by_turns
from benchmarks.voice import Voice

CONTESTANTS = {"documentation": "documentation script", "lightning_swa": "Lightning with its SWA callback"}
BARS = {"documentation": 1.9, "lightning_swa": 2.2}


def measure(size: Size, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """Jobs by turns, with torch.compile too, whose cost is paid by a long job alone; one round where none is judged."""
    job = {"images": size.job_images, "epochs": JOB_EPOCHS}
    contestants = {
        "swa": partial(ours, **job),
        **{name: partial(theirs, name, **job) for name in CONTESTANTS},
        "swa, compiled": partial(ours, **job, compiled=True),
    }
    rounds = size.job_rounds if "bf16" in precisions(size.device) else 1
    runs = by_turns(contestants, rounds=rounds, voice=voice)
    figures = [*(_whole(runs["swa"], runs[name], name) for name in CONTESTANTS), *_long(runs)]
    return figures, {name: [vars(run) for run in jobs] for name, jobs in runs.items()}


def _whole(mine: Sequence[Job], other: Sequence[Job], name: str) -> Figure:
    """The job of 3 epochs on 10,000 images."""
    is_whole = mine[0].images == JOB_IMAGES
    seconds = [
        statistics.median(run.wall_s if is_whole else run.seconds(images=JOB_IMAGES, epochs=JOB_EPOCHS) for run in runs)
        for runs in (mine, other)
    ]
    return faster(
        "job",
        f"whole job against {CONTESTANTS[name]}",
        ours=seconds[0],
        theirs=seconds[1],
        bar=bar_of(name, mine[0]),
        note=f"precision auto ({mine[0].phases['precision']})" + ("" if is_whole else "; from parts"),
    )


def bar_of(name: str, mine: Job) -> float | None:
    """The bar against a contestant, which supposes bf16: None for a job in fp32."""
    return BARS[name] if mine.phases["precision"] == "bf16" else None


def _long(runs: dict[str, list[Job]]) -> list[Figure]:
    """What compiling costs, and a job of the length at which the documentation script takes ten minutes."""
    epochs = epochs_of_long_job(runs["documentation"])
    lengths = {
        name: statistics.median(run.seconds(images=JOB_IMAGES, epochs=epochs) for run in runs[name])
        for name in ("swa", "swa, compiled")
    }
    figure = faster(
        "job",
        "10 minutes, compiled against not",
        ours=lengths["swa, compiled"],
        theirs=lengths["swa"],
        note=f"{epochs} epochs; from parts",
    )
    cost = statistics.median(run.epochs_s[0] - run.steady_s for run in runs["swa, compiled"])
    return [figure, Figure("job", "compiling, once", cost, None, "s", cost, "s")]


def epochs_of_long_job(documentation: Sequence[Job]) -> int:
    """Epochs of 10,000 images after which the documentation script has taken ten minutes."""
    short, longer = (
        statistics.median(run.seconds(images=JOB_IMAGES, epochs=epochs) for run in documentation) for epochs in (0, 1)
    )
    return max(JOB_EPOCHS, round((LONG_JOB_S - short) / (longer - short)))
