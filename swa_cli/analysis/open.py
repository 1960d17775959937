"""Open a checkpoint or a run folder again: recipe, data, network and weight sets.

Our checkpoints carry their recipe; a foreign one needs `--recipe`. A run folder is only read, so another process may
still train in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swa_cli import units
from swa_cli.averaging.model_state import read as read_tensors
from swa_cli.checkpoint import locks, reader, third_party
from swa_cli.checkpoint.reader import Checkpoint, WeightSet
from swa_cli.checkpoint.run_folder import RESUMABLE_KEYS, RunFolder, how_to_name
from swa_cli.data.randomness import preserve_global_rng
from swa_cli.engine import failures, swap, user_code
from swa_cli.engine.context import Context, build_context
from swa_cli.engine.evaluate import RAW, recomputed
from swa_cli.engine.events import Events
from swa_cli.engine.keep import BEST
from swa_cli.engine.network import build_network, describe_model, find_sizes, is_lazy, take_sizes
from swa_cli.errors import RecipeError, UserError
from swa_cli.metrics import tasks
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.swap import has_workers, name_of_worker
from swa_cli.report.terminal import Terminal

CHANGEABLE_KEYS = ("dataset.*", "eval.*", "train.device", "train.precision", "train.threads")
PASS_KEYS = ("swa.batchnorm.samples", "swap.batchnorm.samples")
# Keys that may differ between the files of one run: `--resume` changes some, and `--extend-to` rewrites the others.
DIFFERING_KEYS = (
    *RESUMABLE_KEYS,
    *("train.epochs", "dataset.image_size*", "swa.start", "averages.*.start", "averages.*.half_life"),
    "snapshots.start",
)


def recipe_of(found: Checkpoint) -> Recipe:
    """Return the recipe that a checkpoint of ours carries, as it is."""
    return carried_recipe(found).recipe


def open_checkpoint(
    found: Checkpoint,
    overrides: Sequence[str],
    *,
    recipe: Path | None,
    terminal: Terminal,
    allow_code: bool,
    also: Sequence[str] = (),
) -> tuple[Context, nn.Module]:
    """Open data, hardware and network by the recipe of a checkpoint, or by `recipe` in its place.

    `overrides` change `CHANGEABLE_KEYS` and the keys in `also`.
    """
    allowed = (*CHANGEABLE_KEYS, *also)
    loaded = _loaded(found, overrides, recipe=recipe, allow_code=allow_code, allowed=allowed)
    return open_context(found, loaded, terminal)


def open_network(
    found: Checkpoint,
    overrides: Sequence[str],
    *,
    recipe: Path | None,
    terminal: Terminal,
    allow_code: bool,
    allowed: Sequence[str] = CHANGEABLE_KEYS,
) -> tuple[Recipe, dict[str, Any], nn.Module]:
    """Return recipe, `input` and network of a checkpoint, on the CPU; only a foreign one opens its data.

    `overrides` change the keys that are `allowed`.
    """
    loaded = _loaded(found, overrides, recipe=recipe, allow_code=allow_code, allowed=allowed)
    if found.kind == "foreign":
        context, model = open_context(found, loaded, terminal)
        model.to(device="cpu")
        model.to(memory_format=torch.contiguous_format)
        return context.recipe, context.input, model
    input_ = found.content["input"]
    model = network_of(loaded.recipe, input_)
    if is_lazy(model):  # its inputs are no images: without data it is not run, and only its tensors have to be right
        state = found.content["model" if found.kind == "resume" else "state_dict"]
        take_sizes(model, state, name=loaded.recipe.model.name)
    terminal.note(f"{found.path}: {describe_model(loaded.recipe.model.name, model)}")
    return loaded.recipe, input_, model


def network_of(recipe: Recipe, input_: Mapping[str, Any]) -> nn.Module:
    """Build the network of a recipe for the `input` of a checkpoint, on the CPU.

    Lazy layers have found their sizes if it takes images.
    """
    task, channels = tasks.find(recipe.task), input_["channels"]
    with preserve_global_rng():
        model = build_network(recipe, num_classes=input_["outputs"], in_channels=channels, families=task.families)
        if channels is not None and is_lazy(model):
            args, kwargs = task.batch_to_args(torch.zeros(2, channels, *input_["size"]))
            find_sizes(model, args, kwargs, name=recipe.model.name)
    return model


def open_context(found: Checkpoint, loaded: Loaded, terminal: Terminal) -> tuple[Context, nn.Module]:
    """Open data, hardware and network of a checkpoint by a recipe that is admitted already."""
    recipe = loaded.recipe
    with failures.before_a_run():
        recorded = found.content.get("input")
        try:
            context = build_context(recipe, Events([terminal]), recorded=recorded, needs_training=False)
            model = context.build_model()
        except (UserError, RecipeError) as error:
            if problems := loaded.problems_of(error):
                raise loaded.locate(problems) from error
            raise
    context = replace(context, not_held_out=why_not_held_out(found, context))
    terminal.note(f"{found.path}: {describe_model(recipe.model.name, model)}; {context.hardware.describe()}")
    if found.kind == "foreign":
        layout = third_party.read(found.content, found.path, owners=read_tensors(model).owners)
        terminal.note(f"{found.path}: {layout}")
    return context, model


def why_not_held_out(found: Checkpoint, context: Context) -> str | None:
    """Return why the weights in a file may have been trained on the validation images of a context; None if not.

    A foreign file does not tell, and a validation split that the dataset itself has was taken from no training images;
    nor was one of other images below another root.
    """
    if found.recipe is None or context.source.val is None or "val" in context.source.data.splits:
        return None
    then, values = context.recipe, context.recipe.values()
    if any(found.recipe.get(key) != values[key] for key in ("dataset", "seed")):
        then = recipe_of(found)
    if then.dataset.name != context.recipe.dataset.name:
        return None
    data = found.content["input"].get("data", {})
    if then.dataset.root != context.recipe.dataset.root:  # a copy, or other images
        known, images = data.get("train", {}).get("sha256"), context.source.data()["train"].sha256
        if known != images:
            return None
    before = held_out(then, splits=data)
    now = held_out(context.recipe, splits=context.source.data.splits)
    if before == now:
        return None
    return (
        f"{found.path}: may have been trained on the validation images: its run held out {before}, and what would be"
        f" scored here is {now}"
    )


def held_out(recipe: Recipe, *, splits: Container[str]) -> str:
    """Return which validation images a run holds out; `splits` are those that the dataset itself has."""
    dataset = recipe.dataset
    if "val" in splits:
        return "the validation split of the dataset"
    seed = recipe.seed if dataset.val_seed is None else dataset.val_seed
    return f"dataset.val={dataset.val} with seed {seed}" + ("" if dataset.stratify else ", not stratified")


def _loaded(
    found: Checkpoint,
    overrides: Sequence[str],
    *,
    recipe: Path | None,
    allow_code: bool,
    allowed: Sequence[str],
) -> Loaded:
    """Return the recipe that was passed, or else that of the checkpoint, whose code needs permission."""
    if recipe is not None:
        loaded = load.load(recipe, overrides, allowed=allowed)
        user_code.make_importable(loaded)
        return loaded
    if found.recipe is None:
        raise UserError(
            f"{found.path}: was not written by swa and holds no recipe", hint="name its recipe with --recipe RECIPE"
        )
    loaded = carried_recipe(found, overrides, allowed=allowed)
    user_code.admit(loaded, source=str(found.path), folder=found.path.parent, allow_code=allow_code)
    return loaded


def carried_recipe(found: Checkpoint, overrides: Sequence[str] = (), *, allowed: Sequence[str] | None = None) -> Loaded:
    """Return the recipe that a checkpoint of ours carries, with changes."""
    values = found.content["recipe"]
    if not overrides:
        with suppress(TypeError, RecipeError):  # what is wrong is told below, with the name of this file
            return _validated(json.dumps(values, sort_keys=True))
    return load.from_values(values, overrides, source=str(found.path), allowed=allowed)


@lru_cache(maxsize=8)
def _validated(text: str) -> Loaded:
    """Validate a recipe once, however many files of a run carry it."""
    return load.from_values(json.loads(text), source="checkpoint")


def pass_of(found: Checkpoint, samples: str | None, *, recipe: Path | None = None) -> list[str]:
    """Return the override that sets the training samples of a BatchNorm pass, if any; `PASS_KEYS` allows it.

    Where `recipe` is passed, it is used in place of that of the checkpoint.
    """
    if samples is None:
        return []
    is_swap = load.load(recipe).recipe.swap is not None if recipe else "swap" in (found.recipe or {})
    return [f"{'swap' if is_swap else 'swa'}.batchnorm.samples={samples}"]


def chosen(sets: dict[str, WeightSet], weights: str, path: Path, *, takes_all: bool = False) -> dict[str, WeightSet]:
    """Return the weight set of this name, or every one for `all`, which hints name where the command `takes_all`.

    Raises:
        UserError: There is none, or none of that name.
    """
    if not sets:
        raise UserError(f"{path}: holds no averaged weights yet", hint="let the run reach its averaging phase")
    if weights == "all":
        return sets
    if weights not in sets:
        raise UserError(
            f"{path}: holds no weights {weights!r}", hint=f"choose from {', '.join(sets)}{', or all' * takes_all}"
        )
    return {weights: sets[weights]}


def require_fresh(batchnorm: Mapping[str, str], *, path: Path, hint: str) -> None:
    """Refuse averaged weights whose BatchNorm statistics are stale.

    Raises:
        UserError: A weight set in `batchnorm` is stale; `hint` says how to refresh it.
    """
    stale = [name for name, freshness in batchnorm.items() if freshness == "stale"]
    if stale:
        raise UserError(
            f"{path}: {', '.join(stale)} has stale BatchNorm statistics: its outputs would mean nothing", hint=hint
        )


def require_writable(target: Path, *, sources: Sequence[Path] = (), option: str = "-o") -> None:
    """Refuse a place where a result cannot be written, or would replace what it is made of; `option` names it.

    Raises:
        UserError: No such folder, a link, no regular file, or one of the sources.
    """
    other = f"name another file with {option} FILE"
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder", hint="make it, or " + other)
    if target.is_symlink():
        raise UserError(
            f"{target}: is a symbolic link, which is not followed for writing", hint=f"name the file itself, or {other}"
        )
    if target.exists() and not target.is_file():
        raise UserError(f"{target}: is not a regular file", hint=other)
    if any(target.exists() and source.exists() and os.path.samefile(target, source) for source in sources):
        raise UserError(f"{target}: is one of the sources", hint=other)


@contextmanager
def lock(target: Path) -> Iterator[None]:
    """Lock the run folder that a file lies in, else the file itself: what another process writes would be lost.

    Raises:
        UserError: Another process holds the lock.
    """
    folder = RunFolder.containing(target)
    if folder is not None:
        with folder.lock():
            yield
    elif not (target.is_file() and os.access(target, os.W_OK)):  # to replace a file its folder is written
        yield
    else:
        with locks.opened(target) as file:
            # A process that replaces the file leaves the lock with the old one.
            if not (locks.lock(file, target) and os.path.samestat(os.fstat(file.fileno()), os.stat(target))):
                message = f"{target}: another process is working on this file{locks.holder(file)}"
                raise UserError(message, hint="wait for it, or stop it")
            yield


def resume_point(folder: RunFolder) -> Checkpoint:
    """Read last.pt of a run, or previous.pt while last.pt is being replaced.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    if not folder.resume_points:
        reason = "has no checkpoints/last.pt: it is not a run folder, or its run has saved nothing yet"
        raise UserError(
            f"{folder.path}: {reason if folder.path.exists() else 'no such run folder'}", hint=how_to_name(folder.path)
        )
    return reader.read_resume_point(folder.resume_points[0])


def weight_sets_of_run(
    folder: RunFolder, point: Checkpoint, model: nn.Module, *, recipe: Recipe, terminal: Terminal
) -> dict[str, WeightSet]:
    """Return the raw weights of a run as `last`, those of its workers, and each weight set that it has shipped.

    A warning names the files that are not of the resume point, and are left out.

    Raises:
        UserError: A shipped file that cannot be read, or is of another run.
    """
    sets: dict[str, WeightSet] = {}
    others: list[Checkpoint] = []

    def take(name: str, source: Checkpoint) -> None:
        shipped = _shipped(folder, name, point)
        if shipped is not None and is_of(source, shipped):
            sets.update(reader.weight_sets(shipped, model))
        elif shipped is not None:
            others.append(shipped)

    for name, found in {RAW: point, **points_of_workers(folder, point, recipe)}.items():
        sets[name] = reader.raw_weights(found, model)
        take(recomputed(name), found)
    for name in shipped_by(point, recipe):
        take(name, point)
    if others:
        terminal.warning(
            f"{folder.path}: is at step {point.content['step']:,}, and files of other steps in {folder.checkpoints} are"
            f" left out: {', '.join(map(_place_of, others))}; name one to use it"
        )
    return sets


def is_of(point: Checkpoint, shipped: Checkpoint) -> bool:
    """Return whether a shipped weight set is that of a resume point; that of SWAP workers is not in it.

    The file of a run that `--extend-to` continues is still that of the shorter run.
    """
    average, averages = shipped.content["average"], {**point.content["averages"]}
    averages |= {name: entry["average"] for name, entry in point.content.get("kept", {}).items()}
    if average["name"] in averages:
        return bool(average["steps"] == averages[average["name"]]["steps"])
    return average["kind"] != "raw" or average["steps"] == [point.content["step"]]


def _place_of(shipped: Checkpoint) -> str:
    content = shipped.content
    step, epochs = content["average"]["steps"][-1], content["recipe"]["train"]["epochs"]
    return f"{shipped.path.name} (step {step:,}, of {epochs} epochs)"


def how_to_take_average(folder: RunFolder, point: Checkpoint, recipe: Recipe) -> tuple[str, str] | None:
    """Return the command that takes the first average so far out of a resume point, and the file that it writes."""
    for name, entry in point.content["averages"].items():
        if entry["count"]:
            words = ("swa", "average", folder.path, "--weights", name, "-o", f"{name}.pt")
            return user_code.command(words, recipe), f"{name}.pt"
    return None


def _shipped(folder: RunFolder, name: str, point: Checkpoint) -> Checkpoint | None:
    """Read the file of a weight set; None while the run goes on, or where the set never got its first weights."""
    path = folder.checkpoints / f"{name}.pt"
    if not os.path.lexists(path):
        return None
    found = reader.read(path)
    if found.kind != "weights" or found.content["average"]["name"] != name:
        raise UserError(f"{path}: does not hold the weights {name}", hint="put the file of the run in its place")
    require_same_run(found, point)
    return found


def shipped_by(point: Checkpoint, recipe: Recipe) -> list[str]:
    """Return the averages of a run by name, whether they are shipped by now or not."""
    best = [BEST] if recipe.train.keep_best is not None else []
    return [*best, *point.content["averages"], *([swap.NAME] if has_workers(recipe) else [])]


def points_of_workers(folder: RunFolder, point: Checkpoint, recipe: Recipe) -> dict[str, Checkpoint]:
    """Read the resume point of each worker of a SWAP run that has saved one; return it by the name of the worker.

    Raises:
        UserError: One cannot be read, or is of another run.
    """
    numbers = range(1, recipe.swap.workers + 1) if recipe.swap and has_workers(recipe) else ()
    points = {}
    for number in numbers:
        own = folder.worker(number)
        if os.path.lexists(own.last):
            found = resume_point(own)
            require_same_run(found, point, ignored=("swap.worker", "train.init*"))
            points[name_of_worker(number)] = found
    return points


def require_same_run(found: Checkpoint, point: Checkpoint, *, ignored: Sequence[str] = ()) -> None:
    """Refuse a file that was copied into the folder of another run.

    Raises:
        UserError: Its recipe or its input is not that of the run's resume point.
    """
    differences = []
    if found.content["recipe"] != point.content["recipe"]:
        keys = (*DIFFERING_KEYS, *ignored)
        differences = load.differences(recipe_of(found), recipe_of(point), ignored=keys)
    shared = (found.content["input"].keys() & point.content["input"].keys()) - {"data"}  # older files have fewer
    inputs = [{key: item.content["input"][key] for key in sorted(shared)} for item in (found, point)]
    if inputs[0] != inputs[1]:
        differences.append(("input", inputs[0], inputs[1]))
    if differences:
        key, value, expected = differences[0]
        raise UserError(
            f"{found.path}: is of another run: its {key} is {value}, and that of {point.path.name} is {expected}",
            hint="remove it from the folder of the run",
        )


def require_no_checkpoint(target: Path) -> None:
    """Refuse to replace a checkpoint or snapshot of a run, or to write in the place of its resume points.

    Raises:
        UserError: The file is one.
    """
    folder, other = RunFolder.containing(target), "name another file with -o FILE"
    if folder is not None and target.resolve() in (folder.last, folder.previous):
        raise UserError(f"{target}: is the resume point of its run", hint=other)
    is_kept = folder is not None and target.resolve().parent in (folder.checkpoints, folder.snapshots)
    if is_kept and target.suffix == ".pt" and target.exists():
        raise UserError(f"{target}: is a checkpoint of a run", hint=other)


def how_to_refresh(
    found: Checkpoint,
    about: Recipe,
    batchnorm: Mapping[str, str],
    *,
    recipe: Path | None,
    overrides: Sequence[str] = (),
) -> str:
    """Return the hint for a checkpoint, opened as `about`, with stale BatchNorm statistics; see `require_fresh`.

    The command is the one that works: with the `recipe` and the `overrides` that were passed, and for a file that
    cannot be changed in place with another one, which holds the first stale weight set.
    """
    is_foreign = found.kind == "foreign"
    words: list[object] = ["swa", "bn-update", found.path, *overrides]
    if recipe is not None:
        words += ["--recipe", recipe]
    if is_foreign:
        words += ["--weights", *[name for name, freshness in batchnorm.items() if freshness == "stale"][:1]]
    if is_foreign or found.path.suffix == ".safetensors":
        words += ["-o", "FILE.pt"]
    command = user_code.command(words, about) if recipe is None else units.command(words)
    return f"run `{command}` first, or insist with --allow-stale-bn"


def run_of(path: Path) -> str | None:
    """Return the run folder that a checkpoint lies in."""
    folder = RunFolder.containing(path)
    return None if folder is None else str(folder.path)
