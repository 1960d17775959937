"""The images that every contestant trains on: the digits inside the package, as large as those of CIFAR-10.

They cost what CIFAR-10 costs and have to be downloaded by nobody. Each pass through the 1,797 digits is shifted by
another pixel, so no two images are equal. Shapes: N images, H W 32 pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from swa_cli.data.synthetic import read_digits

NUM_CLASSES = 10
MEAN, STD = (0.3045,) * 3, (0.3763,) * 3  # of pixels scaled to [0, 1]
_SCALE = 4  # from 8 x 8 to 32 x 32


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


def _enlarged(images: Tensor, labels: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    rows = torch.arange(count) % len(images)
    large = images[rows].repeat_interleave(_SCALE, dim=2).repeat_interleave(_SCALE, dim=3)
    for shift, first in enumerate(range(0, count, len(images))):
        span = slice(first, first + len(images))
        large[span] = large[span].roll((shift, -shift), dims=(2, 3))
    return large.expand(-1, 3, -1, -1).contiguous(), labels[rows]
