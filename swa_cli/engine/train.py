"""Train: the order of events of a run, readable top to bottom: set-up, loop, end.

Each step: a batch, a function of (seed, epoch, position) -> loss -> backward -> optimizer.step at the rate of that step
-> averages and snapshots where the plan says so. Each epoch: validation scores, a row, last.pt. At the end: averages
with recomputed BatchNorm, one file each, and the test scores of every weight set. Averages, scores and saves only read
the raw weights, and draw no random numbers: they never change the trajectory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from swa_cli.averaging.average import update_all
from swa_cli.averaging.model_state import NonFiniteWeightsError
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.checkpoint.schema import ENDED_BY
from swa_cli.engine import estimate, failures, keep, state, swap, validate
from swa_cli.engine.distributed import ALONE, World
from swa_cli.engine.events import EndEvent, EpochEvent, Events, StepEvent
from swa_cli.engine.hardware import HostCopy
from swa_cli.engine.plan_text import plan_event
from swa_cli.engine.pretrained import Purpose
from swa_cli.engine.run import Run, build_run, end_freezing, unfreeze_if_due
from swa_cli.engine.step import Forward, build_forward, train_step
from swa_cli.engine.user_code import make_importable
from swa_cli.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED, Terminated
from swa_cli.recipe.load import Loaded

READ_EVERY_S = 0.5  # as often as a person reads a loss: an accelerator runs behind the host, which would wait for it


# Set-up.


def train(
    loaded: Loaded, *, listeners: Sequence[object] = (), world: World = ALONE, dry_run: bool = False
) -> dict[str, Any]:
    """Train by a recipe from the beginning to the end, and return the content of result.json.

    Args:
        loaded: The recipe and where its keys stand.
        listeners: They hear the events of the run, see `events.Listener`.
        world: The processes that train together.
        dry_run: Stop after the plan and one real step, and make no run folder.

    Raises:
        RecipeError: Problems that show once data and classes are known; nothing was run.
        UserError: Missing data or device, or the run failed (exit code 1).
    """
    run = set_up(loaded, listeners=listeners, world=world, purpose="dry run" if dry_run else "train")
    recipe = run.context.recipe
    if dry_run:
        run.context.events.emit(plan_event(run, title=f"{recipe.title} (dry run)", warnings=run.plan.warnings))
        with failures.before_a_run():
            return estimate.dry_run(run)
    root = Path(recipe.output.root)
    path = world.broadcast_from_rank0(lambda: RunFolder.create(root, recipe.title).path)
    return start(run, RunFolder(path, writes=world.is_rank0), recipe_folder=loaded.folder)


def set_up(
    loaded: Loaded,
    *,
    listeners: Sequence[object] = (),
    world: World = ALONE,
    purpose: Purpose = "plan",
    looks: bool = True,
) -> Run:
    """Build a run, which `start` can start if its purpose is to train; it has no folder yet.

    Args:
        loaded: The recipe.
        listeners: Of the events of the run.
        world: The processes of the run.
        purpose: What the run is built for.
        looks: Whether to look at the photos that a run reads late, see `Context.require_readable`.

    Raises:
        RecipeError: Problems that show once data and classes are known.
        UserError: Missing data or device.
    """
    make_importable(loaded)
    with failures.before_a_run():
        run = build_run(loaded, Events(listeners), world=world, purpose=purpose)
        if looks:
            run.context.require_readable()
    run.context.scoring_split()
    return run


def start(run: Run, folder: RunFolder, *, recipe_folder: Path) -> dict[str, Any]:
    """Train a run from its first step to its end, in a new folder; see `train`."""
    recipe = run.context.recipe
    run.context.fingerprints()  # of the data as they are now, not at the first save
    with folder.lock() as log:
        with failures.explain(folder):
            state.write_first_files(run, folder, recipe_folder=recipe_folder)
            folder.point_latest(Path(recipe.output.root))
        title = f"{recipe.title} -> {folder.path}"
        return run_to_end(run, folder, log, title=title, warnings=run.plan.warnings)


def run_to_end(run: Run, folder: RunFolder, log: TextIO, *, title: str, warnings: Sequence[str]) -> dict[str, Any]:
    """Do the steps that are left, then score and ship the weights."""
    events, exit_code = run.context.events, EXIT_FAILED
    try:
        events.emit(plan_event(run, title=title, warnings=warnings, folder=folder.path, log=log))
        train_epochs(run, folder)
        common = run  # what is resumed: of a SWAP run the state before its workers, whose mean is made again
        if run.plan.worker is not None:
            run = swap.train_workers(run, folder, train_epochs=train_epochs)
        end_freezing(run)  # where the run ended before, or the workers of a SWAP run have done it
        with state.saved_on_signals(common, folder), run.eval_weights():
            result = validate.finish(run, folder)
        exit_code = EXIT_DONE
        return result
    except (KeyboardInterrupt, Terminated) as stop:
        exit_code = EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED
        events.warning(f"stopped: {failures.how_to_continue(folder)}")
        raise
    finally:
        events.emit(EndEvent(exit_code=exit_code))


# Loop.


def train_epochs(run: Run, folder: RunFolder) -> None:
    """Train the epochs that are left: the steps of each, validation, its row, the resume point."""
    with state.saved_on_signals(run, folder):
        forward = None
        # A run that was stopped in the validation after train.max_time still lacks the row of its last epoch.
        while run.epoch <= run.plan.epochs and (run.stopped is None or _num_steps_of_epoch(run) > 0):
            if unfreeze_if_due(run):
                forward = None  # the processes exchange the gradients of those parameters that trained when it was made
            forward = build_forward(run) if forward is None else forward
            with run.context.memory():
                _train_epoch(run, forward, folder)
            run.optimizer.zero_grad(set_to_none=True)  # validation and saves need the memory
            run.require_finite_weights()
            if num_steps := _num_steps_of_epoch(run):  # 0 where the time was over
                _end_epoch(run, folder, num_steps=num_steps)
            run.stopped = run.stopped or _out_of_patience(run)
            if run.stopped is None:
                state.save_if_due(run, folder)
        if run.stopped is not None:
            _tell_early_end(run, key=ENDED_BY[run.stopped])
            state.save_resume_point(run, folder)
        state.wait_for_files(run)
        run.interrupt.check()


def _train_epoch(run: Run, forward: Forward, folder: RunFolder) -> None:
    """Do the steps of an epoch that are left."""
    context, plan, phase, epoch = run.context, run.plan, run.plan.phase, run.epoch
    start = _num_steps_of_epoch(run) * phase.grad_accum_steps
    num_batches = plan.steps_per_epoch * phase.grad_accum_steps
    run.model.train()
    _wait_before_forking(run)
    with (
        context.events.progress(f"epoch {epoch}", num_batches, unit=phase.batch_size, done=start) as bar,
        closing(iter(context.training_batches(epoch, start=start))) as batches,
    ):
        readings = _Readings(run)
        while run.step < epoch * plan.steps_per_epoch:
            run.interrupt.check()
            if _out_of_time(run):
                run.stopped = "max_time"
                return
            loss = None
            for result in train_step(run, forward, batches):
                run.totals += result.part
                if (found := readings.take(result.loss)) is None:
                    bar.advance()
                else:
                    loss = found
                    bar.advance(loss=loss)
            _count_step(run, folder)
            rate = plan.learning_rate(run.step - 1)
            context.events.emit(StepEvent(step=run.step, epoch=epoch, lr=rate, loss=loss))
            if run.step % plan.steps_per_epoch:  # at the end of an epoch its row comes first
                state.save_if_due(run, folder)
    run.require_finite_loss(float(run.totals[0]))
    run.require_finite_averages()


class _Readings:
    """What the host reads of the device between steps: the loss, and whether it was finite in all steps so far."""

    def __init__(self, run: Run) -> None:
        self._run, self._is_cpu = run, run.context.hardware.device.type == "cpu"
        self._copy: HostCopy | None = None
        self._next = 0.0

    def take(self, loss: Tensor) -> float | None:
        """Return the loss of this batch on a CPU, else one of the last ones as often as is worth it; None in between.

        Raises:
            UserError: It is not finite.
        """
        if self._is_cpu:
            return self._run.require_finite_loss(float(loss))
        found = None
        if self._copy is not None and (numbers := self._copy.read()) is not None:
            found, total = numbers
            self._copy = None
            self._run.require_finite_loss(found if math.isfinite(total) else total)
        if self._copy is None and time.monotonic() > self._next:
            self._copy = HostCopy(torch.stack([loss.detach().float(), self._run.totals[0].float()]))
            self._next = time.monotonic() + READ_EVERY_S
        return found


def _count_step(run: Run, folder: RunFolder) -> None:
    """Count an optimizer update; take the averages and the snapshot that the plan has after it."""
    done = run.step + 1
    due = [average for name, average in run.averages.items() if done in run.due[name]]
    due += [run.cumulative] if run.cumulative is not None else []
    if due:
        try:
            with run.eval_weights():
                update_all(due, run.model, step=done, finite=run.finite)
        except NonFiniteWeightsError as error:
            raise failures.diverged(f"epoch {run.epoch}, step {done}: {error}") from error
    run.step = done
    if done in run.plan.snapshots:
        state.save_snapshot(run, folder)


def _end_epoch(run: Run, folder: RunFolder, *, num_steps: int) -> None:
    """Validate, and add the row of an epoch in which `num_steps` were done."""
    _wait_before_forking(run)
    parts = run.context.world.gathered(run.totals.tolist())
    loss, score = (sum(part) / (num_steps * run.plan.phase.grad_accum_steps) for part in zip(*parts, strict=True))
    row = {
        "epoch": run.epoch,
        "step": run.step,
        "lr": run.plan.learning_rate(run.step - 1),
        "train_loss": loss,
        f"train_{run.context.task.metrics.training.key}": score,
    }
    try:
        with run.eval_weights():
            row |= validate.validate(run)
    except Exception:
        if run.context.world.size == 1:  # others would wait for this process, or it for them
            with suppress(OSError):  # the first error tells more
                state.save_resume_point(run, folder)
                state.wait_for_files(run)
        raise
    row["seconds"] = round(time.monotonic() - run.clock, 3)
    row = run.context.world.gathered(row)[0]  # processes that all score a whole split may differ in the last bits
    run.history.append(row)
    try:
        with run.eval_weights():
            validate.keep_best(run)
    except BaseException:  # a signal: a resumed run validates, and keeps, once more
        run.history.pop()
        raise
    run.totals.zero_()
    run.clock = time.monotonic()
    run.context.events.emit(EpochEvent(row=row, history=run.history))


def _wait_before_forking(run: Run) -> None:
    """Wait for the thread that writes files, beside which forking loader processes is not safe."""
    source = run.context.source
    if any(split is not None and split.dataset is not None for split in (source.train, source.val, source.test)):
        state.wait_for_files(run)


def _num_steps_of_epoch(run: Run) -> int:
    """Return how many steps of the present epoch are done."""
    return run.step - (run.epoch - 1) * run.plan.steps_per_epoch


# Reasons to end early.


def _out_of_time(run: Run) -> bool:
    limit = run.context.recipe.train.max_time
    return limit is not None and bool(run.context.world.broadcast_from_rank0(lambda: run.seconds >= limit.seconds))


def _out_of_patience(run: Run) -> str | None:
    """Return `patience` if the metric of `train.early_stopping` has had no new best value for as many epochs."""
    stop = run.context.recipe.train.early_stopping
    if stop is None or run.epoch > run.plan.epochs:
        return None
    measured = [row for row in run.history if row[stop.metric] is not None]
    best = keep.best_row(measured, stop.metric, run.context.task.metrics)
    return "patience" if best is not None and len(measured) - 1 - best >= stop.patience else None


def _tell_early_end(run: Run, *, key: str) -> None:
    """Say which key has ended the run, and where."""
    if run.step:
        where = f"after step {run.step:,} of {run.plan.total_steps:,}, in epoch {len(run.history)} of {run.plan.epochs}"
        run.context.events.note(f"ended by {key} {where}")
    else:
        run.context.events.warning(
            f"{key} had passed before the first step: nothing was trained, and the weights are those of the start;"
            " set a longer time"
        )
