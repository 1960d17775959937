"""The order of events of a run, readable top to bottom.

Each step: a batch, a function of (seed, epoch, position) -> loss -> backward -> optimizer.step at the rate of
that step -> averages and snapshots where the plan says so. Each epoch: validation scores, a row, last.pt. At
the end: averages with recomputed BatchNorm, one file each, and the test scores of every weight set. Averages,
scores and saves only read the raw weights, and draw no random numbers: they never change the trajectory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from swa_cli.averaging.average import update_all
from swa_cli.averaging.model_state import NonFiniteWeightsError, read, require_finite
from swa_cli.checkpoint.run_folder import RunFolder, about, begun_by
from swa_cli.engine import estimate, failures, loggers, state, swap, validate
from swa_cli.engine import resume as resuming
from swa_cli.engine.distributed import ALONE, World, is_restarted, joined, name_of_launch
from swa_cli.engine.plan_text import plan_rows
from swa_cli.engine.run import Run, prepare
from swa_cli.engine.signals import Stopped
from swa_cli.engine.step import Forward, forward_of, train_step
from swa_cli.engine.user_code import admit, make_importable
from swa_cli.errors import EXIT_FAILED, Terminated, UserError
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.report.terminal import Terminal

READ_LOSS_EVERY_S = 0.5  # reading a loss waits for the GPU: only as often as a person reads it


def train(loaded: Loaded, *, terminal: Terminal, dry_run: bool = False) -> dict[str, Any]:
    """Run a recipe from its beginning; as one of several processes, where torchrun has started them.

    Args:
        loaded: The recipe and where its keys stand.
        terminal: Told of everything.
        dry_run: Stop after the plan and one real step, and write nothing.

    Returns:
        What `--json` prints and result.json holds.

    Raises:
        RecipeError: Problems that show once data and classes are known; nothing was run.
        UserError: Missing data or device, or the run failed (exit code 1).
    """
    recipe = loaded.recipe
    root = Path(recipe.output.root)
    with joined(terminal) as world:
        launch = name_of_launch()
        if launch is not None and is_restarted() and not dry_run:
            begun = world.broadcast_from_rank0(lambda: begun_by(launch, root, recipe.title))
            if begun is not None:
                return _resume(begun, [], terminal=terminal, world=world, allow_code=True)
        run = ready(loaded, terminal=terminal, world=world)
        if dry_run:
            terminal.plan(f"{recipe.title} (dry run)", plan_rows(run), warnings=run.plan.warnings)
            return estimate.dry_run(run)
        path = world.broadcast_from_rank0(lambda: RunFolder.create(root, recipe.title).path)
        return begin(run, RunFolder(path, writes=world.is_rank0), recipe_folder=loaded.folder)


def ready(loaded: Loaded, *, terminal: Terminal, world: World = ALONE) -> Run:
    """A run that `begin` can begin; nothing is written.

    Raises:
        RecipeError: Problems that show once data and classes are known.
        UserError: Missing data or device.
    """
    make_importable(loaded)
    with failures.before_a_run():
        run = prepare(loaded, terminal, world=world)
    run.context.scoring_split()
    return run


def begin(run: Run, folder: RunFolder, *, recipe_folder: Path) -> dict[str, Any]:
    """Run a run that is ready to its end, in a folder in which none was begun; see `train`."""
    recipe = run.context.recipe
    with folder.claimed() as log:
        with failures.told(folder):
            state.begin(run, folder, recipe_folder=recipe_folder)
            folder.point_latest(Path(recipe.output.root))
        return _go_on(run, folder, log, title=f"{recipe.title} -> {folder.path}", warnings=run.plan.warnings)


def resume(
    path: Path,
    overrides: Sequence[str],
    *,
    terminal: Terminal,
    allow_code: bool = False,
    extend_to: int | None = None,
) -> dict[str, Any]:
    """Go on from the last save of a run folder, to the bit-identical result (CPU).

    Args:
        path: The run folder; one that has saved nothing yet begins anew.
        overrides: Changes of keys that the result does not depend on.
        terminal: Told of everything.
        allow_code: Import what the recipe in the folder names.
        extend_to: A larger number of epochs.

    Raises:
        RecipeError: A change of the recipe that would change the result.
        UserError: Nothing to go on with, the run is finished, or its recipe names code that was not allowed.
    """
    with joined(terminal) as world:
        return _resume(path, overrides, terminal=terminal, world=world, allow_code=allow_code, extend_to=extend_to)


def _resume(
    path: Path,
    overrides: Sequence[str],
    *,
    terminal: Terminal,
    world: World,
    allow_code: bool,
    extend_to: int | None = None,
) -> dict[str, Any]:
    """`resume` as one of the processes of `world`."""
    folder = RunFolder.open(path, writes=world.is_rank0)
    with folder.claimed() as log:
        if folder.about.is_file():
            about(folder.about)  # a damaged one is told before anything is run
        told = resuming.result_of(folder, extend_to=extend_to) if is_restarted() else None
        if told is not None:  # the end has come between the last words of one process and the end of another
            return told
        point = resuming.point_of(folder, world, terminal)
        loaded = resuming.recipe_of(folder, point, overrides, world=world, terminal=terminal, extend_to=extend_to)
        if extend_to is None and folder.result.is_file():
            raise resuming.finished(folder, point, loaded.recipe)
        source = str(folder.recipe if point is None else point.path)
        admit(loaded, source=source, folder=folder.path, allow_code=allow_code)
        known = {} if point is None else {"recorded": point.content["input"], "begun": point.content["environment"]}
        with failures.before_a_run():
            run = prepare(loaded, terminal, world=world, **known)
        changed = resuming.changes_since(point, run.context.hardware)
        if point is not None:
            state.restore(run, point.content, source=source)
        elif run.initial is not None:
            run.initial.require(about(folder.about).get("init_sha256"))
        with failures.told(folder):
            state.settle(folder, point, load.dump(run.context.recipe), extended=extend_to is not None)
        where = f"after step {run.step:,} of {run.plan.total_steps:,}" if run.step else "from the beginning"
        return _go_on(
            run, folder, log, title=f"{run.context.recipe.title} -> {folder.path}, continued {where}", warnings=changed
        )


def _go_on(run: Run, folder: RunFolder, log: TextIO, *, title: str, warnings: Sequence[str]) -> dict[str, Any]:
    """From where the run stands to its end."""
    try:
        run.context.terminal.attach_log(log)
        run.context.terminal.plan(title, plan_rows(run), warnings=warnings)
        with _heeded(run, folder):
            _train(run, folder)
            if not run.plan.phase.has_workers:
                return validate.finish(run, folder)
        _train_workers(run, folder)
        with _heeded(run, folder):
            return validate.finish(swap.merged(run, folder), folder)
    except (KeyboardInterrupt, Terminated):
        run.context.terminal.warning(f"stopped: {failures.way_on(folder)}")
        raise


@contextmanager
def _heeded(run: Run, folder: RunFolder) -> Iterator[None]:
    """While the block runs, a signal stops the run at its next safe point, with all that it takes to go on saved."""
    with failures.told(folder, ways=lambda: _ways_out(run, folder)), run.interrupt, run.writer:
        try:
            yield
        except Stopped as stopped:
            state.save_resume_point(run, folder)
            run.writer.wait()
            run.context.terminal.warning(f"stopped after step {run.step:,}, which is saved")
            raise stopped.ending from None


def _ways_out(run: Run, folder: RunFolder) -> list[str]:
    """How the averages of a run whose steps are all done are had, though its end has failed."""
    if run.step < run.plan.total_steps and run.stopped is None:
        return []
    if run.plan.phase.has_workers:
        files = sorted(folder.workers.glob("*/checkpoints/last.pt"))
        line = failures.pasted(("swa", "average", *files, "-o", f"{swap.NAME}.pt"), folder)
        return [f"its average is that of its workers: `{line}`"] if files else []
    held = [name for name, average in run.averages.items() if average.count]
    if not held:
        return []
    others = f" (or --weights {', '.join(held[1:])})" if held[1:] else ""
    words = ("swa", "average", folder.path, "--weights", held[0], "-o", f"{held[0]}.pt")
    return [f"its averages are saved: take one out with `{failures.pasted(words, folder)}`{others}"]


def _train_workers(run: Run, folder: RunFolder) -> None:
    """Those of the workers of a SWAP run that this process has, each a run of its own; then wait for the others."""
    for number in swap.assigned(run, folder):
        with swap.begun(run, folder, number) as worker:
            if worker is not None:
                with _heeded(worker.run, worker.folder):
                    _train(worker.run, worker.folder)
    swap.wait(run)


def _train(run: Run, folder: RunFolder) -> None:
    """All epochs that are left."""
    context = run.context
    wanted = "tensorboard" in context.recipe.output.loggers and folder.writes
    with loggers.opened(folder.board, run.history) if wanted else nullcontext() as rows:
        forward = forward_of(run)
        context.terminal.epoch_header(list(run.averages), metrics=context.task.metrics)
        _epochs(run, forward, folder, rows)
    run.interrupt.check()


def _epochs(run: Run, forward: Forward, folder: RunFolder, rows: loggers.Board | None) -> None:
    """Each epoch: its steps, validation, its row, the resume point."""
    terminal = run.context.terminal
    while run.epoch <= run.plan.epochs and run.stopped is None:
        with run.context.memory():
            _train_epoch(run, forward, folder)
        run.optimizer.zero_grad(set_to_none=True)  # scores and saves have a use for the memory
        try:
            require_finite(read(run.model).weights)
        except NonFiniteWeightsError as error:
            raise _failed(f"epoch {run.epoch}: {error}") from error
        if num_steps := run.step - (run.epoch - 1) * run.plan.steps_per_epoch:  # none where the time was over
            with _kept(run, folder):
                row = _training_row(run, num_steps) | validate.validate(run)
            row["seconds"] = round(time.monotonic() - run.clock, 3)
            run.history.append(row)
            run.begin_epoch()
            terminal.epoch_row(row)
            folder.write_metrics(run.history, list(run.averages), run.context.task.metrics)
            if rows is not None:
                rows.add(row)
        run.stopped = run.stopped or _out_of_patience(run)
        if run.stopped is None:
            state.save_if_due(run, folder)
    if run.stopped is not None:
        state.save_resume_point(run, folder)
    run.writer.wait()


@contextmanager
def _kept(run: Run, folder: RunFolder) -> Iterator[None]:
    """Save what the steps have made if the block fails, which only looks at it."""
    try:
        yield
    except Exception:
        if run.context.world.size == 1:  # others would wait for this process, or it for them
            with suppress(OSError):  # the first error tells more
                state.save_resume_point(run, folder)
                run.writer.wait()
        raise


def _train_epoch(run: Run, forward: Forward, folder: RunFolder) -> None:
    """What is left of an epoch's steps."""
    context, plan, phase, epoch = run.context, run.plan, run.plan.phase, run.epoch
    device, start = context.hardware.device, _num_batches_done(run)
    num_batches = plan.steps_per_epoch * phase.grad_accum_steps
    run.model.train()
    if context.split("train").dataset is not None:
        run.writer.wait()  # its loader processes are forked, which is not safe beside another thread
    with (
        context.terminal.progress(f"epoch {epoch}", num_batches, unit=phase.batch_size, done=start) as bar,
        closing(iter(context.training_batches(epoch, start=start))) as batches,
    ):
        next_reading = 0.0
        while run.step < epoch * plan.steps_per_epoch:
            run.interrupt.check()
            if _out_of_time(run):
                run.stopped = "max_time"
                return
            for passed in train_step(run, forward, batches):
                if device.type == "cpu" or time.monotonic() > next_reading:
                    _require_finite(passed.loss, run)
                    next_reading = time.monotonic() + READ_LOSS_EVERY_S
                    bar.advance(loss=float(passed.loss))
                else:
                    bar.advance()
                run.totals += passed.part
            _update(run, folder)
            if run.step % plan.steps_per_epoch:  # at the end of an epoch its row comes first
                state.save_if_due(run, folder)
    _require_finite(run.totals[0], run)


def _update(run: Run, folder: RunFolder) -> None:
    """Count a step of the optimizer; then the averages and snapshots that the plan has after it."""
    done = run.step + 1
    due = [average for name, average in run.averages.items() if done in run.due[name]]
    due += [run.cumulative] if run.cumulative is not None else []
    if due:
        try:
            update_all(due, run.model, step=done)
        except NonFiniteWeightsError as error:
            raise _failed(f"epoch {run.epoch}, step {done}: {error}") from error
    run.step = done
    if done in run.plan.snapshots:
        state.save_snapshot(run, folder)


def _training_row(run: Run, num_steps: int) -> dict[str, Any]:
    """The training half of an epoch's row, of which `num_steps` were done."""
    parts = run.context.world.gathered(run.totals.tolist())
    loss, score = (sum(part) / (num_steps * run.plan.phase.grad_accum_steps) for part in zip(*parts, strict=True))
    rate, key = run.plan.learning_rate(run.step - 1), f"train_{run.context.task.metrics.training.key}"
    return {"epoch": run.epoch, "step": run.step, "lr": rate, "train_loss": loss, key: score}


def _num_batches_done(run: Run) -> int:
    """Of the epoch that is going on."""
    return (run.step - (run.epoch - 1) * run.plan.steps_per_epoch) * run.plan.phase.grad_accum_steps


def _out_of_time(run: Run) -> bool:
    limit = run.context.recipe.train.max_time
    return limit is not None and bool(run.context.world.broadcast_from_rank0(lambda: run.seconds >= limit.seconds))


def _out_of_patience(run: Run) -> str | None:
    """`patience` if the metric of `train.early_stopping` has not had a new best value for as many scorings."""
    stop = run.context.recipe.train.early_stopping
    if stop is None or run.epoch > run.plan.epochs:
        return None
    measured = [row[stop.metric] for row in run.history if row[stop.metric] is not None]
    if not measured:
        return None
    best = min(measured) if run.context.task.metrics.is_lower_better(stop.metric) else max(measured)
    return "patience" if len(measured) - 1 - measured.index(best) >= stop.patience else None


def _require_finite(loss: Tensor, run: Run) -> None:
    if not torch.isfinite(loss):
        raise _failed(f"epoch {run.epoch}, step {run.step + 1}: the loss is {float(loss)}")


def _failed(what: str) -> UserError:
    hint = "start again with a lower optimizer.lr, or with train.clip_norm=1"
    return UserError(what, hint=hint, exit_code=EXIT_FAILED)
