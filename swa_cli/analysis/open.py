"""A checkpoint or a run opened again: its recipe, data, hardware and network, and the weight sets that were asked for.

A checkpoint of ours carries its recipe; a foreign one needs it passed. A run folder is only read, so it may be one
that another process is working on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swa_cli.averaging.model_state import read as read_tensors
from swa_cli.checkpoint import reader, third_party
from swa_cli.checkpoint.reader import Checkpoint, WeightSet
from swa_cli.checkpoint.run_folder import RESUMABLE_KEYS, RunFolder
from swa_cli.data.randomness import preserve_global_rng
from swa_cli.engine import failures, swap
from swa_cli.engine.context import Context, build_context
from swa_cli.engine.evaluate import RAW, recomputed
from swa_cli.engine.events import Events
from swa_cli.engine.network import build_network, describe_model
from swa_cli.engine.user_code import admit, make_importable
from swa_cli.errors import UserError
from swa_cli.metrics import tasks
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.swap import name_of_worker, phase_of
from swa_cli.report.terminal import Terminal

CHANGEABLE_KEYS = (
    "dataset.*",
    "eval.*",
    "train.device",
    "train.precision",
    "train.threads",
)
PASS_KEYS = ("swa.batchnorm.samples", "swap.batchnorm.samples")
# What may differ between the files of one run: `--resume` takes other values, and `--extend-to` writes these anew.
DIFFERING_KEYS = (*RESUMABLE_KEYS, "train.epochs", "swa.start", "averages.*.start", "snapshots.start")


def open_checkpoint(
    found: Checkpoint,
    overrides: Sequence[str],
    *,
    recipe: Path | None,
    terminal: Terminal,
    allow_code: bool,
    also: Sequence[str] = (),
) -> tuple[Context, nn.Module]:
    """The data, hardware and network of a checkpoint's recipe, or of the one that was passed."""
    loaded = _recipe_of(found, overrides, recipe=recipe, allow_code=allow_code, also=also)
    with failures.before_a_run():
        context = build_context(
            loaded.recipe, Events([terminal]), recorded=found.content.get("input"), needs_training=False
        )
        model = context.build_model()
    terminal.note(f"{found.path}: {describe_model(loaded.recipe.model.name, model)}; {context.hardware.describe()}")
    _tell_foreign(found, model, terminal)
    return context, model


def pass_of(found: Checkpoint, samples: str | None, *, recipe: Path | None = None) -> list[str]:
    """The change that lets a BatchNorm pass take so many training samples; `PASS_KEYS` allows it.

    Args:
        found: Whose recipe is changed.
        samples: A number or `all`; None for the recipe's own.
        recipe: The one that was passed, if one was.
    """
    if samples is None:
        return []
    is_swap = load.load(recipe).recipe.swap is not None if recipe else "swap" in (found.recipe or {})
    return [f"{'swap' if is_swap else 'swa'}.batchnorm.samples={samples}"]


def open_network(
    found: Checkpoint,
    overrides: Sequence[str],
    *,
    recipe: Path | None,
    terminal: Terminal,
    allow_code: bool,
) -> tuple[Recipe, dict[str, Any], nn.Module]:
    """The recipe, the `input` and the network of a checkpoint, on the CPU; only for a foreign one data are read."""
    if found.kind == "foreign":
        context, model = open_checkpoint(found, overrides, recipe=recipe, terminal=terminal, allow_code=allow_code)
        return context.recipe, context.input, model.to(device="cpu").to(memory_format=torch.contiguous_format)
    loaded = _recipe_of(found, overrides, recipe=recipe, allow_code=allow_code)
    input_ = found.content["input"]
    with preserve_global_rng():
        model = build_network(
            loaded.recipe,
            num_classes=input_["outputs"],
            in_channels=input_["channels"],
            families=tasks.find(loaded.recipe.task).families,
        )
    terminal.note(f"{found.path}: {describe_model(loaded.recipe.model.name, model)}")
    return loaded.recipe, input_, model


def _recipe_of(
    found: Checkpoint,
    overrides: Sequence[str],
    *,
    recipe: Path | None,
    allow_code: bool,
    also: Sequence[str] = (),
) -> Loaded:
    """The recipe that was passed, or else that of the checkpoint."""
    allowed = (*CHANGEABLE_KEYS, *also)
    if recipe is not None:
        loaded = load.load(recipe, overrides, allowed=allowed)
        make_importable(loaded)
        return loaded
    if found.recipe is None:
        raise UserError(
            f"{found.path}: was not written by swa and holds no recipe", hint="say which with --recipe RECIPE"
        )
    loaded = load.from_values(found.recipe, overrides, source=str(found.path), allowed=allowed)
    admit(loaded, source=str(found.path), folder=found.path.parent, allow_code=allow_code)
    return loaded


def _tell_foreign(found: Checkpoint, model: nn.Module, terminal: Terminal) -> None:
    """What a file of another program was taken for."""
    if found.kind == "foreign":
        terminal.note(f"{found.path}: {third_party.read(found.content, found.path, owners=read_tensors(model).owners)}")


def chosen(sets: dict[str, WeightSet], weights: str, path: Path) -> dict[str, WeightSet]:
    """The weight set of a name, or all of them.

    Raises:
        UserError: There is none, or none of that name.
    """
    if not sets:
        raise UserError(f"{path}: holds no averaged weights yet", hint="let the run reach its averaging phase")
    if weights == "all":
        return sets
    if weights not in sets:
        raise UserError(f"{path}: holds no weights {weights!r}", hint=f"choose from {', '.join(sets)}, or all")
    return {weights: sets[weights]}


def resume_point(folder: RunFolder) -> Checkpoint:
    """last.pt of a run, or previous.pt in the instant in which it is being replaced.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    if not any(os.path.lexists(path) for path in (folder.last, folder.previous)):
        raise UserError(
            f"{folder.path}: has no checkpoints/last.pt: it is no run folder, or its run has saved nothing yet",
            hint="name a checkpoint (.pt), or a run folder such as runs/latest",
        )
    found = reader.read(folder.last if os.path.lexists(folder.last) else folder.previous)
    if found.kind != "resume":
        raise UserError(f"{found.path}: is no resume point", hint="name a run folder that `swa train` made")
    return found


def weight_sets_of_run(folder: RunFolder, point: Checkpoint, model: nn.Module) -> dict[str, WeightSet]:
    """The raw weights of a run as `last`, those of its workers, and each weight set that it has shipped.

    Raises:
        UserError: A shipped file that cannot be read, or is of another run.
    """
    points = {RAW: point}
    points |= {name_of_worker(number): found for number, found in points_of_workers(folder, point).items()}
    sets: dict[str, WeightSet] = {}
    for name, found in points.items():
        sets[name] = reader.raw_weights(found, model)
        shipped = _shipped(folder, recomputed(name), point)
        if shipped is not None and shipped.content["average"]["steps"] == [found.content["step"]]:
            sets |= reader.weight_sets(shipped, model)
    for name in shipped_by(point):
        shipped = _shipped(folder, name, point)
        if shipped is not None:
            sets |= reader.weight_sets(shipped, model)
    return sets


def _shipped(folder: RunFolder, name: str, point: Checkpoint) -> Checkpoint | None:
    """The file of a weight set; None where the run goes on, or has ended before the set had its first weights.

    Raises:
        UserError: It holds something else, or is of another run.
    """
    path = folder.checkpoints / f"{name}.pt"
    if not os.path.lexists(path):
        return None
    found = reader.read(path)
    if found.kind != "weights" or found.content["average"]["name"] != name:
        raise UserError(f"{path}: does not hold the weights {name}", hint="put the file of the run in its place")
    require_same_run(found, point)
    return found


def shipped_by(point: Checkpoint) -> list[str]:
    """The averages of the run of a resume point, whether they are shipped by now or not."""
    recipe = load.from_values(point.content["recipe"], source=str(point.path)).recipe
    return [*point.content["averages"], *([swap.NAME] if phase_of(recipe).has_workers else [])]


def points_of_workers(folder: RunFolder, point: Checkpoint) -> dict[int, Checkpoint]:
    """The resume point of each worker of a SWAP run that has saved one.

    Raises:
        UserError: One cannot be read, or is of another run.
    """
    recipe = load.from_values(point.content["recipe"], source=str(point.path)).recipe
    numbers = range(1, recipe.swap.workers + 1) if recipe.swap and phase_of(recipe).has_workers else ()
    points = {}
    for number in numbers:
        own = folder.worker(number)
        if os.path.lexists(own.last):
            found = resume_point(own)
            require_same_run(found, point, ignored=("swap.worker", "train.init*"))
            points[number] = found
    return points


def require_same_run(found: Checkpoint, point: Checkpoint, *, ignored: Sequence[str] = ()) -> None:
    """Refuse a file that was copied into the folder of another run.

    Raises:
        UserError: Its recipe or its input is not that of the run's resume point.
    """
    recipes = [load.from_values(item.content["recipe"], source=str(item.path)).recipe for item in (found, point)]
    differences = load.differences(*recipes, ignored=(*DIFFERING_KEYS, *ignored))
    inputs = [{key: value for key, value in item.content["input"].items() if key != "data"} for item in (found, point)]
    if inputs[0] != inputs[1]:
        differences.append(("input", inputs[0], inputs[1]))
    if differences:
        key, value, expected = differences[0]
        raise UserError(
            f"{found.path}: is of another run: its {key} is {value}, and that of {point.path.name} is {expected}",
            hint="remove it from the folder of the run",
        )


def refresh_command(found: Checkpoint) -> str:
    """What gives the averages of a checkpoint fresh BatchNorm statistics."""
    beside = " --recipe RECIPE --weights NAME -o FILE.pt" if found.kind == "foreign" else ""
    return f"swa bn-update {found.path}{beside}"


def run_of(path: Path) -> str | None:
    """The run folder that a checkpoint lies in."""
    folder = RunFolder.around(path)
    return None if folder is None else str(folder.path)
