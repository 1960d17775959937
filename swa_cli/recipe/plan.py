"""From a recipe and the size of its training set: which steps are averaged, kept, scored and saved.

The one idea: the whole run is arithmetic, done before anything is trained, so every mistake in it is reported
at once and the plan that a person reads is the plan that is run. Points count updates done: weights exist at
points 1 to S, and the end of epoch `e` is the point `e * steps_per_epoch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

from swa_cli.errors import Problem, RecipeError
from swa_cli.recipe.decay import decay_of, half_life_problems
from swa_cli.recipe.duration import Duration, TimeSpan
from swa_cli.recipe.phase import Phase, phase_of, swap_problems, worker_of
from swa_cli.recipe.scalars import shown
from swa_cli.recipe.schedule import (
    LEADING_TO_SWA_LR,
    Course,
    chart,
    cycle_problems,
    in_epochs,
    learning_rate,
    schedule_problems,
)
from swa_cli.recipe.schema import Average, Recipe
from swa_cli.recipe.series import Clock, Series, points, series_problems

FEW_WEIGHTS = 5  # a mean of fewer is hardly flatter than its members


@dataclass(frozen=True)
class AveragePlan:
    """One average: `steps` are the points, in updates done, whose weights it takes."""

    name: str
    kind: str
    decay: float | None
    window: int | None
    steps: tuple[int, ...]
    warmup: bool | None = None
    bias_correction: bool | None = None
    rank: int | None = None
    diagonal: bool | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The kind and what belongs to it, as `WeightAverage` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("name", "steps")}


@dataclass(frozen=True)
class Plan:
    """All that is known of a run before it begins. Epochs count from 1, steps of `learning_rate` from 0."""

    num_train: int
    epochs: int
    steps_per_epoch: int
    total_steps: int
    averages: tuple[AveragePlan, ...]
    snapshots: tuple[int, ...]  # updates done
    score_epochs: frozenset[int]  # at their ends the averages are scored; the end of the run is not listed
    saves: frozenset[int]  # updates done after which last.pt is saved; the end is always one
    learning_rate: Callable[[int], float]
    warnings: tuple[str, ...]
    phase: Phase  # which epochs of the recipe these are
    worker: Plan | None = None  # what each worker of a SWAP run does after them

    @property
    def worker_rates(self) -> list[tuple[float, float]]:
        """Epochs of the recipe that are done, and the rate of the step that a worker then does."""
        own = self.worker
        if own is None:
            return []
        begin, per_epoch = own.phase.before, own.steps_per_epoch
        return [(begin + step / per_epoch, own.learning_rate(step)) for step in range(own.total_steps)]


MAX_STEPS = 10**8  # each point of a run is kept in memory


def make_plan(recipe: Recipe, *, num_train: int, columns: Sequence[str] | None = None) -> Plan:
    """Work out a run; the ragged rest of each epoch is dropped.

    Args:
        recipe: What to plan.
        num_train: Training samples.
        columns: Those of metrics.csv that hold scores, which train.stop may watch; without them those of
            classification, and for another task nothing is said about that.

    Raises:
        RecipeError: With every problem found, none of which has a place yet.
    """
    if found := swap_problems(recipe, num_train=num_train):
        raise RecipeError([*found, *_problems_without_swap(recipe, num_train=num_train, columns=columns)])
    phase = phase_of(recipe)
    batch_size, accumulate = phase.batch_size, phase.accumulate
    steps_per_epoch = num_train // (batch_size * accumulate)
    if steps_per_epoch == 0:
        message = f"{batch_size} x {accumulate} is more than the {num_train:,} training samples"
        largest = num_train // accumulate
        hint = f"write at most {largest}" if largest else "lower train.accumulate"
        raise RecipeError([Problem("train.batch_size", message, hint)])

    total = phase.epochs * steps_per_epoch
    if total > MAX_STEPS:
        message = f"{phase.epochs} epochs are {total} steps, more than any run has"
        raise RecipeError([Problem("train.epochs", message, f"write at most {MAX_STEPS // steps_per_epoch}")])
    problems = schedule_problems(recipe, steps_per_epoch=steps_per_epoch)
    course = None if problems else chart(recipe, steps_per_epoch=steps_per_epoch)
    clock = Clock(steps_per_epoch, total, course.minima if course else ())
    for series in _average_series(recipe) + _snapshot_series(recipe):
        problems += series_problems(recipe, series, clock=clock, cycles_known=course is not None)
    problems += half_life_problems(recipe, clock=clock) + _interval_problems(recipe)
    problems += _stop_problems(recipe, columns) + _init_problems(recipe) + _task_problems(recipe)
    problems += _augment_problems(recipe)
    if problems or course is None:
        raise RecipeError(problems)

    averages = tuple(
        AveragePlan(
            name,
            average.kind,
            decay_of(average, clock=clock),
            average.window,
            points(series, clock=clock),
            warmup=average.warmup,
            bias_correction=average.bias_correction,
            rank=average.rank,
            diagonal=average.diagonal,
        )
        for series, (name, average) in zip(_average_series(recipe), recipe.all_averages.items(), strict=True)
    )
    snapshots = [points(series, clock=clock) for series in _snapshot_series(recipe)]
    return Plan(
        num_train=num_train,
        epochs=phase.epochs,
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        averages=averages,
        snapshots=snapshots[0] if snapshots else (),
        score_epochs=_score_epochs(recipe, averages, clock),
        saves=_saves(recipe, clock),
        learning_rate=_rate(recipe, phase, steps_per_epoch=steps_per_epoch),
        warnings=tuple(_warnings(recipe, averages, course)),
        phase=phase,
        worker=make_plan(worker_of(recipe, 1), num_train=num_train) if phase.has_workers else None,
    )


def _rate(recipe: Recipe, phase: Phase, *, steps_per_epoch: int) -> Callable[[int], float]:
    """The rate of the recipe at the same point of its epochs, times the factor of the phase."""
    whole = learning_rate(recipe, steps_per_epoch=steps_per_epoch)
    if phase.is_worker:
        return lambda step: phase.factor * whole(phase.before * steps_per_epoch + step)
    return whole


def _problems_without_swap(recipe: Recipe, *, num_train: int, columns: Sequence[str] | None) -> Sequence[Problem]:
    try:
        make_plan(recipe.model_copy(update={"swap": None}), num_train=num_train, columns=columns)
    except RecipeError as error:
        return error.problems
    return ()


# What a person reads before the run.


def describe_schedule(recipe: Recipe, plan: Plan) -> str:
    """`30 epochs x 351 steps: warmup 1 epoch to 0.1, cosine to 0.05 at epoch 22.5, then flat`."""
    course = chart(recipe, steps_per_epoch=plan.steps_per_epoch)
    epoch = partial(in_epochs, steps_per_epoch=plan.steps_per_epoch)
    parts = []
    if course.warmup:
        begins_at = learning_rate(recipe, steps_per_epoch=plan.steps_per_epoch)(course.warmup)
        parts.append(f"warmup {_length(course.warmup, plan.steps_per_epoch)} to {begins_at:g}")
    parts.append(_shape_text(recipe, course))
    swa = recipe.swa
    if swa is not None and swa.lr is not None:
        if course.anneal:
            anneal = f"{swa.anneal_shape} anneal of {_length(course.anneal, plan.steps_per_epoch)}"
            parts += [f"{anneal} to {swa.lr:g} at epoch {epoch(course.start)}", "then flat"]
        elif _arrives_at(swa.lr, recipe, course):
            parts.append("then flat")
        else:
            parts.append(f"{swa.lr:g} from epoch {epoch(course.start)} on")
    elif course.end < course.total:
        parts.append("then flat")
    length = f"{_count(plan.epochs, 'epoch')} x {_count(plan.steps_per_epoch, 'step')}"
    part = f", {plan.phase.span} of the schedule" if plan.phase.is_worker else ""
    return f"{length}{part}: {', '.join(parts)}"


def describe_averages(recipe: Recipe, plan: Plan) -> list[str]:
    """A line for each average and one for the snapshots: how many weights, which, and what becomes of them.

    `swa: 8 weights, ends of epochs 23 to 30 (from 75 %); BatchNorm recomputed at the end`.
    """
    lines = []
    for series, average in zip(_average_series(recipe), plan.averages, strict=True):
        when = _when(series, average.steps, plan.steps_per_epoch)
        what = _what(average, half_life=recipe.all_averages[average.name].half_life)
        lines.append(f"{average.name}: {what}, {when}; BatchNorm recomputed at the end")
    for series in _snapshot_series(recipe):
        assert recipe.snapshots is not None
        when = _when(series, plan.snapshots, plan.steps_per_epoch)
        kept = "all" if recipe.snapshots.keep == "all" else f"the last {recipe.snapshots.keep}"
        mean = ", with the running mean" if recipe.snapshots.cumulative else ""
        lines.append(f"snapshots: {len(plan.snapshots)}, {when}; {kept} kept{mean}")
    return lines


def _what(average: AveragePlan, *, half_life: Duration | None) -> str:
    """Of what an average is made, in the words of its kind."""
    weights = _count(len(average.steps), "weight")
    match average.kind:
        case "ema":
            pace = f"EMA {average.decay}"
            if half_life is not None:
                pace = f"EMA of half-life {half_life} ({average.decay:.6g})"
            warmup = ", warmed up" if average.warmup else ""
            return pace + warmup + ("" if average.bias_correction else ", no bias correction")
        case "latest":
            return f"latest {average.window} of {weights}"
        case "swag":
            return f"SWAG of {weights}, {'diagonal' if average.diagonal else f'rank {average.rank}'}"
    return weights


def _arrives_at(rate: float, recipe: Recipe, course: Course) -> bool:
    """Whether the shape itself has come to `rate` at swa.start."""
    leads_there = recipe.schedule.name in LEADING_TO_SWA_LR and course.end == course.start
    return leads_there and course.final_lr == rate


def _shape_text(recipe: Recipe, course: Course) -> str:
    schedule, lr = recipe.schedule, recipe.optimizer.lr
    epoch = partial(in_epochs, steps_per_epoch=course.steps_per_epoch)
    length = partial(_length, steps_per_epoch=course.steps_per_epoch)
    peak = lr if schedule.max_lr is None else schedule.max_lr
    bounds = course.turns
    match schedule.name:
        case "cosine" | "linear":
            return f"{schedule.name} to {course.final_lr:g} at epoch {epoch(course.end)}"
        case "cosine_restarts":
            growth = f", each {schedule.cycle_mult:g} x longer" if (schedule.cycle_mult or 1) > 1 else ""
            first = length(bounds[1] - bounds[0])
            return f"cosine cycles of {first} from {lr:g} to {course.final_lr:g}{growth}"
        case "cyclic":
            ways = ("down", "up") if schedule.begin == "max" else ("up", "down")
            pieces = [length(right - left) for left, right in pairwise(bounds)]
            paces = " and ".join(f"{piece} {way}" for piece, way in zip(pieces, ways, strict=False))
            mode = "" if schedule.mode in (None, "triangular") else f", {schedule.mode}"
            return f"cycles between {schedule.base_lr:g} and {peak:g}, {paces}{mode}"
        case "multistep":
            factor = 0.1 if schedule.factor is None else schedule.factor
            drops = ", ".join(epoch(point) for point in course.drops)
            return f"steps from {lr:g}, times {factor:g} at epoch {drops}"
        case "one_cycle":
            down = f"down to {course.final_lr:g} at epoch {epoch(course.end)}"
            return f"one cycle from {lr:g} up to {peak:g} at epoch {epoch(course.peak)}, {down}"
        case "swa_paper":
            knee, foot = epoch(course.end / 2), epoch(course.end * Fraction(9, 10))
            return f"{lr:g} to epoch {knee}, linear to {course.final_lr:g} at epoch {foot}"
    return f"constant {lr:g}"


def _when(series: Series, steps: tuple[int, ...], steps_per_epoch: int) -> str:
    """Where the points of a series lie, in the words of its own unit."""
    epoch = partial(in_epochs, steps_per_epoch=steps_per_epoch)
    since = {"%": " (from {} %)", "step": " (from step {})", "cycle": " (from cycle {})"}
    start = since.get(series.start.unit, "").format(str(series.start).removesuffix(series.start.unit))
    gap = steps[1] - steps[0] if len(steps) > 1 else 0
    if series.every.unit == "cycle":
        return f"at the minima of the cycles{start}"
    if all(step % steps_per_epoch == 0 for step in steps):
        return f"{_ends_of([step // steps_per_epoch for step in steps])}{start}"
    if gap == 1 and len(steps) == steps[-1] - steps[0] + 1:
        return f"every step from epoch {math.ceil(steps[0] / steps_per_epoch)}{start}"
    if len(steps) == 1:
        return f"at epoch {epoch(steps[0])}{start}"
    an_epoch = 1 / series.every.value if series.every.unit == "ep" else Fraction(0)
    divides_it = an_epoch.denominator == 1 and an_epoch > 0
    pace = f"{an_epoch} an epoch" if divides_it else f"every {_length(gap, steps_per_epoch)}"
    return f"{pace}, epochs {epoch(steps[0])} to {epoch(steps[-1])}{start}"


def _ends_of(epochs: list[int]) -> str:
    if len(epochs) == 1:
        return f"end of epoch {epochs[0]}"
    if len(epochs) == 2:
        return f"ends of epochs {epochs[0]} and {epochs[1]}"
    if epochs[1] == epochs[0] + 1:
        return f"ends of epochs {epochs[0]} to {epochs[-1]}"
    return f"ends of epochs {epochs[0]}, {epochs[1]}, ..., {epochs[-1]}"


def _length(steps: int, steps_per_epoch: int) -> str:
    if steps < steps_per_epoch:
        return _count(steps, "step")
    epochs = in_epochs(steps, steps_per_epoch=steps_per_epoch)
    return f"{epochs} epoch" if epochs == "1" else f"{epochs} epochs"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _average_series(recipe: Recipe) -> list[Series]:
    return [
        Series("swa" if name == "swa" else f"averages.{name}", *_start_and_every(average))
        for name, average in recipe.all_averages.items()
    ]


def _start_and_every(average: Average) -> tuple[Duration, Duration]:
    assert average.start is not None, "the schema fills it in"
    assert average.every is not None, "the schema fills it in"
    return average.start, average.every


def _snapshot_series(recipe: Recipe) -> list[Series]:
    """None or one."""
    kept = recipe.snapshots
    return [Series("snapshots", kept.start, kept.every)] if kept else []


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
    if recipe.task != "classification" and recipe.train.tta != "none":
        message = f"the views of an image share a class, but not what {recipe.task} predicts"
        found.append(Problem("train.tta", message, "leave it out"))
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


def _saves(recipe: Recipe, clock: Clock) -> frozenset[int]:
    """The points of `output.save_every`; a time has none, it is the trainer that looks at the clock."""
    every = recipe.output.save_every
    if isinstance(every, TimeSpan):
        return frozenset({clock.total})
    return frozenset(points(Series("output", Duration(Fraction(0), "ep"), every), clock=clock)) | {clock.total}


def _epochs_with(every: Duration, clock: Clock) -> frozenset[int]:
    """Epochs `e` with a multiple of `every` in (e - 1, e]."""
    intervals_an_epoch = clock.steps_per_epoch / clock.exact(every)
    epochs = range(1, clock.total // clock.steps_per_epoch + 1)
    return frozenset(e for e in epochs if e * intervals_an_epoch // 1 > (e - 1) * intervals_an_epoch // 1)


def _score_epochs(recipe: Recipe, averages: Iterable[AveragePlan], clock: Clock) -> frozenset[int]:
    """Epochs at whose end some average has a weight to score; the end of the run scores everything anyway."""
    first = min((average.steps[0] for average in averages), default=clock.total)
    due = _epochs_with(recipe.average_scoring.eval_every, clock)
    return frozenset(e for e in due if first <= e * clock.steps_per_epoch < clock.total)


def _warnings(recipe: Recipe, averages: tuple[AveragePlan, ...], course: Course) -> list[str]:
    """What can be run, but is hardly meant."""
    found, swa, lr = [], recipe.swa, recipe.optimizer.lr
    for series, average in zip(_average_series(recipe), averages, strict=True):
        count = len(average.steps)
        if average.kind in ("mean", "swag") and count < FEW_WEIGHTS:
            remedy = f"an earlier {series.key}.start or a shorter {series.key}.every takes more"
            found.append(f"{average.name} averages only {_count(count, 'weight')}: {remedy}")
        if average.window is not None and average.window > count:
            found.append(f"{average.name} holds the latest {average.window} weights, but takes only {count}")
        if average.rank is not None and average.rank > count:
            found.append(f"{average.name} keeps the last {average.rank} deviations, but takes only {count}")
        horizon = 0 if average.decay is None or average.warmup else round(1 / (1 - average.decay))
        if horizon > count:
            is_decay = recipe.all_averages[average.name].half_life is None
            remedy = f"lower {series.key}.decay" if is_decay else f"shorten {series.key}.half_life"
            found.append(f"{average.name} looks back over {horizon:,} updates, but has {count:,}: {remedy}")
        if series.every.unit == "cycle" and average.steps[-1] < course.total:
            rest = _length(course.total - average.steps[-1], course.steps_per_epoch)
            found.append(f"{average.name} takes nothing in the last {rest}: the run ends off a minimum")
    if swa is not None and swa.lr is not None and swa.lr > lr:
        found.append(f"swa.lr {swa.lr:g} is above optimizer.lr {lr:g}: the rate rises where averaging begins")
    flat_lr = swa.lr if swa and swa.lr is not None else course.final_lr if course.end < course.total else None
    if swa is not None and flat_lr == 0:
        found.append("the learning rate is 0 from swa.start on: all weights of the average would be equal")
    if course.drops and course.drops[-1] >= course.total:
        found.append("schedule.at has a point at or after the end of the run")
    return found
