"""Augmentation of training images: settings, random numbers of an epoch, and what is done to whole batches.

All random numbers of an epoch are drawn first (`draw`), then a slice of them is applied to each batch: nothing is
drawn in the order of batches, so a batch does not depend on the batches before it. Each purpose has its own numbers:
switching one on leaves the others as they were. `batches` applies them in this order: vertical flip, crop or translate
and flip, color jitter and normalization (`color_jitter`), cutout and random erasing (what they hide is 0 then, which is
the mean), and mixup or CutMix. What changes each image by itself, before it lies in a batch, is in `transforms`.

To add an augmentation, add its settings to `Augment` and a function on whole batches that `batches` calls; its random
numbers are `Draws.uniforms` of its name.
Shapes: N samples of an epoch, B batch, C channels, H W pixels, P pixels of padding, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from swa_cli.data.color_jitter import ColorDraws, ColorJitter, draw_color_jitter
from swa_cli.data.pytree import to_device, to_nchw, to_nhwc
from swa_cli.data.randomness import generator, numpy_generator, uniforms
from swa_cli.errors import UserError

_LARGE = 64 << 10  # bytes of an image that is flipped by itself, in the cache (224 x 224: 8 times as fast)
_TRIALS = 10  # of a rectangle to erase, as in torchvision
_ERASED, _ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # shares of the area; height / width


@dataclass(frozen=True)
class Augment:
    """How training images are augmented; all is off by default.

    Args:
        crop: Pixels of zero padding on each side, from which a random window of the image's size is cropped.
        translate: The same with reflection padding; excludes `crop`.
        flip: Flip horizontally with probability 1/2; "alternating": in every other epoch, so that two epochs show each
            image once each way (Jordan 2024, arXiv:2404.00498).
        vertical_flip: Flip upside down with probability 1/2.
        cutout: Side in pixels of a square set to the mean (DeVries and Taylor 2017, arXiv:1708.04552).
        random_erasing: Probability of setting a rectangle to the mean (Zhong et al. 2017, arXiv:1708.04896).
        jitter: Random changes of color.
        mixup: alpha of the Beta distribution of an image's share in its mixture (Zhang et al. 2017, arXiv:1710.09412).
        cutmix: alpha of its share of the pixels (Yun et al. 2019, arXiv:1905.04899).
    """

    crop: int = 0
    translate: int = 0
    flip: bool | Literal["alternating"] = False
    vertical_flip: bool = False
    cutout: int = 0
    random_erasing: float = 0.0
    jitter: ColorJitter = field(default_factory=ColorJitter)
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def padding(self) -> int:
        """Pixels by which the window can leave the image on each side."""
        return self.crop or self.translate

    def require_fitting(self, image: Tensor, *, name: str) -> None:
        """Check that the images (C, H, W) of the dataset `name` can be augmented so.

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
    """The random numbers of N samples, on the CPU; `draws[a:b]` are those of a batch.

    What is off is 0 everywhere, and takes no memory.
    """

    augment: Augment
    top: Tensor  # (N,) int32 in 0..2*padding: first row of the window in the padded image
    left: Tensor  # (N,) int32 in 0..2*padding
    flipped: Tensor  # (N,) bool
    cut_y: Tensor  # (N,) float32 in [0, 1): center of the square in units of the height
    cut_x: Tensor  # (N,) float32 in [0, 1)
    seed: int
    key: tuple[str | int, ...]
    colors: ColorDraws | None = None
    positions: Tensor | None = None  # (N,) int64: with seed and key they decide the numbers of `uniforms`; None: 0..N

    def __len__(self) -> int:
        return len(self.flipped)

    def __getitem__(self, span: slice | Tensor) -> Draws:
        drawn = {each.name: getattr(self, each.name) for each in fields(self)}
        taken: dict[str, Any] = {
            name: part[span] for name, part in drawn.items() if isinstance(part, Tensor | ColorDraws)
        }
        if self.positions is None:
            taken["positions"] = span if isinstance(span, Tensor) else torch.arange(*span.indices(len(self)))
        return replace(self, **taken)

    def uniforms(self, number: int, *, purpose: str) -> Tensor:
        """Return (N, number) uniform numbers of a purpose."""
        positions = torch.arange(len(self)) if self.positions is None else self.positions
        return uniforms(positions, number, seed=self.seed, key=(*self.key, purpose))


def draw(rows: Tensor, *, augment: Augment, seed: int, key: tuple[str | int, ...], epoch: int = 0) -> Draws:
    """Draw the random numbers of each sample: of an epoch, so that its loader processes share them.

    They take 8 bytes per sample for crop or translate, 1 for flip and 8 for cutout. Those three are parts of one
    sequence: each has the same numbers whether or not the others are on.

    Args:
        rows: (N,) the row of the split at each position: a permutation.
        augment: The settings.
        seed: With `key` it decides the numbers.
        key: The purpose, and the epoch if there is one.
        epoch: Its parity decides alternating flips.
    """
    num_samples, random = len(rows), generator(seed, *key)
    offsets = torch.zeros((2, 1), dtype=torch.int32).expand(2, num_samples)
    flipped, centers = torch.zeros(1, dtype=torch.bool).expand(num_samples), torch.zeros((2, 1)).expand(2, num_samples)
    if augment.crop or augment.cutout or augment.flip is True:
        drawn = torch.randint(0, 2 * augment.crop + 1, (2, num_samples), generator=random)
        uniform = torch.rand((3, num_samples), generator=random)
        offsets = drawn.int() if augment.crop else offsets
        flipped = uniform[0] < 0.5 if augment.flip else flipped
        centers = uniform[1:].clone() if augment.cutout else centers
    if augment.translate:
        random = generator(seed, *key, "translate")
        offsets = torch.randint(0, 2 * augment.translate + 1, (2, num_samples), generator=random).int()
    if augment.flip == "alternating":
        first = torch.randint(0, 2, (num_samples,), generator=generator(seed, "alternating flip"))
        flipped = (first[rows] + epoch) % 2 == 1
    return Draws(
        augment=augment,
        top=offsets[0],
        left=offsets[1],
        flipped=flipped,
        cut_y=centers[0],
        cut_x=centers[1],
        seed=seed,
        key=key,
        colors=draw_color_jitter(num_samples, jitter=augment.jitter, generator=generator(seed, *key, "jitter")),
    )


# --- crop, flip and cutout


def crop_and_flip(images: Tensor, *, draws: Draws, fill: int = 0) -> Tensor:
    """Crop each image's window from its padded self, flipped where drawn.

    Equal in distribution to torchvision's `RandomCrop(size, padding=crop)` and `RandomHorizontalFlip()`; a translation
    to `RandomCrop(size, padding=translate, padding_mode="reflect")`. Images lie channels last, so a row of a window is
    one contiguous run of the padded images: the rows of all windows are copied by their offsets in one call.

    Args:
        images: (B, C, H, W) of any type, as stored; they may be changed in place.
        draws: Those of the B images.
        fill: The value of a crop's padding.
    """
    augment, padding = draws.augment, draws.augment.padding
    if augment.vertical_flip:
        is_flipped = draws.uniforms(1, purpose="vertical flip").flatten() < 0.5
        images = _flipped_rows(images, to_device(is_flipped.nonzero().flatten(), images.device))
    if not (padding or augment.flip):
        return images
    pixels = to_nhwc(images)
    if padding:
        pixels = _windows(pixels, draws=draws, fill=fill)
    if augment.flip:
        flipped = draws.flipped.nonzero().flatten()
        if images.device.type == "cpu" and pixels[:1].nbytes >= _LARGE:
            for place in flipped.tolist():
                pixels[place] = pixels[place].flip(1)
        else:
            flipped = to_device(flipped, images.device)
            pixels.index_copy_(0, flipped, pixels.index_select(0, flipped).flip(2))
    return to_nchw(pixels)


def _windows(pixels: Tensor, *, draws: Draws, fill: int) -> Tensor:
    """Return the window of each image (B, H, W, C) in its padded self."""
    augment, padding, device = draws.augment, draws.augment.padding, pixels.device
    num_images, height, width, channels = pixels.shape
    padded = pixels.new_empty((num_images, height + 2 * padding, width + 2 * padding, channels))
    if augment.crop:
        padded.fill_(fill)
    padded[:, padding : padding + height, padding : padding + width] = pixels
    if augment.translate:
        _reflect(padded, padding)
    row = (width + 2 * padding) * channels  # values
    # (B,) first row of each window, among the rows of all images
    top = torch.arange(num_images) * (height + 2 * padding) + draws.top
    offsets = top * row + draws.left * channels  # (B,) of the windows
    offsets = (offsets[:, None] + torch.arange(0, height * row, row)).flatten()  # (B H,) of their rows
    size = width * channels
    runs = padded.as_strided((padded.numel() - size + 1, size), (1, 1))  # the run at each offset: they overlap
    return runs.index_select(0, to_device(offsets, device)).view(num_images, height, width, channels)


def _flipped_rows(images: Tensor, which: Tensor) -> Tensor:
    """Return images (B, C, H, W) of which some are turned upside down."""
    return images.index_copy(0, which, images.index_select(0, which).flip(2))


def crop_and_flip_masks(masks: Tensor, *, draws: Draws) -> Tensor:
    """Crop and flip each mask (B, H, W) as `crop_and_flip` does its image; a crop is padded with the ignored class.

    There is no cutout of masks: the network has to predict what the square hides.
    """
    return crop_and_flip(masks[:, None], draws=draws, fill=255)[:, 0]


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
        # An assigned number would be copied from the host, for which torch waits (2.14).
        images.permute(0, 2, 3, 1).index_put_((image, rows, columns), images.new_zeros(()))
    return images


def erase(images: Tensor, *, draws: Draws) -> Tensor:
    """Set a random rectangle of some images to 0, the mean of normalized images; in place.

    Equal in distribution to torchvision's `RandomErasing(p=random_erasing)`: a share of 0.02 to 0.33 of the area, a
    ratio height / width of 0.3 to 3.3, uniform in the logarithm; the first of ten trials that fits.

    Args:
        images: (B, C, H, W) float, normalized.
        draws: Those of the B images.
    """
    height, width = images.shape[2:]
    numbers = draws.uniforms(3 + 2 * _TRIALS, purpose="erasing")
    coins, y, x = numbers[:, :3].unbind(1)
    shares, ratios = numbers[:, 3:].view(-1, _TRIALS, 2).unbind(2)  # (B, trials)
    area = height * width * (_ERASED[0] + shares * (_ERASED[1] - _ERASED[0]))
    low, high = (math.log(bound) for bound in _ERASED_RATIO)
    ratio = torch.exp(low + ratios * (high - low))
    rows, columns = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (rows < height) & (columns < width)
    first = fits.int().argmax(1, keepdim=True)
    rows, columns = (sides.gather(1, first)[:, 0] for sides in (rows, columns))
    top, left = ((start * (side - sides + 1)).long() for start, side, sides in ((y, height, rows), (x, width, columns)))
    is_erased = (coins < draws.augment.random_erasing) & fits.any(1)
    inside = [
        (place >= begin[:, None]) & (place < (begin + length)[:, None])
        for place, begin, length in ((torch.arange(height), top, rows), (torch.arange(width), left, columns))
    ]
    hidden = inside[0][:, None, :, None] & inside[1][:, None, None, :] & is_erased[:, None, None, None]
    return images.masked_fill_(to_device(hidden, images.device), 0.0)


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


# --- mixup and CutMix


@dataclass(frozen=True)
class Mix:
    """How the images of a batch are mixed: by CutMix if there is a center of the box, else by mixup."""

    share: float  # in [0, 1]: what remains of an image, before CutMix clips its box at the edges
    center: tuple[float, float] | None = None  # (y, x) in [0, 1), in units of height and width


def draw_mixes(num_batches: int, *, augment: Augment, seed: int, key: tuple[str | int, ...]) -> tuple[Mix | None, ...]:
    """Draw how each batch of an epoch is mixed; with mixup and CutMix both on, each batch gets one of them evenly.

    As in torchvision's `MixUp` and `CutMix`, a batch has one share, from Beta(alpha, alpha), and one box. These are
    plain numbers, so nothing synchronizes with the device.
    """

    def shares(name: str, alpha: float) -> list[float]:
        return numpy_generator(seed, *key, name).beta(alpha, alpha, num_batches).tolist() if alpha else []

    centers = torch.rand((num_batches, 2), generator=generator(seed, *key, "cutmix centre"), dtype=torch.float64)
    blended = [Mix(share) for share in shares("mixup", augment.mixup)]
    boxed = [
        Mix(share, (y, x)) for share, (y, x) in zip(shares("cutmix", augment.cutmix), centers.tolist(), strict=False)
    ]
    if blended and boxed:
        coins = torch.rand(num_batches, generator=generator(seed, *key, "mixup or cutmix")) < 0.5
        return tuple(pair[coin] for pair, coin in zip(zip(blended, boxed, strict=True), coins.tolist(), strict=True))
    return tuple(blended or boxed) or (None,) * num_batches


def one_hot(labels: Tensor, *, num_classes: int, error: Callable[..., UserError] = UserError) -> Tensor:
    """Convert classes (B,) to probabilities (B, K) float32.

    Raises:
        UserError: A label is not a class; `error` makes the exception. On an accelerator they are not looked at.
    """
    if labels.device.type == "cpu" and len(wrong := labels[(labels < 0) | (labels >= num_classes)]):
        raise error(
            f"the dataset gives the label {int(wrong[0])} for {num_classes} classes",
            hint=f"use labels from 0 to {num_classes - 1}, or correct num_classes",
        )
    probabilities = torch.zeros((len(labels), num_classes), device=labels.device)
    return probabilities.scatter_(1, labels[:, None], 1.0)  # one_hot would wait for some devices


def mix_batch(images: Tensor, targets: Tensor, *, mix: Mix, distance: int = 1) -> tuple[Tensor, Tensor]:
    """Mix each image with the one `distance` places before it in the batch, around its end, and their targets alike.

    Args:
        images: (B, C, H, W) float, normalized.
        targets: (B, K) probabilities.
        mix: That of the batch.
        distance: The number of views of an image that stand side by side: they are not mixed with each other.
    """
    pixels = to_nhwc(images)
    if mix.center is None:
        return to_nchw(_blend(pixels, mix.share, distance)), _blend(targets, mix.share, distance)
    height, width = images.shape[2:]
    rows, columns = (
        _box_side(center, length=length, share=mix.share)
        for center, length in zip(mix.center, (height, width), strict=True)
    )
    pixels = pixels.clone()
    pixels[:, rows, columns] = pixels[:, rows, columns].roll(distance, 0)
    covered = (rows.stop - rows.start) * (columns.stop - columns.start)
    return to_nchw(pixels), _blend(targets, 1 - covered / (height * width), distance)


def _blend(values: Tensor, share: float, distance: int) -> Tensor:
    return values.roll(distance, 0).mul_(1 - share).add_(values.mul(share))


def _box_side(center: float, *, length: int, share: float) -> slice:
    """Return the rows or columns of the box, whose sides are sqrt(1 - share) of the image's before clipping."""
    middle, reach = int(center * length), int(0.5 * math.sqrt(1 - share) * length)
    return slice(max(0, middle - reach), min(length, middle + reach))
