"""Views of a recipe: what an epoch of training, and an evaluation, show of each image.

`recipe.image_sizes` says which size; the views of `data.transforms` are made here. Epochs count from 1, as in the
recipe.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from swa_cli.data.transforms import EvaluationView, RandomResizedCrop, TrainingView, Views
from swa_cli.recipe.image_sizes import (
    evaluation_interpolation,
    evaluation_resize,
    evaluation_size,
    shorter_side,
    sizes_by_epoch,
    training_interpolation,
    training_size,
)
from swa_cli.recipe.schema import Recipe


def views_of(recipe: Recipe) -> Views:
    """Return the views of the last epoch, and of those of other sizes."""
    training = training_view(recipe, epoch=recipe.train.epochs)
    stills = [training_view(recipe, epoch=first).still for first, _ in sizes_by_epoch(recipe)]
    return Views(training, evaluation_view(recipe), tuple(still for still in stills if still != training.still))


def evaluation_view(recipe: Recipe) -> EvaluationView:
    """Return what an evaluation shows of each image."""
    return EvaluationView(evaluation_size(recipe), evaluation_resize(recipe), evaluation_interpolation(recipe))


def training_view(recipe: Recipe, *, epoch: int) -> TrainingView:
    """Return what an epoch of training shows of each image; without a random crop it is framed as in evaluation."""
    augment = recipe.dataset.augment
    size, crop = training_size(recipe, epoch=epoch), augment.random_resized_crop
    resize = None if size is None or recipe.eval.crop == "none" else shorter_side(size)
    return TrainingView(
        EvaluationView(size, resize, training_interpolation(recipe)),
        crop=None if crop is None else RandomResizedCrop(crop.scale, crop.ratio),
        rotate=augment.rotate,
        policy=None if augment.policy == "none" else augment.policy,
        interpolation=training_interpolation(recipe),
    )


def random_view(recipe: Recipe, *, epoch: int, own: EvaluationView | None) -> TrainingView | None:
    """Return what an epoch of the recipe shows of training images; None where they lie ready in their split.

    `own` is the view of a dataset that has a size of its own.
    """
    if not recipe.shows_views:
        return None
    view = training_view(recipe, epoch=epoch)
    if not (view.is_random or views_of(recipe).varies):
        return None
    return view if own is None or view.still.size is not None else replace(view, still=own)


def framing(recipe: Recipe) -> dict[str, Any]:
    """Return how an evaluated image becomes one of the network's size, as a checkpoint stores it."""
    view = evaluation_view(recipe)
    return {
        "resize": view.resize,
        "crop": "none" if view.resize is None else "center",
        "interpolation": view.interpolation,
    }
