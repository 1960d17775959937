"""Draw the scores of networks by the budget of their training: averages of one run up to several of its points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report import plots
from swa_cli.report.plots import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPLITS: dict[str, dict[str, Any]] = {
    "val": {"linestyle": "-"},
    "test": {"linestyle": ":", "markerfacecolor": "none"},
}


def draw(
    target: plots.Target,
    *,
    series: Sequence[Row],
    raw: Sequence[Row],
    title: str,
    metrics: TaskMetrics = CLASSIFICATION,
    form: str = "png",
) -> None:
    """Write the picture: the loss and the primary metric over the budget, with one standard error.

    Each of `series` has a `name` and `rows`, which have `epochs` and the scores on `val` and `test`, or None. `raw` has
    `epochs` and the validation scores of the raw weights.
    """
    with plots.sheet(target, size=(9.0, 7.0), title=title, form=form) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, metric in ((upper, metrics.loss), (lower, metrics.primary)):
            _draw_metric(axes, series, raw, metric=metric)
        lower.set_xlabel("budget (epochs)")
        plots.legend(upper)


def _draw_metric(axes: Axes, series: Sequence[Row], raw: Sequence[Row], *, metric: Metric) -> None:
    key, scale = metric.key, plots.scale(metric)
    for index, each in enumerate(series):
        look = plots.AVERAGES[index % len(plots.AVERAGES)]
        for split, style in _SPLITS.items():
            rows = [row for row in each["rows"] if row[split] is not None and plots.is_number(row[split][key])]
            if rows:
                errors = [row[split].get(f"{key}_se") for row in rows]
                axes.errorbar(
                    [row["epochs"] for row in rows],
                    [scale * row[split][key] for row in rows],
                    yerr=None if None in errors else [scale * error for error in errors],
                    label=f"{plots.plain(each['name'], longest=40)}, {split}",
                    capsize=3,
                    elinewidth=0.8,
                    **{**look, **style},
                )
    if raw:
        axes.plot(
            [row["epochs"] for row in raw],
            [scale * row[key] for row in raw],
            label="raw weights, val",
            color="#777777",
            linewidth=1.0,
        )
    axes.set_ylabel(plots.axis_title(metric))
    plots.tidy(axes)
