"""`swa average --search`: the window of a run whose mean has the lowest validation loss, found with few trials."""

from __future__ import annotations

from swa_cli.analysis.snapshot_series import SnapshotSeries
from swa_cli.analysis.trials import Refreshed, Trials
from swa_cli.averaging import soup

MAX_PASSES = 8  # of BatchNorm in a search


def search(trials: Trials, series: SnapshotSeries) -> Refreshed:
    """Find the window whose mean has the lowest validation loss, within `MAX_PASSES` passes."""
    made: dict[tuple[int, int], tuple[float, Refreshed]] = {}  # the best one alone

    def try_out(first: int, last: int) -> float:
        refreshed, row = trials.note_window(series, first, last)
        loss = float(row[trials.metrics.loss_key])
        if all(loss < other for other, _ in made.values()):
            made.clear()
            made[first, last] = loss, refreshed
        return loss

    chosen = soup.search(len(series.sets), try_out, budget=MAX_PASSES)
    bounds = series.bounds(*chosen)
    trials.compare_to(next(i for i, row in enumerate(trials.rows) if (row["start"], row["end"]) == bounds))
    return made[chosen][1]
