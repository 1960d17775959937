"""Run a network over the data of a checkpoint: refresh BatchNorm, score, predict.

Each pass shows its progress, and names the batch size to halve where memory runs out. Legend: N samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from swa_cli.averaging.batchnorm import BatchNormUpdate
from swa_cli.data import batches
from swa_cli.data.augment import Augment
from swa_cli.data.batches import Batches
from swa_cli.engine import evaluate, failures
from swa_cli.engine.context import Context
from swa_cli.engine.events import Bar
from swa_cli.metrics.tasks import SampleScores, Task

Loader = Batches | list[Any]  # inputs and targets, batch by batch


def refresh(model: nn.Module, *, context: Context, name: str, bar: Bar | None = None) -> BatchNormUpdate:
    """Recompute the BatchNorm statistics of a network as its recipe says; `bar` is that of a longer pass."""
    with failures.memory("train.batch_size", context.recipe.train.batch_size):
        return context.refresh_batchnorm(model, name=name, bar=bar)


def score(
    model: nn.Module,
    loader: Loader,
    *,
    context: Context,
    name: str = "",
    bar: Bar | None = None,
    task: Task | None = None,
) -> SampleScores:
    """Score every sample of some batches.

    Args:
        model: The network, with the weights to score.
        loader: Inputs and targets, on the device.
        context: Hardware, task and terminal.
        name: Shown beside a progress bar of this pass alone.
        bar: The bar of a longer pass, in place of an own one.
        task: The task to score; by default with the test-time augmentation of final scores.
    """
    with _pass(context, loader, name=name, bar=bar) as shown:
        return evaluate.score(
            model,
            loader,
            task=task or context.final_task,
            hardware=context.eval_hardware,
            advance=shown.advance,
        )


def predict(
    model: nn.Module, loader: Loader, *, context: Context, name: str = "", bar: Bar | None = None
) -> tuple[Tensor, Any]:
    """Return the predictions (N, ...) of some batches and their targets; the arguments are those of `score`."""
    with _pass(context, loader, name=name, bar=bar) as shown:
        return evaluate.predict(
            model, loader, task=context.final_task, hardware=context.eval_hardware, advance=shown.advance
        )


def fixed_batches(context: Context, split: str, *, samples: int | None) -> Loader:
    """Return the first samples of a fixed shuffle of a split, without augmentation; None for all.

    Raises:
        UserError: The dataset has no such split.
    """
    found = batches.statistics_batches(
        context.split(split),
        seed=context.recipe.seed,
        batch_size=context.recipe.eval.batch_size,
        augment=Augment(),
        samples=samples,
        mean=context.source.mean,
        std=context.source.std,
        device=context.hardware.device,
        workers=context.recipe.dataset.workers,
        error=failures.run_error,
    )
    return found if samples is None else list(found)  # a few stay in memory


@contextmanager
def _pass(context: Context, loader: Loader, *, name: str, bar: Bar | None) -> Iterator[Bar]:
    with failures.memory("eval.batch_size", context.recipe.eval.batch_size):
        if bar is not None:
            yield bar
            return
        with context.events.progress(f"scoring {name}", len(loader)) as own:
            yield own
