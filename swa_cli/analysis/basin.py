"""Measure whether weight sets of different runs lie in one basin: the loss at their mean against the mean of theirs.

Weights of one run stay in one basin from early in training on, as fine-tunings of one pretrained network mostly do;
two runs from random weights do not (Frankle et al. 2020, Linear mode connectivity). Every weight set has BatchNorm
statistics of its own here, which is the reset of REPAIR (Jordan et al. 2022, arXiv:2211.08403): what is left of the
barrier is not that of collapsed statistics. The losses are of validation images, or where there are none that all runs
held out, of training images.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from swa_cli import units
from swa_cli.analysis import sources
from swa_cli.analysis.passes import Loader
from swa_cli.analysis.trials import Refreshed, Trials
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine.context import Context
from swa_cli.errors import UserError
from swa_cli.metrics.metric import SampleScores, TaskMetrics, standard_error
from swa_cli.report.scores import cell, difference_text, known, largest, with_error

NEEDS_PASS = ("running", "stale")  # BatchNorm statistics that are not measured as those of the mean are
TRAINING_SAMPLES = 10_000  # at most, as each weight set is scored on them


@dataclass(frozen=True)
class Barrier:
    """The loss at a mean of weight sets, and the mean of their losses; `se` is the paired error of the difference."""

    split: str
    samples: int
    loss_at_mean: float
    mean_of_losses: float
    difference: float
    se: float

    @property
    def is_clear(self) -> bool:
        """Whether the mean is worse than its members by two standard errors, or has no finite loss."""
        return not math.isfinite(self.difference) or self.difference > 2 * self.se

    def describe(self, metrics: TaskMetrics) -> str:
        """Return the numbers as a sentence."""
        loss = metrics.loss
        scale = largest(self.loss_at_mean, self.mean_of_losses, self.se)
        found = with_error(difference_text(loss, self.difference, scale=scale), cell(loss, known(self.se), scale=scale))
        return (
            f"{self.split} {loss.name} {cell(loss, self.loss_at_mean, scale=scale)} at the mean of the weights,"
            f" {cell(loss, self.mean_of_losses, scale=scale)} on average over them: {found}"
        )


def check(trials: Trials, refreshed: Refreshed, *, scores: SampleScores | None = None) -> dict[str, Any] | None:
    """Measure the barrier of a refreshed mean of weight sets, and warn where it is clear.

    Args:
        trials: The sources, and their validation scores as far as they are known.
        refreshed: The mean.
        scores: Its validation scores, if they are known.

    Returns:
        The values of the `Barrier`; None where there is nothing to measure: one weight set, those of one run, or a
        mean whose statistics are left stale.
    """
    members, context = [source for source, _ in refreshed.mean.shares], trials.sources.context
    if refreshed.update is None or len(members) < 2 or sources.are_of_one_run(members):
        return None
    split, loader = _images(trials.sources)
    key = trials.metrics.loss_key
    if scores is None or split != "val":
        trials.hold(refreshed)
        scores = trials.score(name="the mean", loader=loader)
    loss_at_mean, difference = _loss(scores, key)
    mean_of_losses = 0.0
    for source, share in refreshed.mean.shares:
        loss, each = _loss(_scores(source, trials, split, loader), key)
        mean_of_losses, difference = mean_of_losses + share * loss, difference - share * each
    barrier = Barrier(
        split=split,
        samples=len(difference),
        loss_at_mean=loss_at_mean,
        mean_of_losses=mean_of_losses,
        difference=loss_at_mean - mean_of_losses,
        se=standard_error(difference),
    )
    _tell(barrier, context, trials.metrics, members)
    return asdict(barrier)


def _images(gathered: sources.Sources) -> tuple[str, Loader]:
    context = gathered.context
    try:
        sources.require_held_out(gathered)
    except UserError:
        number = min(TRAINING_SAMPLES, len(context.split("train")))
        return "train", context.fixed_batches("train", samples=number)
    return "val", context.plain_batches("val")


def _scores(source: sources.Source, trials: Trials, split: str, loader: Loader) -> SampleScores:
    """Score a weight set with statistics that are measured as those of the mean are."""
    if split == "val" and source.batchnorm != "running" and source.file in trials.alone:
        return trials.alone[source.file]
    trials.refresh(trials.sources.mean("uniform", [source], [1.0]), skip=source.batchnorm not in NEEDS_PASS)
    return trials.score(name=source.file, loader=loader)


def _loss(scores: SampleScores, key: str) -> tuple[float, Tensor]:
    """Return the loss, NaN where no sample defines it, and its values per sample."""
    found = scores.metric(key)
    assert found.each is not None, "the loss of every task has a value per sample"
    return math.nan if found.value is None else found.value, found.each


def _tell(barrier: Barrier, context: Context, metrics: TaskMetrics, members: list[sources.Source]) -> None:
    words = barrier.describe(metrics)
    if not barrier.is_clear:
        context.events.note(f"one basin: {words}")
        return
    run, ends = RunFolder.containing(members[0].found.path), [members[0].file, members[-1].file]
    look = ""
    if run is not None:
        look = f"; see the line: {units.command(('swa', 'plot', run.display_path, 'path', '--between', *ends))}"
    context.events.warning(f"these weight sets do not lie in one basin: {words}{look}")
