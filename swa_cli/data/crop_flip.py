"""Where pixels go: crop, translation and flip of whole batches, and the squares of cutout.

The one idea: images lie channels last, so a row of a window is one run of bytes of the padded images. All rows of a
batch are copied from where they begin, in one call; then windows are mirrored.
A mask of classes moves with its image. Shapes: B batch, C channels, H W pixels, P pixels of padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from swa_cli.data.augment import Draws
from swa_cli.data.pytree import images_of, moved, pixels_of


def crop_and_flip(images: Tensor, *, draws: Draws) -> Tensor:
    """Cut each image's window out of its padded self, mirrored where drawn.

    Equal in distribution to torchvision's `RandomCrop(size, padding=crop)` and `RandomHorizontalFlip()`; a translation
    to `RandomCrop(size, padding=translate, padding_mode="reflect")`.

    Args:
        images: (B, C, H, W) of any type, stored pixels: the padding of a crop is black.
        draws: Those of the B images.
    """
    return _windows(images, draws=draws, fill=0)


def crop_and_flip_masks(masks: Tensor, *, draws: Draws, fill: int = 255) -> Tensor:
    """Cut each mask's window as `crop_and_flip` does its image's, by the same draws.

    Cutout has no such twin: what a square hides is still to be told.

    Args:
        masks: (B, H, W) of integers.
        draws: Those of the B images.
        fill: The class of a crop's padding; 255 is ignored by losses and scores. A translation reflects masks too.
    """
    return _windows(masks[:, None], draws=draws, fill=fill)[:, 0]


def cut_out(images: Tensor, *, draws: Draws) -> Tensor:
    """Set a square of each image to 0, the mean of normalised images; in place.

    The centre is a uniform pixel; the square covers `centre - side//2` up to (not including)
    `centre - side//2 + side` and is clipped at the edges.

    Args:
        images: (B, C, H, W) float, normalised.
        draws: Those of the B images.
    """
    side, device = draws.augment.cutout, images.device
    if side:
        height, width = images.shape[2:]
        rows = moved(_covered(draws.cut_y, length=height, side=side), device)[:, :, None]
        columns = moved(_covered(draws.cut_x, length=width, side=side), device)[:, None, :]
        image = torch.arange(len(images), device=device)[:, None, None]
        images.permute(0, 2, 3, 1)[image, rows, columns] = 0.0
    return images


def _windows(images: Tensor, *, draws: Draws, fill: int) -> Tensor:
    """(B, C, H, W): each image's window out of itself padded, with `fill` or reflected, mirrored where drawn."""
    augment, padding = draws.augment, draws.augment.padding
    if not (padding or augment.flip):
        return images
    pixels = pixels_of(images)
    num_images, height, width, channels = pixels.shape
    padded = pixels.new_empty((num_images, height + 2 * padding, width + 2 * padding, channels))
    if augment.crop:
        padded.fill_(fill)
    padded[:, padding : padding + height, padding : padding + width] = pixels
    if augment.translate:
        _reflect(padded, padding)
    row = (width + 2 * padding) * channels  # values
    top = torch.arange(num_images) * (height + 2 * padding) + draws.top  # (B,) among the rows of all images
    begins = top * row + draws.left * channels  # (B,) of the windows
    begins = (begins[:, None] + torch.arange(0, height * row, row)).flatten()  # (B H,) of their rows
    size = width * channels
    runs = padded.as_strided((padded.numel() - size + 1, size), (1, 1))  # the run from each value on: they overlap
    windows = runs.index_select(0, moved(begins, images.device)).view(num_images, height, width, channels)
    if augment.flip:
        mirrored = moved(draws.mirrored.nonzero().flatten(), images.device)
        windows.index_copy_(0, mirrored, windows.index_select(0, mirrored).flip(2))
    return images_of(windows)


def _reflect(padded: Tensor, padding: int) -> None:
    """Fill the border of (B, H + 2P, W + 2P, C) with the reflected inside; the edge itself is not repeated."""
    height, width = padded.shape[1] - padding, padded.shape[2] - padding  # where the border begins again
    for step in range(1, padding + 1):
        padded[:, :, padding - step] = padded[:, :, padding + step]
        padded[:, :, width - 1 + step] = padded[:, :, width - 1 - step]
    for step in range(1, padding + 1):
        padded[:, padding - step] = padded[:, padding + step]
        padded[:, height - 1 + step] = padded[:, height - 1 - step]


def _covered(centre: Tensor, *, length: int, side: int) -> Tensor:
    """(B, side): which of `length` pixels the square covers in one dimension, clipped to an edge that it covers."""
    first = (centre * length).long()[:, None] - side // 2
    return (first + torch.arange(side)).clamp_(0, length - 1)
