"""Keys that mean nothing together, for the task, or for what a run measures: told before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from swa_cli.errors import Problem
from swa_cli.recipe.duration import Duration
from swa_cli.recipe.scalars import shown
from swa_cli.recipe.schedule import cycle_problems
from swa_cli.recipe.schema import Recipe


def problems_between(recipe: Recipe, *, columns: Sequence[str] | None) -> list[Problem]:
    """Every such problem of a recipe, whatever the size of its data.

    Args:
        recipe: What to look at.
        columns: Those of metrics.csv that hold scores, which train.stop may watch; without them those of
            classification, and for another task nothing is said about that.
    """
    found = _interval_problems(recipe) + _stop_problems(recipe, columns) + _init_problems(recipe)
    return found + _task_problems(recipe) + _augment_problems(recipe) + _compile_problems(recipe)


def _interval_problems(recipe: Recipe) -> list[Problem]:
    save_every = recipe.output.save_every
    named = [("output.save_every", save_every)] if isinstance(save_every, Duration) else []
    named += [("swa.eval_every", recipe.swa.eval_every)] if recipe.swa else []
    empty = [Problem(key, f"{every} is no interval", "write 1ep") for key, every in named if every.value == 0]
    return cycle_problems(named) + empty


def _stop_problems(recipe: Recipe, columns: Sequence[str] | None) -> list[Problem]:
    """A metric that is no column which a run measures."""
    stop = recipe.train.stop
    if stop is None or (columns is None and recipe.task != "classification"):
        return []
    if columns is None:
        columns = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
        columns += [f"{name}_{column}" for name in recipe.all_averages for column in ("val_loss", "val_accuracy")]
    if stop.metric in columns:
        return []
    message = f"a run of this recipe measures no {shown(stop.metric)}"
    return [Problem("train.stop.metric", message, f"choose from {', '.join(columns)}")]


def _task_problems(recipe: Recipe) -> list[Problem]:
    """Keys that mean nothing for the task."""
    found = []
    if recipe.task == "regression" and recipe.train.label_smoothing:
        message = "regression has no classes that a target could be spread over"
        found.append(Problem("train.label_smoothing", message, "leave it out"))
    if recipe.task != "classification" and recipe.eval.tta != "none":
        message = f"the views of an image share a class, but not what {recipe.task} predicts"
        found.append(Problem("eval.tta", message, "leave it out"))
    return found


def _augment_problems(recipe: Recipe) -> list[Problem]:
    """Changes of the images that exclude each other, or the task."""
    augment, found = recipe.dataset.augment, []
    if augment.crop and augment.translate:
        message = "stands beside crop, and both move the image"
        found.append(Problem("dataset.augment.translate", message, "write one of the two"))
    for key, value in (("mixup", augment.mixup), ("cutmix", augment.cutmix)):
        if value and recipe.task != "classification":
            message = f"mixes the classes of two images, and the task is {recipe.task}"
            found.append(Problem(f"dataset.augment.{key}", message, "leave it out, or set task: classification"))
    return found


def _init_problems(recipe: Recipe) -> list[Problem]:
    """Keys about a checkpoint that is not there."""
    if recipe.train.init is not None:
        return []
    given = {"train.init_weights": recipe.train.init_weights, "train.init_skip": recipe.train.init_skip}
    message, hint = "there is no checkpoint to take them from", "add train.init, or leave it out"
    return [Problem(key, message, hint) for key, value in given.items() if value]


def _compile_problems(recipe: Recipe) -> list[Problem]:
    """A mode, which only inductor has, beside another backend."""
    settings = recipe.train.compile
    if settings is None or settings.backend == "inductor" or settings.mode == "default":
        return []
    message = f"only inductor has modes, and the backend is {shown(settings.backend)}"
    return [Problem("train.compile.mode", message, "leave it out, or write backend: inductor")]
