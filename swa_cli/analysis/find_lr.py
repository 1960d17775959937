"""`swa find-lr`: the learning rate range test, on the network, the data and the optimizer of a recipe.

The rate grows by the same factor at each step, and the loss of each batch is recorded (Smith 2017, "Cyclical Learning
Rates for Training Neural Networks", section 3.3). The smoothed loss is s_i = m_i / (1 - b^(i+1)) with
m_i = b m_(i-1) + (1 - b) loss_i. The rate of its steepest descent trains fast; where it has risen to four times its
least value, training diverges. Groups of parameters keep their multiples of the rate. No weights are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from swa_cli import signals, units
from swa_cli.analysis import plot
from swa_cli.analysis.run_output import RunOutput
from swa_cli.engine import train
from swa_cli.engine.run import Run
from swa_cli.engine.step import train_step, wrap_ddp
from swa_cli.errors import EXIT_FAILED, UserError
from swa_cli.recipe.load import Loaded
from swa_cli.report.plots import find_lr as picture
from swa_cli.report.terminal import Terminal

SMOOTHING = 0.9  # b
DIVERGED = 4.0  # times the least smoothed loss
WARM_UP = 0.1  # of the steps, in which the smoothed loss still follows single batches


def find_lr(
    loaded: Loaded,
    *,
    low: float,
    high: float,
    steps: int,
    out: Path | None,
    form: str | None,
    width: float | None,
    words: Sequence[str],
    terminal: Terminal,
) -> dict[str, Any]:
    """Train some steps at growing rates, suggest one, and say where training diverges; no run is made.

    Args:
        loaded: The recipe.
        low: The rate of the first step.
        high: The rate of the last step.
        steps: The number of steps, of which fewer are done where training diverges.
        out: Where to draw the losses, a .png, .svg or .pdf file.
        form: png, svg or pdf, which the name of the file then has to end in.
        width: The width of the picture in inches.
        words: The recipe and its changes, as the next command takes them.
        terminal: Where to print.

    Raises:
        RecipeError: Problems of the recipe.
        UserError: Missing data or device, or training diverges at once.
    """
    if out is not None:
        plot.require_picture(out, form)
    run = train.set_up(loaded, listeners=[RunOutput(terminal)], looks=False)
    rates = [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]
    losses, smoothed = list[float](), list[float]()
    diverges = None
    for rate, loss in zip(rates, _losses(run, rates), strict=False):
        losses.append(loss)
        smoothed = smooth(losses)
        lowest = min(smoothed)
        if not math.isfinite(loss) or smoothed[-1] > lowest + (DIVERGED - 1) * abs(lowest):  # a loss may be negative
            diverges = rate
            break
    if not math.isfinite(losses[-1]):
        losses, smoothed = losses[:-1], smoothed[:-1]
    skipped = max(int(WARM_UP * steps), 3)
    if len(losses) < 2 * skipped:
        assert diverges is not None, "only divergence ends the test early"
        message = f"training diverges in step {rates.index(diverges) + 1} of {steps}, at a rate of {diverges:.2g}"
        raise UserError(message, hint=f"begin lower, with --min {low / 100:.2g}", exit_code=EXIT_FAILED)
    rates = rates[: len(losses)]
    suggested = steepest(rates, smoothed, skipped=skipped)
    if out is not None:
        draw = partial(
            picture.draw,
            rates=rates,
            losses=losses,
            smoothed=smoothed,
            suggested=suggested,
            diverges=diverges,
            title=f"{loaded.recipe.title}: learning rate range test",
            loss_axis=run.context.task.metrics.loss_axis,
        )
        plot.write_picture(out, plot.Picture(draw, {}), width=width, terminal=terminal)
    _tell(suggested, diverges, rates[-1], out, words, terminal=terminal)
    return {
        "command": "find-lr",
        "optimizer": loaded.recipe.optimizer.name,
        "suggested": suggested,
        "diverges": diverges,
        "steps": len(losses),
        "rates": rates,
        "losses": losses,
        "smoothed": smoothed,
        "picture": None if out is None else str(out),
        **run.context.hardware.facts,
    }


def smooth(losses: Sequence[float]) -> list[float]:
    """Return the exponential moving average of losses, with the correction for its start at 0."""
    mean, found = 0.0, []
    for number, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**number))
    return found


def steepest(rates: Sequence[float], smoothed: Sequence[float], *, skipped: int) -> float | None:
    """Return the rate at which the smoothed loss falls steepest in the logarithm of the rate, rounded to two digits.

    The first `skipped` steps are left out, and what follows the least loss. None where the loss never falls.
    """
    end = max(int(np.argmin(smoothed)) + 1, skipped + 2)
    slopes = np.gradient(np.asarray(smoothed), np.log(np.asarray(rates)))[skipped:end]
    if not len(slopes) or slopes.min() >= 0:
        return None
    return float(f"{rates[skipped + int(slopes.argmin())]:.2g}")


def _losses(run: Run, rates: Sequence[float]) -> Iterator[float]:
    """Train at these rates, and yield the loss of each step, before its update."""
    context, forward = run.context, wrap_ddp(run)
    run.plan = replace(run.plan, learning_rate=lambda step: rates[step])
    with context.memory(), context.events.progress("range test", len(rates)) as bar:
        batches: Iterator[Any] = iter(())
        while run.step < len(rates):
            if run.step % run.plan.steps_per_epoch == 0:
                batches = iter(context.training_batches(run.step // run.plan.steps_per_epoch + 1))
            run.model.train()
            passed = [float(result.loss) for result in train_step(run, forward, batches)]
            run.step += 1
            loss = sum(passed) / len(passed)
            bar.advance(loss=loss)
            signals.check()
            yield loss


def _tell(
    suggested: float | None,
    diverges: float | None,
    last: float,
    out: Path | None,
    words: Sequence[str],
    *,
    terminal: Terminal,
) -> None:
    best = "none: the loss falls at no rate" if suggested is None else f"{suggested:g}, where the loss falls steepest"
    rows = [("suggested", best)]
    rows.append(("diverges", f"at {diverges:.2g}" if diverges is not None else f"nowhere up to {last:.2g}"))
    if out is not None:
        rows.append(("picture", str(out)))
    command = ["swa", "find-lr", *words, "--steps", "500"]
    if suggested is not None:
        command = ["swa", "train", *words, f"optimizer.lr={suggested:g}"]
    terminal.facts("learning rate", [*rows, ("next", units.command(command))])
