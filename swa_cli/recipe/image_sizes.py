"""Sizes of images: what each epoch trains on, what is evaluated, and the mistakes in them.

One idea: a network sees one size per epoch, so each point of progressive sizes is rounded to the start of an epoch. All
of this follows from the recipe alone, so it is checked before any data are read. Sizes are (H, W) in pixels.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from swa_cli.errors import Problem
from swa_cli.recipe.scalars import shown
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.schema.dataset import ImageSize, Interpolation, Size
from swa_cli.recipe.values import Duration, round_half_up

CROP_SHARE = 0.875  # of the shorter side that a crop of 224 keeps of 256 (Krizhevsky et al. 2012)


def sizes_by_epoch(recipe: Recipe) -> list[tuple[int, Size]]:
    """Return the first epoch, from 1, of each size of training images; none where images are shown as they are."""
    sizes = recipe.dataset.image_size
    if sizes is None:
        return []
    epochs = recipe.train.epochs
    return [(round_half_up(_in_epochs(start, epochs)) + 1, size) for start, size in sizes.points]


def epochs_by_size(recipe: Recipe, *, before: int, epochs: int) -> list[tuple[int, int]]:
    """Return the first epoch, from 1, and the number of epochs of each size in a phase of `epochs` after `before`."""
    firsts = [1, *(first - before for first, _ in sizes_by_epoch(recipe) if 1 < first - before <= epochs)]
    return [(first, following - first) for first, following in pairwise([*firsts, epochs + 1])]


def training_size(recipe: Recipe, *, epoch: int) -> Size | None:
    """Return the size of training images in an epoch, from 1, of the recipe."""
    reached = [size for first, size in sizes_by_epoch(recipe) if first <= epoch]
    return reached[-1] if reached else None


def evaluation_size(recipe: Recipe) -> Size | None:
    """Return the size of evaluated images: `eval.image_size`, else the last size of training."""
    sizes = recipe.dataset.image_size
    return recipe.eval.image_size or (sizes.last if sizes else None)


def evaluation_resize(recipe: Recipe) -> int | None:
    """Return the pixels of the shorter side before the crop; None where the whole image is resized, or none is."""
    size, resize = evaluation_size(recipe), recipe.eval.resize
    if size is None or recipe.eval.crop == "none":
        return None
    return shorter_side(size) if resize == "auto" else int(resize)


def evaluation_interpolation(recipe: Recipe) -> Interpolation:
    """Return how evaluated images are resized: `eval.interpolation`, else as those of training."""
    return recipe.eval.interpolation or training_interpolation(recipe)


def training_interpolation(recipe: Recipe) -> Interpolation:
    """Return how training images are resized and rotated."""
    return recipe.dataset.interpolation or "bilinear"


def shorter_side(size: Size) -> int:
    """Return the pixels of the shorter side before a center crop: 256 for 224."""
    return round(min(size) / CROP_SHARE)


def is_rounded(recipe: Recipe) -> bool:
    """Return whether a point of progressive sizes is not the start of an epoch."""
    sizes = recipe.dataset.image_size
    points = sizes.points if sizes else ()
    return any(_in_epochs(start, recipe.train.epochs).denominator != 1 for start, _ in points)


def size_problems(recipe: Recipe) -> list[Problem]:
    """Return the mistakes in the sizes of training and evaluation."""
    sizes = recipe.dataset.image_size
    return [] if sizes is None else _point_problems(sizes, recipe.train.epochs) + _resize_problems(recipe)


def _point_problems(sizes: ImageSize, epochs: int) -> list[Problem]:
    """Return the first mistake in the points of progressive sizes."""
    key, last = "dataset.image_size", Fraction(-1)
    for (start, size), before in zip(sizes.points, (None, *sizes.points), strict=False):
        if start.unit not in ("%", "ep"):
            return [Problem(key, f"{start} is not a share of the epochs", "write the point in % or ep")]
        point = _in_epochs(start, epochs)
        if before is None:
            if point:
                message = f"the first size begins at {start}, and no size is given before"
                return [Problem(key, message, f"write 0ep instead of {start}")]
        elif point <= last:
            message = f"{start} is not after {before[0]}, the point above it"
            return [Problem(key, message, "write each point later than the one before it")]
        elif round_half_up(point) <= round_half_up(last):
            message = f"{before[0]} and {start} are the start of the same epoch, {round_half_up(point) + 1} of {epochs}"
            return [Problem(key, message, f"leave {start} out, or train more epochs")]
        elif round_half_up(point) >= epochs:
            message = f"no epoch begins at {start} or later, so none has the size {pixels_text(size)}"
            return [Problem(key, message, f"leave {start} out, or write an earlier point")]
        last = point
    return []


def _resize_problems(recipe: Recipe) -> list[Problem]:
    resize, size = recipe.eval.resize, evaluation_size(recipe)
    if resize == "auto" or size is None:
        return []
    if recipe.eval.crop == "none":
        message = f"{shown(resize)} is the shorter side before a crop, and eval.crop is none"
        return [Problem("eval.resize", message, "leave it out, or write eval.crop: center")]
    if int(resize) < min(size):
        message = f"a shorter side of {resize} is smaller than the crop of {pixels_text(size)}"
        return [Problem("eval.resize", message, f"write at least {min(size)}")]
    return []


def pixels_text(size: Size) -> str:
    """Write a size as `192 x 256`."""
    return f"{size[0]} x {size[1]}"


def _in_epochs(point: Duration, epochs: int) -> Fraction:
    return point.value * epochs / 100 if point.unit == "%" else point.value
