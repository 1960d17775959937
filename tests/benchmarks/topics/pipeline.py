"""The data pipeline alone: crop and flip of an epoch, against torchvision in a DataLoader with 2 workers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

import torch

from benchmarks import data
from benchmarks.contestants.documentation import loaders
from benchmarks.contestants.job import BATCH_SIZE, CROP
from benchmarks.figures import Figure, rate
from benchmarks.size import Size
from benchmarks.turns import by_turns, seconds
from benchmarks.voice import Voice
from swa_cli.data.augment import Augment
from swa_cli.data.batches import epoch_batches
from swa_cli.data.splits import Split

BAR = 6.0


def measure(size: Size, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """An epoch of each, nothing done with the batches."""
    images, labels = data.arrays(size.pipeline_images, 0)["train"]
    split = Split(labels, images.contiguous(memory_format=torch.channels_last))  # as sources keep them
    loader, _ = loaders(size.pipeline_images)

    def batches() -> Iterable[Any]:
        return epoch_batches(
            split,
            seed=0,
            epoch=1,
            batch_size=BATCH_SIZE,
            augment=Augment(crop=CROP, flip=True),
            mean=data.MEAN,
            std=data.STD,
        )

    times = by_turns(
        {
            "swa": lambda: seconds(lambda: _read(batches())),
            "DataLoader": lambda: seconds(lambda: _read(loader)),
        },
        rounds=size.pipeline_rounds,
        voice=voice,
    )
    num_images = size.pipeline_images // BATCH_SIZE * BATCH_SIZE
    rates = {name: num_images / statistics.median(each) for name, each in times.items()}
    name = "crop + flip against DataLoader, 2 workers"
    return [rate("pipeline", name, ours=rates["swa"], theirs=rates["DataLoader"], bar=BAR)], times


def _read(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass
