"""The plan of a run: which steps are averaged, kept, evaluated and saved.

One idea: the whole run is arithmetic on a recipe and the size of its training set, done before anything is trained. So
every mistake is reported at once, and the plan that a person reads is the plan that is run. Points count updates done:
weights exist at points 1 to S, and the end of epoch `e` is the point `e * steps_per_epoch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from swa_cli.errors import Problem, RecipeError, UserError
from swa_cli.recipe import swap
from swa_cli.recipe.curves import ResolvedSchedule
from swa_cli.recipe.image_sizes import size_problems
from swa_cli.recipe.intervals import Series, StepClock, average_series, points, series_problems, snapshot_series
from swa_cli.recipe.kinds import KINDS, AveragePlan
from swa_cli.recipe.learning_rate import (
    chart,
    cycle_problems,
    learning_rate,
    point_of,
    schedule_problems,
)
from swa_cli.recipe.scalars import shown
from swa_cli.recipe.schema import PUBLISHERS, Recipe
from swa_cli.recipe.swap import Phase
from swa_cli.recipe.values import Duration, TimeSpan, length_text, round_half_up
from swa_cli.units import count_text

OF_WHOLE_IMAGES = ("classification", "multilabel")  # tasks whose labels no flip changes, and which can be mixed


def problems_between(recipe: Recipe, *, columns: Sequence[str] | None) -> list[Problem]:
    """Return every problem between keys that does not depend on the size of the data.

    `columns` of metrics.csv are scores, which train.early_stopping and train.keep_best may watch. None: the columns of
    classification, and no check for another task.
    """
    found = _interval_problems(recipe) + _column_problems(recipe, columns) + _init_problems(recipe)
    found += _task_problems(recipe) + _augment_problems(recipe) + image_problems(recipe)
    return found + _compile_problems(recipe) + model_problems(recipe)


def _interval_problems(recipe: Recipe) -> list[Problem]:
    save_every = recipe.output.save_every
    named = [("output.save_every", save_every)] if isinstance(save_every, Duration) else []
    named += [("swa.eval_every", recipe.swa.eval_every)] if recipe.swa else []
    empty = [Problem(key, f"{every} is not an interval", "write 1ep") for key, every in named if every.value == 0]
    return cycle_problems(named) + empty


def _column_problems(recipe: Recipe, columns: Sequence[str] | None) -> list[Problem]:
    """Check that early stopping and kept weights watch columns that the run measures."""
    found = []
    if columns is None and recipe.task == "classification":
        columns = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
        columns += [f"{name}_{column}" for name in recipe.all_averages for column in ("val_loss", "val_accuracy")]
    for key, column in watched_columns(recipe).items():
        if columns is not None and column not in columns:
            message = f"a run of this recipe measures no {shown(column)}"
            found.append(Problem(key, message, f"choose from {', '.join(columns)}"))
    for name, average in recipe.averages.items():
        if average.keep == "best" and average.kind == "swag":
            message = "a swag average ships with its posterior, which is kept of the end only"
            found.append(Problem(f"averages.{name}.keep", message, "leave it out, or write kind: mean"))
    return found


def watched_columns(recipe: Recipe) -> dict[str, str]:
    """Return the columns of metrics.csv that decide what happens, by the key that names each."""
    stop, best = recipe.train.early_stopping, recipe.train.keep_best
    found = {} if stop is None else {"train.early_stopping.metric": stop.metric}
    found |= {} if best is None else {"train.keep_best": best}
    kept = [name for name, average in recipe.averages.items() if average.keep == "best"]
    return found | {f"averages.{name}.keep": f"{name}_val_loss" for name in kept}


def _task_problems(recipe: Recipe) -> list[Problem]:
    """Check for keys that have no meaning for the task."""
    found = []
    train = recipe.train
    if recipe.task not in (*OF_WHOLE_IMAGES, "segmentation"):
        found += _problems_without_classes(recipe)
    if recipe.task == "multilabel" and train.loss == "cross_entropy":
        message = "is the cross_entropy of one class per image, and an image of multilabel has any number of them"
        found.append(Problem("train.loss", message, "write loss: bce or loss: focal, or leave it out"))
    if train.focal_gamma is not None and train.loss != "focal":
        message = f"the loss {train.loss or ('bce' if recipe.task == 'multilabel' else 'cross_entropy')} has no gamma"
        found.append(Problem("train.focal_gamma", message, "leave it out, or write loss: focal"))
    if recipe.task == "regression" and recipe.train.label_smoothing:
        message = "regression has no classes that a target could be spread over"
        found.append(Problem("train.label_smoothing", message, "leave it out"))
    if recipe.task not in OF_WHOLE_IMAGES and recipe.eval.tta != "none":
        message = f"the views of an image share a class, but not what {recipe.task} predicts"
        found.append(Problem("eval.tta", message, "leave it out"))
    return found


def _problems_without_classes(recipe: Recipe) -> list[Problem]:
    """Check that regression, or a user's task, is not given a loss over classes."""
    train, found = recipe.train, []
    why = "regression has no classes" if recipe.task == "regression" else f"{recipe.task} has a loss of its own"
    if train.loss is not None and (recipe.task != "regression" or ":" not in train.loss):
        hint = "leave it out" + (", or write package.module:function" if recipe.task == "regression" else "")
        found.append(Problem("train.loss", f"is {train.loss}, and {why}", hint))
    if train.class_weights != "none":
        found.append(Problem("train.class_weights", why, "leave it out"))
    if recipe.dataset.sampler != "uniform" and recipe.task == "regression":
        found.append(Problem("dataset.sampler", why, "leave it out"))
    return found


def _augment_problems(recipe: Recipe) -> list[Problem]:
    """Check for augmentations that exclude each other or the task."""
    augment, found = recipe.dataset.augment, []
    if augment.crop and augment.translate:
        message = "crop and translate are mutually exclusive: both move the image"
        found.append(Problem("dataset.augment.translate", message, "write one of the two"))
    for key, value in (("mixup", augment.mixup), ("cutmix", augment.cutmix)):
        if value and recipe.task not in OF_WHOLE_IMAGES:
            message = f"mixes the classes of two images, and the task is {recipe.task}"
            hint = f"leave it out, or set task: {' or '.join(OF_WHOLE_IMAGES)}"
            found.append(Problem(f"dataset.augment.{key}", message, hint))
    return found


def image_problems(recipe: Recipe) -> list[Problem]:
    """Return the mistakes in how images are shown, which have to be known before data are read."""
    dataset, evaluation = recipe.dataset, recipe.eval
    is_resized = dataset.image_size is not None or recipe.model.pretrained is not None  # weights may give a size
    found = size_problems(recipe) if dataset.image_size else []
    given = {
        "dataset.augment.random_resized_crop": dataset.augment.random_resized_crop is not None,
        "eval.image_size": evaluation.image_size is not None,
        "eval.resize": evaluation.resize != "auto",
        "eval.crop": evaluation.crop == "none",
    }
    message, hint = (
        "there is no dataset.image_size, so images are not resized",
        "train with dataset.image_size, such as 224, or leave it out",
    )
    found += [Problem(key, message, hint) for key, is_given in given.items() if is_given and not is_resized]
    if dataset.augment.policy == "augmix" and recipe.task == "segmentation":
        message = "augmix blends images that are moved differently, which no mask can follow"
        found.append(Problem("dataset.augment.policy", message, "write trivial_augment, or leave it out"))
    return found + _repeats_problems(recipe) + _decode_problems(recipe, is_resized=is_resized)


def _repeats_problems(recipe: Recipe) -> list[Problem]:
    """Check that the repeats of an image leave room in a batch, and for another image where two are mixed."""
    repeats, augment, batch_size = recipe.dataset.repeats, recipe.dataset.augment, recipe.train.batch_size
    if recipe.swap is not None:
        batch_size = min(batch_size, swap.phase_of(swap.worker_of(recipe, 1)).batch_size)
    most, why = batch_size, ""
    if (augment.mixup or augment.cutmix) and repeats > 1:
        most, why = max(batch_size // 2, 1), ", and mixup and cutmix need another image"
    if repeats <= most:
        return []
    message = f"{repeats} repeats of an image fill a batch of {batch_size} samples{why}"
    return [Problem("dataset.repeats", message, f"write at most {most}")]


def _decode_problems(recipe: Recipe, *, is_resized: bool) -> list[Problem]:
    """Check for keys that a device which decodes photos cannot follow."""
    dataset, augment = recipe.dataset, recipe.dataset.augment
    if dataset.decode == "cpu":
        return []
    obstacles = {
        "train.device is cpu": recipe.train.device == "cpu",
        f"the policy {augment.policy} works on the images of loader processes": augment.policy != "none",
        "dataset.augment.rotate works on the images of loader processes": augment.rotate > 0,
        "there is no dataset.image_size, so images are not resized": not is_resized,
        "the masks of segmentation are decoded together with their images": recipe.task == "segmentation",
        f"dataset.cache={dataset.cache} keeps decoded images": dataset.cache in ("ram", "packed"),
    }
    found = [what for what, is_there in obstacles.items() if is_there]
    message = f"a device cannot decode these photos: {'; '.join(found)}"
    return [Problem("dataset.decode", message, "write dataset.decode=cpu")] if found else []


def _init_problems(recipe: Recipe) -> list[Problem]:
    """Check for keys about a checkpoint that the recipe does not name."""
    if recipe.train.init is not None:
        return []
    given = {"train.init_weights": recipe.train.init_weights, "train.init_skip": recipe.train.init_skip}
    message, hint = "there is no checkpoint to take them from", "add train.init, or leave it out"
    return [Problem(key, message, hint) for key, value in given.items() if value]


def model_problems(recipe: Recipe) -> list[Problem]:
    """Check the keys about the weights to start from, and about parameters that are frozen."""
    model, found = recipe.model, []
    is_worker = recipe.swap is not None and recipe.swap.worker is not None  # it starts from the common weights
    if model.pretrained is True and model.name.partition(":")[0] not in PUBLISHERS:
        message = f"nobody publishes weights of {model.name}, as torchvision and timm do of their networks"
        found.append(Problem("model.pretrained", message, "name a file, such as model.pretrained=weights.pth"))
    if model.pretrained is not None and recipe.train.init is not None and not is_worker:
        message = "train.init names other weights to start from"
        found.append(Problem("model.pretrained", message, "write one of the two"))
    if model.unfreeze is None:
        return found
    key, point, epochs = "model.unfreeze", model.unfreeze, recipe.train.epochs
    if not model.freeze:
        found.append(Problem(key, "there is no model.freeze, so all parameters train anyway", "leave it out"))
    if recipe.train.fsdp:
        message = "a sharded network cannot train more parameters from a later epoch on"
        found.append(Problem(key, message, "write train.fsdp=false, or leave it out"))
    if point.unit not in ("%", "ep"):
        found.append(Problem(key, f"{point} is not a share of the epochs", "write the point in % or ep"))
    elif not 1 < (first := unfreeze_epoch(recipe)) <= epochs:
        message = f"{point} is the start of epoch {first}, and the run has {count_text(epochs, 'epoch')}"
        found.append(Problem(key, message, "write a point between, such as 50%, or leave it out"))
    return found


def unfreeze_epoch(recipe: Recipe) -> int:
    """Return the epoch, from 1, at whose start `model.unfreeze` is, rounded as the sizes of images are."""
    point = recipe.model.unfreeze
    assert point is not None, "only a recipe that has the key"
    return round_half_up(point.exact_steps(steps_per_epoch=1, total_steps=recipe.train.epochs)) + 1


def _compile_problems(recipe: Recipe) -> list[Problem]:
    """Check for a mode, which only inductor has, beside another backend."""
    settings = recipe.train.compile
    if settings is None or settings.backend == "inductor" or settings.mode == "default":
        return []
    message = f"only inductor has modes, and the backend is {shown(settings.backend)}"
    return [Problem("train.compile.mode", message, "leave it out, or write backend: inductor")]


@dataclass(frozen=True)
class Plan:
    """Everything that is known of a run before it starts. Epochs count from 1, steps of `learning_rate` from 0."""

    num_train: int
    epochs: int
    steps_per_epoch: int
    total_steps: int
    averages: tuple[AveragePlan, ...]
    snapshots: tuple[int, ...]  # updates done
    score_epochs: frozenset[int]  # the averages are evaluated at their ends; the last epoch is not listed
    saves: frozenset[int]  # updates done when last.pt is saved; the end of the run is always one
    plateau: int | None  # updates done when plateau.pt is saved: the rate decays from there to the end of the run
    learning_rate: Callable[[int], float]
    warnings: tuple[str, ...]
    phase: Phase  # the epochs of the recipe that the run does
    worker: Plan | None = None  # of each SWAP worker, after the common phase
    unfreeze: int | None = None  # epoch of this run from which on all parameters train; 1 or less: from the beginning

    @property
    def worker_rates(self) -> list[tuple[float, float]]:
        """Return the epochs done and the rate of the next step, for every step of a SWAP worker."""
        own = self.worker
        if own is None:
            return []
        begin, per_epoch = own.phase.before, own.steps_per_epoch
        return [(begin + step / per_epoch, own.learning_rate(step)) for step in range(own.total_steps)]


MAX_STEPS = 10**8  # each point of a run is kept in memory


def make_plan(recipe: Recipe, *, num_train: int, columns: Sequence[str] | None = None) -> Plan:
    """Plan a run on `num_train` samples; the incomplete batch at the end of each epoch is dropped.

    Raises:
        RecipeError: Every problem that was found, without places.
    """
    if recipe.swap is not None and (found := swap.swap_problems(recipe, recipe.swap, num_train=num_train)):
        raise RecipeError([*found, *_problems_without_swap(recipe, num_train=num_train, columns=columns)])
    phase = swap.phase_of(recipe)
    batch_size, num_batches = phase.batch_size, phase.grad_accum_steps
    steps_per_epoch = num_train // (batch_size * num_batches)
    if steps_per_epoch == 0:
        message = f"{batch_size} x {num_batches} is more than the {num_train:,} training samples"
        largest = num_train // num_batches
        hint = f"write at most {largest}" if largest else "lower train.grad_accum_steps"
        raise RecipeError([Problem("train.batch_size", message, hint)])

    total = phase.epochs * steps_per_epoch
    if total > MAX_STEPS:
        message = f"{phase.epochs} epochs are {total} steps, more than any run has"
        raise RecipeError([Problem("train.epochs", message, f"write at most {MAX_STEPS // steps_per_epoch}")])
    problems = schedule_problems(recipe, steps_per_epoch=steps_per_epoch)
    course = None if problems else chart(recipe, steps_per_epoch=steps_per_epoch)
    clock = StepClock(steps_per_epoch, total, course.minima if course else ())
    for series in average_series(recipe) + snapshot_series(recipe):
        problems += series_problems(recipe, series, clock=clock, cycles_known=course is not None)
    problems += _kind_problems(recipe, clock) + problems_between(recipe, columns=columns)
    if problems or course is None:
        raise RecipeError(problems)

    rate = learning_rate(recipe, steps_per_epoch=steps_per_epoch)
    averages = tuple(_average_plans(recipe, clock))
    snapshots = [points(series, clock=clock) for series in snapshot_series(recipe)]
    return Plan(
        num_train=num_train,
        epochs=phase.epochs,
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        averages=averages,
        snapshots=snapshots[0] if snapshots else (),
        score_epochs=_score_epochs(recipe, averages, clock),
        saves=_saves(recipe, clock),
        plateau=(course.plateau or None) if course.end == total and recipe.swap is None else None,
        learning_rate=lambda step: phase.factor * rate(phase.before * steps_per_epoch + step),
        warnings=tuple(_warnings(recipe, averages, course)),
        phase=phase,
        worker=make_plan(swap.worker_of(recipe, 1), num_train=num_train) if swap.has_workers(recipe) else None,
        unfreeze=unfreeze_epoch(recipe) - phase.before if recipe.model.unfreeze is not None else None,
    )


def _problems_without_swap(recipe: Recipe, *, num_train: int, columns: Sequence[str] | None) -> Sequence[Problem]:
    try:
        make_plan(recipe.model_copy(update={"swap": None}), num_train=num_train, columns=columns)
    except RecipeError as error:
        return error.problems
    return ()


def _average_plans(recipe: Recipe, clock: StepClock) -> Iterator[AveragePlan]:
    for series, (name, average) in zip(average_series(recipe), recipe.all_averages.items(), strict=True):
        settings = KINDS[average.kind].resolve(average.own, series.every, clock.exact)
        yield AveragePlan(name, series.key, average.kind, points(series, clock=clock), average.own, settings)


def _kind_problems(recipe: Recipe, clock: StepClock) -> list[Problem]:
    """Return the mistakes in the keys that belong to the kind of an average."""
    return [
        replace(problem, key=f"{series.key}.{problem.key}")
        for series, average in zip(average_series(recipe), recipe.all_averages.values(), strict=True)
        for problem in KINDS[average.kind].problems(average.own, series.every, clock.exact)
    ]


def _saves(recipe: Recipe, clock: StepClock) -> frozenset[int]:
    """Return the points of `output.save_every`; a time has none: the trainer checks the clock."""
    every = recipe.output.save_every
    if isinstance(every, TimeSpan):
        return frozenset({clock.total})
    return frozenset(points(Series("output", Duration(Fraction(0), "ep"), every), clock=clock)) | {clock.total}


def _score_epochs(recipe: Recipe, averages: Iterable[AveragePlan], clock: StepClock) -> frozenset[int]:
    """Return the epochs `e` at whose end an average is evaluated: those with a multiple of `eval_every` in (e - 1, e].

    The end of the run evaluates all averages anyway.
    """
    first = min((average.steps[0] for average in averages), default=clock.total)
    per_epoch = clock.steps_per_epoch / clock.exact(recipe.average_scoring.eval_every)
    epochs = [e for e in range(1, clock.total // clock.steps_per_epoch) if first <= e * clock.steps_per_epoch]
    return frozenset(e for e in epochs if e * per_epoch // 1 > (e - 1) * per_epoch // 1)


def _warnings(recipe: Recipe, averages: tuple[AveragePlan, ...], course: ResolvedSchedule) -> list[str]:
    """Return warnings about what can be run but is hardly intended."""
    found, swa, lr = [], recipe.swa, recipe.optimizer.lr
    for series, average in zip(average_series(recipe), averages, strict=True):
        kind = KINDS[average.kind]
        if average.count < kind.few:
            remedy = f"an earlier {series.key}.start or a shorter {series.key}.every takes more"
            found.append(f"{average.name} averages only {count_text(average.count, 'weight')}: {remedy}")
        found += [f"{average.name} {warning}" for warning in kind.warnings(average)]
        if series.every.unit == "cycle" and average.steps[-1] < course.total:
            rest = length_text(course.total - average.steps[-1], course.steps_per_epoch)
            found.append(f"{average.name} takes nothing in the last {rest}: the run ends off a minimum")
    if swa is not None and swa.lr is not None and swa.lr > lr:
        found.append(f"swa.lr {swa.lr:g} is above optimizer.lr {lr:g}: the rate rises where averaging starts")
    flat_lr = swa.lr if swa and swa.lr is not None else course.final_lr if course.end < course.total else None
    if swa is not None and flat_lr == 0:
        found.append("the learning rate is 0 from swa.start on: all weights of the average would be equal")
    if course.drops and course.drops[-1] >= course.total:
        found.append("schedule.milestones has a point at or after the end of the run")
    return found


@dataclass(frozen=True)
class Window:
    """A window of a run: from one point to a later one."""

    start: Duration
    end: Duration

    @classmethod
    def parse(cls, text: str) -> Window:
        """Parse `161ep:300ep`.

        Raises:
            ValueError: The text has another form; the message names it.
        """
        start, colon, end = text.partition(":")
        if not colon:
            raise ValueError(f"{shown(text)} is not a window: write two points, such as 161ep:300ep")
        return cls(Duration.parse(start), Duration.parse(end))

    def points(self, recipe: Recipe, *, num_train: int) -> tuple[int, int]:
        """Return the updates done at both ends, each rounded half up.

        Raises:
            RecipeError: A run of this recipe cannot be planned.
            UserError: The run does not have an end, or nothing is between them.
        """
        clock = clock_of(recipe, num_train=num_train)
        start, end = (point_on(clock, duration, option="--window") for duration in (self.start, self.end))
        if start > end:
            raise UserError(f"--window {self}: ends before it starts", hint="write the earlier point first")
        return start, end

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"


def clock_of(recipe: Recipe, *, num_train: int) -> StepClock:
    """Return the clock of a run on `num_train` samples.

    Raises:
        RecipeError: A run of this recipe cannot be planned.
    """
    plan = make_plan(recipe, num_train=num_train)
    course = chart(recipe, steps_per_epoch=plan.steps_per_epoch)
    return StepClock(plan.steps_per_epoch, plan.total_steps, course.minima)


def point_on(clock: StepClock, duration: Duration, *, option: str) -> int:
    """Return the updates done at a point of a run, rounded half up; `option` names it in errors.

    Raises:
        UserError: The run does not have this point.
    """
    if duration.unit == "cycle" and duration.value > len(clock.minima):
        raise UserError(
            f"{option}: {duration} is not there: the schedule of the run has {len(clock.minima)} minima",
            hint="write the point in %, ep or step",
        )
    point = point_of(duration, exact=clock.exact, low_points=clock.minima, total=clock.total)
    if point > clock.total:
        epochs = clock.total // clock.steps_per_epoch
        raise UserError(
            f"{option}: {duration} is after the end of the run, epoch {epochs}", hint=f"write at most {epochs}ep"
        )
    return round_half_up(point)
