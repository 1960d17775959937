"""More epochs for a run that has begun: what stays where it was, and what moves.

The one idea: whatever has happened must have happened in the longer run too. So beginnings that are written in % stay
at their point, and the averages of the past have to be a part of the new plan. A schedule that spans the run moves
all the same; that is said, with the rates.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from swa_cli.errors import UserError
from swa_cli.recipe.plan import Plan, make_plan
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.values import Duration


def to_epochs(recipe: Recipe, epochs: int, *, num_train: int, step: int) -> tuple[dict[str, Any], list[str]]:
    """The values of a recipe with more epochs, and sentences that say what this moves.

    Args:
        recipe: Of the run as it was begun.
        epochs: Its new number of epochs.
        num_train: Training samples.
        step: Updates done.

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
    values = recipe.model_dump(mode="json", exclude_none=True)
    values["train"]["epochs"] = epochs
    kept = _fix_percents(values, epochs=before)
    old = make_plan(recipe, num_train=num_train)
    new = make_plan(Recipe.model_validate(values), num_train=num_train)
    _require_same_past(old, new, step=step)
    return values, [f"train.epochs {before} -> {epochs}", *kept, *_moved(old, new, step=step)]


def _fix_percents(values: dict[str, Any], *, epochs: int) -> list[str]:
    """Write each start and half-life in % as the same in epochs."""
    sections = {"swa": values.get("swa"), "snapshots": values.get("snapshots")}
    sections |= {f"averages.{name}": average for name, average in values["averages"].items()}
    said = []
    for name, section in sections.items():
        for key in ("start", "half_life"):
            length = Duration.parse(section[key]) if section and key in section else None
            if section and length is not None and length.unit == "%":
                section[key] = str(Duration(Fraction(round(length.value * epochs * 10**10), 10**12), "ep"))
                said.append(f"{name}.{key} stays at {section[key]} ({length} of {epochs} epochs)")
    return said


def _require_same_past(old: Plan, new: Plan, *, step: int) -> None:
    pairs = [(f"the average {a.name}", a.steps, b.steps) for a, b in zip(old.averages, new.averages, strict=True)]
    for what, first, second in [*pairs, ("the set of snapshots", old.snapshots, new.snapshots)]:
        past, wanted = ([point for point in points if point <= step] for points in (first, second))
        if past != wanted:
            raise UserError(
                f"{what} took other steps than it would have in the longer run: an interval is written in % of the run",
                hint="start a new run, with the interval in ep or step",
            )
    for a, b in zip(old.averages, new.averages, strict=True):
        if a.decay != b.decay:
            raise UserError(
                f"the average {a.name} had a decay of {a.decay}, and would have {b.decay} in the longer run",
                hint="start a new run, with half_life and every in ep or step",
            )


def _moved(old: Plan, new: Plan, *, step: int) -> list[str]:
    said = [
        f"{a.name} takes {len(b.steps):,} weights instead of {len(a.steps):,}"
        for a, b in zip(old.averages, new.averages, strict=True)
    ]
    differing = [point for point in range(step) if old.learning_rate(point) != new.learning_rate(point)]
    if differing:
        said.append(
            f"the schedule spans the run and moves: {len(differing):,} steps so far had another rate than in a run of"
            f" {new.epochs} epochs from the start, which this will not equal"
        )
    if step and step < new.total_steps:
        said.append(f"the rate goes on at {new.learning_rate(step):g} after {old.learning_rate(step - 1):g}")
    return said
