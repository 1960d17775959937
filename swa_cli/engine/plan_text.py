"""Describe a run before it begins: data, network, device, schedule, averages, memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from swa_cli.engine.context import Context
from swa_cli.engine.events import PlanEvent
from swa_cli.engine.network import describe_model
from swa_cli.engine.run import Run
from swa_cli.recipe.describe import describe_averages, describe_schedule
from swa_cli.recipe.kinds import KINDS
from swa_cli.recipe.schema import Augment
from swa_cli.recipe.swap import describe_swap
from swa_cli.units import size_text


def plan_event(
    run: Run,
    *,
    title: str,
    warnings: Sequence[str],
    folder: Path | None = None,
    log: TextIO | None = None,
    labels: Sequence[str] = (),
) -> PlanEvent:
    """Return the event of a run that begins or continues.

    Args:
        run: As it stands.
        title: The name of the run and its folder.
        warnings: What a person should think about.
        folder: The run folder; None for a dry run.
        log: Its log, open at the end.
        labels: Only these lines of the plan; by default all.
    """
    return PlanEvent(
        title=title,
        rows=[row for row in plan_rows(run) if not labels or row[0] in labels],
        recipe=run.context.recipe.model_dump(mode="json", exclude_none=True),
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
    rows = [
        ("data", describe_data(run.context)),
        *[("", text) for text in ["; ".join(run.context.source.contents)] if text],
        ("model", describe_model(recipe.model.name, run.model)),
        *([("", str(run.initial))] if run.initial else []),
        ("device", run.context.hardware.describe()),
        *([("processes", _describe_processes(run))] if run.context.world.size > 1 else []),
        ("schedule", describe_schedule(recipe, run.plan)),
    ]
    phases = describe_swap(recipe)
    named = [("swap", phases)] if phases is not None else []
    named += [("" if index else "averaging", text) for index, text in enumerate(describe_averages(recipe, run.plan))]
    if not run.statistics.num_layers:
        named = [(name, text.partition("; BatchNorm")[0]) for name, text in named]
    rows += named
    return rows + ([("memory", _describe_memory(run))] if run.averages else [])


def _describe_processes(run: Run) -> str:
    """`2 over gloo: 64 samples of each batch; BatchNorm normalises each part of a batch by itself`."""
    settings, device, size = run.context.recipe.train, run.context.hardware.device, run.context.world.size
    least, rest = divmod(settings.batch_size, size)
    number = f"{least} or {least + 1}" if rest else str(least)
    text = f"{size} over {'nccl' if device.type == 'cuda' else 'gloo'}: {number} samples of each batch"
    if run.sharding.is_used:
        text += "; parameters, gradients, optimizer and averages in parts"
    if not run.running:
        return text
    if settings.sync_batchnorm:
        return f"{text}; BatchNorm normalises whole batches"
    return f"{text}; BatchNorm normalises each part of a batch by itself"


def _describe_memory(run: Run) -> str:
    """What each average takes at the end of the run: `swa 9.2 MB; swag rank 20: 24 x 4.6 MB; 119.6 MB in all`.

    The unit of what holds several weight sets are the parameters in float32.
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
    return text if not run.sharding.is_used else f"{text}, in each process"


def describe_data(context: Context) -> str:
    """Describe the splits and how training images are augmented."""
    source = context.source
    counts = [
        f"{len(split):,} {name}"
        for name, split in (("train", source.train), ("val", source.val), ("test", source.test))
        if split is not None
    ]
    changes = _describe_augment(context.recipe.dataset.augment, is_gray=source.channels == 1)
    return "; ".join([f"{source.name}: {', '.join(counts)}", changes or "no augmentation", *source.notes])


def _describe_augment(augment: Augment, *, is_gray: bool) -> str:
    """`crop 4, flip, jitter (brightness 0.2, hue 0.05), mixup 0.2 or cutmix 1`."""
    flip = {"alternating": "alternating flip", True: "flip", False: ""}[augment.flip]
    colors = {key: value for key, value in augment.jitter if value}
    jitter = [f"{key} {value:g}" for key, value in colors.items() if not (is_gray and key in ("saturation", "hue"))]
    if len(jitter) < len(colors):
        jitter.append("the images are grey: no saturation, no hue")
    mixes = [f"{key} {alpha:g}" for key, alpha in (("mixup", augment.mixup), ("cutmix", augment.cutmix)) if alpha]
    changes = (
        f"crop {augment.crop}" * bool(augment.crop),
        f"translate {augment.translate}" * bool(augment.translate),
        flip,
        f"cutout {augment.cutout}" * bool(augment.cutout),
        f"jitter ({', '.join(jitter)})" * bool(jitter),
        " or ".join(mixes),
    )
    return ", ".join(filter(None, changes))
