"""`swa average --search`: the window, decay or half-life of lowest validation loss, found with few BatchNorm passes.

Means of windows, merges that stand for a cosine or 1-sqrt decay, and EMAs over the whole run are compared at equal mean
age of the weights: an EMA of half-life H is tried in the place of a window of length 2 H / ln 2.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from swa_cli.analysis.snapshot_series import SnapshotSeries
from swa_cli.analysis.sources import Mean
from swa_cli.analysis.trials import Refreshed, Trials
from swa_cli.averaging import profiles, soup
from swa_cli.checkpoint.atomic import write_atomic
from swa_cli.report import plots
from swa_cli.report.plots import curves

PASSES = 12  # of BatchNorm, by default
EMA = "ema"
LENGTHS = {"linear": 1.0, "cosine": 1.0, "1-sqrt": 0.75, EMA: 1.0}  # the mean age is 1/2, 1/2, 2/3, 1/2 of the window


def search(trials: Trials, series: SnapshotSeries, *, passes: int) -> Refreshed:
    """Find the average with the lowest validation loss among at most `passes`."""
    best: tuple[float, int, Refreshed] | None = None

    def try_out(shape: str, first: int, last: int) -> float:
        nonlocal best
        mean, row = _average(series, shape, first, last)
        refreshed = trials.refresh(mean)
        loss = float(trials.note(row)[trials.metrics.loss_key])
        if best is None or loss < best[0] or math.isnan(best[0]):
            best = loss, len(trials.rows) - 1, refreshed
        return loss

    soup.search(len(series.sets), try_out, lengths=LENGTHS, budget=passes)
    assert best is not None, "a search tries one average or more"
    _, index, refreshed = best
    trials.compare_to(index)
    return refreshed


def _average(series: SnapshotSeries, shape: str, first: int, last: int) -> tuple[Mean, dict[str, Any]]:
    """Return the average of a shape over a window, and its row; an EMA is over the whole run up to the window's end."""
    half_life = None
    if shape == EMA:
        half_life = max(round(series.length(first, last) * math.log(2) / 2), 1)
        first, mean = 0, series.weighted(profiles.ema(half_life), 0, last)
    elif shape == "linear":
        mean = series.mean(first, last)
    else:
        mean = series.weighted(profiles.decay(shape), first, last)
    start, end = series.bounds(first, last)
    row = {"shape": shape, "half_life": half_life, "start": start, "end": end, "count": mean.count}
    return mean, {**row, "mean_age": mean.mean_age}


def draw_trials(picture: Path, trials: Trials) -> None:
    """Draw what a search has tried."""
    newest, recipe = trials.sources.sets[-1].found.content, trials.sources.context.recipe
    with plots.telling(trials.sources.context.events.warning):
        write_atomic(
            picture,
            lambda file: curves.draw_search(
                file,
                rows=trials.rows,
                metrics=trials.metrics,
                title=f"{recipe.title}: averages of the run, on the validation set",
                steps_per_epoch=newest["num_train"] // (recipe.train.batch_size * recipe.train.grad_accum_steps),
            ),
        )
