"""What is done to training images, and the random numbers of an epoch for it.

All random numbers of an epoch are drawn first (`draw`), then a slice of them is applied to each batch: nothing is
drawn per batch, so a batch can be made without the batches before it. What came later has generators of its own:
switching it on leaves the other draws as they were. The order is crop or translate and flip (`geometry`), jitter
(`colour`), normalisation, cutout (its square is 0 after that, which is the mean), mixing of images (`mixing`).
Shapes: N samples of an epoch, B batch, C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from swa_cli.data.color_jitter import Colours, Jitter, draw_colours
from swa_cli.data.randomness import generator
from swa_cli.errors import UserError


@dataclass(frozen=True)
class Augment:
    """What is done to the training images; all off by default.

    Args:
        crop: Pixels of zero padding on each side before a random window of the image's own size is cut out.
        translate: The same with reflected pixels for padding; one of the two at most.
        flip: Mirror left and right with probability 1/2; alternating: in every other epoch, from a random one on, so
            that each image is seen once each way in two epochs (Jordan 2024, arXiv:2404.00498).
        cutout: Side in pixels of a square set to the mean (DeVries and Taylor 2017, arXiv:1708.04552).
        jitter: Random changes of colour.
        mixup: alpha of the Beta distribution of an image's share in its mixture (Zhang et al. 2017, arXiv:1710.09412).
        cutmix: The same of its share of the pixels (Yun et al. 2019, arXiv:1905.04899).
    """

    crop: int = 0
    translate: int = 0
    flip: bool | Literal["alternating"] = False
    cutout: int = 0
    jitter: Jitter = field(default_factory=Jitter)
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def padding(self) -> int:
        """Pixels on each side by which the window can leave the image."""
        return self.crop or self.translate

    def require_fitting(self, image: Tensor, *, name: str) -> None:
        """Refuse images that cannot be changed so.

        Args:
            image: (C, H, W) as it is stored.
            name: Of the dataset.

        Raises:
            UserError: They are too small, or have no colours that are known.
        """
        channels, *size = image.shape
        if self.translate >= min(size):
            raise UserError(
                f"dataset.augment.translate: {self.translate} pixels are more than the {size[1]}x{size[0]} images of "
                f"{name} can reflect",
                hint=f"write at most {min(size) - 1}",
            )
        if self.jitter.is_on and (image.dtype != torch.uint8 or channels not in (1, 3)):
            raise UserError(
                f"dataset.augment.jitter: changes grey and RGB pixels from 0 to 255, and {name} gives {channels} "
                f"channel{'s' * (channels > 1)} of {str(image.dtype).removeprefix('torch.')}",
                hint="leave it out; the dataset may change its own samples at random",
            )


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of N samples, one each, on the CPU; `draws[a:b]` are those of a batch."""

    augment: Augment
    top: Tensor  # (N,) int64 in 0..2*padding: first row of the window in the padded image
    left: Tensor  # (N,) int64 in 0..2*padding
    mirrored: Tensor  # (N,) bool
    cut_y: Tensor  # (N,) float32 in [0, 1): the square's centre in units of the height
    cut_x: Tensor  # (N,) float32 in [0, 1)
    colours: Colours | None = None

    def __getitem__(self, span: slice | Tensor) -> Draws:
        return replace(
            self,
            top=self.top[span],
            left=self.left[span],
            mirrored=self.mirrored[span],
            cut_y=self.cut_y[span],
            cut_x=self.cut_x[span],
            colours=None if self.colours is None else self.colours[span],
        )


def draw(rows: Tensor, *, augment: Augment, seed: int, words: tuple[str | int, ...], epoch: int = 0) -> Draws:
    """Draw what each of the samples gets.

    The numbers of crop, flip and cutout are drawn whatever is switched on.

    Args:
        rows: (N,) which sample of the split each one is: a permutation of all.
        augment: What is done.
        seed: Of the recipe.
        words: The purpose, and the epoch if there is one.
        epoch: Whether alternating flips are in their first or second turn.
    """
    num_samples, random = len(rows), generator(seed, *words)
    offsets = torch.randint(0, 2 * augment.crop + 1, (2, num_samples), generator=random)
    uniform = torch.rand((3, num_samples), generator=random)
    if augment.translate:
        random = generator(seed, *words, "translate")
        offsets = torch.randint(0, 2 * augment.translate + 1, (2, num_samples), generator=random)
    mirrored = uniform[0] < 0.5
    if augment.flip == "alternating":
        first = torch.randint(0, 2, (num_samples,), generator=generator(seed, "alternating flip"))
        mirrored = (first[rows] + epoch) % 2 == 1
    return Draws(
        augment=augment,
        top=offsets[0],
        left=offsets[1],
        mirrored=mirrored,
        cut_y=uniform[1],
        cut_x=uniform[2],
        colours=draw_colours(num_samples, jitter=augment.jitter, generator=generator(seed, *words, "jitter")),
    )
