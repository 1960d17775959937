"""Crop, translation, flip and cutout of whole batches.

Images lie channels last, so a row of a window is one contiguous run of the padded images. The rows of all windows in a
batch are copied by their offsets in one call; then windows are flipped. Masks change with their images.
 Shapes: B batch, C channels, H W pixels, P pixels of padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from swa_cli.data.augment import Draws
from swa_cli.data.pytree import to_device, to_nchw, to_nhwc


def crop_and_flip(images: Tensor, *, draws: Draws) -> Tensor:
    """Crop each image's window from its padded self, flipped where drawn.

    Equal in distribution to torchvision's `RandomCrop(size, padding=crop)` and `RandomHorizontalFlip()`; a translation
    to `RandomCrop(size, padding=translate, padding_mode="reflect")`.

    Args:
        images: (B, C, H, W) of any type, as stored: the padding of a crop is black.
        draws: Those of the B images.
    """
    return _windows(images, draws=draws, fill=0)


def crop_and_flip_masks(masks: Tensor, *, draws: Draws, fill: int = 255) -> Tensor:
    """Crop and flip each mask as `crop_and_flip` does its image, by the same draws.

    There is no cutout of masks: the network has to predict what the square hides.

    Args:
        masks: (B, H, W) of integers.
        draws: Those of the B images.
        fill: The class of a crop's padding; 255 is ignored by losses and metrics. A translation reflects masks too.
    """
    return _windows(masks[:, None], draws=draws, fill=fill)[:, 0]


def cut_out(images: Tensor, *, draws: Draws) -> Tensor:
    """Set a square of each image to 0, the mean of normalized images; in place.

    The center is a uniform pixel; the square covers `center - side//2` up to (not including)
    `center - side//2 + side` and is clipped at the edges.

    Args:
        images: (B, C, H, W) float, normalized.
        draws: Those of the B images.
    """
    side, device = draws.augment.cutout, images.device
    if side:
        height, width = images.shape[2:]
        rows = to_device(_covered_pixels(draws.cut_y, length=height, side=side), device)[:, :, None]
        columns = to_device(_covered_pixels(draws.cut_x, length=width, side=side), device)[:, None, :]
        image = torch.arange(len(images), device=device)[:, None, None]
        images.permute(0, 2, 3, 1)[image, rows, columns] = 0.0
    return images


def _windows(images: Tensor, *, draws: Draws, fill: int) -> Tensor:
    """Return the windows (B, C, H, W) of images padded with `fill` or by reflection, flipped where drawn."""
    augment, padding = draws.augment, draws.augment.padding
    if not (padding or augment.flip):
        return images
    pixels = to_nhwc(images)
    num_images, height, width, channels = pixels.shape
    padded = pixels.new_empty((num_images, height + 2 * padding, width + 2 * padding, channels))
    if augment.crop:
        padded.fill_(fill)
    padded[:, padding : padding + height, padding : padding + width] = pixels
    if augment.translate:
        _reflect(padded, padding)
    row = (width + 2 * padding) * channels  # values
    top = (
        torch.arange(num_images) * (height + 2 * padding) + draws.top
    )  # (B,) first row of each window, among the rows of all images
    offsets = top * row + draws.left * channels  # (B,) of the windows
    offsets = (offsets[:, None] + torch.arange(0, height * row, row)).flatten()  # (B H,) of their rows
    size = width * channels
    runs = padded.as_strided((padded.numel() - size + 1, size), (1, 1))  # the run at each offset: they overlap
    windows = runs.index_select(0, to_device(offsets, images.device)).view(num_images, height, width, channels)
    if augment.flip:
        flipped = to_device(draws.flipped.nonzero().flatten(), images.device)
        windows.index_copy_(0, flipped, windows.index_select(0, flipped).flip(2))
    return to_nchw(windows)


def _reflect(padded: Tensor, padding: int) -> None:
    """Fill the border of (B, H + 2P, W + 2P, C) by reflection; the edge itself is not repeated."""
    height, width = padded.shape[1] - padding, padded.shape[2] - padding  # first row and column of the far border
    for step in range(1, padding + 1):
        padded[:, :, padding - step] = padded[:, :, padding + step]
        padded[:, :, width - 1 + step] = padded[:, :, width - 1 - step]
    for step in range(1, padding + 1):
        padded[:, padding - step] = padded[:, padding + step]
        padded[:, height - 1 + step] = padded[:, height - 1 - step]


def _covered_pixels(center: Tensor, *, length: int, side: int) -> Tensor:
    """Return the pixels (B, side) that the squares cover along one dimension, clipped at the edges."""
    first = (center * length).long()[:, None] - side // 2
    return (first + torch.arange(side)).clamp_(0, length - 1)
