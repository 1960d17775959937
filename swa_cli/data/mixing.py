"""Mixup and CutMix: mix each image of a batch, and its class, with the one before it.

As in torchvision's `MixUp` and `CutMix`, a batch has one share and one box. These are plain numbers, drawn before the
epoch: a batch does not depend on the batches before it, and nothing synchronizes with the device.
Shapes: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from swa_cli.data.pytree import to_nchw, to_nhwc
from swa_cli.data.randomness import generator, numpy_generator
from swa_cli.errors import UserError


@dataclass(frozen=True)
class Mix:
    """How the images of a batch are mixed: by CutMix if there is a center of the box, else by mixup."""

    share: float  # in [0, 1]: what remains of an image, before CutMix clips its box at the edges
    center: tuple[float, float] | None = None  # (y, x) in [0, 1), in units of height and width


def draw_mixes(
    num_batches: int, *, mixup: float, cutmix: float, seed: int, key: tuple[str | int, ...]
) -> tuple[Mix | None, ...]:
    """Draw how each batch of an epoch is mixed: shares from Beta(alpha, alpha), where an alpha of 0 is off.

    With both on, each batch gets one of them evenly.
    """

    def shares(name: str, alpha: float) -> list[float]:
        return numpy_generator(seed, *key, name).beta(alpha, alpha, num_batches).tolist() if alpha else []

    centers = torch.rand((num_batches, 2), generator=generator(seed, *key, "cutmix centre"), dtype=torch.float64)
    blended = [Mix(share) for share in shares("mixup", mixup)]
    boxed = [Mix(share, (y, x)) for share, (y, x) in zip(shares("cutmix", cutmix), centers.tolist(), strict=False)]
    if blended and boxed:
        coins = torch.rand(num_batches, generator=generator(seed, *key, "mixup or cutmix")) < 0.5
        return tuple(pair[coin] for pair, coin in zip(zip(blended, boxed, strict=True), coins.tolist(), strict=True))
    return tuple(blended or boxed) or (None,) * num_batches


def one_hot(labels: Tensor, *, num_classes: int, error: Callable[..., UserError] = UserError) -> Tensor:
    """Convert classes (B,) on the CPU to probabilities (B, K) float32.

    Raises:
        UserError: A label is not a class; `error` makes the exception.
    """
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise error(
            f"the dataset gives the label {int(wrong[0])} for {num_classes} classes",
            hint=f"use labels from 0 to {num_classes - 1}, or correct num_classes",
        )
    return torch.nn.functional.one_hot(labels, num_classes).to(torch.float32)


def mix_batch(images: Tensor, targets: Tensor, *, mix: Mix) -> tuple[Tensor, Tensor]:
    """Mix each image with the one before it in the batch, the first with the last, and their targets alike.

    Args:
        images: (B, C, H, W) float, normalized.
        targets: (B, K) probabilities.
        mix: That of the batch.
    """
    pixels = to_nhwc(images)
    if mix.center is None:
        return to_nchw(_blend(pixels, mix.share)), _blend(targets, mix.share)
    height, width = images.shape[2:]
    rows, columns = _box(mix, height=height, width=width)
    pixels = pixels.clone()
    pixels[:, rows, columns] = pixels[:, rows, columns].roll(1, 0)
    covered = (rows.stop - rows.start) * (columns.stop - columns.start)
    return to_nchw(pixels), _blend(targets, 1 - covered / (height * width))


def _blend(values: Tensor, share: float) -> Tensor:
    return values.roll(1, 0).mul_(1 - share).add_(values.mul(share))


def _box(mix: Mix, *, height: int, width: int) -> tuple[slice, slice]:
    """Return rows and columns of the box, whose sides are sqrt(1 - share) of the image's before clipping."""
    assert mix.center is not None
    half = 0.5 * math.sqrt(1 - mix.share)
    y, x = (int(where * length) for where, length in zip(mix.center, (height, width), strict=True))
    return tuple(  # type: ignore[return-value]
        slice(max(0, middle - int(half * length)), min(length, middle + int(half * length)))
        for middle, length in ((y, height), (x, width))
    )
