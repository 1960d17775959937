"""A job of ten minutes, really run: what `job` tells from parts. Almost half an hour, by hand only."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.figures import Figure, faster
from benchmarks.jobs import ours, theirs
from benchmarks.size import JOB_EPOCHS, JOB_IMAGES, Size
from benchmarks.topics.job import CONTESTANTS, bar_of, epochs_of_long_job
from benchmarks.turns import by_turns
from benchmarks.voice import Voice

EXPECTED_S = 1600.0


def measure(size: Size, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """A short job of the documentation script tells how many epochs; then each contestant once."""
    voice.turn("documentation, to learn its speed", number=1, rounds=1)
    epochs = epochs_of_long_job([theirs("documentation", images=JOB_IMAGES, epochs=JOB_EPOCHS)])
    job = {"images": JOB_IMAGES, "epochs": epochs}
    runs = by_turns(
        {
            **{name: partial(theirs, name, **job) for name in CONTESTANTS},
            "swa": partial(ours, **job),
        },
        rounds=1,
        voice=voice,
    )
    seconds = {name: jobs[0].wall_s for name, jobs in runs.items()}
    figures = [
        faster(
            "long",
            f"{epochs} epochs against {CONTESTANTS[name]}",
            ours=seconds["swa"],
            theirs=seconds[name],
            bar=bar_of(name, runs["swa"][0]),
        )
        for name in CONTESTANTS
    ]
    return figures, {name: [vars(run) for run in jobs] for name, jobs in runs.items()}
