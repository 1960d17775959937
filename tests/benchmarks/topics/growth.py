"""Growth: an epoch with the images, an update with the parameters and with the number of averages."""

from __future__ import annotations

import statistics
from functools import partial
from itertools import chain
from typing import Any

from benchmarks.data import num_test
from benchmarks.figures import Figure
from benchmarks.in_process import epochs_s
from benchmarks.size import Size
from benchmarks.topics.averaging import update_seconds
from benchmarks.turns import by_turns
from benchmarks.voice import Voice
from swa_cli.models import build_model

FACTORS = (1, 2, 4)
BAR = 5.0  # percent
NUM_AVERAGES = (1, 2, 5, 10)
NETWORKS: dict[str, dict[str, Any]] = {
    "preresnet20": {},
    "preresnet56": {},
    "wide_resnet": {"depth": 16, "width": 4},
    "torchvision:resnet18": {},
}


def measure(size: Size, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """Runs of each size by turns; then single updates."""
    words = {
        factor: [
            f"dataset.args.train={factor * size.growth_images}",
            f"dataset.args.test={num_test(size.growth_images)}",
            f"train.epochs={8 // factor}",  # as long as the others: the machine's mood changes with time
        ]
        for factor in FACTORS
    }
    runs = by_turns(
        {f"x{factor}": partial(epochs_s, changes) for factor, changes in words.items()},
        rounds=size.growth_rounds,
        voice=voice,
    )
    seconds = {name: statistics.median(chain.from_iterable(rounds)) for name, rounds in runs.items()}
    parameters = {name: _update_of(name, args) for name, args in NETWORKS.items()}
    averages = {number: update_seconds(number) for number in NUM_AVERAGES}
    return [
        _images(seconds, size),
        _parameters(parameters),
        _averages(averages),
    ], {
        "epochs_s": runs,
        "updates": parameters,
        "averages_s": averages,
    }


def _images(seconds: dict[str, float], size: Size) -> Figure:
    """How far the epoch of four times the images is from four times the epoch."""
    deviation = 100 * abs(seconds["x4"] / (4 * seconds["x1"]) - 1)
    note = f"{size.growth_images:,} to {4 * size.growth_images:,} images; x2 takes {seconds['x2']:.2f} s"
    name = "epoch of x4 images, off 4 epochs of x1"
    return Figure("growth", name, seconds["x4"], 4 * seconds["x1"], "s", deviation, "%", BAR, "at most", note)


def _update_of(name: str, args: dict[str, Any]) -> tuple[float, float]:
    """Millions of parameters, and seconds of an update of one average."""
    model = build_model.build(name, num_classes=10, in_channels=3, args=args)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return millions, update_seconds(1, model)


def _parameters(updates: dict[str, tuple[float, float]]) -> Figure:
    """Of the largest network against the smallest."""
    each = {name: 1e3 * update_s / millions for name, (millions, update_s) in updates.items()}
    smallest, *_, largest = updates
    note = ", ".join(f"{name} {value:.2g}" for name, value in each.items())
    name = f"update a million parameters, {updates[largest][0]:.1f} M against {updates[smallest][0]:.1f} M"
    return Figure("growth", name, each[largest], each[smallest], "ms", each[largest] / each[smallest], "x", note=note)


def _averages(updates: dict[int, float]) -> Figure:
    """Of ten averages against ten times one."""
    ours, theirs = 1e3 * updates[10], 1e4 * updates[1]
    note = ", ".join(f"{number}: {1e3 * each:.2g} ms" for number, each in updates.items())
    return Figure(
        "growth", "update of 10 averages, against 10 of one", ours, theirs, "ms", ours / theirs, "x", note=note
    )
