"""What averaging costs while it trains: runs with averages against runs without, and one update by itself.

A percent of an epoch is below what two runs of the same thing differ by. So the verdict comes from the time of an
update, which is measured well, as a share of the epoch; the runs stand beside it as they came out.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any

from benchmarks.contestants.bare import network
from benchmarks.contestants.job import BATCH_SIZE
from benchmarks.data import num_test
from benchmarks.figures import Figure
from benchmarks.in_process import epochs_s
from benchmarks.size import JOB_IMAGES, Size
from benchmarks.turns import by_turns, seconds
from benchmarks.voice import Voice
from swa_cli.averaging.average import WeightAverage, update_all

EPOCHS = 3
BARS = {1: 1.0, 10: 3.0}  # number of averages -> percent of an epoch
UPDATES = 30  # timed ones


def measure(size: Size, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """Runs by turns; then updates of one average and of ten."""
    job = [f"dataset.args.train={size.average_images}", f"dataset.args.test={num_test(size.average_images)}"]
    job.append(f"train.epochs={EPOCHS}")
    each_epoch = ["swa.start=0ep", "swa.every=1ep"]
    nine = [f"averages.a{number}={{kind: mean, start: 0ep, every: 1ep}}" for number in range(1, 10)]
    variants = {
        "none": job,
        "one": [*job, *each_epoch],
        "ten": [*job, *each_epoch, *nine],
        "every step": [*job, "swa.start=0ep", "swa.every=1step"],
    }
    runs = by_turns(
        {name: partial(epochs_s, words) for name, words in variants.items()}, rounds=size.average_rounds, voice=voice
    )
    epoch_s = {name: statistics.median(chain.from_iterable(rounds)) for name, rounds in runs.items()}
    update_s = {number: update_seconds(number) for number in BARS}
    emas_s = update_seconds(10, kind="ema", decay=0.99)
    return _figures(epoch_s, update_s, emas_s, size), {"epochs_s": runs, "update_s": update_s, "emas_s": emas_s}


def update_seconds(num_averages: int, model: Any = None, **settings: Any) -> float:
    """The median time of one update of so many averages, after those that take memory."""
    model = model or network()
    averages = [WeightAverage(model, **settings) for _ in range(num_averages)]
    update_all(averages, model)
    return statistics.median(seconds(lambda: update_all(averages, model)) for _ in range(UPDATES))


def shares_of_epoch(update_s: Mapping[int, float], epoch_s: float, *, note: str) -> list[Figure]:
    """What an update per epoch of one average costs, and of nine more, held against the bars."""
    extra_s = {1: update_s[1], 10: update_s[10] - update_s[1]}
    names = {1: "one average, every epoch", 10: "ten averages instead of one"}
    return [
        Figure(
            "averaging",
            name,
            1e3 * extra_s[number],
            1e3 * epoch_s,
            "ms",
            100 * extra_s[number] / epoch_s,
            "%",
            BARS[number],
            "at most",
            note=note,
        )
        for number, name in names.items()
    ]


def _figures(epoch_s: Mapping[str, float], update_s: Mapping[int, float], emas_s: float, size: Size) -> list[Figure]:
    """Shares of an epoch of 10,000 images, and the runs as they came out."""
    whole_s = epoch_s["none"] * JOB_IMAGES / size.average_images
    step_s = epoch_s["none"] * BATCH_SIZE / size.average_images
    shares = shares_of_epoch(update_s, whole_s, note="time of an update, of an epoch of 10,000 images")
    shares.append(
        Figure(
            "averaging",
            "one average, every step",
            1e3 * update_s[1],
            1e3 * step_s,
            "ms",
            100 * update_s[1] / step_s,
            "%",
            note="time of an update, of a step",
        )
    )
    shares.append(
        Figure(
            "averaging",
            "ten EMAs, every step",
            1e3 * emas_s,
            1e3 * step_s,
            "ms",
            100 * emas_s / step_s,
            "%",
            BARS[10],
            "at most",
            note="time of an update, of a step",
        )
    )
    runs = [
        Figure("averaging", name, mine, other, "s", 100 * (mine / other - 1), "%", note="as runs came out, with noise")
        for name, mine, other in (
            ("runs: one average against none", epoch_s["one"], epoch_s["none"]),
            ("runs: ten averages against one", epoch_s["ten"], epoch_s["one"]),
            ("runs: every step against none", epoch_s["every step"], epoch_s["none"]),
        )
    ]
    return [*shares, *runs]
