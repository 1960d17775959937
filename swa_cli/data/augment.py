"""Augmentation of whole batches: crop, flip, cutout; a mask of classes moves with its image.

The random numbers of all samples of an epoch are drawn first (`draw`), then a slice of them is applied to
each batch: nothing is drawn per batch, so a batch can be made without the batches before it. The order is
crop and flip on the stored pixels, normalisation, cutout: its square is 0 after that, which is the mean.
Shapes: N samples of an epoch, B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augment:
    """What is done to the training images; all off by default.

    Args:
        crop: Pixels of zero padding on each side before a random window of the image's own size is cut out.
        flip: Mirror left and right with probability 1/2.
        cutout: Side in pixels of a square set to the mean (DeVries and Taylor 2017, arXiv:1708.04552).
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of N samples, one each; `draws[a:b]` are those of a batch."""

    augment: Augment
    top: Tensor  # (N,) int64 in 0..2*crop: first row of the window in the padded image
    left: Tensor  # (N,) int64 in 0..2*crop
    mirrored: Tensor  # (N,) bool
    cut_y: Tensor  # (N,) float32 in [0, 1): the square's centre in units of the height
    cut_x: Tensor  # (N,) float32 in [0, 1)

    def __getitem__(self, span: slice) -> Draws:
        return self._each(lambda numbers: numbers[span])

    def to(self, device: torch.device) -> Draws:
        """Move the numbers to a device."""
        return self._each(lambda numbers: numbers.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Draws:
        return Draws(
            augment=self.augment,
            top=change(self.top),
            left=change(self.left),
            mirrored=change(self.mirrored),
            cut_y=change(self.cut_y),
            cut_x=change(self.cut_x),
        )


def draw(num_samples: int, *, augment: Augment, generator: torch.Generator) -> Draws:
    """Draw what each of the samples gets.

    All numbers are drawn whatever is switched on, so switching cutout on leaves the crops as they were.
    """
    offsets = torch.randint(0, 2 * augment.crop + 1, (2, num_samples), generator=generator)
    uniform = torch.rand((3, num_samples), generator=generator)
    return Draws(
        augment=augment,
        top=offsets[0],
        left=offsets[1],
        mirrored=uniform[0] < 0.5,
        cut_y=uniform[1],
        cut_x=uniform[2],
    )


def crop_and_flip(images: Tensor, *, draws: Draws) -> Tensor:
    """Cut each image's window out of its zero-padded self, mirrored where drawn.

    Equal in distribution to torchvision's `RandomCrop(size, padding=crop)` and `RandomHorizontalFlip()`.

    Args:
        images: (B, C, H, W) of any type, stored pixels: the padding is black.
        draws: Those of the B images.
    """
    return _windows(images, draws=draws, fill=0)


def crop_and_flip_masks(masks: Tensor, *, draws: Draws, fill: int = 255) -> Tensor:
    """Cut each mask's window as `crop_and_flip` does its image's, by the same draws.

    Cutout has no such twin: what a square hides is still to be told.

    Args:
        masks: (B, H, W) of integers.
        draws: Those of the B images.
        fill: The class of the padding; 255 is ignored by losses and scores.
    """
    return _windows(masks[:, None], draws=draws, fill=fill)[:, 0]


def cut_out(images: Tensor, *, draws: Draws) -> Tensor:
    """Set a square of each image to 0, the mean of normalised images.

    The centre is a uniform pixel; the square covers `centre - side//2` up to (not including)
    `centre - side//2 + side` and is clipped at the edges.

    Args:
        images: (B, C, H, W) float, normalised.
        draws: Those of the B images.
    """
    side = draws.augment.cutout
    if not side:
        return images
    height, width = images.shape[2:]
    rows = _covered(draws.cut_y, length=height, side=side)  # (B, H)
    columns = _covered(draws.cut_x, length=width, side=side)  # (B, W)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _windows(images: Tensor, *, draws: Draws, fill: int) -> Tensor:
    """(B, C, H, W): each image's window out of itself padded with `fill`, mirrored where drawn."""
    augment = draws.augment
    if not (augment.crop or augment.flip):
        return images
    num_images, channels, height, width = images.shape
    columns = torch.arange(width, device=images.device)
    if augment.flip:
        columns = torch.where(draws.mirrored[:, None], columns.flip(0), columns)  # (B, W)
    columns = columns + draws.left[:, None]
    rows = torch.arange(height, device=images.device) + draws.top[:, None]  # (B, H)
    padded = functional.pad(images, (augment.crop,) * 4, value=fill)
    # One gather of flat pixel numbers crops and mirrors at once.
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (B, H, W)
    index = pixels.view(num_images, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view(num_images, channels, height, width)


def _covered(centre: Tensor, *, length: int, side: int) -> Tensor:
    """(B, length) bool: which of `length` pixels the square covers in one dimension."""
    first = (centre * length).long()[:, None] - side // 2
    pixel = torch.arange(length, device=centre.device)
    return (pixel >= first) & (pixel < first + side)
