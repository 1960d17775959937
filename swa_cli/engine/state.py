"""Save the state of a run, and restore it: resume point, shipped averages, snapshots.

Random numbers of a step are a function of (seed, step), so `rng` holds the seed and no generator's state.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.averaging.average import WeightAverage
from swa_cli.averaging.model_state import cloned, like, read
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.atomic import write_atomic
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.checkpoint.safe_load import DamagedError
from swa_cli.engine import failures
from swa_cli.engine.distributed import name_of_launch
from swa_cli.engine.evaluate import RAW
from swa_cli.engine.events import Events, SavedEvent, Stopped
from swa_cli.engine.hardware import environment
from swa_cli.engine.keep import BEST, Kept, columns, restored
from swa_cli.engine.optimizers import KERNELS, begin_momentum
from swa_cli.engine.run import Refreshed, Run
from swa_cli.errors import UserError
from swa_cli.recipe import load
from swa_cli.recipe.values import TimeSpan


def write_first_files(run: Run, folder: RunFolder, *, recipe_folder: Path) -> None:
    """Write run.json and recipe.yaml, from which a run continues that has saved nothing yet.

    A folder with recipe.yaml can be resumed, so it comes last.
    """
    about = {"python": platform.python_version(), "recipe_folder": str(recipe_folder.resolve())}
    about |= run.initial.record if run.initial else {}
    about |= {"launch": launch} if (launch := name_of_launch()) else {}
    packed = dict(run.context.source.packed)
    folder.write_json(
        folder.about.name, environment(run.context.hardware) | about | ({"packed": packed} if packed else {})
    )
    folder.write_text(folder.recipe.name, load.dump(run.context.recipe))


def save_resume_point(run: Run, folder: RunFolder, *, is_plateau: bool = False) -> None:
    """Write last.pt, or plateau.pt: everything that the rest of the run depends on.

    The last.pt before becomes previous.pt. Training continues meanwhile; `wait_for_files` returns once the file is
    complete.
    """
    run.require_finite_averages()
    parts = run.context.world.gathered(run.totals.tolist())
    _require_equal(run)
    run.saved_at = time.monotonic()
    stale = "stale" if run.statistics.num_layers else run.statistics.freshness
    loss, score = map(sum, zip(*parts, strict=True))
    so_far = {"loss": loss, _key_so_far(run): score, "seconds": time.monotonic() - run.clock}
    content = {
        **run.context.origin,
        "num_train": run.plan.num_train,
        "epoch": len(run.history),
        "step": run.step,
        **_raw_weights(run),
        "averages": {
            name: {**average.state_dict(copy=False), "batchnorm": stale} for name, average in run.averages.items()
        },
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "rng": {"seed": run.context.recipe.seed, "scheme": "seeded anew at each step"},
        "environment": environment(run.context.hardware),
        "history": run.history,
        "epoch_so_far": so_far | ({"parts": parts} if len(parts) > 1 else {}),
        "stopped": run.stopped,
        "cumulative": None if run.cumulative is None else {**run.cumulative.state_dict(copy=False), "batchnorm": stale},
    }
    path, before = (folder.plateau, None) if is_plateau else (folder.last, folder.previous)
    _write(run, folder, SavedEvent(path=path, kind="resume", step=run.step), content, keep=before, kept=dict(run.kept))


def _raw_weights(run: Run) -> dict[str, Any]:
    """Return the raw weights as a resume point has them, with the statistics that they are scored with, if known.

    Of an optimizer that averages inside they are its eval weights, and beside them are those that it trains on.
    """
    if not run.averages_inside:
        return {"model": run.model.state_dict()}
    with run.eval_weights():
        weights = cloned(run.model.state_dict())
    known, fresh = run.refreshed.get(RAW), raw_batchnorm(run)
    if known is not None and known.step == run.step:
        weights = like(weights, {**weights, **{key: known.buffers[key] for key in weights if key in known.buffers}})
        fresh = known.update.freshness
    return {"model": weights, "batchnorm": fresh, "trained": run.model.state_dict()}


def raw_batchnorm(run: Run) -> str:
    """Return how fresh the statistics of training are for the raw weights: eval weights never ran with them."""
    found = reader.raw_batchnorm(run.model)
    return "stale" if run.averages_inside and found == "running" else found


def save_if_due(run: Run, folder: RunFolder) -> None:
    """Write last.pt if `output.save_every` asks for it after this update, or after this time; first plateau.pt.

    So every last.pt from the plateau on stands beside a plateau.pt, wherever the run is killed.
    """
    if run.step == run.plan.plateau:
        save_resume_point(run, folder, is_plateau=True)
    every = run.context.recipe.output.save_every
    is_time = isinstance(every, TimeSpan) and run.context.world.broadcast_from_rank0(
        lambda: time.monotonic() - run.saved_at >= every.seconds
    )
    if is_time or run.step in run.plan.saves:
        save_resume_point(run, folder)


def wait_for_files(run: Run) -> None:
    """Return when all files are written, and announce them.

    Raises:
        OSError: One could not be written.
    """
    run.writer.wait()
    while run.unannounced:
        run.context.events.emit(run.unannounced.pop(0))


def _write(
    run: Run,
    folder: RunFolder,
    event: SavedEvent,
    content: Mapping[str, Any],
    *,
    keep: Path | None = None,
    kept: Mapping[str, Kept] = MappingProxyType({}),
    outdated: Sequence[Path] = (),
) -> None:
    """Write a copy of `content` while training continues; `wait_for_files` announces it by `event`.

    A file that is replaced becomes `keep`; `outdated` files are removed afterwards. What is `kept` never changes, and
    is written without a copy; once it is durable, best.pt follows.
    """
    if not folder.writes and not run.sharding.is_used:
        return
    copy_of_now = run.sharding.gather(content, keep=folder.writes)
    if not folder.writes:
        return

    def write() -> None:
        event.path.parent.mkdir(exist_ok=True)
        reader.save(event.path, copy_of_now, keep=keep)
        if best is not None:
            reader.save(folder.best, best.content(origin))
        for path in outdated:
            path.unlink(missing_ok=True)

    best, origin = kept.get(BEST), run.context.origin
    best = None if best is None or best.epoch == run.saved_best else best
    if kept:
        copy_of_now = {**copy_of_now, "kept": {name: entry.values for name, entry in kept.items()}}
    wait_for_files(run)
    run.writer.begin(write)
    run.unannounced.append(event)
    if best is not None:
        run.saved_best = best.epoch
        run.unannounced.append(SavedEvent(path=folder.best, kind="raw", step=best.average["steps"][0]))


@contextmanager
def saved_on_signals(run: Run, folder: RunFolder) -> Iterator[None]:
    """While the block runs, a signal stops the run at its next safe point, after a save; failures are explained."""
    with failures.explain(folder, ways=lambda: _ways_to_averages(run, folder)), run.interrupt, run.writer:
        try:
            yield
        except Stopped as stopped:
            save_resume_point(run, folder)
            wait_for_files(run)
            is_signal = not isinstance(stopped.ending, Exception)
            tell = run.context.events.warning if is_signal else run.context.events.note
            tell(f"stopped after step {run.step:,}, which is saved")
            raise stopped.ending from None


def _ways_to_averages(run: Run, folder: RunFolder) -> list[str]:
    """Return how to get the averages of a run whose steps are all done if its end fails."""
    if run.step < run.plan.total_steps and run.stopped is None:
        return []
    if run.plan.worker is not None:
        files = sorted(folder.workers.glob("*/checkpoints/last.pt"))
        line = failures.runnable(("swa", "average", *files, "-o", "swa.pt"), folder)
        return [f"its average is that of its workers: `{line}`"] if files else []
    if not run.filled:
        return []
    name, *more = run.filled
    others = f" (or --weights {', '.join(more)})" if more else ""
    words = ("swa", "average", folder.path, "--weights", name, "-o", f"{name}.pt")
    return [f"its averages are saved: take one out with `{failures.runnable(words, folder)}`{others}"]


def newest_resume_point(folder: RunFolder, events: Events) -> reader.Checkpoint | None:
    """Return last.pt, or previous.pt if that is damaged or was being replaced; None without either.

    Raises:
        UserError: Neither can be read, or there is something else in its place.
    """
    damage = None
    for path in folder.resume_points:
        try:
            point = reader.read_resume_point(path)
        except DamagedError as error:
            damage = damage or error
            continue
        if damage is not None:
            events.warning(f"{damage.message}: continuing from {path.name}, the one before")
        return point
    if damage is not None:
        raise damage
    return None


def prepare_folder(
    folder: RunFolder, point: reader.Checkpoint | None, recipe: str, *, extended: reader.Checkpoint | None
) -> None:
    """Put the folder in order before a run continues: the good resume point first, the recipe as it is now.

    `extended` is the newest resume point of a run that gets more epochs. Beside the longer recipe, result.json means
    that the longer run is finished, and snapshots are those of the longer run: so both are put away first.
    """
    if not folder.writes:
        return
    if point is not None and point.path == folder.previous:
        os.replace(folder.previous, folder.last)  # else the next save would keep the damaged one
    if extended is not None:
        if folder.result.is_file():
            os.replace(folder.result, folder.path / f"result-{extended.content['epoch']:03d}.json")
        if point is not None and point.path == folder.plateau:
            _go_back(folder, point, ended=extended)
    if not folder.recipe.is_file() or folder.recipe.read_text() != recipe:
        folder.write_text(folder.recipe.name, recipe)


def ended_name(point: reader.Checkpoint) -> str:
    """Return the name under which a resume point is kept when its run goes back to its plateau."""
    return f"last-{point.content['epoch']:03d}.pt"


def _go_back(folder: RunFolder, plateau: reader.Checkpoint, *, ended: reader.Checkpoint) -> None:
    """Let the run stand where its decay began; what the decay led to is kept under other names.

    It may be killed at any instant: up to the last line the run is at its end, and the same can be done again.
    """
    _copy(ended.path, folder.checkpoints / ended_name(ended))
    for path in folder.snapshot_files:
        if int(path.stem[5:]) > plateau.content["step"]:
            away = folder.path / f"snapshots-{ended.content['epoch']:03d}"
            away.mkdir(exist_ok=True)
            os.replace(path, away / path.name)
    if ended.path == folder.last:
        folder.previous.unlink(missing_ok=True)  # it lies in the decay, and would stand for a damaged last.pt
    _copy(folder.plateau, folder.last)


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as file:
        write_atomic(target, lambda to: shutil.copyfileobj(file, to))


def restore(run: Run, content: Mapping[str, Any], *, source: str) -> None:
    """Restore a resume point into a run that was built from the same recipe.

    Raises:
        UserError: It does not fit the recipe or the data.
    """
    plan, per_epoch = run.plan, run.plan.steps_per_epoch
    if content["num_train"] != plan.num_train:
        raise UserError(
            f"dataset: has {plan.num_train:,} training samples, the run was begun with {content['num_train']:,}",
            hint="name the data of the run with dataset.root",
        )
    num_rows, step, running = content["epoch"], content["step"], content["cumulative"]
    is_between = 0 <= step - num_rows * per_epoch <= per_epoch or content["stopped"] is not None
    scored, so_far = run.context.task.metrics.columns(list(run.averages)), content["epoch_so_far"]
    trained = content.get("trained")
    has_columns = all(key in row for row in content["history"] for key in scored)
    kept = restored(run, content.get("kept", {}), content["history"]) if has_columns else {}
    faults = {
        "its epochs, steps and history do not agree": (
            num_rows != len(content["history"]) or step > plan.total_steps or not is_between
        ),
        "its weights are not those of its optimizer": (trained is not None) != run.averages_inside,
        "its averages are not those of its recipe": content["averages"].keys() != run.averages.keys(),
        "its running mean is not that of its steps": (
            (running is None) != (run.cumulative is None) or (running is not None and running["count"] != step)
        ),
        "its history is not that of its recipe": not has_columns,
        "what it has kept is not the best of its history": kept is None,
        f"has no epoch_so_far.{_key_so_far(run)}": _key_so_far(run) not in so_far,
    }
    for fault, is_there in faults.items():
        if is_there:
            raise UserError(f"{source}: {fault}", hint="take another copy of the file")
    load = None if not run.sharding.is_used else partial(run.sharding.load, run.model)
    loading.load_strict(run.model, trained or content["model"], source=source, load=load)
    try:
        kernels = [{key: group[key] for key in KERNELS if key in group} for group in run.optimizer.param_groups]
        # A copy: the file stays mapped otherwise.
        run.optimizer.load_state_dict(run.sharding.of_optimizer(run.optimizer, content["optimizer"]))
        if run.sharding.is_used:  # a whole run may have had kernels that sharded weights lack
            for group, own in zip(run.optimizer.param_groups, kernels, strict=True):
                group.update(own)
        else:
            _lay_out(run.optimizer)
        begin_momentum(run.optimizer)  # of parameters that had no gradient before the save
        run.scaler.load_state_dict(content["scaler"])
        settings = run.context.recipe.optimizer
        names = [settings.name, *(group.name or "" for group in settings.groups)]
        if not any(":" in name for name in names):  # a user's class may keep what it likes
            _require_shapes(run.optimizer)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{source}: its optimizer state does not fit the recipe ({error})", hint="take another copy of the file"
        ) from error
    for name, entry in content["averages"].items():
        run.averages[name].load_state_dict(run.sharding.local_rows(entry))
    if run.cumulative is not None:
        run.cumulative.load_state_dict(run.sharding.local_rows(running))
    run.history, run.step, run.stopped, run.kept = content["history"], step, content["stopped"], kept or {}
    if run.history and run.stopped is None and len(run.history) < plan.epochs:
        _forget_end(run)
    world, parts = run.context.world, so_far.get("parts")
    if parts is None or len(parts) != world.size:  # saved by another number of processes: rank 0 takes it all
        parts = [(so_far["loss"], so_far[_key_so_far(run)])] + [(0.0, 0.0)] * (world.size - 1)
    run.totals.copy_(torch.tensor(parts[world.rank], dtype=run.totals.dtype))
    run.clock = time.monotonic() - so_far["seconds"]


def _forget_end(run: Run) -> None:
    """Forget the scores of averages that only the end of a shorter run has taken: the longer one decides without them.

    They stay where the weights that are kept as the best are of this epoch: those before them are gone.
    """
    epoch, row = len(run.history), dict(run.history[-1])
    if epoch in run.plan.score_epochs:
        return
    kept = {name for name, best in run.kept.items() if best.epoch == epoch}
    decisive = {column for name, column in columns(run.context.recipe).items() if name in kept}
    for name in run.averages:
        own = [column for column in run.context.task.metrics.columns([name]) if column.startswith(f"{name}_val_")]
        if decisive.intersection(own):
            run.context.events.note(
                f"{name} was scored at the end of the shorter run, which decides what is kept: a run of"
                f" {run.plan.epochs} epochs from the start would not have scored it there, and may keep another"
            )
        else:
            row |= dict.fromkeys(own)
    run.history[-1] = row


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Lay moments out in memory as their parameters are: fused kernels suppose it and do not look."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _require_shapes(optimizer: torch.optim.Optimizer) -> None:
    """Refuse moments that torch would load, and that would fail at the next update.

    Raises:
        ValueError: A moment has neither the shape of its parameter nor, as in Adafactor, 1 for some of its sizes.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                continue
            fits = value.dim() == parameter.dim() and all(
                size in (1, expected) for size, expected in zip(value.shape, parameter.shape, strict=True)
            )
            if not fits:
                raise ValueError(f"{key} is {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}")


def save_average(run: Run, folder: RunFolder, name: str, state_dict: dict[str, Tensor]) -> None:
    """Write <name>.pt: an average with recomputed statistics, and for swag its posterior."""
    average, refreshed = run.averages[name], run.refreshed[name]
    run.context.world.require_equal(state_dict, what=f"the weights of {name}")
    if not folder.writes and not run.sharding.is_used:
        return
    content = reader.weights_content(
        run.context.origin,
        average_facts(run, name),
        state_dict,
        refreshed.update.record,
        posterior=average.posterior() if average.kind == "swag" else None,
        sources=[
            {"file": worker.file, "name": "last", "weight": 1 / len(run.workers), "step": worker.step}
            for worker in run.workers
        ],
    )
    if "posterior" in content:
        content["posterior"] = run.sharding.gather(content["posterior"], keep=folder.writes)
    _ship(run, folder, name, content, kind="average", step=average.steps[-1])


def average_facts(run: Run, name: str) -> dict[str, Any]:
    """Return what the file of an average says of it."""
    average = run.averages[name]
    return {"name": name, "kind": average.kind, "count": average.count, "steps": list(average.steps)}


def save_kept(run: Run, folder: RunFolder, name: str) -> None:
    """Write <name>.pt: the average at its best epoch."""
    kept = run.kept[name]
    _ship(run, folder, name, kept.content(run.context.origin), kind="average", step=kept.average["steps"][-1])


def save_recomputed(
    run: Run, folder: RunFolder, name: str, state_dict: dict[str, Tensor], refreshed: Refreshed
) -> None:
    """Write <name>.pt, such as last_bn.pt: raw weights with recomputed statistics."""
    run.context.world.require_equal(state_dict, what=f"the weights of {name}")
    average = reader.raw_average(name, step=refreshed.step)
    content = reader.weights_content(run.context.origin, average, state_dict, refreshed.update.record)
    _ship(run, folder, name, content, kind="raw", step=refreshed.step)


def _ship(run: Run, folder: RunFolder, name: str, content: Mapping[str, Any], *, kind: str, step: int) -> None:
    if folder.writes:
        path = folder.checkpoints / f"{name}.pt"
        reader.save(path, content)
        run.context.events.emit(SavedEvent(path=path, kind=kind, step=step))


def save_snapshot(run: Run, folder: RunFolder) -> None:
    """Write the raw weights as they are; remove the oldest of more than `keep`."""
    run.require_finite_averages()
    _require_equal(run)
    with run.eval_weights():
        weights = cloned(run.model.state_dict()) if run.averages_inside else run.model.state_dict()
    content = {
        **run.context.origin,
        "state_dict": weights,
        "num_train": run.plan.num_train,
        "epoch": run.step // run.plan.steps_per_epoch,
        "step": run.step,
        "batchnorm": raw_batchnorm(run),
        "cumulative": None if run.cumulative is None else _running_mean(run.cumulative, run.model),
    }
    settings = run.context.recipe.snapshots
    assert settings is not None, "the plan has snapshot steps only where the recipe has the section"
    kept = [step for step in run.plan.snapshots if step <= run.step]
    old = [] if settings.keep == "all" else kept[: -int(settings.keep)]
    event = SavedEvent(path=folder.snapshot_path(run.step), kind="snapshot", step=run.step)
    _write(run, folder, event, content, outdated=[folder.snapshot_path(step) for step in old])


def _require_equal(run: Run) -> None:
    """Require the same weights, averages and optimizer state in all processes.

    Raises:
        UserError: They do not.
    """
    if run.context.world.size == 1:
        return  # and leave out the stacks of swag and lawa
    averages = [average.state_dict(copy=False) for average in run.averages.values()]
    state = [run.model.state_dict(), averages, run.optimizer.state_dict()["state"]]
    run.context.world.require_equal(run.sharding.replicated(state), what=f"the weights after step {run.step:,}")


def _running_mean(cumulative: WeightAverage, model: nn.Module) -> dict[str, Any]:
    """Return the float64 mean of the weights after every step, under each name of the state_dict."""
    state, tensors = cumulative.state_dict(copy=False)["state"], read(model)
    named = {name: state[owner] for name, owner in tensors.owners.items() if owner in tensors.weights}
    return {"count": cumulative.count, "state": named}


def _key_so_far(run: Run) -> str:
    """Return the key of the training score of the present epoch."""
    return run.context.task.metrics.training.key
