"""Augmentation of training images: its settings, and the random numbers of an epoch.

All random numbers of an epoch are drawn first (`draw`), then a slice of them is applied to each batch: nothing is
drawn per batch, so a batch does not depend on the batches before it. Translation, alternating flips, jitter and mixing
have their own generators: switching them on leaves the other draws as they were. The order is crop or translate and
flip (`crop_flip`), color jitter and normalization (`color_jitter`), cutout (its square is 0 then, which is the mean;
`crop_flip`), and mixing of images (`mixing`).
Shapes: N samples of an epoch, B batch, C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from swa_cli.data.color_jitter import ColorDraws, ColorJitter, draw_color_jitter
from swa_cli.data.randomness import generator
from swa_cli.errors import UserError


@dataclass(frozen=True)
class Augment:
    """How training images are augmented; all is off by default.

    Args:
        crop: Pixels of zero padding on each side, from which a random window of the image's size is cropped.
        translate: The same with reflection padding; excludes `crop`.
        flip: Flip horizontally with probability 1/2; "alternating": in every other epoch, so that two epochs show each
            image once each way (Jordan 2024, arXiv:2404.00498).
        cutout: Side in pixels of a square set to the mean (DeVries and Taylor 2017, arXiv:1708.04552).
        jitter: Random changes of color.
        mixup: alpha of the Beta distribution of an image's share in its mixture (Zhang et al. 2017, arXiv:1710.09412).
        cutmix: alpha of its share of the pixels (Yun et al. 2019, arXiv:1905.04899).
    """

    crop: int = 0
    translate: int = 0
    flip: bool | Literal["alternating"] = False
    cutout: int = 0
    jitter: ColorJitter = field(default_factory=ColorJitter)
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def padding(self) -> int:
        """Pixels by which the window can leave the image on each side."""
        return self.crop or self.translate

    def require_fitting(self, image: Tensor, *, name: str) -> None:
        """Check that images can be augmented so.

        Args:
            image: (C, H, W) as it is stored.
            name: Of the dataset, for messages.

        Raises:
            UserError: They are too small, or their colors are unknown.
        """
        channels, *size = image.shape
        if self.translate >= min(size):
            raise UserError(
                f"dataset.augment.translate: {self.translate} pixels are more than the {size[1]}x{size[0]} images of "
                f"{name} can reflect",
                hint=f"write at most {min(size) - 1}",
            )
        if (image.dtype != torch.uint8 or channels not in (1, 3)) and self.jitter.is_on:
            raise UserError(
                f"dataset.augment.jitter: changes gray and RGB pixels from 0 to 255, but {name} gives {channels} "
                f"channel{'s' * (channels > 1)} of {str(image.dtype).removeprefix('torch.')}",
                hint="leave it out; the dataset may augment its own samples",
            )


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of N samples, on the CPU; `draws[a:b]` are those of a batch."""

    augment: Augment
    top: Tensor  # (N,) int64 in 0..2*padding: first row of the window in the padded image
    left: Tensor  # (N,) int64 in 0..2*padding
    flipped: Tensor  # (N,) bool
    cut_y: Tensor  # (N,) float32 in [0, 1): center of the square in units of the height
    cut_x: Tensor  # (N,) float32 in [0, 1)
    colors: ColorDraws | None = None

    def __getitem__(self, span: slice | Tensor) -> Draws:
        return replace(
            self,
            top=self.top[span],
            left=self.left[span],
            flipped=self.flipped[span],
            cut_y=self.cut_y[span],
            cut_x=self.cut_x[span],
            colors=None if self.colors is None else self.colors[span],
        )


def draw(rows: Tensor, *, augment: Augment, seed: int, key: tuple[str | int, ...], epoch: int = 0) -> Draws:
    """Draw the random numbers of each sample.

    Those of crop, flip and cutout are drawn even if they are off.

    Args:
        rows: (N,) the row of the split at each position: a permutation.
        augment: The settings.
        seed: Of the recipe.
        key: The purpose, and the epoch if there is one.
        epoch: Its parity decides alternating flips.
    """
    num_samples, random = len(rows), generator(seed, *key)
    offsets = torch.randint(0, 2 * augment.crop + 1, (2, num_samples), generator=random)
    uniform = torch.rand((3, num_samples), generator=random)
    if augment.translate:
        random = generator(seed, *key, "translate")
        offsets = torch.randint(0, 2 * augment.translate + 1, (2, num_samples), generator=random)
    flipped = uniform[0] < 0.5
    if augment.flip == "alternating":
        first = torch.randint(0, 2, (num_samples,), generator=generator(seed, "alternating flip"))
        flipped = (first[rows] + epoch) % 2 == 1
    return Draws(
        augment=augment,
        top=offsets[0],
        left=offsets[1],
        flipped=flipped,
        cut_y=uniform[1],
        cut_x=uniform[2],
        colors=draw_color_jitter(num_samples, jitter=augment.jitter, generator=generator(seed, *key, "jitter")),
    )
