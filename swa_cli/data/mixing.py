"""Mixup and CutMix: each image of a batch mixed with the one before it, and their classes with them.

As torchvision's `MixUp` and `CutMix`, one share, and one box, a batch. They are plain numbers, known before the epoch
begins: a batch needs nothing of the batches before it, and no device has to be waited for.
Shapes: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from swa_cli.data.pytree import images_of, pixels_of
from swa_cli.data.randomness import generator, numpy_generator
from swa_cli.errors import EXIT_FAILED, UserError


@dataclass(frozen=True)
class Mix:
    """How the images of a batch are mixed: with a box about a centre by CutMix, else by mixup."""

    share: float  # in [0, 1]: what remains of an image, before CutMix has clipped its box at the edges
    centre: tuple[float, float] | None = None  # (y, x) in [0, 1), in units of height and width


def draw_mixes(
    num_batches: int, *, mixup: float, cutmix: float, seed: int, words: tuple[str | int, ...]
) -> tuple[Mix | None, ...]:
    """Draw how each batch is mixed: shares from Beta(alpha, alpha), and if both are on one of the two, evenly.

    Args:
        num_batches: Of the whole epoch.
        mixup: alpha; 0 for none.
        cutmix: alpha; 0 for none.
        seed: Of the recipe.
        words: The purpose, and the epoch if there is one.
    """

    def shares(name: str, alpha: float) -> list[float]:
        return numpy_generator(seed, *words, name).beta(alpha, alpha, num_batches).tolist() if alpha else []

    centres = torch.rand((num_batches, 2), generator=generator(seed, *words, "cutmix centre"), dtype=torch.float64)
    blended = [Mix(share) for share in shares("mixup", mixup)]
    boxed = [Mix(share, (y, x)) for share, (y, x) in zip(shares("cutmix", cutmix), centres.tolist(), strict=False)]
    if blended and boxed:
        coins = torch.rand(num_batches, generator=generator(seed, *words, "mixup or cutmix")) < 0.5
        return tuple(pair[coin] for pair, coin in zip(zip(blended, boxed, strict=True), coins.tolist(), strict=True))
    return tuple(blended or boxed) or (None,) * num_batches


def one_hot(labels: Tensor, *, num_classes: int) -> Tensor:
    """(B,) classes as probabilities (B, K) float32.

    Args:
        labels: On the CPU.
        num_classes: K.

    Raises:
        UserError: A label is no class.
    """
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise UserError(
            f"the dataset gives the label {int(wrong[0])} for {num_classes} classes",
            hint=f"let labels be 0 to {num_classes - 1}, or correct num_classes",
            exit_code=EXIT_FAILED,
        )
    return torch.nn.functional.one_hot(labels, num_classes).to(torch.float32)


def mixed(images: Tensor, targets: Tensor, *, mix: Mix) -> tuple[Tensor, Tensor]:
    """Mix each image with the one before it in the batch, the first with the last, and their targets alike.

    Args:
        images: (B, C, H, W) float, normalised.
        targets: (B, K) probabilities.
        mix: That of the batch.
    """
    pixels = pixels_of(images)
    if mix.centre is None:
        return images_of(_blended(pixels, mix.share)), _blended(targets, mix.share)
    height, width = images.shape[2:]
    rows, columns = _box(mix, height=height, width=width)
    pixels = pixels.clone()
    pixels[:, rows, columns] = pixels[:, rows, columns].roll(1, 0)
    covered = (rows.stop - rows.start) * (columns.stop - columns.start)
    return images_of(pixels), _blended(targets, 1 - covered / (height * width))


def _blended(values: Tensor, share: float) -> Tensor:
    return values.roll(1, 0).mul_(1 - share).add_(values.mul(share))


def _box(mix: Mix, *, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the box, whose sides are sqrt(1 - share) of the image's before they are clipped."""
    assert mix.centre is not None
    half = 0.5 * math.sqrt(1 - mix.share)
    y, x = (int(where * length) for where, length in zip(mix.centre, (height, width), strict=True))
    return tuple(  # type: ignore[return-value]
        slice(max(0, middle - int(half * length)), min(length, middle + int(half * length)))
        for middle, length in ((y, height), (x, width))
    )
