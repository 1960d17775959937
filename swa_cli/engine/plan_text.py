"""Describe a run before it begins: data, network, device, schedule, averages, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TextIO

from swa_cli.engine import class_balance, optimizers
from swa_cli.engine.context import Context
from swa_cli.engine.events import PlanEvent
from swa_cli.engine.network import describe_model, names_to_freeze
from swa_cli.engine.pretrained import describe_constants
from swa_cli.engine.run import Run
from swa_cli.recipe.curves import ResolvedSchedule
from swa_cli.recipe.image_sizes import (
    evaluation_interpolation,
    evaluation_resize,
    evaluation_size,
    is_rounded,
    pixels_text,
    sizes_by_epoch,
)
from swa_cli.recipe.intervals import Series, average_series, snapshot_series
from swa_cli.recipe.kinds import KINDS
from swa_cli.recipe.learning_rate import chart, learning_rate
from swa_cli.recipe.plan import Plan
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema import Dataset, Recipe
from swa_cli.recipe.swap import describe_swap
from swa_cli.recipe.values import in_epochs, length_text
from swa_cli.units import count_text, size_text

NEARLY_ZERO = 0.01  # of the highest rate
WIDE_WINDOW = 0.05  # of the run
WHEN_TO_AVERAGE = "Ajroldi et al. 2025, arXiv:2502.06761; docs/study.md"


def plan_event(
    run: Run,
    *,
    title: str,
    warnings: Sequence[str],
    folder: Path | None = None,
    log: TextIO | None = None,
    labels: Sequence[str] = (),
) -> PlanEvent:
    """Return the event of a run that begins or continues, with all lines of the plan or only those of `labels`."""
    return PlanEvent(
        title=title,
        rows=[row for row in plan_rows(run) if not labels or row[0] in labels],
        recipe=run.context.recipe.values(),
        averages=list(run.averages),
        metrics=run.context.task.metrics,
        folder=folder,
        history=run.history,
        warnings=warnings,
        log=log,
    )


def plan_rows(run: Run) -> list[tuple[str, str]]:
    """Return the labelled lines of the plan."""
    recipe = run.context.recipe
    averages = [("" if index else "averaging", text) for index, text in enumerate(describe_averages(recipe, run.plan))]
    phases = [("swap", describe_swap(recipe) or ""), *averages]
    if not run.statistics.num_layers:
        phases = [(label, text.partition("; BatchNorm")[0]) for label, text in phases]
    constants = "" if run.context.pretrained is None else describe_constants(run.context)
    rows = [
        ("data", describe_data(run.context)),
        ("", "; ".join(filter(None, (describe_views(recipe), constants)))),
        ("", "; ".join(run.context.source.contents)),
        ("", class_balance.describe_sampler(recipe, run.context.source)),
        ("model", describe_model(recipe.model.name, run.model)),
        ("", str(run.initial or "")),
        ("", _describe_freezing(run)),
        (
            "optimizer",
            optimizers.describe(run.optimizer, recipe.optimizer, has_batchnorm=bool(run.statistics.num_layers)),
        ),
        ("device", run.context.hardware.describe()),
        ("processes", _describe_processes(run) if run.context.world.size > 1 else ""),
        ("schedule", describe_schedule(recipe, run.plan)),
        ("loss", class_balance.describe_loss(recipe, run.context.source)),
        *phases,
        ("", describe_pass(recipe, run.plan) if run.statistics.num_layers else ""),
        *[("" if index else "advice", text) for index, text in enumerate(describe_advice(run.plan))],
        ("memory", _describe_memory(run) if run.averages else ""),
    ]
    return [(label, text) for label, text in rows if text]


def _describe_freezing(run: Run) -> str:
    """`frozen up to epoch 3: 60 of 62 tensors (*, !fc.*)`; empty without frozen ones."""
    model, first = run.context.recipe.model, run.plan.unfreeze
    if not model.freeze:
        return ""
    names = names_to_freeze(run.model, model.freeze)
    span = "frozen" if first is None else f"frozen up to epoch {run.plan.phase.before + first - 1}"
    number = sum(1 for _ in run.model.parameters())
    return f"{span}: {len(names)} of {number} parameter tensors ({', '.join(model.freeze)})"


def _describe_processes(run: Run) -> str:
    """`2 over gloo: 64 samples of each batch; BatchNorm normalises each part of a batch by itself`."""
    settings, device, size = run.context.recipe.train, run.context.hardware.device, run.context.world.size
    least, rest = divmod(settings.batch_size, size)
    number = f"{least} or {least + 1}" if rest else str(least)
    text = f"{size} over {'nccl' if device.type == 'cuda' else 'gloo'}: {number} samples of each batch"
    if run.sharding.is_used:
        text += "; parameters, gradients, optimizer and averages sharded"
    if not run.running:
        return text
    if settings.sync_batchnorm:
        return f"{text}; BatchNorm normalises whole batches"
    return f"{text}; BatchNorm normalises each part of a batch by itself"


def _describe_memory(run: Run) -> str:
    """Memory of each average at the end of the run: `swa 9.2 MB; swag rank 20: 24 x 4.6 MB; 119.6 MB in all`.

    Where an average holds several weight sets, the unit is one set in float32.
    """
    unit = 4 * sum(parameter.numel() for parameter in run.model.parameters())
    parts, total = [], 0
    for item in run.plan.averages:
        held = run.averages[item.name].num_bytes(len(item.steps))
        total += held
        size = f"{round(held / unit, 1):g} x {size_text(unit)}"
        what = KINDS[item.kind].memory(item)
        parts.append(f"{item.name} {what}: {size}" if what else f"{item.name} {size_text(held)}")
    text = "; ".join([*parts, *([f"{size_text(total)} in all"] if len(parts) > 1 else [])])
    text += ", on the host" * (run.context.recipe.train.averages_device == "cpu")
    return text if not run.sharding.is_used else f"{text}, in each process"


def describe_data(context: Context) -> str:
    """Describe the splits and how training images are augmented."""
    source, dataset = context.source, context.recipe.dataset
    counts = [
        f"{len(split):,} {name}"
        for name, split in (("train", source.train), ("val", source.val), ("test", source.test))
        if split is not None
    ]
    changes = _describe_augment(dataset, is_gray=source.channels == 1) or "no augmentation"
    repeats = [f"each image of an epoch {dataset.repeats} times (repeats)"] * (dataset.repeats > 1)
    place = [f"on the device ({size_text(source.num_bytes)})"] * context.is_resident
    decoder = ["JPEG files are decoded on the device, others by loader processes"] * (dataset.decode == "device")
    return "; ".join([f"{source.name}: {', '.join(counts)}", changes, *repeats, *place, *decoder, *source.notes])


def describe_views(recipe: Recipe) -> str:
    """Describe the sizes of images and their constants, as far as the recipe gives them.

    `trained at 128 x 128 in epochs 1 to 6, 160 x 160 in epochs 7 to 10; evaluated at 160 x 160 after resizing the
    shorter side to 183`.
    """
    dataset = recipe.dataset
    parts = [_describe_training_sizes(recipe), _describe_evaluation_size(recipe)]
    for key, values in (("mean", dataset.mean), ("std", dataset.std)):
        if values != "auto":
            parts.append(f"{key} {values if isinstance(values, str) else ' '.join(f'{value:g}' for value in values)}")
    return "; ".join(filter(None, parts))


def _describe_training_sizes(recipe: Recipe) -> str:
    sizes = sizes_by_epoch(recipe)
    if len(sizes) == 1 and recipe.dataset.augment.random_resized_crop is None:
        return f"trained at {pixels_text(sizes[0][1])}"
    if len(sizes) < 2:
        return ""  # as they are, or with the crop
    ends = [first - 1 for first, _ in sizes[1:]] + [recipe.train.epochs]
    spans = [
        f"{pixels_text(size)} in {f'epochs {first} to {last}' if last > first else f'epoch {first}'}"
        for (first, size), last in zip(sizes, ends, strict=True)
    ]
    rounded = " (points are rounded to the start of an epoch)" if is_rounded(recipe) else ""
    return f"trained at {', '.join(spans)}{rounded}"


def _describe_evaluation_size(recipe: Recipe) -> str:
    size, resize = evaluation_size(recipe), evaluation_resize(recipe)
    if size is None:
        return ""
    framing = "after resizing the whole image" if resize is None else f"after resizing the shorter side to {resize}"
    kind = ", bicubic" if evaluation_interpolation(recipe) == "bicubic" else ""
    return f"evaluated at {pixels_text(size)} {framing}{kind}"


def _describe_augment(dataset: Dataset, *, is_gray: bool) -> str:
    """`crop 4, flip, jitter (brightness 0.2, hue 0.05), mixup 0.2 or cutmix 1`."""
    augment = dataset.augment
    flip = {"alternating": "alternating flip", True: "flip", False: ""}[augment.flip]
    colors = {key: value for key, value in augment.jitter if value}
    jitter = [f"{key} {value:g}" for key, value in colors.items() if not (is_gray and key in ("saturation", "hue"))]
    if len(jitter) < len(colors):
        jitter.append("the images are grey: no saturation, no hue")
    mixes = [f"{key} {alpha:g}" for key, alpha in (("mixup", augment.mixup), ("cutmix", augment.cutmix)) if alpha]
    changes = (
        _describe_crop(dataset),
        f"crop {augment.crop}" * bool(augment.crop),
        f"translate {augment.translate}" * bool(augment.translate),
        flip,
        "vertical_flip" * augment.vertical_flip,
        f"rotate {augment.rotate:g}" * bool(augment.rotate),
        augment.policy if augment.policy != "none" else "",
        f"cutout {augment.cutout}" * bool(augment.cutout),
        f"random_erasing {augment.random_erasing:g}" * bool(augment.random_erasing),
        f"jitter ({', '.join(jitter)})" * bool(jitter),
        " or ".join(mixes),
    )
    return ", ".join(filter(None, changes))


def _describe_crop(dataset: Dataset) -> str:
    """`random_resized_crop 224 (scale 0.08 to 1, ratio 0.75 to 1.33)`."""
    crop, sizes = dataset.augment.random_resized_crop, dataset.image_size
    if crop is None or sizes is None:
        return ""
    height, width = sizes.last
    size = f" {height if height == width else pixels_text(sizes.last)}" if not sizes.is_progressive else ""
    scale, ratio = (f"{low:.3g} to {high:.3g}" for low, high in (crop.scale, crop.ratio))
    return f"random_resized_crop{size} (scale {scale}, ratio {ratio})"


def describe_schedule(recipe: Recipe, plan: Plan) -> str:
    """Describe the rate: `30 epochs x 351 steps: warmup 1 epoch to 0.1, cosine to 0.05 at epoch 22.5, then flat`."""
    course = chart(recipe, steps_per_epoch=plan.steps_per_epoch)
    epoch = partial(in_epochs, steps_per_epoch=plan.steps_per_epoch)
    parts = []
    if course.warmup:
        begins_at = learning_rate(recipe, steps_per_epoch=plan.steps_per_epoch)(course.warmup)
        parts.append(f"warmup {length_text(course.warmup, plan.steps_per_epoch)} to {begins_at:g}")
    parts.append(SCHEDULES[recipe.schedule.name].text(course))
    swa = recipe.swa
    if swa is not None and swa.lr is not None:
        if course.anneal:
            anneal = f"{swa.anneal_shape} anneal of {length_text(course.anneal, plan.steps_per_epoch)}"
            parts += [f"{anneal} to {swa.lr:g} at epoch {epoch(course.start)}", "then flat"]
        elif _arrives_at(swa.lr, recipe, course):
            parts.append("then flat")
        else:
            parts.append(f"{swa.lr:g} from epoch {epoch(course.start)} on")
    elif course.end < course.total:
        parts.append("then flat")
    length = f"{count_text(plan.epochs, 'epoch')} x {count_text(plan.steps_per_epoch, 'step')}"
    part = f", {plan.phase.span} of the schedule" if plan.phase.before else ""
    return f"{length}{part}: {', '.join(parts)}"


def describe_averages(recipe: Recipe, plan: Plan) -> list[str]:
    """Return a line for each average and one for the snapshots.

    `swa: 8 weights, ends of epochs 23 to 30 (from 75 %); BatchNorm recomputed at the end`.
    """
    lines = []
    for series, average in zip(average_series(recipe), plan.averages, strict=True):
        when = _when(series, average.steps, plan.steps_per_epoch)
        kept = ""
        if recipe.all_averages[average.name].keep == "best":
            every = recipe.average_scoring.eval_every
            kept = f"; {average.name}.pt ships its lowest {average.name}_val_loss (swa.eval_every: {every})"
        text = f"{average.name}: {KINDS[average.kind].text(average)}, {when}{kept}"
        lines.append(f"{text}; BatchNorm recomputed {'at each evaluation' if kept else 'at the end'}")
    if recipe.train.keep_best is not None:
        lines.append(f"best.pt ships the raw weights of the epoch of the best {recipe.train.keep_best}")
    if plan.plateau is not None:
        point = in_epochs(plan.plateau, steps_per_epoch=plan.steps_per_epoch)
        lines.append(f"plateau.pt keeps the run at epoch {point}, where the decay begins, for --extend-to")
    for series in snapshot_series(recipe):
        assert recipe.snapshots is not None
        when = _when(series, plan.snapshots, plan.steps_per_epoch)
        kept = "all" if recipe.snapshots.keep == "all" else f"the last {recipe.snapshots.keep}"
        mean = ", with the running mean" if recipe.snapshots.cumulative else ""
        lines.append(f"snapshots: {len(plan.snapshots)}, {when}; {kept} kept{mean}")
    return lines


def describe_advice(plan: Plan) -> list[str]:
    """Return what is known to leave an average little to gain, each with its reason; it changes nothing."""
    found = []
    last, some = plan.total_steps - 1, range(0, plan.total_steps, -(-plan.total_steps // 1000))
    final, highest = plan.learning_rate(last), max(map(plan.learning_rate, some))
    if plan.averages and plan.plateau is None and final < NEARLY_ZERO * highest:
        found.append(
            f"the rate ends near 0 ({final:.1g}), where weights hardly move, which leaves an average little to gain"
            f" ({WHEN_TO_AVERAGE}): a constant rate, or swa.lr, leaves it more"
        )
    for average in plan.averages:
        steps = average.steps[-average.settings["window"] :] if average.kind == "lawa" else ()
        share = len(steps) * (steps[-1] - steps[-2]) / plan.total_steps if len(steps) > 1 else 0
        if share > WIDE_WINDOW:
            found.append(
                f"{average.name} holds the last {share:.0%} of the run, and about 1% was best on seven benchmarks"
                f" ({WHEN_TO_AVERAGE}): a shorter {average.key}.every narrows it"
            )
    return found


def describe_pass(recipe: Recipe, plan: Plan) -> str:
    """Describe a BatchNorm pass that reads a part of the training set; empty for one that reads all of it.

    `each BatchNorm pass reads 128,117 of 1,281,167 training samples, about 3.3 % of the time of an epoch (...)`: a
    forward pass takes about a third of a training step; method exact has as many partial ones as there are layers.
    """
    settings = recipe.average_scoring.batchnorm
    number = settings.num_samples(plan.num_train)
    if number == plan.num_train:
        return ""
    text = f"each BatchNorm pass reads {number:,} of {plan.num_train:,} training samples"
    if settings.method == "pooled":
        text += f", about {100 / 3 * number / plan.num_train:.2g} % of the time of an epoch"
    section = "swap" if recipe.swap else "swa"
    return f"{text} ({section}.batchnorm.samples: {settings.samples})"


def _arrives_at(rate: float, recipe: Recipe, course: ResolvedSchedule) -> bool:
    """Return whether the schedule itself is at `rate` at swa.start."""
    leads_there = SCHEDULES[recipe.schedule.name].leads_to_swa_lr and course.end == course.start
    return leads_there and course.final_lr == rate


def _when(series: Series, steps: tuple[int, ...], steps_per_epoch: int) -> str:
    """Say where the points of a series are, in its own unit."""
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
    per_epoch = 1 / series.every.value if series.every.unit == "ep" else Fraction(0)
    divides_it = per_epoch.denominator == 1 and per_epoch > 0
    pace = f"{per_epoch} per epoch" if divides_it else f"every {length_text(gap, steps_per_epoch)}"
    return f"{pace}, epochs {epoch(steps[0])} to {epoch(steps[-1])}{start}"


def _ends_of(epochs: list[int]) -> str:
    if len(epochs) == 1:
        return f"end of epoch {epochs[0]}"
    if len(epochs) == 2:
        return f"ends of epochs {epochs[0]} and {epochs[1]}"
    if epochs[1] == epochs[0] + 1:
        return f"ends of epochs {epochs[0]} to {epochs[-1]}"
    return f"ends of epochs {epochs[0]}, {epochs[1]}, ..., {epochs[-1]}"
