"""What an average scores by where it starts: means of the last snapshots of a run, of more and more of them."""

from __future__ import annotations

from typing import Any

from swa_cli.analysis import average, sources
from swa_cli.analysis.average import Trials
from swa_cli.analysis.run_data import OpenRun
from swa_cli.analysis.sources import trail_of
from swa_cli.engine import evaluate
from swa_cli.errors import UserError


def rows(run: OpenRun, *, size: int) -> list[dict[str, Any]]:
    """A row for each start: `start`, `end`, scores on validation images, differences to the best, `chosen`.

    Args:
        run: The run; its snapshots are averaged from the start to the last one, and refreshed.
        size: At most so many starts, evenly taken, the first and the last snapshot among them.

    Raises:
        UserError: The run has fewer than two snapshots, or no validation split.
    """
    paths = sorted(run.folder.snapshots.glob("step-????????.pt"))
    if len(paths) < 2:
        has = f"{len(paths)} snapshot{'' if len(paths) == 1 else 's'}"
        raise UserError(
            f"{run.folder.path}: has {has}, and starts are compared with at least 2",
            hint="train with snapshots.every=1ep",
        )
    context, model = run.opened
    if context.source.val is None:
        raise UserError(
            f"{run.folder.path}: has no validation split to score starts on", hint="train with dataset.val=10%"
        )
    gathered = sources.of_run(paths, context, model)
    trail, trials = trail_of(gathered, option="window"), Trials(gathered)
    last = trail.n - 1
    for first in evenly(trail.n, size):
        finished = trials.finish(average.window_of(trail, first, last))
        start, end = trail.bounds(first, last)
        trials.note({"start": start, "end": end, "count": finished.mix.count})
    key = trials.metrics.loss_key
    best = min(range(len(trials.rows)), key=lambda index: trials.rows[index][key])
    for row, samples in zip(trials.rows, trials.samples, strict=True):
        row |= evaluate.compare(samples, trials.samples[best])
        row["chosen"] = row is trials.rows[best]
    return trials.rows


def evenly(number: int, most: int) -> list[int]:
    """At most `most` of the indices 0 to number - 1, evenly taken, both ends among them."""
    if number <= most:
        return list(range(number))
    return [round(index * (number - 1) / (most - 1)) for index in range(most)]
