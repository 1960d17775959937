"""Digits turned by an angle that is to be told: an example of regression inside the package.

Each digit of the package is turned about its centre by an angle of its own, drawn once: these are always the same
images. All of them are turned at once, as one grid of sampling points each.
Shapes: N images, H W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from swa_cli.data.published import NUM_TEST_DIGITS, Arrays, read_digits
from swa_cli.data.randomness import generator

LARGEST_ANGLE = 60  # degrees, either way
UNIT = 10  # degrees counter-clockwise that a target of 1 stands for
_MARGIN = 2  # black pixels on each side, so that no corner of a turned digit is lost


def read_rotated_digits(*, num_test: int = NUM_TEST_DIGITS) -> tuple[Arrays, Arrays]:
    """Training and test set: images (N, 1, 12, 12) uint8 and angles (N, 1) float32 in tens of degrees."""
    sets = zip(("train", "test"), read_digits(num_test=num_test), strict=True)
    train, test = (_turned(images, name=name) for name, (images, _) in sets)
    return train, test


def turn(images: Tensor, *, degrees: Tensor) -> Tensor:
    """Images (N, 1, H, W) uint8 turned counter-clockwise about their centres, bilinearly; black comes in at the edges.

    Args:
        images: As they are stored.
        degrees: (N,) angles.
    """
    angle = degrees * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Where each pixel comes from, x to the right and y downwards: the turn back, which is clockwise.
    back = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)  # (N, 2, 3)
    grid = functional.affine_grid(back, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, align_corners=False).round().clamp(0, 255).to(torch.uint8)


def _turned(images: Tensor, *, name: str) -> Arrays:
    degrees = LARGEST_ANGLE * (2 * torch.rand(len(images), generator=generator(0, "rotated digits", name)) - 1)
    padded = functional.pad(images, (_MARGIN,) * 4)
    return turn(padded, degrees=degrees), degrees[:, None] / UNIT
