"""Which part of a run goes into which file, and back: resume point, shipped average, snapshot.

What a step draws is a function of (seed, step), so `rng` holds the seed and no generator's state.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.averaging.average import WeightAverage
from swa_cli.averaging.model_state import read
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.checkpoint.safe_load import DamagedError
from swa_cli.engine.distributed import name_of_launch
from swa_cli.engine.hardware import environment
from swa_cli.engine.run import Refreshed, Run
from swa_cli.errors import UserError
from swa_cli.recipe import load
from swa_cli.recipe.values import TimeSpan
from swa_cli.report.terminal import Terminal


def begin(run: Run, folder: RunFolder, *, recipe_folder: Path) -> None:
    """Write what it takes to go on with a run that has saved nothing yet: its recipe, and what it runs on."""
    about = {"python": platform.python_version(), "recipe_folder": str(recipe_folder.resolve())}
    about |= {"init_sha256": run.initial.sha256} if run.initial else {}
    about |= {"launch": launch} if (launch := name_of_launch()) else {}
    folder.write_text(folder.recipe.name, load.dump(run.context.recipe))
    folder.write_json(folder.about.name, environment(run.context.hardware) | about)


def save_resume_point(run: Run, folder: RunFolder) -> None:
    """Write last.pt: everything that the rest of the run depends on. The one before becomes previous.pt.

    It is written while the run goes on: `run.writer.wait` tells when it is there.
    """
    parts = run.context.world.gathered(run.totals.tolist())
    _require_equal(run)
    run.saved_at = time.monotonic()
    if not folder.writes and run.parts.are_whole:
        return
    stale = "stale" if run.statistics.num_layers else run.statistics.freshness
    loss, score = map(sum, zip(*parts, strict=True))
    content = {
        "recipe": recipe_values(run),
        "input": run.context.input,
        "num_train": run.plan.num_train,
        "epoch": len(run.history),
        "step": run.step,
        "model": run.model.state_dict(),
        "averages": {
            name: {**average.state_dict(copy=False), "batchnorm": stale} for name, average in run.averages.items()
        },
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "rng": {"seed": run.context.recipe.seed, "scheme": "seeded anew at each step"},
        "environment": environment(run.context.hardware),
        "history": run.history,
        "epoch_so_far": {"loss": loss, _key_so_far(run): score, "seconds": time.monotonic() - run.clock}
        | ({"parts": parts} if len(parts) > 1 else {}),
        "stopped": run.stopped,
        "cumulative": None if run.cumulative is None else {**run.cumulative.state_dict(copy=False), "batchnorm": stale},
    }
    copy_of_now = run.parts.whole(content, keep=folder.writes)
    if folder.writes:
        run.writer.begin(lambda: reader.save(folder.last, copy_of_now, keep=folder.previous))


def save_if_due(run: Run, folder: RunFolder) -> None:
    """Write last.pt if `output.save_every` asks for it after this update, or after this time."""
    every = run.context.recipe.output.save_every
    is_time = isinstance(every, TimeSpan) and run.context.world.broadcast_from_rank0(
        lambda: time.monotonic() - run.saved_at >= every.seconds
    )
    if is_time or run.step in run.plan.saves:
        save_resume_point(run, folder)


def newest_resume_point(folder: RunFolder, terminal: Terminal) -> reader.Checkpoint | None:
    """last.pt, or previous.pt where it is damaged or was just being replaced; None where a run has saved neither.

    Raises:
        UserError: Neither can be read, or there is something else in its place.
    """
    damage = None
    for path in (folder.last, folder.previous):
        if not os.path.lexists(path):
            continue
        try:
            point = reader.read(path)
        except DamagedError as error:
            damage = damage or error
            continue
        if point.kind != "resume":
            raise UserError(f"{path}: is no resume point", hint="name a run folder that `swa train` made")
        if damage is not None:
            terminal.warning(f"{damage.message}: going on from {path.name}, the one before")
        return point
    if damage is not None:
        raise damage
    return None


def settle(folder: RunFolder, point: reader.Checkpoint | None, recipe: str, *, extended: bool) -> None:
    """Put the folder in order before a run goes on: the good resume point first, the recipe as it is now."""
    if not folder.writes:
        return
    if point is not None and point.path == folder.previous:
        os.replace(folder.previous, folder.last)  # else the next save would keep the damaged one
    # First the result: one that is there beside the longer recipe is that of the longer run.
    if extended and folder.result.is_file():
        assert point is not None, "only what has epochs can be given more"
        os.replace(folder.result, folder.path / f"result-{point.content['epoch']:03d}.json")
    if not folder.recipe.is_file() or folder.recipe.read_text() != recipe:
        folder.write_text(folder.recipe.name, recipe)


def restore(run: Run, content: Mapping[str, Any], *, source: str) -> None:
    """Put the content of a resume point back into a run that was prepared from the same recipe.

    Raises:
        UserError: It does not fit the recipe or the data.
    """
    plan, per_epoch = run.plan, run.plan.steps_per_epoch
    if content["num_train"] != plan.num_train:
        raise UserError(
            f"dataset: has {plan.num_train:,} training samples, the run was begun with {content['num_train']:,}",
            hint="name the data of the run with dataset.root",
        )
    num_rows, step = content["epoch"], content["step"]
    whole = 0 <= step - num_rows * per_epoch <= per_epoch or content["stopped"] is not None
    if num_rows != len(content["history"]) or step > plan.total_steps or not whole:
        raise UserError(f"{source}: its epochs, steps and history do not agree", hint="take another copy of the file")
    if content["averages"].keys() != run.averages.keys():
        raise UserError(f"{source}: its averages are not those of its recipe", hint="take another copy of the file")
    running = content["cumulative"]
    if (running is None) != (run.cumulative is None) or (running is not None and running["count"] != step):
        raise UserError(f"{source}: its running mean is not that of its steps", hint="take another copy of the file")
    metrics = run.context.task.metrics
    if any(key not in row for row in content["history"] for key in metrics.columns(list(run.averages))):
        raise UserError(f"{source}: its history is not that of its recipe", hint="take another copy of the file")
    if _key_so_far(run) not in content["epoch_so_far"]:
        raise UserError(f"{source}: has no epoch_so_far.{_key_so_far(run)}", hint="take another copy of the file")
    load = None if run.parts.are_whole else partial(run.parts.load, run.model)
    loading.put(run.model, content["model"], source=source, load=load)
    loading.require_finite(content["model"], source=source)
    try:
        # A copy: the file stays mapped otherwise.
        run.optimizer.load_state_dict(run.parts.of_optimizer(run.optimizer, content["optimizer"]))
        run.scaler.load_state_dict(content["scaler"])
        _require_shapes(run.optimizer)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{source}: its optimizer state does not fit the recipe ({error})", hint="take another copy of the file"
        ) from error
    for name, entry in content["averages"].items():
        run.averages[name].load_state_dict(run.parts.own(reader.without_batchnorm(entry)))
    if run.cumulative is not None:
        run.cumulative.load_state_dict(run.parts.own(reader.without_batchnorm(running)))
    run.history, run.step, run.stopped = content["history"], step, content["stopped"]
    so_far = content["epoch_so_far"]
    world, parts = run.context.world, so_far.get("parts")
    if parts is None or len(parts) != world.size:  # begun by another number of processes: the first one takes it all
        parts = [(so_far["loss"], so_far[_key_so_far(run)])] + [(0.0, 0.0)] * (world.size - 1)
    run.totals.copy_(torch.tensor(parts[world.rank], dtype=run.totals.dtype))
    run.clock = time.monotonic() - so_far["seconds"]


def _require_shapes(optimizer: torch.optim.Optimizer) -> None:
    """Refuse moments that torch would take, to fail at the next update.

    Raises:
        ValueError: A moment is not of the shape of its parameter.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape != parameter.shape:
                raise ValueError(f"{key} is {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}")


def save_average(run: Run, folder: RunFolder, name: str, state_dict: dict[str, Tensor]) -> None:
    """Write <name>.pt: the average as it ships, with recomputed statistics; of swag also what draws are made from."""
    average, refreshed = run.averages[name], run.refreshed[name]
    run.context.world.require_equal(state_dict, what=f"the weights of {name}")
    if not folder.writes and run.parts.are_whole:
        return
    content: dict[str, Any] = {
        "recipe": recipe_values(run),
        "input": run.context.input,
        "state_dict": state_dict,
        "average": {"name": name, "kind": average.kind, "count": average.count, "steps": average.steps},
        **refreshed.update.record,
    }
    if run.workers:
        share = 1 / len(run.workers)
        content["sources"] = [
            {"file": worker.file, "name": "last", "weight": share, "step": worker.step} for worker in run.workers
        ]
    if average.kind == "swag":
        posterior = average.posterior()
        kept = {key: getattr(posterior, key) for key in ("diagonal", "variance", "deviations")}
        content["posterior"] = run.parts.whole(kept, keep=folder.writes)
    if folder.writes:
        reader.save(folder.checkpoints / f"{name}.pt", content)


def save_recomputed(
    run: Run, folder: RunFolder, name: str, state_dict: dict[str, Tensor], refreshed: Refreshed
) -> None:
    """Write <name>.pt, such as last_bn.pt: raw weights with recomputed statistics."""
    run.context.world.require_equal(state_dict, what=f"the weights of {name}")
    if folder.writes:
        content = {"recipe": recipe_values(run), "input": run.context.input}
        content |= reader.raw_content(name, state_dict, step=refreshed.step) | refreshed.update.record
        reader.save(folder.checkpoints / f"{name}.pt", content)


def save_snapshot(run: Run, folder: RunFolder) -> None:
    """Write the raw weights as they are; of more than `keep`, the oldest goes."""
    _require_equal(run)
    if not folder.writes and run.parts.are_whole:
        return
    content = {
        "recipe": recipe_values(run),
        "input": run.context.input,
        "state_dict": run.model.state_dict(),
        "num_train": run.plan.num_train,
        "epoch": run.step // run.plan.steps_per_epoch,
        "step": run.step,
        "batchnorm": reader.raw_batchnorm(run.model),
        "cumulative": None if run.cumulative is None else _running_mean(run.cumulative, run.model),
    }
    settings = run.context.recipe.snapshots
    assert settings is not None, "the plan has snapshot steps only where the recipe has the section"
    kept = [step for step in run.plan.snapshots if step <= run.step]
    old = [] if settings.keep == "all" else kept[: -int(settings.keep)]
    copy_of_now, path = run.parts.whole(content, keep=folder.writes), folder.snapshot_path(run.step)

    def write() -> None:
        folder.snapshots.mkdir(exist_ok=True)
        reader.save(path, copy_of_now)
        for step in old:
            folder.snapshot_path(step).unlink(missing_ok=True)

    if folder.writes:
        run.writer.begin(write)


def _require_equal(run: Run) -> None:
    """All processes go on from the same weights, averages and optimizer.

    Raises:
        UserError: They do not.
    """
    averages = [average.state_dict(copy=False) for average in run.averages.values()]
    state = [run.model.state_dict(), averages, run.optimizer.state_dict()["state"]]
    run.context.world.require_equal(run.parts.replicated(state), what=f"the weights after step {run.step:,}")


def _running_mean(cumulative: WeightAverage, model: nn.Module) -> dict[str, Any]:
    """The mean of the weights after every step so far, in float64 and under each name of the state_dict."""
    state, tensors = cumulative.state_dict(copy=False)["state"], read(model)
    named = {name: state[owner] for name, owner in tensors.owners.items() if owner in tensors.weights}
    return {"count": cumulative.count, "state": named}


def _key_so_far(run: Run) -> str:
    """What the epoch that is going on is scored by, beside its loss."""
    return run.context.task.metrics.training.key


def recipe_values(run: Run) -> dict[str, Any]:
    """The recipe as primitives, complete with its defaults."""
    return run.context.recipe.model_dump(mode="json", exclude_none=True)
