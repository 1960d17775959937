"""Test-time augmentation: the mean logits of several views of an image.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT = 1  # pixels


def weighted_mean(model: Callable[[Tensor], Tensor], images: Tensor, *, kind: str) -> Tensor:
    """Return the weighted mean of the network's outputs for the views of (B, C, H, W) images, in float32."""
    views = VIEWS[kind](images)
    total = views[0][0] * model(views[0][1]).float()
    for weight, view in views[1:]:
        total = torch.add(total, model(view).float(), alpha=weight)
    return total


def _flipped(images: Tensor) -> list[tuple[float, Tensor]]:
    """Return the images and their mirror images."""
    return [(0.5, images), (0.5, images.flip(3))]


def _flipped_and_translated(images: Tensor) -> list[tuple[float, Tensor]]:
    """Return `_flipped` views with weight 1/2, and those of two translations by a pixel, up left and down right.

    Edges are padded by reflection, as in airbench's `tta_level=2` (Jordan 2024, arXiv:2404.00498).
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (SHIFT,) * 4, mode="reflect")
    moved = [padded[:, :, first : first + height, first : first + width] for first in (0, 2 * SHIFT)]
    halves = [(0.5, images), *((0.25, view) for view in moved)]
    return [(share * weight, view) for share, half in halves for weight, view in _flipped(half)]


VIEWS: Mapping[str, Callable[[Tensor], list[tuple[float, Tensor]]]] = {
    "flip": _flipped,
    "flip_translate": _flipped_and_translated,
}
