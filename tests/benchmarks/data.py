"""The images that every contestant trains on: the digits inside the package, as large as those of CIFAR-10.

They cost what CIFAR-10 costs and have to be downloaded by nobody. Each pass through the 1,797 digits is shifted by
another pixel, so no two images are equal. Photos are JPEG files of such images: one digit per channel, enlarged with a
smooth filter, with grain, so that a file takes as long to decode as one from a camera. Shapes: N images, H W 32 pixels.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks.voice import Voice
from swa_cli.data.synthetic import read_digits

NUM_CLASSES = 10
MEAN, STD = (0.3045,) * 3, (0.3763,) * 3  # of pixels scaled to [0, 1]
PHOTO_SIZE = (500, 375)  # width and height, as in ImageNet
PHOTO_FOLDER = Path(__file__).parents[2] / "bench/photos"
_SCALE = 4  # from 8 x 8 to 32 x 32
_GRAIN = 8.0  # standard deviation of the pixels of photos
_QUALITY = 90


def arrays(num_train: int, num_test: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Splits "train" and "test": images (N, 3, H, W) uint8 and labels (N,) int64."""
    digits = read_digits()
    counts = {"train": num_train, "test": num_test}
    return {split: _enlarged(*digits[split], count=count) for split, count in counts.items()}


def images(*, train: int, test: int) -> dict[str, Any]:
    """The same as a dataset factory for a recipe; `cache: ram` holds it as the uint8 tensors that it is."""
    splits = {name: TensorDataset(*split) for name, split in arrays(train, test).items()}
    return {**splits, "num_classes": NUM_CLASSES, "mean": MEAN, "std": STD}


def num_test(num_train: int) -> int:
    """Test images beside so many training images: as in CIFAR-10, a fifth."""
    return num_train // 5


def photo_folder(number: int, *, voice: Voice, folder: Path = PHOTO_FOLDER) -> Path:
    """Return the folder of so many photos, `train/<class>/*.jpg`; it is made at the first call and kept."""
    root = folder / str(number)
    if root.exists():
        return root
    unfinished = folder / f"{number}.{os.getpid()}"
    images, labels = arrays(number, 0)["train"]
    grain = np.random.default_rng(0)
    for row in range(number):
        voice.turn("makes photos", number=row + 1, rounds=number)
        channels = [images[(row + 7 * channel) % number, 0] for channel in range(3)]
        large = Image.fromarray(torch.stack(channels, 2).numpy()).resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
        noisy = np.asarray(large) + grain.normal(0, _GRAIN, (PHOTO_SIZE[1], PHOTO_SIZE[0], 3))
        path = unfinished / "train" / str(labels[row].item()) / f"{row:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=_QUALITY)
    unfinished.rename(root)
    return root


def _enlarged(images: Tensor, labels: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    rows = torch.arange(count) % len(images)
    large = images[rows].repeat_interleave(_SCALE, dim=2).repeat_interleave(_SCALE, dim=3)
    for shift, first in enumerate(range(0, count, len(images))):
        span = slice(first, first + len(images))
        large[span] = large[span].roll((shift, -shift), dims=(2, 3))
    return large.expand(-1, 3, -1, -1).contiguous(), labels[rows]
