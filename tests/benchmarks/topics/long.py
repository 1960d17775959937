"""A job of ten minutes, really run: what `job` tells from parts. More than half an hour, by hand only."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.contestants.job import BATCH_SIZE
from benchmarks.figures import Figure, faster, rate
from benchmarks.jobs import ours, theirs
from benchmarks.size import JOB_EPOCHS, JOB_IMAGES, Size
from benchmarks.topics.job import BARS, COMPILED_BARS, CONTESTANTS, epochs_of_long_job
from benchmarks.turns import by_turns
from benchmarks.voice import Voice

EXPECTED_S = 2200.0


def measure(size: Size, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """A short job of the documentation script tells how many epochs; then each contestant once."""
    voice.turn("documentation, to learn its speed", number=1, rounds=1)
    epochs = epochs_of_long_job([theirs("documentation", images=JOB_IMAGES, epochs=JOB_EPOCHS)])
    job = {"images": JOB_IMAGES, "epochs": epochs}
    runs = by_turns(
        {
            **{name: partial(theirs, name, **job) for name in CONTESTANTS},
            "swa": partial(ours, **job),
            "swa, compiled": partial(ours, **job, compiled=True),
        },
        rounds=1,
        voice=voice,
    )
    seconds = {name: jobs[0].wall_s for name, jobs in runs.items()}
    figures = [
        faster(
            "long",
            f"{epochs} epochs, {mine}, against {CONTESTANTS[name]}",
            ours=seconds[mine],
            theirs=seconds[name],
            bar=bars[name],
        )
        for mine, bars in (("swa", BARS), ("swa, compiled", COMPILED_BARS))
        for name in CONTESTANTS
    ]
    compiled = runs["swa, compiled"][0]
    options = (f"--precision={compiled.phases['precision']}", "--compile")
    bare = by_turns(
        {"bare, compiled": partial(theirs, "bare", images=JOB_IMAGES, epochs=3, options=options)}, rounds=1, voice=voice
    )
    num_images = JOB_IMAGES // BATCH_SIZE * BATCH_SIZE
    figures.append(
        rate(
            "long",
            "training, compiled, against a compiled bare loop",
            ours=num_images / compiled.steady_s,
            theirs=JOB_IMAGES / bare["bare, compiled"][0].steady_s,
        )
    )
    return figures, {name: [vars(run) for run in jobs] for name, jobs in {**runs, **bare}.items()}
