"""What is measured, a module a question: `measure(size, voice)` gives the figures and what they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import Figure
from benchmarks.size import Size
from benchmarks.topics import averaging, growth, job, loop, passes, photos, pipeline, predict, save, startup
from benchmarks.voice import Voice

Measured = tuple[list[Figure], dict[str, Any]]


@dataclass(frozen=True)
class Topic:
    """A question, and about how many seconds its answer takes on two cores."""

    measure: Callable[[Size, Voice], Measured]
    quick_s: float
    full_s: float


TOPICS: Mapping[str, Topic] = {
    "job": Topic(job.measure, 40, 480),
    "loop": Topic(loop.measure, 40, 360),
    "pipeline": Topic(pipeline.measure, 5, 10),
    "photos": Topic(photos.measure, 15, 150),
    "predict": Topic(predict.measure, 25, 225),
    "passes": Topic(passes.measure, 10, 125),
    "averaging": Topic(averaging.measure, 15, 60),
    "startup": Topic(startup.measure, 20, 40),
    "growth": Topic(growth.measure, 10, 110),
    "save": Topic(save.measure, 5, 10),
}
