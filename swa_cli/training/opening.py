"""A recipe to its bench: the hardware chosen, the data read and held against what the recipe asks of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from swa_cli.data import sources
from swa_cli.data.fingerprint import changes
from swa_cli.errors import UserError
from swa_cli.recipe import schema
from swa_cli.recipe.schema import Recipe
from swa_cli.report.terminal import Terminal
from swa_cli.training import hardware as hardware_choice
from swa_cli.training import tasks
from swa_cli.training.bench import Bench, augment_of
from swa_cli.training.distributed import ALONE, World
from swa_cli.training.tasks import Task


def open_bench(
    recipe: Recipe,
    terminal: Terminal,
    *,
    recorded: Mapping[str, Any] | None = None,
    begun: Mapping[str, Any] | None = None,
    world: World = ALONE,
    needs_training: bool = True,
) -> Bench:
    """Choose the hardware and load the data.

    Args:
        recipe: What to open.
        terminal: Hears of slow reading.
        recorded: `input` of a checkpoint: its weights fit this normalisation and these classes only.
        begun: `environment` of the run that goes on, see `hardware.choose`.
        world: The processes that work on it.
        needs_training: Refuse data without a training split; else they may lack it if there is a checkpoint.

    Raises:
        UserError: Data or device are missing, or the data are not those of the checkpoint.
    """
    settings, task = recipe.train, tasks.find(recipe.task)
    hardware = hardware_choice.choose(
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        deterministic=settings.deterministic,
        begun=begun,
        world=world,
        shard=settings.shard,
    )
    hardware_choice.require_precision("eval.precision", recipe.eval.precision, hardware.device, instead="fp32")
    dataset = recipe.dataset
    with terminal.loading() as progress, world.one_a_machine_first():
        source = sources.load(
            dataset.name,
            root=dataset.root,
            val=dataset.val,
            stratify=dataset.stratify,
            seed=recipe.seed,
            cache=dataset.cache,
            download=dataset.download,
            workers=dataset.workers,
            args=dataset.args,
            classes=None if needs_training or recorded is None else recorded["classes"],
            progress=progress,
        )
    _require_labels(task, source, recipe)
    for sentence in source.warnings:
        terminal.warning(sentence)
    if recorded is not None:
        source = _as_recorded(source, recorded)
        for sentence in changes(recorded.get("data", {}), source.data, name=dataset.name):
            terminal.warning(sentence)
    return Bench(recipe, task, hardware, source, terminal, world)


def _require_labels(task: Task, source: sources.Source, recipe: Recipe) -> None:
    """The labels are what the task learns, and augmentation knows how to move the inputs.

    Raises:
        UserError: They are something else.
    """
    if task.target not in (None, source.target):
        fitting = [name for name, other in tasks.TASKS.items() if other.target == source.target]
        raise UserError(
            f"task: {recipe.task} learns labels that are {task.target}, and those of {source.name} are {source.target}",
            hint=f"set task: {' or '.join(fitting) or 'package.module:attribute'}, or name another dataset",
        )
    if source.channels is None and recipe.dataset.augment != schema.Augment():
        raise UserError(
            f"dataset.augment: changes images, and {source.name} gives {source.describe_inputs()}",
            hint="leave it out; the dataset may change its own samples at random",
        )
    if source.channels is not None:
        augment_of(recipe).require_fitting(source.example[0][0], name=source.name)


def _as_recorded(source: sources.Source, recorded: Mapping[str, Any]) -> sources.Source:
    """The data with the normalisation of a checkpoint, if they are of its kind."""
    for key, found in (("channels", source.channels), ("classes", list(source.class_names))):
        if found != recorded[key]:
            known = _short(recorded[key])
            raise UserError(
                f"dataset: {source.name} has {key} {_short(found)}, the weights were trained on {known}",
                hint="name the dataset that the weights belong to",
            )
    return replace(source, mean=tuple(recorded["mean"]), std=tuple(recorded["std"]))


def _short(value: Any) -> str:
    return f"{len(value)} ({', '.join(map(str, value[:3]))}, ...)" if isinstance(value, list) else str(value)
