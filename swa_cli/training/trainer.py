"""The order of events of a run, readable top to bottom.

Each step: a batch, a function of (seed, epoch, position) -> loss -> backward -> optimizer.step at the rate of
that step -> averages and snapshots where the plan says so. Each epoch: validation scores, a row, last.pt. At
the end: averages with recomputed BatchNorm, one file each, and the test scores of every weight set. Averages,
scores and saves only read the raw weights, and draw no random numbers: they never change the trajectory.
"""

from __future__ import annotations

import copy
import itertools
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.averaging.average import update_all
from swa_cli.averaging.tensors import NonFiniteWeights, read, require_finite
from swa_cli.errors import EXIT_FAILED, Terminated, UserError
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.report.terminal import Terminal
from swa_cli.training import checkpoint, evaluate, saving, scoring, tasks
from swa_cli.training.bench import import_from, require_trust
from swa_cli.training.hardware import environment
from swa_cli.training.optimizers import set_learning_rate
from swa_cli.training.run_folder import RunFolder
from swa_cli.training.setup import Run, plan_rows, prepare

RESUMABLE_KEYS = ("dataset.root", "dataset.workers", "train.device", "train.threads", "output.save_every")
READ_LOSS_EVERY_S = 0.5  # reading a loss waits for the GPU: only as often as a person reads it


def train(loaded: Loaded, *, terminal: Terminal, dry_run: bool = False) -> dict[str, Any]:
    """Run a recipe from its beginning.

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
    import_from(loaded.folder)
    run = prepare(loaded, terminal)
    recipe = run.bench.recipe
    run.bench.scoring_split()
    if dry_run:
        terminal.plan(f"{recipe.title} (dry run)", plan_rows(run), warnings=run.plan.warnings)
        return _dry_run(run)
    folder = RunFolder.create(Path(recipe.output.root), recipe.title)
    with open(folder.log, "a", buffering=1, encoding="utf-8") as log:
        terminal.attach_log(log)
        terminal.plan(f"{recipe.title} -> {folder.path}", plan_rows(run), warnings=run.plan.warnings)
        folder.write_text("recipe.yaml", load.dump(recipe))
        about = {"python": platform.python_version(), "recipe_folder": str(loaded.folder.resolve())}
        folder.write_json("run.json", environment(run.bench.hardware) | about)
        return _go_on(run, folder, first_epoch=1)


def resume(path: Path, overrides: Sequence[str], *, terminal: Terminal, allow_code: bool = False) -> dict[str, Any]:
    """Go on from the last epoch's end of a run folder, to the bit-identical result (CPU).

    Raises:
        RecipeError: An override that would change the result.
        UserError: No resume point, the run is finished, or its recipe names code that was not allowed.
    """
    folder = RunFolder.open(path)
    point = checkpoint.read(folder.last)
    if point.kind != "resume":
        raise UserError(f"{folder.last}: is no resume point", hint="name a run folder that `swa train` made")
    content = point.content
    recorded = content["environment"]
    values = copy.deepcopy(content["recipe"])
    if values["train"]["threads"] == "auto":
        values["train"]["threads"] = recorded["threads"]  # bits depend on it
    loaded = load.from_values(values, overrides, source=str(folder.last), allowed=RESUMABLE_KEYS)
    if folder.result.is_file():
        raise UserError(f"{folder.path}: is finished", hint=f"see {folder.result}, or start a new run")
    require_trust(loaded.recipe, source=str(folder.last), allow_code=allow_code)
    import_from(folder.path)
    run = prepare(loaded, terminal, recorded=content["input"])
    saving.restore(run, content, source=str(folder.last))
    now = environment(run.bench.hardware)
    changed = [
        f"{key} was {value} and is {now[key]}: the result will not be bit-identical"
        for key, value in recorded.items()
        if now[key] != value
    ]
    with open(folder.log, "a", buffering=1, encoding="utf-8") as log:
        terminal.attach_log(log)
        title = f"{run.bench.recipe.title} -> {folder.path}, continued after epoch {content['epoch']}"
        terminal.plan(title, plan_rows(run), warnings=changed)
        return _go_on(run, folder, first_epoch=content["epoch"] + 1)


def _go_on(run: Run, folder: RunFolder, *, first_epoch: int) -> dict[str, Any]:
    """Epochs from `first_epoch`, then the end."""
    bench, terminal = run.bench, run.bench.terminal
    forward: nn.Module = torch.compile(run.model) if bench.recipe.train.compile else run.model  # type: ignore[assignment]
    terminal.epoch_header(list(run.averages))
    try:
        _epochs(run, forward, folder, first_epoch=first_epoch)
        return scoring.finish(run, folder)
    except (KeyboardInterrupt, Terminated):
        saved = (
            f"continue with `swa train --resume {folder.path}`" if folder.last.is_file() else "nothing was saved yet"
        )
        terminal.warning(f"stopped: {saved}")
        raise
    except UserError as error:
        error.exit_code = EXIT_FAILED  # whatever it was, something was run
        raise


def _epochs(run: Run, forward: nn.Module, folder: RunFolder, *, first_epoch: int) -> None:
    """Each epoch: its steps, validation, its row, the resume point."""
    plan, terminal = run.plan, run.bench.terminal
    for epoch in range(first_epoch, plan.epochs + 1):
        epoch_started = time.monotonic()
        row = _train_epoch(run, forward, folder, epoch=epoch)
        try:
            require_finite(read(run.model).weights)
        except NonFiniteWeights as error:
            raise _failed(f"epoch {epoch}: {error}", folder) from error
        row |= scoring.validate(run, epoch=epoch)
        row["seconds"] = round(time.monotonic() - epoch_started, 3)
        run.history.append(row)
        terminal.epoch_row(row)
        folder.write_metrics(run.history, list(run.averages))
        if epoch in plan.save_epochs:
            saving.save_resume_point(run, folder, epoch=epoch)


def _train_epoch(run: Run, forward: nn.Module, folder: RunFolder, *, epoch: int) -> dict[str, Any]:
    """All steps of an epoch; returns the training half of its row."""
    bench, plan, recipe = run.bench, run.plan, run.bench.recipe
    accumulate, device = recipe.train.accumulate, bench.hardware.device
    num_batches = plan.steps_per_epoch * accumulate
    totals = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    rate = 0.0
    run.model.train()
    with bench.terminal.progress(f"epoch {epoch}", num_batches, unit=recipe.train.batch_size) as bar:
        next_reading = 0.0
        batches = itertools.islice(bench.training_batches(epoch), num_batches)
        for index, (images, labels) in enumerate(batches):
            step, part = (epoch - 1) * plan.steps_per_epoch + index // accumulate, index % accumulate
            if part == 0:
                bench.hardware.seed(recipe.seed, "step", step)
                rate = plan.learning_rate(step)
                set_learning_rate(run.optimizer, rate)
                run.optimizer.zero_grad(set_to_none=True)
            with bench.hardware.autocast():
                logits = forward(images)
            loss = tasks.loss(logits, labels, label_smoothing=recipe.train.label_smoothing)
            run.scaler.scale(loss / accumulate).backward()
            loss = loss.detach()
            totals += torch.stack([loss, tasks.num_correct(logits, labels) / len(labels)])
            if device.type == "cpu" or time.monotonic() > next_reading:
                _require_finite(loss, epoch=epoch, step=step, folder=folder)
                next_reading = time.monotonic() + READ_LOSS_EVERY_S
                bar.advance(loss=float(loss))
            else:
                bar.advance()
            if part == accumulate - 1:
                _update(run, folder, epoch=epoch, done=step + 1)
    _require_finite(totals[0], epoch=epoch, step=epoch * plan.steps_per_epoch - 1, folder=folder)
    loss_mean, accuracy = (totals / num_batches).tolist()
    return {
        "epoch": epoch,
        "step": epoch * plan.steps_per_epoch,
        "lr": rate,
        "train_loss": loss_mean,
        "train_accuracy": accuracy,
    }


def _update(run: Run, folder: RunFolder, *, epoch: int, done: int) -> None:
    """One step of the optimizer; then the averages and snapshots that the plan has after `done` updates."""
    clip_norm = run.bench.recipe.train.clip_norm
    if clip_norm > 0:
        run.scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.model.parameters(), clip_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    due = [average for name, average in run.averages.items() if done in run.due[name]]
    if due:
        try:
            update_all(due, run.model, step=done)
        except NonFiniteWeights as error:
            raise _failed(f"epoch {epoch}, step {done}: {error}", folder) from error
    if done in run.plan.snapshots:
        saving.save_snapshot(run, folder, epoch=epoch, done=done)


def _dry_run(run: Run) -> dict[str, Any]:
    """One real step of training, of the averages, and one scored batch; nothing is written."""
    bench = run.bench
    started = time.monotonic()
    images, labels = next(iter(bench.training_batches(1)))
    bench.hardware.seed(bench.recipe.seed, "step", 0)
    set_learning_rate(run.optimizer, run.plan.learning_rate(0))
    run.model.train()
    with bench.hardware.autocast():
        logits = run.model(images)
    loss = tasks.loss(logits, labels, label_smoothing=bench.recipe.train.label_smoothing)
    loss.backward()
    loss = loss.detach()
    run.optimizer.step()
    update_all(list(run.averages.values()), run.model, step=1)
    evaluate.score(run.model, itertools.islice(bench.plain_batches(bench.scoring_split()), 1), hardware=bench.hardware)
    seconds = time.monotonic() - started
    bench.terminal.note(
        f"one step of {len(labels)} samples: loss {float(loss):.3f}, {seconds:.1f} s; nothing was written"
    )
    return {
        "command": "train",
        "dry_run": True,
        "epochs": run.plan.epochs,
        "steps_per_epoch": run.plan.steps_per_epoch,
        "learning_rates": [
            run.plan.learning_rate(epoch * run.plan.steps_per_epoch) for epoch in range(run.plan.epochs)
        ],
        "averages": {item.name: {"kind": item.kind, "steps": list(item.steps)} for item in run.plan.averages},
        "loss": float(loss),
        "seconds": round(seconds, 3),
        "device": str(bench.hardware.device),
        "precision": bench.hardware.precision,
    }


def _require_finite(loss: Tensor, *, epoch: int, step: int, folder: RunFolder) -> None:
    if not torch.isfinite(loss):
        raise _failed(f"epoch {epoch}, step {step}: the loss is {float(loss)}", folder)


def _failed(what: str, folder: RunFolder) -> UserError:
    kept = f"the last good state is {folder.last}; " if folder.last.is_file() else ""
    return UserError(what, hint=f"{kept}lower optimizer.lr, or set train.clip_norm=1", exit_code=EXIT_FAILED)
