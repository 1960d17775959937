"""Photos as files: random crops of JPEG files to 224 pixels, against torchvision's ImageFolder in a DataLoader.

Both read the same files with as many workers, and nothing is done with the batches. The limit is what the workers would
decode if they did nothing else: their number times the rate of one thread, each file at the part of its size that its
crop needs, by simplejpeg or, where that is missing, by Pillow.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks import data
from benchmarks.figures import Figure, rate
from benchmarks.size import Size
from benchmarks.turns import by_turns
from benchmarks.voice import Voice
from swa_cli.data.augment import Augment
from swa_cli.data.batches import epoch_batches
from swa_cli.data.image_file import EncodedPhoto
from swa_cli.data.sources import Source, load
from swa_cli.data.transforms import (
    DrawnView,
    EvaluationView,
    Pixels,
    RandomResizedCrop,
    TrainingView,
    Views,
    draw_views,
)
from swa_cli.engine.hardware import manage_memory

BAR = 2.0
SIDE = 224
BATCH_SIZE = 50
WORKERS = 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POLICY = "trivial_augment"


def measure(size: Size, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """An epoch of each, by turns: the plain crop with workers, which has the bar; with a policy; without workers."""
    root = data.photo_folder(size.photos, voice=voice)
    manage_memory(keep=True)  # as `swa train` does; the DataLoader has the good of it, too
    kinds = {"": (None, WORKERS), ", TrivialAugment": (POLICY, WORKERS), ", 0 workers": (None, 0)}
    judged: dict[str, Callable[[], float]] = {"decoder": partial(decoded_per_second, root)}
    others: dict[str, Callable[[], float]] = {}
    for kind, (policy, workers) in kinds.items():
        contestants = others if kind else judged
        contestants[f"swa{kind}"] = partial(_photos_per_second, ours(root, policy=policy, workers=workers))
        contestants[f"DataLoader{kind}"] = partial(_photos_per_second, theirs(root, policy=policy, workers=workers))
    rates = by_turns(judged, rounds=size.photo_rounds, voice=voice)
    rates |= by_turns(others, rounds=size.other_photo_rounds, voice=voice)
    median = {name: statistics.median(each) for name, each in rates.items()}
    figures = [
        rate(
            "photos",
            f"random_resized_crop{kind or f', {WORKERS} workers'}",
            ours=median[f"swa{kind}"],
            theirs=median[f"DataLoader{kind}"],
            bar=None if kind else BAR,
        )
        for kind in kinds
    ]
    limit = WORKERS * median["decoder"]
    share = 100 * median["swa"] / limit
    note = f"{WORKERS} workers x {median['decoder']:,.0f} img/s of one thread that only decodes"
    return [
        *figures,
        Figure("photos", "share of the limit", median["swa"], limit, "img/s", share, "%", note=note),
    ], rates


def ours(root: Path, *, policy: str | None = None, workers: int) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """Returns what makes the batches of an epoch of `swa train`."""
    views = _views(policy)
    source: Source = load(
        "image_folder",
        root=str(root),
        val=0,
        cache="none",
        workers=workers,
        views=views,
        mean=MEAN,
        std=STD,
    )
    assert source.train is not None
    return lambda: epoch_batches(
        source.train,
        seed=0,
        epoch=1,
        batch_size=BATCH_SIZE,
        augment=Augment(flip=True),
        view=views.training,
        mean=source.mean,
        std=source.std,
        workers=workers,
    )


def theirs(root: Path, *, policy: str | None = None, workers: int) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """The same of torchvision."""
    photos = ImageFolder(str(root / "train"), preset(SIDE, policy=policy))
    return lambda: DataLoader(photos, batch_size=BATCH_SIZE, shuffle=True, num_workers=workers, drop_last=True)


def preset(side: int, *, policy: str | None = None) -> v2.Compose:
    """The training preset of torchvision's references/classification, backend PIL.

    https://github.com/pytorch/vision/blob/main/references/classification/presets.py
    """
    chosen = [v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)] if policy else []
    return v2.Compose(
        [
            v2.RandomResizedCrop(side, interpolation=v2.InterpolationMode.BILINEAR, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            *chosen,
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(mean=MEAN, std=STD),
            v2.ToPureTensor(),
        ]
    )


def decoded_per_second(root: Path) -> float:
    """Photos that one thread decodes in a second, each at the part of its size that a crop needs."""
    files = sorted((root / "train").glob("*/*.jpg"))
    asked = _Asked()
    for draws in draw_views(torch.arange(len(files)), seed=0, key=("decoder",)):
        DrawnView(_views(None).training, draws).image(asked)
    began = time.perf_counter()
    for path, divisor in zip(files, asked.divisors, strict=True):
        EncodedPhoto(str(path)).pixels(divisor=divisor)
    return len(files) / (time.perf_counter() - began)


class _Asked:
    """A photo of the folder that notes at which part of its size it is decoded."""

    def __init__(self) -> None:
        width, height = data.PHOTO_SIZE
        self._pixels = Pixels(torch.zeros((3, height, width), dtype=torch.uint8))
        self.size = self._pixels.size
        self.divisors: list[int] = []

    def pixels(self, **asked: Any) -> Tensor:
        self.divisors.append(asked.get("divisor", 1))
        return self._pixels.pixels(**asked)


def _views(policy: str | None) -> Views:
    still = EvaluationView((SIDE, SIDE), 256)
    return Views(TrainingView(still, crop=RandomResizedCrop(), policy=policy), still)


def _photos_per_second(batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> float:
    began = time.perf_counter()
    photos = sum(len(labels) for _, labels in batches())
    return photos / (time.perf_counter() - began)
