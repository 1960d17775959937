"""The metric that a sweep chooses by: a validation column of metrics.csv, and its value at the end of a run.

Without a choice it is the validation loss of what the recipe is for: its first average, or the raw weights where it has
none. The value of a trial is the final one in result.json, so an average has recomputed BatchNorm statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from swa_cli.errors import UserError
from swa_cli.metrics.metric import Metric, TaskMetrics
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.plan import make_plan
from swa_cli.recipe.schema import Recipe

FIRST_AVERAGE = "first_average_val_loss"  # where the first average of the trials differs, or some have none
RAW = "last"


def choose(wanted: str | None, recipes: Sequence[Loaded], metrics: TaskMetrics) -> str:
    """Return the metric of a sweep over these recipes, in which `wanted` has to be measured.

    Raises:
        UserError: A recipe does not measure it, or it is not measured on validation images.
    """
    columns = [_columns(loaded.recipe, metrics) for loaded in recipes]
    common = [column for column in columns[0] if all(column in others for others in columns)]
    if wanted is None:
        defaults = {column_of(FIRST_AVERAGE, loaded.recipe) for loaded in recipes}
        return defaults.pop() if len(defaults) == 1 else FIRST_AVERAGE
    if wanted in common or wanted == FIRST_AVERAGE:
        return wanted
    reason = "is not measured by every trial" if any(wanted in others for others in columns) else "is not measured"
    if wanted.startswith("train_"):
        reason = "is measured on training images, and a sweep chooses on validation images"
    raise UserError(f"--metric {wanted}: {reason}", hint=f"choose from {', '.join(common)}")


def column_of(metric: str, recipe: Recipe) -> str:
    """Return the column of metrics.csv in which a run of a recipe has the metric."""
    if metric != FIRST_AVERAGE:
        return metric
    first = next(iter(recipe.all_averages), None)
    return "val_loss" if first is None else f"{first}_val_loss"


def first_measured(metric: str, recipe: Recipe, *, num_train: int) -> tuple[str, int]:
    """Return the column of a run, and the first epoch in which it is measured there."""
    column, plan = column_of(metric, recipe), make_plan(recipe, num_train=num_train)
    for average in plan.averages:
        if column.startswith(f"{average.name}_val_"):
            scored = [*sorted(plan.score_epochs), plan.epochs]
            return column, next(epoch for epoch in scored if average.steps[0] <= epoch * plan.steps_per_epoch)
    return column, 1


def metric_of(metric: str, metrics: TaskMetrics) -> Metric:
    """Return the declaration of a metric: its direction, and how it is shown."""
    return metrics.loss if metric.endswith("val_loss") else metrics.primary


def final_value(result: Mapping[str, Any], metric: str, recipe: Recipe, metrics: TaskMetrics) -> float | None:
    """Return the final value of a run by its result.json; None if it is not finite or the average holds no weights."""
    prefix = column_of(metric, recipe).rpartition("val_")[0].removesuffix("_")
    scores = result["weights"].get(prefix or RAW, {}).get("val") or {}
    value = scores.get(metric_of(metric, metrics).key)
    return value if value is not None and math.isfinite(value) else None


def _columns(recipe: Recipe, metrics: TaskMetrics) -> list[str]:
    """Return the validation columns of a run; `val_mean_iou` has an underscore of its own."""
    names = ["val_loss", f"val_{metrics.primary.key}"]
    return [*names, *(f"{average}_{name}" for average in recipe.all_averages for name in names)]
