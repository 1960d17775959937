"""The baseline of a recipe: the run that one would do without averaging.

The same model, data, optimizer, seed and epochs, no averaging sections, and a rate that decays over the whole run: an
average has to beat this one, for the same cost. A schedule that was made for averaging, constant or in cycles, gives
way to the cosine from its highest rate to its lowest one.
"""

from __future__ import annotations

from typing import Any

from swa_cli.recipe.schedules import SCHEDULES, chart, peak_lr
from swa_cli.recipe.schema import Recipe, Schedule

BASELINE = "baseline"


def baseline_of(recipe: Recipe) -> Recipe:
    """The recipe of the baseline; one that has no averages, and decays over the whole run, is its own.

    Its raw weights are refreshed by the default BatchNorm pass: without averages a recipe has no other.
    """
    schedule, lr = _schedule(recipe)
    train = recipe.train
    if train.early_stopping is not None:
        metric = train.early_stopping.metric
        for name in recipe.all_averages:  # what is watched on an average is watched on the raw weights
            if metric.startswith(f"{name}_val_"):
                metric = metric.removeprefix(f"{name}_")
                break
        train = train.model_copy(update={"early_stopping": train.early_stopping.model_copy(update={"metric": metric})})
    changes: dict[str, Any] = {
        "name": f"{recipe.title}-baseline",
        "optimizer": recipe.optimizer.model_copy(update={"lr": lr}),
        "schedule": schedule,
        "swa": None,
        "averages": {},
        "swap": None,
        "snapshots": None,
        "train": train,
    }
    return recipe.model_copy(update=changes)


def describe_baseline(recipe: Recipe) -> str:
    """A recipe that `baseline_of` made, in words: `no averaging, cosine from 0.1 to 0 over all 20 epochs`."""
    schedule, lr, highest = recipe.schedule, recipe.optimizer.lr, peak_lr(recipe)
    final = chart(recipe, steps_per_epoch=1).final_lr  # where a decay leads does not depend on its steps
    if schedule.name == "multistep":
        final = lr * (0.1 if schedule.gamma is None else schedule.gamma) ** len(schedule.milestones or ())
    return f"no averaging, {schedule.name} from {highest:g} to {final:.3g} over all {recipe.train.epochs} epochs"


def _schedule(recipe: Recipe) -> tuple[Schedule, float]:
    """The schedule of the baseline, and the rate that it begins at."""
    schedule = recipe.schedule
    if SCHEDULES[schedule.name].is_decay:
        return schedule.model_copy(update={"span": None}), recipe.optimizer.lr
    final_lr = schedule.base_lr if schedule.name == "cyclic" else schedule.final_lr
    return Schedule(name="cosine", warmup=schedule.warmup, final_lr=final_lr), peak_lr(recipe)
