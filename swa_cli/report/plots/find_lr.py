"""Draw a learning rate range test: the loss over the rate, what is suggested, and where training diverges."""

from __future__ import annotations

import math
from collections.abc import Sequence

from swa_cli.report import plots


def draw(
    target: plots.Target,
    *,
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggested: float | None,
    diverges: float | None,
    title: str,
    loss_axis: str,
    form: str = "png",
    width: float | None = None,
) -> None:
    """Write the picture; `rates`, `losses` and `smoothed` have an entry for each step."""
    with plots.sheet(target, size=(9.0, 4.5), title=title, form=form, width=width) as figure:
        axes = figure.subplots()
        axes.plot(rates, losses, label="each batch", **{**plots.TRAIN, "linewidth": 0.8, "alpha": 0.6})
        axes.plot(rates, smoothed, label="smoothed", color=plots.VAL["color"], linewidth=1.8)
        if suggested is not None:
            axes.axvline(suggested, color="#009E73", linestyle="--", label=f"suggested: {suggested:g}")
        if diverges is not None:
            axes.axvline(diverges, color="#D55E00", linestyle=":", label=f"diverges: {diverges:.2g}")
        axes.set_xscale("log")
        low, high = min(filter(math.isfinite, (*losses, *smoothed))), max(smoothed[: max(len(smoothed) // 2, 1)])
        margin = 0.15 * (high - low) or 0.1
        axes.set_ylim(low - margin / 2, high + 3 * margin)  # high single batches, and the end, would flatten the rest
        axes.set_xlabel("learning rate")
        axes.set_ylabel(f"training {loss_axis}")
        plots.tidy(axes)
        plots.legend(axes)
