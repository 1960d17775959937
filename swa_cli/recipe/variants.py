"""Recipes made from a recipe: its baseline, and the same run with more epochs.

The baseline is the run that one would do without averaging: the same model, data, optimizer, seed and epochs, no
averaging sections, and a rate that decays over the whole run. An average has to beat it at the same cost. A schedule
that is made for averaging, constant or in cycles, is replaced by a cosine from its highest to its lowest rate.

With more epochs, the longer run must have averaged and kept the same weights up to now. So starts in % that the run has
passed stay at their point, and the steps of the past must be part of the new plan. A schedule that spans the run moves
nevertheless; a sentence reports this, with the rates.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from swa_cli.errors import UserError
from swa_cli.recipe.kinds import KINDS
from swa_cli.recipe.learning_rate import bounds, end_of_schedule
from swa_cli.recipe.plan import Plan, make_plan
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema import Recipe, Schedule
from swa_cli.recipe.values import Duration, round_half_up

BASELINE = "baseline"


def baseline_of(recipe: Recipe) -> Recipe:
    """Return the recipe of the baseline; a recipe without averages that decays over the whole run is its own baseline.

    Its raw weights are refreshed by the default BatchNorm pass: a recipe without averages has no other.
    """
    schedule, lr = _baseline_schedule(recipe)
    train = recipe.train
    stop, best = train.early_stopping, train.keep_best
    changed: dict[str, Any] = (
        {} if stop is None else {"early_stopping": stop.model_copy(update={"metric": _raw(stop.metric, recipe)})}
    )
    changed |= {} if best is None else {"keep_best": _raw(best, recipe)}
    train = train.model_copy(update=changed)
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


def _raw(column: str, recipe: Recipe) -> str:
    """Return the column of the raw weights for that of an average."""
    for name in recipe.all_averages:
        if column.startswith(f"{name}_val_"):
            return column.removeprefix(f"{name}_")
    return column


def describe_baseline(recipe: Recipe) -> str:
    """Describe a recipe that `baseline_of` made: `no averaging, cosine from 0.1 to 0 over all 20 epochs`."""
    (lowest, highest), epochs = bounds(recipe), recipe.train.epochs
    return f"no averaging, {recipe.schedule.name} from {highest:g} to {lowest:.3g} over all {epochs} epochs"


def _baseline_schedule(recipe: Recipe) -> tuple[Schedule, float]:
    """Return the schedule of the baseline, and the rate that it begins at."""
    schedule = recipe.schedule
    if SCHEDULES[schedule.name].is_decay:
        return schedule.model_copy(update={"span": None}), recipe.optimizer.lr
    lowest, highest = bounds(recipe)
    return Schedule.model_validate({"name": "cosine", "warmup": schedule.warmup, "final_lr": lowest}), highest


def with_more_epochs(recipe: Recipe, epochs: int, *, num_train: int, step: int) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a recipe with more epochs, and sentences that say what this moves after `step` updates.

    Raises:
        UserError: Not more epochs, or something of the past would not be a part of the longer run.
        RecipeError: The longer run cannot be planned.
    """
    before = recipe.train.epochs
    if recipe.swap is not None:
        reason = "the workers of a SWAP run begin where its common phase has ended, which would be later"
        raise UserError(f"--extend-to {epochs}: {reason}", hint="start a new run")
    if epochs <= before:
        raise UserError(
            f"--extend-to {epochs}: the run has {before} epochs", hint=f"name more, such as --extend-to {before + 1}"
        )
    values = recipe.values()
    values["train"]["epochs"] = epochs
    old = make_plan(recipe, num_train=num_train)
    kept = _fix_percents(values, epochs=before, passed=Fraction(100 * step, old.total_steps))
    if (over := end_of_schedule(recipe, steps_per_epoch=old.steps_per_epoch)) is not None and over <= step:
        kept += _fix_schedule(values, recipe)
    new = make_plan(Recipe.model_validate(values), num_train=num_train)
    _require_same_past(old, new, step=step)
    return values, [f"train.epochs {before} -> {epochs}", *kept, *_moved(old, new, step=step)]


def _fix_percents(values: dict[str, Any], *, epochs: int, passed: Fraction) -> list[str]:
    """Write each start, half-life, end of freezing and point of progressive image sizes in % as the same in epochs.

    A start after `passed` % of the run stays in %, as nothing was taken so far; so does an end of freezing.
    """
    notes: list[str] = []
    longer = values["train"]["epochs"]

    def fixed(length: Duration, key: str) -> str:
        now = _in_epochs(length, epochs)
        notes.append(f"{key} stays at {now} ({length} of {epochs} epochs)")
        return now

    sections = {"swa": values.get("swa"), "snapshots": values.get("snapshots")}
    sections |= {f"averages.{name}": average for name, average in values["averages"].items()}
    for name, section in sections.items():
        for key in ("start", *(KINDS[section["kind"]].lengths if section and "kind" in section else ())):
            length = Duration.parse(section[key]) if section and key in section else None
            if section is None or length is None or length.unit != "%":
                continue
            if key == "start" and length.value > passed:
                notes.append(f"{name}.start stays at {length}, now of {longer} epochs")
            else:
                section[key] = fixed(length, f"{name}.{key}")
    unfreeze = values["model"].get("unfreeze")
    point = None if unfreeze is None else Duration.parse(unfreeze)
    if point is not None and point.unit == "%":
        if round_half_up(point.value * epochs / 100) * 100 > passed * epochs:  # the epoch at whose start it is
            notes.append(f"model.unfreeze stays at {point}, now of {longer} epochs")
        else:
            values["model"]["unfreeze"] = fixed(point, "model.unfreeze")
    sizes = values["dataset"].get("image_size")
    if isinstance(sizes, dict):
        points = {point: Duration.parse(point) for point in sizes}
        values["dataset"]["image_size"] = {
            fixed(start, f"dataset.image_size {sizes[point]}") if start.unit == "%" else point: sizes[point]
            for point, start in points.items()
        }
    return notes


def _fix_schedule(values: dict[str, Any], recipe: Recipe) -> list[str]:
    """Write the lengths in % of a schedule that is over, and of the bridge to swa.lr, as the same in epochs."""
    schedule, swa, epochs, notes = values["schedule"], values["swa"], recipe.train.epochs, []
    written = [(schedule, "schedule", key, value) for key, value in recipe.schedule.settings.items()]
    for section, name, key, value in [*written, (swa, "swa", "anneal", Duration.parse(swa["anneal"]))]:
        lengths = value if isinstance(value, list) else [value]
        if not any(isinstance(length, Duration) and length.unit == "%" and length.value for length in lengths):
            continue
        now = [_in_epochs(length, epochs) if length.unit == "%" else str(length) for length in lengths]
        section[key] = now if isinstance(value, list) else now[0]
        was = ", ".join(map(str, lengths))
        notes.append(f"{name}.{key} stays at {', '.join(now)} ({was} of {epochs} epochs)")
    return notes


def _in_epochs(length: Duration, epochs: int) -> str:
    """Write a length in % of so many epochs in epochs."""
    return str(Duration(Fraction(round(length.value * epochs * 10**10), 10**12), "ep"))


def _require_same_past(old: Plan, new: Plan, *, step: int) -> None:
    pairs = [(f"the average {a.name}", a.steps, b.steps) for a, b in zip(old.averages, new.averages, strict=True)]
    for what, first, second in [*pairs, ("the set of snapshots", old.snapshots, new.snapshots)]:
        past, expected = ([point for point in points if point <= step] for points in (first, second))
        if past != expected:
            raise UserError(
                f"{what} took other steps than it would have in the longer run: an interval is written in % of the run",
                hint="start a new run, with the interval in ep or step",
            )
    for a, b in zip(old.averages, new.averages, strict=True):
        for key, value in a.settings.items():
            if b.settings[key] != value:
                raise UserError(
                    f"the average {a.name} had a {key} of {value}, and would have {b.settings[key]} in the longer run",
                    hint="start a new run, with half_life and every in ep or step",
                )


def _moved(old: Plan, new: Plan, *, step: int) -> list[str]:
    notes = [
        f"{a.name} takes {len(b.steps):,} weights instead of {len(a.steps):,}"
        for a, b in zip(old.averages, new.averages, strict=True)
    ]
    differing = [point for point in range(step) if old.learning_rate(point) != new.learning_rate(point)]
    if differing:
        notes.append(
            f"the schedule spans the run and moves: {len(differing):,} steps so far had another rate than in a run of"
            f" {new.epochs} epochs from the start, so this run will not equal it"
        )
    if step and step < new.total_steps:
        notes.append(f"the rate continues at {new.learning_rate(step):g} after {old.learning_rate(step - 1):g}")
    return notes
